"""Gradients layer by layer: vanishing, exploding, and units that no gradient reaches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradstep.sight.mistakes.finding import Mistake
from gradstep.sight.mistakes.sizes import Sizes
from gradstep.sight.mistakes.watched import Family, Held, Watched

VANISHING_GRADIENT = Mistake(
    "vanishing-gradient",
    when="a layer's gradient is below 1e-7 of the largest one's",
    why="these layers do not learn while the others do",
    write="ReLU in place of sigmoid or tanh, a normalisation, residual connections, or a "
    "larger initialisation",
    severity="advice",
)
EXPLODING_GRADIENT = Mistake(
    "exploding-gradient",
    when="gradients are 10,000 times as large as the weights, and the rule does not divide by "
    "their size, as Adam does",
    why="one step with such a gradient undoes what was learnt",
    write="torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0) before step(); a mean in "
    "place of a sum in the loss; a smaller initialisation",
    severity="advice",
)
DEAD_UNITS = Mistake(
    "dead-units",
    when="90 % of a layer's units get no gradient at all",
    why="a ReLU that is below zero for every input passes no gradient and never comes back",
    write="a smaller lr, LeakyReLU or GELU, and biases that do not start far below 0",
    severity="advice",
)

#: A gradient's root mean square, as a share of the largest layer's. Sound networks keep within 1e-3
#: of each other; twelve layers of sigmoids are beyond this.
_VANISHED = 1e-7
#: Norm of all gradients over the norm of all weights.
_EXPLODED = 1e4
#: Share of a layer's units without any gradient. Half of them have none at a single input.
_DEAD = 0.9
#: What rules call the squares and sizes that they divide by.
_SQUARES = {"exp_avg_sq", "square_avg", "sum", "exp_inf"}
#: Looks in a row before anything is said.
_LOOKS = 5
_WITH_UNITS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Layers(Family):
    """What the gradients of matrices and kernels say about the layers."""

    order = 8

    def __init__(self, diagnosis: Any) -> None:
        super().__init__(diagnosis)
        self._vanished: dict[int, int] = {}
        self._exploded: dict[int, int] = {}
        self._silent: dict[int, tuple[Tensor, int]] = {}  # units without a gradient, looks

    def before_look(self, watched: Watched) -> None:
        if watched.has_closure or watched.inner:
            return
        layers = [h for h in watched.held if _is_layer(h.parameter)]
        if not layers:
            return
        gradients = [h.parameter.grad for h in layers if h.parameter.grad is not None]
        norms = torch.stack(
            [n.float().cpu() for n in torch._foreach_norm(gradients)]
            + [n.float().cpu() for n in torch._foreach_norm([h.parameter for h in layers])]
        ).tolist()
        sizes = [
            norm / h.parameter.numel() ** 0.5
            for norm, h in zip(norms[: len(layers)], layers, strict=True)
        ]
        if not all(size < float("inf") for size in sizes):
            return
        if not any(sizes) and not any(
            bool(h.parameter.grad.any()) for h in watched.held if h.parameter.grad is not None
        ):
            return  # the loss is flat
        self._vanishing(watched, layers, sizes)
        self._exploding(watched, layers, sizes, norms)
        for held in layers:
            self._dead(watched, held)

    def _vanishing(self, watched: Watched, layers: list[Held], sizes: list[float]) -> None:
        largest = max(sizes)
        for held, size in zip(layers, sizes, strict=True):
            # Exactly zero is another matter: a branch that is switched off.
            small = 0 < size < _VANISHED * largest
            count = self._vanished[id(held)] = self._vanished.get(id(held), 0) + 1 if small else 0
            if count >= _LOOKS:
                name = self.diagnosis.name_of(held.parameter)
                most = self.diagnosis.name_of(layers[sizes.index(largest)].parameter)
                self.diagnosis.report(
                    VANISHING_GRADIENT,
                    f"the gradient of {name} is {size / largest:.0e} of that of {most}, at "
                    f"{count} looks in a row",
                    parameter=name,
                    watched=watched,
                )

    def _exploding(
        self, watched: Watched, layers: list[Held], sizes: list[float], norms: list[float]
    ) -> None:
        count = len(layers)
        all_gradients = sum(n * n for n in norms[:count]) ** 0.5
        all_weights = sum(n * n for n in norms[count:]) ** 0.5
        large = all_gradients > _EXPLODED * all_weights > 0
        seen = self._exploded[id(watched)] = self._exploded.get(id(watched), 0) + 1 if large else 0
        if seen >= 3 and not _divides(watched, layers):
            name = self.diagnosis.name_of(layers[sizes.index(max(sizes))].parameter)
            self.diagnosis.report(
                EXPLODING_GRADIENT,
                f"the gradients' norm is {all_gradients:.1e} against {all_weights:.1e} of the "
                f"weights, at {seen} looks in a row; {name} has the largest",
                parameter=name,
                watched=watched,
            )

    def _dead(self, watched: Watched, held: Held) -> None:
        name, module = self.diagnosis.module_of(held.parameter)
        if not isinstance(module, _WITH_UNITS) or held.parameter.shape[0] < 4:
            return
        assert held.parameter.grad is not None
        silent = ~held.parameter.grad.flatten(1).any(dim=1)
        before, looks = self._silent.get(id(held), (silent, 0))
        silent = silent & before
        share = float(silent.float().mean())
        if share < _DEAD:
            self._silent.pop(id(held), None)
            return
        self._silent[id(held)] = (silent, looks + 1)
        if looks + 1 >= _LOOKS:
            sizes = self.diagnosis.family(Sizes)
            if sizes is not None and sizes.leapt(watched):
                sizes.say_leap(watched)  # that is what killed them
                return
            dead, units = int(silent.sum()), silent.numel()
            self.diagnosis.report(
                DEAD_UNITS,
                f"{dead} of the {units} units of {name.rpartition('.')[0] or name} got no gradient "
                f"at {looks + 1} looks in a row",
                parameter=name,
                watched=watched,
            )


def _divides(watched: Watched, layers: list[Held]) -> bool:
    """Whether the rule divides by the size that gradients have had, so that steps do not grow."""
    states = (watched.optimizer.state.get(held.parameter) for held in layers)
    return any(isinstance(state, dict) and not _SQUARES.isdisjoint(state) for state in states)


def _is_layer(p: Tensor) -> bool:
    return (
        p.dim() >= 2
        and p.grad is not None
        and p.grad.layout is torch.strided
        and p.is_floating_point()
        and p.device.type != "meta"
        and not hasattr(p, "to_local")
    )
