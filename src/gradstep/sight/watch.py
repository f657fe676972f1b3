"""``gradstep.watch``: what each step of a training does to each parameter."""

from __future__ import annotations

import math
import sys
import warnings
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling as _is_compiling

from gradstep.compose.offload import frees_gradients
from gradstep.compose.step_in_backward import steps_in_backward
from gradstep.optimizer.optimizer import Optimizer, planner_of
from gradstep.optimizer.parameter_names import names_of
from gradstep.sight.histograms import histogram
from gradstep.sight.records import Record, frame
from gradstep.sight.sinks import JsonLines, Memory, open_sinks
from gradstep.sight.statistics import FIELDS, Meter, copies

if TYPE_CHECKING:
    from gradstep.sight.mistakes import Diagnosis


def watch(
    model: nn.Module | None,
    optimizer: torch.optim.Optimizer,
    *,
    every: int = 100,
    to: Any = None,
    histograms: bool = False,
    start: int | None = None,
    on_mistake: str | None = None,
) -> Watch:
    """Record what steps do: size of weights, gradients and updates, and how long a step takes.

    The training is neither changed nor stopped: weights come out with the same bits as without.

    Args:
        model: gives the parameters their names. None: as the optimizer knows them.
        optimizer: any :class:`torch.optim.Optimizer`, of torch, of gradstep or another.
        every: record the first step, and each whose number this divides. Default: 100.
        to: where records go. None, the default, keeps them in memory; a file name that ends in
            ``.jsonl`` appends a line of JSON a record; a folder, or a ``SummaryWriter``, is for
            TensorBoard; a function is called with each :class:`~gradstep.sight.records.Record`;
            a list of these serves several.
        histograms: also record how weights and gradients are spread. Default: False.
        start: how many steps were made before, where a training goes on. Default: the last step in
            the file of JSON lines, if there is one, otherwise 0.
        on_mistake: ``"warn"``, ``"list"`` or ``"raise"``: also look for mistakes in the training
            loop, as :func:`gradstep.diagnose` does; ``watch.findings`` has them. With ``"raise"``
            a mistake does stop the training. Default: None, no diagnoses.

    Returns:
        a :class:`Watch`, which goes on until it is closed or the optimizer is gone. It can stand
        in a ``with`` statement.

    Raises:
        TypeError: no optimizer, no module, or a ``to`` that takes no records.
        ValueError: ``every`` is no whole number above 0, a file name with another ending, or an
            optimizer whose gradients ``StepInBackward`` or ``Offload`` frees.
        OSError: a file or folder that cannot be written.
        ImportError: TensorBoard is asked for and not installed.

    Example::

        with gradstep.watch(model, optimizer, every=10) as watch:
            train(model, optimizer)
        print(watch.records[-1]["fc1.weight"]["update_ratio"])
        watch.plot("watch.png")
    """
    return Watch(model, optimizer, every, to, histograms, start, on_mistake)


@dataclass
class _Pending:
    """A step that is to be recorded and has begun."""

    weights: list[Tensor]
    gradients: list[Tensor | None]  # None where a closure makes them within the step
    before: list[Tensor]
    lr: tuple[float, ...]
    entered: float
    began: float


class Watch:
    """Records steps of one optimizer; made by :func:`watch`.

    Attributes:
        every: which steps are recorded.
        steps: how many steps the optimizer has made, those before ``start`` included.
        latest: the last record, None before the first.
    """

    def __init__(
        self,
        model: nn.Module | None,
        optimizer: torch.optim.Optimizer,
        every: int = 100,
        to: Any = None,
        histograms: bool = False,
        start: int | None = None,
        on_mistake: str | None = None,
    ) -> None:
        _check(model, optimizer, every, start, on_mistake)
        self.every = every
        self.latest: Record | None = None
        self._histograms = histograms
        self._model = None if model is None else weakref.ref(model)
        self._title = _title(optimizer)
        self._names: tuple[list[int], tuple[str, ...]] = ([], ())
        self._meter = Meter()
        self._pending: _Pending | None = None
        self._paused = self._closed = self._in_hook = False
        self._last: tuple[int, float] | None = None
        self._sinks = open_sinks(to)
        # What was opened once is read back even when it can no longer be written.
        self._memory = next((s for s in self._sinks if isinstance(s, Memory)), None)
        self._file = next((s for s in self._sinks if isinstance(s, JsonLines)), None)
        if start is None:
            start = 0 if self._file is None else self._file.last_step
        self.steps = start
        before = optimizer.register_step_pre_hook(self._before)
        after = optimizer.register_step_post_hook(self._after)
        # First behind the step: another hook may clear the gradients.
        hooks: Any = optimizer._optimizer_step_post_hooks
        hooks.move_to_end(after.id, last=False)
        self._handles = [before, after]
        self._diagnosis = None if on_mistake is None else _diagnose(model, optimizer, on_mistake)

    # What was recorded.

    @property
    def records(self) -> list[Record]:
        """All records, in order: those in memory, or read back from the file of JSON lines.

        Raises:
            RuntimeError: they went elsewhere.
        """
        if self._memory is not None:
            return self._memory.records
        if self._file is not None:
            return self._file.records()
        raise RuntimeError(
            "this watch keeps no records. Give it memory as well: to=[None, …], or a file of JSON "
            "lines."
        )

    def frame(self) -> Any:
        """The records as a pandas DataFrame: a row for each step and parameter.

        Raises:
            ImportError: pandas is not installed.
            RuntimeError: the records are neither in memory nor in a file of JSON lines.
        """
        return frame(self.records)

    def plot(self, path: str | Path, kind: str = "overview") -> None:
        """Draw the records into a file; its ending says the format, such as ``.png``.

        Args:
            path: the file.
            kind: ``"overview"``: update-to-weight ratio, gradients and weights over the steps, a
                line a parameter. ``"heatmap"``: the ratio as a field of parameters × steps.
                ``"histograms"``: how weights and gradients are spread, if that was recorded.

        Raises:
            ValueError: an unknown kind, or nothing recorded to draw.
            ImportError: matplotlib is not installed.
            OSError: a file that cannot be written.
        """
        from gradstep.sight.watch_pictures import save

        save(self.records, path, kind, self._title)

    # The end.

    @property
    def findings(self) -> list[Any]:
        """The mistakes found so far, if ``on_mistake`` asked for them: a list of Finding."""
        return [] if self._diagnosis is None else self._diagnosis.findings

    def close(self, interrupted: bool = False) -> None:
        """Stop recording and close files. Records stay. A second call does nothing.

        Args:
            interrupted: whether the training was cut short by an error; then what it has not done
                is no mistake.
        """
        self._detach()
        if self._diagnosis is not None and not self._in_hook:
            self._diagnosis.close(interrupted)
        sinks, self._sinks = self._sinks, []
        for sink in sinks:
            try:
                sink.close()
            except Exception as error:
                _warn(f"could not close {sink.name}: {_said(error)}.")

    def _detach(self) -> None:
        self._closed, self._pending = True, None
        # torch walks through the hooks while one of them, or a sink, closes the watch.
        if not self._in_hook:
            for handle in self._handles:
                handle.remove()
            self._handles = []

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(interrupted=kind is not None)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Neither record nor count the steps within."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    # The hooks.

    def _before(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if _is_compiling() or "torch._dynamo" in sys.modules:
            self._begin_outside_of_graph(optimizer, args, kwargs)
        else:
            self._begin(optimizer, args, kwargs)

    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if _is_compiling() or "torch._dynamo" in sys.modules:
            self._end_outside_of_graph(optimizer)
        else:
            self._end(optimizer)

    # torch.compile leaves these alone. The mark imports torch._dynamo, which takes a second, so it
    # is met only where that is there already.
    @torch._disable_dynamo
    def _begin_outside_of_graph(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._begin(optimizer, args, kwargs)

    @torch._disable_dynamo
    def _end_outside_of_graph(self, optimizer: Any) -> None:
        self._end(optimizer)

    def _begin(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self._pending = None
        number = self.steps + 1
        if (number % self.every and number != 1) or self._paused or self._closed:
            return
        self._in_hook = True
        entered = perf_counter()
        try:
            closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
            weights, gradients = [], []
            for group in optimizer.param_groups:
                for p in group["params"]:
                    if (closure is not None or p.grad is not None) and p.numel():
                        weights.append(p)
                        gradients.append(None if closure is not None else p.grad)
            lr = tuple(float(group.get("lr", math.nan)) for group in optimizer.param_groups)
            before = copies(weights)
            self._pending = _Pending(weights, gradients, before, lr, entered, perf_counter())
        except Exception as error:
            self._give_up(error)
        finally:
            self._in_hook = False

    def _end(self, optimizer: Any) -> None:
        ended = perf_counter()
        if self._paused or self._closed:
            return
        self.steps += 1
        pending, self._pending = self._pending, None
        if pending is None:
            return
        self._in_hook = True
        try:
            self.latest = record = self._record(optimizer, pending, ended)
            self._hand_out(record)
        except Exception as error:
            self._give_up(error)
        finally:
            self._in_hook = False
        self._last = (self.steps, perf_counter())

    def _hand_out(self, record: Record) -> None:
        for sink in list(self._sinks):
            try:
                sink.write(record)
            except Exception as error:
                self._sinks.remove(sink)
                _warn(
                    f"cannot write to {sink.name} any more: {_said(error)}. Training goes on, and "
                    f"from step {record.step} on nothing more is written there."
                )

    def _record(self, optimizer: Any, pending: _Pending, ended: float) -> Record:
        loop = None
        if self._last is not None:
            number, at = self._last
            own_time = pending.began - pending.entered
            loop = (ended - at - own_time) / (self.steps - number)
        weights, before = pending.weights, pending.before
        gradients = [
            p.grad if g is None else g for p, g in zip(weights, pending.gradients, strict=True)
        ]
        if any(g is None for g in gradients):
            kept = [i for i, g in enumerate(gradients) if g is not None]
            weights, before = [weights[i] for i in kept], [before[i] for i in kept]
        present = [g for g in gradients if g is not None]
        measured = self._meter.measure(weights, present, before)
        scale = optimizer.__dict__.get("grad_scale")
        if scale is not None and isinstance(optimizer, Optimizer):
            # GradScaler left the division to the step, which does not write into the gradient.
            measured.divide_gradients(float(scale))
        names = self._named(optimizer, weights)
        histograms = None
        if self._histograms:
            largest = measured.values[:, [FIELDS.index("weight_max"), FIELDS.index("gradient_max")]]
            histograms = {
                name: {"weight": histogram(b, w_max), "gradient": histogram(g, g_max)}
                for name, b, g, (w_max, g_max) in zip(
                    names, before, present, largest.tolist(), strict=True
                )
            }
        return Record(
            self.steps,
            pending.lr,
            measured.gradient_norm,
            ended - pending.began,
            loop,
            names,
            measured.values,
            histograms,
        )

    def _named(self, optimizer: Any, weights: Sequence[Tensor]) -> tuple[str, ...]:
        ids = list(map(id, weights))
        if ids != self._names[0]:
            model = None if self._model is None else self._model()
            self._names = (ids, _names(model, optimizer, ids))
        return self._names[1]

    def _give_up(self, error: Exception) -> None:
        """Whatever happens here must not reach the training."""
        self.close()
        _warn(f"stopped watching at step {self.steps}: {_said(error)}. Training goes on.")


def _names(model: nn.Module | None, optimizer: Any, ids: Sequence[int]) -> tuple[str, ...]:
    named = names_of(optimizer).all(optimizer.param_groups, shapes=False)
    known = {id(p): name for name, p in named}
    if model is not None:
        known.update((id(p), name) for name, p in model.named_parameters())
    return tuple(known[i] for i in ids)


def _diagnose(model: Any, optimizer: Any, on_mistake: Any) -> Diagnosis:
    from gradstep.sight.mistakes import diagnose

    return diagnose(model, optimizer, on_mistake=on_mistake)


def _check(model: Any, optimizer: Any, every: Any, start: Any, on_mistake: Any) -> None:
    if model is not None and not isinstance(model, nn.Module):
        raise TypeError(
            f"watch() takes the model first; got a {type(model).__name__}. Expected a "
            "torch.nn.Module, or None."
        )
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(
            f"watch() takes an optimizer second; got a {type(optimizer).__name__}. Expected a "
            "torch.optim.Optimizer."
        )
    if not hasattr(optimizer, "_optimizer_step_post_hooks"):
        raise TypeError(
            f"{type(optimizer).__name__} wraps an optimizer and runs no step hooks. Give the one "
            "inside it: what stands in its attribute optimizer."
        )
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        if steps_in_backward(p) or frees_gradients(p):
            who = "StepInBackward" if steps_in_backward(p) else "Offload(free_gradients=True)"
            raise ValueError(
                f"watch() measures gradients at step(), and {who} has freed them by then. Watch an "
                "optimizer without it"
            )
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"every={every!r}; expected a whole number of steps, 1 or more")
    if on_mistake not in (None, "warn", "list", "raise"):
        raise ValueError(f"on_mistake={on_mistake!r}; expected None, 'warn', 'list' or 'raise'")
    if on_mistake is not None and model is None:
        raise ValueError("on_mistake= needs the model, whose parameters it compares; got None")
    if start is not None and (isinstance(start, bool) or not isinstance(start, int) or start < 0):
        raise ValueError(f"start={start!r}; expected how many steps were made before, 0 or more")


def _said(error: Exception) -> str:
    text = str(error).strip().split("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _warn(message: str) -> None:
    try:
        warnings.warn(f"gradstep.watch {message}", RuntimeWarning, stacklevel=4)
    except RuntimeWarning:
        # The user made errors of warnings; this one must not stop the training.
        import logging

        logging.getLogger("gradstep").warning("gradstep.watch %s", message)


def _title(optimizer: torch.optim.Optimizer) -> str:
    """What a picture is called: by the optimizer's class, and by the rule that it was given."""
    kind = type(optimizer).__name__
    return planner_of(optimizer).rule.name if type(optimizer) is Optimizer else kind
