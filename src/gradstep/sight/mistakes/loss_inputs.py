"""What the loss is given: it is read off the graph from which a backward pass begins."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

from torch import Tensor
from torch.nn import functional

from gradstep.sight.mistakes.backward import Backward
from gradstep.sight.mistakes.finding import Mistake
from gradstep.sight.mistakes.place import Place, place_of
from gradstep.sight.mistakes.watched import Family

SOFTMAX_BEFORE_CROSS_ENTROPY = Mistake(
    "softmax-before-cross-entropy",
    when="cross_entropy() gets what softmax() or sigmoid() returned",
    why="it takes the softmax itself: of values between 0 and 1 that is nearly uniform, so the "
    "loss cannot come near 0 and gradients are small",
    write="the network's raw scores to cross_entropy(), and softmax() only where you want "
    "probabilities",
)
NLL_LOSS_WITHOUT_LOG_SOFTMAX = Mistake(
    "nll-loss-without-log-softmax",
    when="nll_loss() gets raw scores, or probabilities without their logarithm",
    why="it only picks the target's value: the loss falls below 0 and without end as the scores "
    "grow, or, of probabilities, learns slowly",
    write="cross_entropy() in place of nll_loss() on the raw scores",
)
SIGMOID_BEFORE_BCE_WITH_LOGITS = Mistake(
    "sigmoid-before-bce-with-logits",
    when="binary_cross_entropy_with_logits() gets what sigmoid() or softmax() returned, or "
    "binary_cross_entropy() the sigmoid of a sigmoid",
    why="it takes the sigmoid itself: of values between 0 and 1 that is between 0.5 and 0.73, so "
    "the network can never say no",
    write="the raw scores to BCEWithLogitsLoss, and sigmoid() only where you want probabilities",
)
SOFTMAX_OVER_BATCH = Mistake(
    "softmax-over-batch",
    when="a loss gets a softmax over the first dimension of two, that of the batch (and not of the "
    "products of two batches, each with each)",
    why="the examples of a batch compete with each other, instead of the classes of an example",
    write="softmax(…, dim=1), or dim=-1",
)
LOSS_BROADCASTS = Mistake(
    "loss-broadcasts",
    when="prediction and target have shapes such as (N, 1) and (N), and each is spread over the "
    "other's dimension",
    why="each prediction is compared with every target: the network learns their mean",
    write="prediction.squeeze(-1), or target.unsqueeze(-1), so that both have one shape",
)

_MOVES = {
    "View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Transpose", "T", "Permute",
    "Clone", "ToCopy", "Alias", "Select", "Slice",
}  # fmt: skip
#: What stands between backward() and the functions that compare.
_ABOVE = {"Add", "Mul", "Div", "Neg", "Mean", "Sum", "Stack", "Cat", "Pow", "Abs", "Sqrt", "Select",
          "Index", "ToCopy", "View", "Squeeze", "Sub", "Log", "Log1P", "Exp", "Cosh", "Softplus",
          "LogSigmoid", "Gather"}  # fmt: skip
#: What makes raw scores.
_LAYERS = {"Addmm", "Mm", "Convolution", "MkldnnConvolution", "Linear", "Relu", "Mv", "LeakyRelu"}
_COMPARES = {"MseLoss", "SmoothL1Loss", "HuberLoss"}
_FUNCTIONS = (
    functional.cross_entropy, functional.nll_loss, functional.binary_cross_entropy_with_logits,
    functional.binary_cross_entropy, functional.kl_div,
    functional.mse_loss, functional.smooth_l1_loss, functional.huber_loss, functional.l1_loss,
)  # fmt: skip
_CODES = {f.__code__: f.__name__ for f in _FUNCTIONS if hasattr(f, "__code__")}
#: For so many backward passes a loss function is waited for: there may be other losses in between.
_WAIT = 4


@dataclass
class _Seen:
    """What was seen in a graph, the line of its backward(), and that of the loss function."""

    mistake: Mistake
    seen: str
    place: Place | None
    write: str = ""
    called: Place | None = None


class LossInputs(Family):
    """Softmaxes too many or too few, and shapes that do not fit together.

    The graph tells what was done, and not where. So once something was seen, the next forward
    passes are followed until one calls the loss with it, to name that line.
    """

    order = 11

    def __init__(self, diagnosis: Any) -> None:
        super().__init__(diagnosis)
        self._seen: list[_Seen] = []
        self._trap: _Trap | None = None
        self._waited = 0
        self._known: set[str] = set()

    def before_backward(self, losses: list[Tensor]) -> None:
        if self._seen and self._trap is not None:
            self._waited += 1
            self._say(all_of_them=self._waited >= _WAIT)
        backward = self.diagnosis.family(Backward)
        if backward is None or not backward.looks:
            return
        for loss in losses:
            if loss.grad_fn is None:
                continue
            for found in _look(loss.grad_fn):
                if found.mistake.name not in self._known:
                    self._known.add(found.mistake.name)
                    found.place = backward.place
                    self._seen.append(found)
        if self._seen and self._trap is None:
            self._waited, self._trap = 0, _Trap(self._seen)

    def _say(self, all_of_them: bool) -> None:
        """Say what was seen, of that whose line is known, or of all."""
        for each in list(self._seen):
            if each.called is None and not all_of_them:
                continue
            self._seen.remove(each)
            self.diagnosis.report(
                each.mistake,
                each.seen,
                write=each.write,
                place=each.called or each.place,
                key=each.mistake.name,
            )
        if not self._seen and self._trap is not None:
            self._trap.stop()
            self._trap = None

    def close(self) -> None:
        self._say(all_of_them=True)


class _Trap:
    """Waits for loss functions that are given what was seen, and keeps the lines that call them.

    Of a profiler, a debugger or torch.compile it stays away.
    """

    def __init__(self, seen: list[_Seen]) -> None:
        self._seen = seen
        compiled = sys.modules.get("torch._dynamo.utils")
        self._on = sys.getprofile() is None and not (compiled and compiled.counters["frames"])
        if self._on:
            sys.setprofile(self._called)

    def _called(self, frame: FrameType, event: str, _: Any) -> None:
        if event != "call" or frame.f_code not in _CODES:
            return
        given, target = frame.f_locals.get("input"), frame.f_locals.get("target")
        if not isinstance(given, Tensor):
            return
        for each in self._seen:
            if each.called is None and _is_it(each.mistake, _CODES[frame.f_code], given, target):
                each.called = place_of(frame)
        if all(each.called is not None for each in self._seen):
            self.stop()

    def stop(self) -> None:
        """Take it away."""
        if self._on and sys.getprofile() == self._called:
            sys.setprofile(None)
        self._on = False


def _is_it(mistake: Mistake, function: str, given: Tensor, target: Any) -> bool:
    """Whether a loss function is given what was seen in the graph."""
    node = _source(given.grad_fn)
    kind = _kind(node)
    if mistake is SOFTMAX_BEFORE_CROSS_ENTROPY:
        return function == "cross_entropy" and kind in ("Softmax", "Sigmoid")
    if mistake is NLL_LOSS_WITHOUT_LOG_SOFTMAX:
        return function == "nll_loss" and (kind in _LAYERS or kind == "Softmax")
    if mistake is SIGMOID_BEFORE_BCE_WITH_LOGITS:
        if function == "binary_cross_entropy":
            return _is_twice(node)
        return function == "binary_cross_entropy_with_logits" and kind in ("Sigmoid", "Softmax")
    if mistake is SOFTMAX_OVER_BATCH:
        return _is_over_batch(_inputs(node)[0] if kind == "Log" else node)
    return function.endswith(("mse_loss", "l1_loss", "huber_loss")) and (
        isinstance(target, Tensor) and given.shape != target.shape
    )


def _kind(node: Any) -> str:
    return node.name().rstrip("0123456789").removesuffix("Backward") if node is not None else ""


def _inputs(node: Any) -> list[Any]:
    return [following for following, _ in node.next_functions]


def _source(node: Any) -> Any:
    """What a value comes from, apart from views and copies."""
    while node is not None and _kind(node) in _MOVES:
        node = _inputs(node)[0]
    return node


def _shape(node: Any) -> tuple[int, ...]:
    """The shape of what a function returned."""
    known = getattr(node, "_input_metadata", None)
    return tuple(known[0].shape) if known else ()


def _look(top: Any) -> Iterator[_Seen]:
    """Look at the functions next to a loss."""
    waiting, known = [top], {top}
    while waiting and len(known) < 60:
        node = waiting.pop(0)
        kind = _kind(node)
        look = _LOOKS.get(kind)
        if look is not None:
            yield from look(node)
        if kind in _ABOVE:
            for following in _inputs(node):
                if following is not None and following not in known:
                    known.add(following)
                    waiting.append(following)


def _at_log_softmax(node: Any) -> Iterator[_Seen]:
    kind = _kind(_source(_inputs(node)[0]))
    if kind in ("Softmax", "Sigmoid"):
        seen = f"cross_entropy() was given what {kind.lower()}() returned"
        yield _Seen(SOFTMAX_BEFORE_CROSS_ENTROPY, seen, None)
    elif _is_over_batch(node):
        yield _over_batch(node)


def _at_nll_loss(node: Any) -> Iterator[_Seen]:
    given = _inputs(node)[0]
    source = _source(given)
    kind = _kind(source)
    if kind == "LogSoftmax":
        yield from _at_log_softmax(source)
    elif kind in _LAYERS or kind == "Softmax":
        values = node._saved_self.detach()
        values = values.unsqueeze(0) if values.dim() == 1 else values
        if float(values.logsumexp(1).abs().median()) > 0.1:
            what = "what softmax() returned" if kind == "Softmax" else "raw scores"
            write = "log_softmax() in place of softmax()" if kind == "Softmax" else ""
            seen = f"nll_loss() was given {what}: it takes logarithms of probabilities"
            yield _Seen(NLL_LOSS_WITHOUT_LOG_SOFTMAX, seen, None, write)
    elif kind == "Log" and _is_over_batch(_inputs(source)[0]):
        yield _over_batch(_inputs(source)[0])


def _at_bce_with_logits(node: Any) -> Iterator[_Seen]:
    kind = _kind(_source(_inputs(node)[0]))
    if kind in ("Sigmoid", "Softmax"):
        yield _Seen(
            SIGMOID_BEFORE_BCE_WITH_LOGITS,
            f"binary_cross_entropy_with_logits() was given what {kind.lower()}() returned",
            None,
        )


def _at_comparison(node: Any) -> Iterator[_Seen]:
    given, target = node._saved_self, node._saved_target
    if _is_spread(given) and _is_spread(target):
        sources = [_shape(_inputs(i)[0]) if _kind(i) == "Expand" else () for i in _inputs(node)]
        was = next((shape for shape in sources if shape), ())
        yield _broadcast(was, tuple(given.shape))
    if _is_over_batch(_inputs(node)[0]):
        yield _over_batch(_inputs(node)[0])


def _is_twice(node: Any) -> bool:
    return _kind(node) == "Sigmoid" and _kind(_source(_inputs(node)[0])) == "Sigmoid"


def _at_probabilities(node: Any) -> Iterator[_Seen]:
    if _is_twice(_source(_inputs(node)[0])):
        yield _Seen(
            SIGMOID_BEFORE_BCE_WITH_LOGITS,
            "binary_cross_entropy() was given the sigmoid of a sigmoid",
            None,
            "sigmoid() once: in the network, or before the loss",
        )
    if _is_over_batch(_inputs(node)[0]):
        yield _over_batch(_inputs(node)[0])


def _at_difference(node: Any) -> Iterator[_Seen]:
    """A difference or product by hand, of a prediction and something that has no gradient."""
    shape, inputs = _shape(node), _inputs(node)
    if len(inputs) == 2 and None in inputs:
        for each in inputs:
            if each is not None and _is_over_batch(each):
                yield _over_batch(each)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] < 2:
        return
    # A product keeps what it was multiplied with: it may be of that shape, as a mask of pairs is.
    for name in ("_saved_self", "_saved_other"):
        factor = getattr(node, name, None)
        if isinstance(factor, Tensor) and tuple(factor.shape) == shape and not _is_spread(factor):
            return
    for one, other in zip(inputs, reversed(inputs), strict=True):
        if other is None and one is not None and len(inputs) == 2:
            one = _inputs(one)[0] if _kind(one) == "Expand" else one
            if _shape(one) in ((shape[0],), (shape[0], 1)):
                yield _broadcast(_shape(one), shape)


def _at_log(node: Any) -> Iterator[_Seen]:
    given = _inputs(node)[0]
    if _kind(given) == "Add":  # a small number, so that there is no log(0)
        given = next((each for each in _inputs(given) if each is not None), None)
    if _is_over_batch(given):
        yield _over_batch(given)


def _at_choice(node: Any) -> Iterator[_Seen]:
    if _is_over_batch(_inputs(node)[0]):
        yield _over_batch(_inputs(node)[0])


def _is_spread(tensor: Tensor) -> bool:
    return any(
        size > 1 and not stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )


def _is_over_batch(node: Any) -> bool:
    if _kind(node) not in ("Softmax", "LogSoftmax"):
        return False
    shape, dim = _shape(node), int(node._saved_dim)
    dim -= 2**64 if dim >= 2**63 else 0
    if len(shape) != 2 or min(shape) < 2 or dim % 2:
        return False
    # What compares each example with each, as CLIP does, has two batches and takes both ways.
    return shape[0] != shape[1] or not _is_of_pairs(_inputs(node)[0])


def _is_of_pairs(node: Any) -> bool:
    """Whether scores are products of two things that both depend on the batch or on weights."""
    waiting = [node]
    for _ in range(6):
        if not waiting:
            return False
        node = _source(waiting.pop(0))
        if _kind(node) in ("Mm", "Bmm"):
            return all(_kind(_source(each)) not in ("", "AccumulateGrad") for each in _inputs(node))
        if _kind(node) in ("Mul", "Div", "Add", "Sub"):
            waiting += _inputs(node)
    return False


def _over_batch(node: Any) -> _Seen:
    shape = ", ".join(map(str, _shape(node)))
    what = "log_softmax" if _kind(node) == "LogSoftmax" else "softmax"
    seen = f"the loss was given a {what} over dimension 0 of ({shape}), the batch's"
    return _Seen(SOFTMAX_OVER_BATCH, seen, None)


def _broadcast(was: tuple[int, ...], now: tuple[int, ...]) -> _Seen:
    n = now[0]
    other = (n,) if was == (n, 1) else (n, 1)
    seen = f"the loss compares a prediction of shape {was} with a target of shape {other}: of "
    return _Seen(LOSS_BROADCASTS, seen + f"{n} pairs it makes {now}", None)


_LOOKS: dict[str, Callable[[Any], Iterator[_Seen]]] = {
    "LogSoftmax": _at_log_softmax,
    "NllLoss": _at_nll_loss,
    "NllLoss2D": _at_nll_loss,
    "BinaryCrossEntropyWithLogits": _at_bce_with_logits,
    **dict.fromkeys(_COMPARES, _at_comparison),
    "BinaryCrossEntropy": _at_probabilities,
    "KlDiv": _at_probabilities,
    "Sub": _at_difference,
    "Mul": _at_difference,
    "Log": _at_log,
    "Index": _at_choice,
    "Gather": _at_choice,
}
