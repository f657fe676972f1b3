"""Other libraries' optimizers for ``gradstep bench``, where they have a rule that we have too.

That both have the same rule is not taken on trust: :func:`compared` takes ten steps with each, on
the same gradients. A peer is imported only when it is asked for.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from gradstep.lab.bench_case import WRITES, Case
from gradstep.lab.bench_peer_tables import (
    heavyball_table,
    optax_table,
    optimi_table,
    pytorch_optimizer_table,
    timm_table,
)
from gradstep.lab.bench_steppers import Make, TorchStepper
from gradstep.lab.errors import BadInput

#: How far a peer's weights may end from ours after ten steps, as a share of the largest movement.
TOLERANCE = 1e-3

_STEPS = 10


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


PEERS = {
    peer.name: peer
    for peer in [
        Peer("optax", "optax", ("optax", "jax"), optax_table),
        Peer(
            "pytorch_optimizer",
            "pytorch_optimizer",
            ("pytorch_optimizer",),
            pytorch_optimizer_table,
        ),
        Peer("timm", "timm.optim", ("timm", "torchvision"), timm_table),
        Peer("optimi", "optimi", ("torch-optimi",), optimi_table),
        Peer("heavyball", "heavyball", ("heavyball",), heavyball_table),
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
            peer = PEERS[name]
            self._tables[name] = peer.table(imported(peer.module, peer.name, peer.packages))
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


def imported(module: str, name: str, packages: Sequence[str]) -> Any:
    """A peer's module.

    Args:
        module: what is imported.
        name: of the peer.
        packages: what pip installs.

    Raises:
        BadInput: it is not installed or cannot be imported; says what to install.
    """
    install = f"pip install {' '.join(packages)}"
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        itself = error.name in (module, name)
        missing = name if itself else f"{name} needs {error.name}, which"
        raise BadInput(f"{missing} is not installed: {install}") from error
    except Exception as error:  # a library built for another torch fails in its own way
        said = f"{type(error).__name__}: {_first_line(error)}"
        raise BadInput(f"{name} cannot be imported ({said}): {install}") from error


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
    start = [torch.randn(shape, generator=generator) for shape in case.compared_on]
    given = [[torch.randn(w.shape, generator=generator) for w in start] for _ in range(_STEPS)]
    ours = TorchStepper(lambda p: case.ours(p, **case.options), start, given[0])
    theirs = make(start, given[0])
    wrote = False
    for gradients in given:
        copies = [g.clone() for g in gradients]
        for stepper, own in ((ours, gradients), (theirs, copies)):
            stepper.give(own)
            case.step_of(stepper)()
        wrote = wrote or not torch.equal(_flat(copies), _flat(gradients))
    begun, a, b = (_flat(tensors) for tensors in (start, ours.weights(), theirs.weights()))
    return float((a - b).abs().max() / (a - begun).abs().max()), wrote


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [""])[0]


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([t.double().flatten() for t in tensors])
