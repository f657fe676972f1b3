"""Modules in the wrong mode: evaluation's while they train, training's while they are evaluated."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from gradstep.sight.mistakes.backward import Backward
from gradstep.sight.mistakes.calls import follow
from gradstep.sight.mistakes.finding import Mistake
from gradstep.sight.mistakes.place import Line, line_here, outside_modules
from gradstep.sight.mistakes.watched import Family, Watched

LEFT_IN_EVAL_MODE = Mistake(
    "left-in-eval-mode",
    when="eval() was called between two steps, and training goes on without train(): with dropout "
    "or batch norms in the model",
    why="dropout does nothing any more, and batch norms keep the statistics that they have",
    write="model.train() after each evaluation, or at the beginning of each epoch",
)
EVALUATED_IN_TRAIN_MODE = Mistake(
    "evaluated-in-train-mode",
    when="three forward passes or more in a row under no_grad(), with dropout that drops or batch "
    "norms that take the batch's statistics (and keep them)",
    why="the figures are noisy and too low, and batch norms learn from the test data",
    write="model.eval() before the evaluation, and model.train() after it",
    severity="advice",
)

#: So many steps in a row: one may be a look at something.
_STEPS = 3
#: Passes under no_grad() without a backward pass in between; a critic's or teacher's are fewer.
_PASSES = 3


class Modes(Family):
    """Follows ``eval()``, and what dropout and batch norms do where no gradient is wanted."""

    order = 12

    def __init__(self, diagnosis: Any) -> None:
        super().__init__(diagnosis)
        self._active: dict[int, list[nn.Module]] = {}  # of each model, what has two modes
        self._trained: set[int] = set()  # ids of the models that were in training mode at a step
        self._steps: dict[int, int] = {}  # id of a model -> steps in evaluation's mode
        self._eval: Line | None = None
        self._passes: dict[int, int] = {}  # id of a module -> passes since the last backward
        self._passed_at = 0  # the backward pass after which these were made
        self._ends: list[Callable[[], None]] = [
            follow(nn.Module, "train", before=self._changes),  # eval() is train(False)
            follow(functional, "dropout", before=self._drops),
            follow(functional, "batch_norm", before=self._normalises),
        ]

    def _changes(self, _: nn.Module, mode: bool = True) -> None:
        if not mode:
            self._eval = line_here()
            self.diagnosis.attend(_STEPS + 1)

    def before_step(self, watched: Watched) -> None:
        for model, _ in self.diagnosis.models:
            active = self._active.get(id(model))
            if active is None:
                active = self._active[id(model)] = [m for m in model.modules() if _has_modes(m)]
            if not active:
                continue
            if active[0].training or any(module.training for module in active):
                self._trained.add(id(model))
                self._steps[id(model)] = 0
            elif id(model) in self._trained:
                self._count(watched, model, active)

    def _count(self, watched: Watched, model: nn.Module, active: list[nn.Module]) -> None:
        mine = {id(p) for p in model.parameters()}
        if not any(id(h.parameter) in mine and h.parameter.grad is not None for h in watched.held):
            return
        steps = self._steps[id(model)] = self._steps[id(model)] + 1
        if steps == _STEPS:
            kinds = ", ".join(dict.fromkeys(type(module).__name__ for module in active))
            self.diagnosis.report(
                LEFT_IN_EVAL_MODE,
                f"{type(model).__name__} was in training mode, and the last {steps} steps were "
                f"made in evaluation mode: without {kinds}",
                watched=watched,
                place=self._eval and self._eval.place,
                key=id(model),
            )

    def _drops(
        self, _: Tensor, p: float = 0.5, training: bool = True, *__: Any, **___: Any
    ) -> None:
        if training and p and not torch.is_grad_enabled():
            self._passed("dropout")

    def _normalises(self, _: Tensor, running_mean: Any = None, *more: Any, **named: Any) -> None:
        if torch.is_grad_enabled() or running_mean is None:
            return
        if named.get("training", more[3] if len(more) > 3 else False):
            self._passed("a batch norm")

    def _passed(self, what: str) -> None:
        frame = sys._getframe(3)  # the module's forward(), or whoever calls the function
        key = id(frame.f_locals.get("self", frame.f_code))
        count = self.diagnosis.family(Backward).count
        if count != self._passed_at:
            self._passes.clear()
            self._passed_at = count
        passes = self._passes[key] = self._passes.get(key, 0) + 1
        if passes == _PASSES:
            self.diagnosis.guarded(self._say, what)

    def _say(self, what: str) -> None:
        if not any(w.steps for w in self.diagnosis.watched) or self._on_purpose():
            return
        self.diagnosis.report(
            EVALUATED_IN_TRAIN_MODE,
            f"{_PASSES} forward passes in a row without gradients, with {what} in training mode",
            place=outside_modules(),
            key="mode",
        )

    def _on_purpose(self) -> bool:
        """Whether somebody knows of modes: the model is in evaluation's, and parts of it are not.

        Or statistics are made for averaged weights: by torch, or for Schedule-Free ones.
        """
        models = [model for model, _ in self.diagnosis.models if self._has_active(model)]
        if models and not any(model.training for model in models):
            return True
        if any(
            not group.get("train_mode", True)
            for watched in self.diagnosis.watched
            for group in watched.optimizer.param_groups
        ):
            return True
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_name == "update_bn":
                return True
            frame = frame.f_back  # type: ignore[assignment]
        return False

    def _has_active(self, model: nn.Module) -> bool:
        return any(_has_modes(module) and module.training for module in model.modules())

    def close(self) -> None:
        for end in self._ends:
            end()
        self._ends.clear()
        self._active.clear()


def _has_modes(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module.track_running_stats and module.running_mean is not None
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    return isinstance(module, nn.RNNBase) and module.dropout > 0
