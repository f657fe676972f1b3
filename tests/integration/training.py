"""The same training twice, with gradstep.AdamW and with torch.optim.AdamW, and what must agree.

Each neighbour's file says how its trainer trains; here is what all of them must show.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import gradstep

STEPS = 32
#: Micro-batches a step: their gradients are added up.
ACCUMULATED = 2
RATE = 3e-3
DECAY = 0.1
#: The largest difference allowed, in eps of the largest weight of a tensor.
BOUND = 8
#: The same where the model computes in bfloat16, which at times rounds a weight that differs in its
#: last bit to another number: one eps of bfloat16.
COARSE = torch.finfo(torch.bfloat16).eps / torch.finfo(torch.float32).eps

Class = type[gradstep.AdamW] | type[torch.optim.AdamW]


@dataclass
class Step:
    """One step: each weight's gradient as the optimizer saw it, and its group's options."""

    gradients: dict[str, Tensor]
    options: dict[str, dict[str, Any]]


@dataclass
class Trained:
    """A model and its training.

    Attributes:
        start: the weights before, by name.
        weights: the weights after, by name.
        steps: what was given to the optimizer.
        optimizer: without the trainer's wrappers.
        computed_in: the dtypes that the model's matrices were multiplied in.
    """

    start: dict[str, Tensor]
    steps: list[Step] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)
    optimizer: Any = None
    computed_in: set[torch.dtype] = field(default_factory=set)


@contextmanager
def watched(model: nn.Module) -> Iterator[Trained]:
    """Within this block every step of an AdamW is noted down; at its end the weights are."""
    names = {id(p): name for name, p in model.named_parameters()}
    trained = Trained(weights_of(model))

    # After the step: Lightning computes the gradients within it. They are still there, and so are
    # the options, which the scheduler changes next.
    def note(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        if isinstance(optimizer, torch.optim.Adam | gradstep.Adam):  # and not a wrapper
            trained.optimizer = optimizer
            step = Step({}, {})
            for group in optimizer.param_groups:
                options = {k: group[k] for k in ("lr", "betas", "eps", "weight_decay")}
                for p in group["params"]:
                    step.gradients[names[id(p)]] = p.grad.detach().clone()
                    step.options[names[id(p)]] = options
            trained.steps.append(step)

    def note_dtype(module: nn.Module, arguments: Any, output: Tensor) -> None:
        trained.computed_in.add(output.dtype)

    handles = [register_optimizer_step_post_hook(note)]
    for module in model.modules():
        if isinstance(module, nn.Linear):
            handles.append(module.register_forward_hook(note_dtype))
    try:
        yield trained
    finally:
        for handle in handles:
            handle.remove()
    trained.weights = weights_of(model)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy of each weight, by name; a weight with two names once."""
    return {name: p.detach().clone() for name, p in model.named_parameters()}


class Train(Protocol):
    """A neighbour's training; it leaves a checkpoint of the middle in the folder."""

    def __call__(
        self, kind: Class, way: str, mixed: bool, folder: Path, checkpoint: Path | None = None
    ) -> Trained:
        """Train with this class of optimizer, in one of the trainer's ways.

        Args:
            kind: the optimizer's class.
            way: how the trainer is given the optimizer.
            mixed: compute in bfloat16, with weights in float32.
            folder: where checkpoints go.
            checkpoint: go on from here, in a new trainer with a new model; None: from the start.
        """


@dataclass
class Runs:
    """A training with gradstep.AdamW and one with torch.optim.AdamW, and how to resume them."""

    train: Train
    way: str
    mixed: bool
    folder: Path
    middle: str

    def __post_init__(self) -> None:
        self.bound = COARSE if self.mixed else BOUND
        self.ours = self._run(gradstep.AdamW, "ours")
        self.theirs = self._run(torch.optim.AdamW, "theirs")

    def _run(self, kind: Class, name: str, checkpoint: Path | None = None) -> Trained:
        torch.manual_seed(0 if checkpoint is None else 1)
        return self.train(kind, self.way, self.mixed, self.folder / name, checkpoint)

    def assert_agree(self) -> None:
        """Both made the same training: schedule, clipping, and weights up to rounding."""
        ours, theirs = self.ours, self.theirs
        assert type(ours.optimizer) is gradstep.AdamW
        assert type(theirs.optimizer) is torch.optim.AdamW
        assert set(ours.optimizer.engines_used().values()) == {"fused"}

        assert len(ours.steps) == len(theirs.steps) == STEPS
        for a, b in zip(ours.steps, theirs.steps, strict=True):
            assert a.options == b.options
        assert len({o["lr"] for step in ours.steps for o in step.options.values()}) > STEPS // 2
        assert {o["weight_decay"] for o in ours.steps[0].options.values()} == {0.0, DECAY}
        for run in (ours, theirs):
            assert run.computed_in == {torch.bfloat16 if self.mixed else torch.float32}

        # The same gradients, replayed: here no rounding comes back through the model.
        assert difference(ours.weights, replayed(ours)) <= BOUND
        assert difference(ours.weights, theirs.weights) <= self.bound
        assert difference(ours.weights, ours.start) > 16 * COARSE  # it did learn

    def assert_clipped(self, largest: float) -> None:
        """Gradients are cut to this norm, all weights' together."""
        for run in (self.ours, self.theirs):
            norms = [nn.utils.get_total_norm(s.gradients.values()).item() for s in run.steps]
            assert max(norms) <= largest * 1.001
            assert max(norms) >= largest * 0.999

    def assert_resumes(self) -> None:
        """From its own checkpoint, in a new trainer, to the bits of the run that went on."""
        resumed = self._run(gradstep.AdamW, "resumed", self.folder / "ours" / self.middle)
        assert difference(resumed.start, self.ours.start) > BOUND
        assert len(resumed.steps) == STEPS // 2
        assert difference(resumed.weights, self.ours.weights) == 0
        for p, q in zip(parameters(resumed), parameters(self.ours), strict=True):
            states, expected = resumed.optimizer.state[p], self.ours.optimizer.state[q]
            assert expected["step"] == STEPS
            assert states.keys() == expected.keys()
            assert all(torch.equal(states[name], expected[name]) for name in states)

    def assert_goes_on_from_torch(self) -> None:
        """From the checkpoint of a training with torch.optim.AdamW, to that one's weights."""
        resumed = self._run(gradstep.AdamW, "switched", self.folder / "theirs" / self.middle)
        assert type(resumed.optimizer) is gradstep.AdamW
        assert len(resumed.steps) == STEPS // 2
        both = Trained(self.theirs.start, self.theirs.steps[: STEPS // 2] + resumed.steps)
        assert difference(resumed.weights, replayed(both)) <= BOUND
        assert difference(resumed.weights, self.theirs.weights) <= self.bound


def parameters(trained: Trained) -> Iterator[Tensor]:
    return itertools.chain(*(group["params"] for group in trained.optimizer.param_groups))


def replayed(trained: Trained) -> dict[str, Tensor]:
    """The weights after torch.optim.AdamW, in no trainer, was given the same gradients."""
    weights = {name: nn.Parameter(w.clone()) for name, w in trained.start.items()}
    optimizer = torch.optim.AdamW([{"params": [w]} for w in weights.values()])
    for step in trained.steps:
        for group, (name, w) in zip(optimizer.param_groups, weights.items(), strict=True):
            w.grad = step.gradients[name]
            group.update(step.options[name])
        optimizer.step()
    return {name: w.detach() for name, w in weights.items()}


def difference(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """The largest between two models, in eps of the largest weight of a tensor."""
    assert list(found) == list(expected)
    largest = 0.0
    for name, w in expected.items():
        assert found[name].dtype == w.dtype and torch.isfinite(found[name]).all(), name
        a, b = found[name].double(), w.double()
        apart = (a - b).abs().max().item()
        if apart:
            unit = torch.finfo(w.dtype).eps * max(a.abs().max().item(), b.abs().max().item())
            largest = max(largest, apart / unit)
    return largest
