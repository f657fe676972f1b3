"""Other libraries' optimizers for ``gradstep bench``, where they have a rule that we have too.

Each peer is a table: a case's name -> the ways to run it, with the hyperparameters of
:data:`gradstep.lab.bench_cases.CASES`. That both are the same rule is not taken on trust:
:func:`compared` takes ten steps with each, on the same gradients. A peer is imported only when it
is asked for.

Classes that a peer merely takes over from torch.optim have no row.
"""

from __future__ import annotations

import importlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import numpy
import torch
from torch import Tensor

from gradstep.lab.bench_cases import WRITES, Case
from gradstep.lab.bench_memory import temporary_bytes
from gradstep.lab.errors import BadInput

#: How far a peer's weights may end from ours after ten steps, as a share of the largest movement.
TOLERANCE = 1e-3

_STEPS = 10
_SHAPES = [(8, 6), (5,), (4, 3, 2, 2)]


class Stepper(Protocol):
    """An optimizer with weights of its own."""

    def give(self, gradients: Sequence[Tensor]) -> None:
        """The gradients of the steps to come."""

    def step(self) -> object:
        """One step, done when this returns."""

    def weights(self) -> list[Tensor]:
        """The weights as they now are."""

    def temporary(self) -> int:
        """Bytes of temporary memory in a step that is not the first."""


#: ``make(weights, gradients)`` makes a stepper, with weights of its own that begin as those.
Make = Callable[[Sequence[Tensor], Sequence[Tensor]], Stepper]


class TorchStepper:
    """Any torch.optim.Optimizer.

    Args:
        make: of a list of parameters.
        weights, gradients: to begin with.
    """

    def __init__(
        self,
        make: Callable[[list[Any]], Any],
        weights: Sequence[Tensor],
        gradients: Sequence[Tensor],
    ) -> None:
        self._parameters = [torch.nn.Parameter(w.clone()) for w in weights]
        self.give(gradients)
        with warnings.catch_warnings():  # that a mode will go away is no news for a bench
            warnings.simplefilter("ignore")
            self.step = make(self._parameters).step

    def give(self, gradients: Sequence[Tensor]) -> None:
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient

    def weights(self) -> list[Tensor]:
        return [p.detach() for p in self._parameters]

    def temporary(self) -> int:
        return temporary_bytes(self.step)


class OptaxStepper:
    """optax as it is usually run: update and application in one jitted function.

    The old weights and states are donated, so that XLA may write the new ones in their place.
    """

    def __init__(
        self, transformation: Any, weights: Sequence[Tensor], gradients: Sequence[Tensor]
    ) -> None:
        # By name, since who checks the types of this package may have neither.
        jax = importlib.import_module("jax")
        optax = importlib.import_module("optax")
        if weights[0].dtype == torch.float64:
            jax.config.update("jax_enable_x64", True)

        def step(weights: Any, state: Any, gradients: Any) -> Any:
            changes, state = transformation.update(gradients, state, weights)
            return optax.apply_updates(weights, changes), state

        self._jax = jax
        self._step = jax.jit(step, donate_argnums=(0, 1))
        self._weights = self._arrays(weights)
        # A copy, since some states begin as one and the same array, which can be donated only once.
        self._state = jax.tree.map(jax.numpy.array, transformation.init(self._weights))
        self.give(gradients)

    def _arrays(self, tensors: Sequence[Tensor]) -> list[Any]:
        array = self._jax.numpy.array
        wide = [t if t.dtype == torch.float64 else t.float() for t in tensors]  # numpy has no bf16
        name = str(tensors[0].dtype).removeprefix("torch.")
        return [array(t.numpy(), dtype=name) for t in wide]

    def give(self, gradients: Sequence[Tensor]) -> None:
        self._gradients = self._arrays(gradients)

    def step(self) -> object:
        self._weights, self._state = self._step(self._weights, self._state, self._gradients)
        return self._jax.block_until_ready((self._weights, self._state))

    def weights(self) -> list[Tensor]:
        # Copied, since the next step may write where these lie.
        return [torch.tensor(numpy.asarray(w)) for w in self._weights]

    def temporary(self) -> int:
        """What XLA plans for: its scratch memory, and results that take no donated place."""
        lowered = self._step.lower(self._weights, self._state, self._gradients)
        plan = lowered.compile().memory_analysis()
        fresh = plan.output_size_in_bytes - plan.alias_size_in_bytes
        return int(plan.temp_size_in_bytes + fresh)


@dataclass(frozen=True)
class Peer:
    """A library that may be installed.

    Attributes:
        name: on the command line.
        module: what is imported.
        packages: what pip installs.
        table: of the module: case -> mode -> how to make it.
    """

    name: str
    module: str
    packages: tuple[str, ...]
    table: Callable[[Any], dict[str, dict[str, Make]]]

    def versions(self) -> str:
        """The peer with the versions that are installed."""
        found = []
        for package in self.packages:
            try:
                found.append(f"{package} {version(package)}")
            except PackageNotFoundError:
                continue
        return ", ".join(found) or self.name


def _loop_and_foreach(kind: Callable[..., Any], **options: Any) -> dict[str, Make]:
    def mode(foreach: bool) -> Make:
        return lambda w, g: TorchStepper(lambda p: kind(p, foreach=foreach, **options), w, g)

    return {"loop": mode(False), "foreach": mode(True)}


def _optax(optax: Any) -> dict[str, dict[str, Make]]:
    def jit(transformation: Any) -> dict[str, Make]:
        return {"jit": lambda w, g: OptaxStepper(transformation, w, g)}

    rmsprop = {"decay": 0.99, "eps": 1e-8, "eps_in_sqrt": False}
    return {
        "sgd": jit(optax.sgd(1e-3)),
        "momentum": jit(optax.sgd(1e-3, momentum=0.9)),
        "nesterov": jit(optax.sgd(1e-3, momentum=0.9, nesterov=True)),
        "adam": jit(optax.adam(1e-3)),
        "adam-amsgrad": jit(optax.amsgrad(1e-3)),
        "adamw": jit(optax.adamw(1e-3, weight_decay=1e-2)),
        "adagrad": jit(optax.adagrad(1e-2, initial_accumulator_value=0.0, eps=1e-10)),
        "rmsprop": jit(optax.rmsprop(1e-3, **rmsprop)),
        "rmsprop-momentum": jit(optax.rmsprop(1e-3, momentum=0.9, **rmsprop)),
        "rmsprop-centered-momentum": jit(
            optax.rmsprop(1e-3, momentum=0.9, centered=True, **rmsprop)
        ),
        "nadam": jit(optax.nadam(2e-3)),
        "radam": jit(optax.radam(1e-3)),
        "adamax": jit(optax.adamax(2e-3)),
        "adadelta": jit(optax.adadelta(1.0)),
        "rprop": jit(optax.rprop(1e-2)),
        "lion": jit(optax.lion(1e-4, weight_decay=0.0)),
    }


def _pytorch_optimizer(library: Any) -> dict[str, dict[str, Make]]:
    return {
        "sgd": _loop_and_foreach(library.SGDW, lr=1e-3),
        "momentum": _loop_and_foreach(library.SGDW, lr=1e-3, momentum=0.9),
        "nesterov": _loop_and_foreach(library.SGDW, lr=1e-3, momentum=0.9, nesterov=True),
        "radam": _loop_and_foreach(library.RAdam, lr=1e-3, degenerated_to_sgd=True),
        "adamax": _loop_and_foreach(library.AdaMax, lr=2e-3),
        "adadelta": _loop_and_foreach(library.AdaDelta, lr=1.0),
        "lion": _loop_and_foreach(library.Lion, lr=1e-4),
    }


def _timm(library: Any) -> dict[str, dict[str, Make]]:
    def loop(kind: Callable[..., Any], **options: Any) -> dict[str, Make]:
        return {"loop": lambda w, g: TorchStepper(lambda p: kind(p, **options), w, g)}

    return {
        "sgd": _loop_and_foreach(library.SGDW, lr=1e-3),
        "momentum": _loop_and_foreach(library.SGDW, lr=1e-3, momentum=0.9),
        "nesterov": _loop_and_foreach(library.SGDW, lr=1e-3, momentum=0.9, nesterov=True),
        "adamw": _loop_and_foreach(library.AdamWLegacy, lr=1e-3),
        "nadam": loop(library.NAdamLegacy, lr=2e-3),
        "lion": _loop_and_foreach(library.Lion, lr=1e-4),
    }


def _optimi(library: Any) -> dict[str, dict[str, Make]]:
    adam = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8}
    return {
        "sgd": _loop_and_foreach(library.SGD, lr=1e-3),
        "momentum": _loop_and_foreach(library.SGD, lr=1e-3, momentum=0.9),
        "adam": _loop_and_foreach(library.Adam, **adam),
        "adamw": _loop_and_foreach(library.AdamW, weight_decay=1e-2, **adam),
        "radam": _loop_and_foreach(library.RAdam, **adam),
        "lion": _loop_and_foreach(library.Lion, lr=1e-4),
    }


PEERS = {
    peer.name: peer
    for peer in [
        Peer("optax", "optax", ("optax", "jax"), _optax),
        Peer("pytorch_optimizer", "pytorch_optimizer", ("pytorch_optimizer",), _pytorch_optimizer),
        Peer("timm", "timm.optim", ("timm", "torchvision"), _timm),
        Peer("optimi", "optimi", ("torch-optimi",), _optimi),
    ]
}


class Rivals:
    """The peers that a run asks for, imported.

    Args:
        names: of :data:`PEERS`.

    Raises:
        BadInput: one is not installed or cannot be imported; says what to install.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        if "optax" in names:
            # XLA takes as many threads as this says; else one for each core, whatever torch has.
            os.environ.setdefault("NPROC", str(torch.get_num_threads()))
        self._tables = {}
        for name in names:
            self._tables[name] = PEERS[name].table(_imported(PEERS[name]))
        self._differences: dict[tuple[str, str], str] = {}

    def versions(self) -> list[str]:
        """What is timed: each peer with its version."""
        return [PEERS[name].versions() for name in self.names]

    def makers(self, case: Case) -> tuple[dict[str, Make], dict[str, str]]:
        """What to time for a case, as ``"peer mode"`` -> how to make it; and what not, and why."""
        makers: dict[str, Make] = {}
        reasons: dict[str, str] = {}
        for name, table in self._tables.items():
            for mode, make in table.get(case.name, {}).items():
                contender = f"{name} {mode}"
                key = (case.name, contender)
                if key not in self._differences:
                    self._differences[key] = _reason(case, make)
                if self._differences[key]:
                    reasons[contender] = self._differences[key]
                else:
                    makers[contender] = make
        return makers, reasons


def _imported(peer: Peer) -> Any:
    install = f"pip install {' '.join(peer.packages)}"
    try:
        return importlib.import_module(peer.module)
    except ModuleNotFoundError as error:
        itself = error.name in (peer.module, peer.name)
        missing = peer.name if itself else f"{peer.name} needs {error.name}, which"
        raise BadInput(f"{missing} is not installed: {install}") from error
    except Exception as error:  # a library built for another torch fails in its own way
        said = f"{type(error).__name__}: {_first_line(error)}"
        raise BadInput(f"{peer.name} cannot be imported ({said}): {install}") from error


def _reason(case: Case, make: Make) -> str:
    """Why a peer's rule is not timed; empty if it is ours."""
    try:
        away, wrote = compared(case, make)
    except Exception as error:  # another version of the library, with other arguments
        return f"raises {type(error).__name__}: {_first_line(error)}"
    if wrote:
        return WRITES
    if away <= TOLERANCE:
        return ""
    return (
        f"another rule: after {_STEPS} steps on the same gradients it is {away:.0%} of the "
        "largest movement away"
    )


def compared(case: Case, make: Make) -> tuple[float, bool]:
    """Ten steps of a peer's and ten of ours on the same gradients.

    Returns:
        the largest distance between two weights, as a share of the largest movement of ours; and
        whether the peer wrote into the gradients.
    """
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in _SHAPES]
    given = [[torch.randn(w.shape, generator=generator) for w in start] for _ in range(_STEPS)]
    ours = TorchStepper(lambda p: case.ours(p, **case.options), start, given[0])
    theirs = make(start, given[0])
    wrote = False
    for gradients in given:
        copies = [g.clone() for g in gradients]
        for stepper, own in ((ours, gradients), (theirs, copies)):
            stepper.give(own)
            stepper.step()
        wrote = wrote or not torch.equal(_flat(copies), _flat(gradients))
    begun, a, b = (_flat(tensors) for tensors in (start, ours.weights(), theirs.weights()))
    return float((a - b).abs().max() / (a - begun).abs().max()), wrote


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.double().flatten() for t in tensors])
