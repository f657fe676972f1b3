"""Hold another library's optimizer against a rule: the same gradients, case by case.

Libraries mean different things by one name. An audit says whether two optimizers agree, from which
step on they do not, in which case and by how much, and how the other one conducts itself.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from gradstep.classes import rule_classes
from gradstep.optimizer.optimizer import Optimizer
from gradstep.rule.definition import Rule
from gradstep.sight.optax_optimizer import OptaxOptimizer, is_optax

#: ``factory(parameters, lr=…, **options)`` makes an optimizer.
Factory = Callable[..., Any]


_MIXED = ((8, 6), (5,), (4, 3, 2, 2))
_MATRICES = ((8, 6), (3, 7))


@dataclass(frozen=True)
class Case:
    """A way to train.

    Attributes:
        name: in two or three words.
        shapes: of the weights.
        options: given to both optimizers beside ``lr``.
        late: until which step the last weight has no gradient.
        zeros: the steps at which all gradients are zero.
        halved: the step from which on lr is half of what it was; 0 for none.
        spread: whether the weights lie transposed in memory.
    """

    name: str
    shapes: Sequence[tuple[int, ...]] = _MIXED
    options: Mapping[str, Any] = field(default_factory=dict)
    late: int = 0
    zeros: Sequence[int] = ()
    halved: int = 0
    spread: bool = False

    def weights(self) -> list[torch.nn.Parameter]:
        """New weights, the same at every call, in float64."""
        made = [_noise(shape, i) for i, shape in enumerate(self.shapes)]
        if self.spread:
            made = [w.transpose(0, -1).contiguous().transpose(0, -1) for w in made]
        return [torch.nn.Parameter(w) for w in made]

    def gradients(self, step: int) -> list[Tensor | None]:
        """The gradients of a step, the first of which is 1."""
        made: list[Tensor | None] = [
            torch.zeros(shape, dtype=torch.float64, device="cpu")
            if step in self.zeros
            else _noise(shape, 1000 * step + i) * 10.0 ** (step % 3 - 1)
            for i, shape in enumerate(self.shapes)
        ]
        if step <= self.late:
            made[-1] = None
        return made


#: The cases of an audit, in their order.
CASES = (
    Case("matrices", shapes=_MATRICES),
    Case("vectors and numbers", shapes=((5,), (1,), ())),
    Case("four dimensions", shapes=((4, 3, 2, 2),)),
    Case("weight decay", options={"weight_decay": 0.1}),
    Case("late first gradient", late=4),
    Case("zero gradients", zeros=(1, 2, 7)),
    Case("lr halved", halved=8),
    Case("transposed in memory", spread=True),
)


@dataclass(frozen=True)
class Outcome:
    """What a case showed.

    Attributes:
        case: its name.
        difference: the largest difference of two weights, as a share of the largest movement of
            any weight so far; nan where the case was not run to its end.
        step: the first step after which they differed by more than is allowed; None for none.
        reason: why it was not run, or what went wrong; empty if it was.
    """

    case: str
    difference: float
    step: int | None = None
    reason: str = ""

    @property
    def agrees(self) -> bool | None:
        """None for a case that could not be run."""
        return None if self.reason else self.step is None

    def __str__(self) -> str:
        if self.reason:
            return f"{self.case}: not compared: {self.reason}"
        if self.step is None:
            return f"{self.case}: agrees, to {self.difference:.1e}"
        return f"{self.case}: differs from step {self.step} on, by up to {self.difference:.1e}"


@dataclass(frozen=True)
class Audit:
    """What :func:`audit` found. Printed, it is a line a case.

    Attributes:
        theirs, ours: the names of the two.
        outcomes: one a case.
        conduct: what the other optimizer does beside its arithmetic: a question -> "no", "yes", or
            why it could not be asked.
        tolerance: the difference that is still agreement.
    """

    theirs: str
    ours: str
    outcomes: tuple[Outcome, ...]
    conduct: Mapping[str, str]
    tolerance: float

    @property
    def agrees(self) -> bool:
        """Whether no case differs and at least one could be run."""
        found = [o.agrees for o in self.outcomes]
        return False not in found and True in found

    def __str__(self) -> str:
        verdict = "agree" if self.agrees else "differ"
        if all(o.agrees is None for o in self.outcomes):
            verdict = "could not be compared"
        lines = [f"{self.theirs} and {self.ours} {verdict} (tolerance {self.tolerance:g})"]
        lines += [f"  {outcome}" for outcome in self.outcomes]
        lines += [f"  {question}: {answer}" for question, answer in self.conduct.items()]
        return "\n".join(lines)

    def record(self) -> dict[str, Any]:
        """The same for programs; goes into JSON."""
        return {
            "theirs": self.theirs,
            "ours": self.ours,
            "agrees": self.agrees,
            "tolerance": self.tolerance,
            "cases": [
                {
                    "case": o.case,
                    "agrees": o.agrees,
                    "difference": None if o.reason else o.difference,
                    "from_step": o.step,
                    "reason": o.reason,
                }
                for o in self.outcomes
            ],
            "conduct": dict(self.conduct),
        }


def audit(
    theirs: Factory,
    ours: Rule | Factory,
    *,
    lr: float = 0.01,
    steps: int = 20,
    tolerance: float = 1e-9,
    their_options: Mapping[str, Any] | None = None,
    our_options: Mapping[str, Any] | None = None,
    cases: Sequence[Case] = CASES,
) -> Audit:
    """Compare any ``torch.optim.Optimizer`` or optax transformation with a rule.

    Both are given the same float64 weights and gradients. The gradients vary in size, and do not
    depend on the weights.

    Args:
        theirs: a class, or a function ``(parameters, lr=…, **options)`` that returns an optimizer;
            or a function of optax, which is called with ``learning_rate``.
        ours: a rule, a class of gradstep, or a function as above.
        lr: the learning rate of both. Default: 0.01.
        steps: how many steps a case has. Default: 20.
        tolerance: the largest difference, as a share of the largest movement of any weight, that
            counts as agreement. Default: 1e-9.
        their_options, our_options: further arguments of one side, where names or defaults differ.
        cases: what to try. Default: :data:`CASES`.

    Raises:
        ValueError: ``steps`` below 1.
    """
    if steps < 1:
        raise ValueError(f"an audit needs at least 1 step; got {steps}")
    make_theirs = _maker(theirs, lr, their_options or {})
    make_ours = _maker(_factory(ours), lr, our_options or {})
    outcomes = []
    for case in cases:
        outcome = _compare(case, make_theirs, make_ours, steps, tolerance)
        if outcome.agrees is None and case.shapes == _MIXED:
            # It may take nothing but matrices, as Muon.
            narrow = replace(case, name=f"{case.name}, matrices", shapes=_MATRICES)
            again = _compare(narrow, make_theirs, make_ours, steps, tolerance)
            outcome = outcome if again.agrees is None else again
        outcomes.append(outcome)
    name = ours.name if isinstance(ours, Rule) else _name(ours)
    return Audit(_name(theirs), name, tuple(outcomes), _conduct(make_theirs, steps), tolerance)


def _factory(ours: Rule | Factory) -> Factory:
    if not isinstance(ours, Rule):
        return ours
    rule = ours
    if rule.class_name is not None:
        return rule_classes.class_of(rule)
    return lambda params, **options: Optimizer(params, rule, **options)


def _name(factory: Any) -> str:
    while hasattr(factory, "func"):  # a functools.partial
        factory = factory.func
    if isinstance(factory, type) and factory.__module__.startswith("torch.optim."):
        return f"torch.optim.{factory.__qualname__}"
    module = str(getattr(factory, "__module__", "")).partition(".")[0]
    return f"{module}.{getattr(factory, '__qualname__', type(factory).__name__)}".lstrip(".")


Maker = Callable[[list[torch.nn.Parameter], Mapping[str, Any]], Any]


def _maker(factory: Factory, lr: float, own: Mapping[str, Any]) -> Maker:
    def make(params: list[torch.nn.Parameter], options: Mapping[str, Any]) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if is_optax(factory):
                return OptaxOptimizer(params, factory, lr, {**own, **options})
            optimizer = factory(params, lr=lr, **{**own, **options})
            if hasattr(optimizer, "train"):  # Schedule-Free asks for it
                optimizer.train()
            return optimizer

    return make


def _compare(
    case: Case, make_theirs: Maker, make_ours: Maker, steps: int, tolerance: float
) -> Outcome:
    left, right = case.weights(), case.weights()
    try:
        theirs = make_theirs(left, case.options)
    except Exception as error:
        return Outcome(case.name, float("nan"), reason=f"it refuses: {_line(error)}")
    try:
        ours = make_ours(right, case.options)
    except Exception as error:
        return Outcome(case.name, float("nan"), reason=f"the rule refuses: {_line(error)}")
    start = [w.detach().clone() for w in left]
    movement, largest, apart = 0.0, 0.0, None
    for step in range(1, steps + 1):
        for who, optimizer, weights in (("it", theirs, left), ("the rule", ours, right)):
            try:
                _step(case, optimizer, weights, step)
            except Exception as error:
                reason = f"{who} fails at step {step}: {_line(error)}"
                return Outcome(case.name, float("nan"), reason=reason)
        now = [(a.detach(), b.detach()) for a, b in zip(left, right, strict=True)]
        for (a, b), w in zip(now, start, strict=True):
            movement = max(movement, float((b - w).abs().max()), float((a - w).abs().max()))
        apart_now = max(float((a - b).abs().max()) for a, b in now)
        share = apart_now / movement if movement else 0.0
        if not share <= tolerance and apart is None:
            apart = step
        largest = share if share != share else max(largest, share)
    return Outcome(case.name, largest, apart)


def _step(case: Case, optimizer: Any, weights: Sequence[Tensor], step: int) -> None:
    if step == case.halved:
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] / 2
    for w, g in zip(weights, case.gradients(step), strict=True):
        w.grad = g if g is None or not case.spread else torch.empty_like(w).copy_(g)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.step()


def _conduct(make: Maker, steps: int) -> dict[str, str]:
    """What an optimizer does beside its arithmetic."""
    answers: dict[str, str] = {}
    case, weights, optimizer = _accepted(make)
    if optimizer is None:
        return {}
    try:
        writes, draws = False, False
        for step in range(1, steps + 1):
            before = torch.get_rng_state()
            _step(case, optimizer, weights, step)
            draws |= not torch.equal(before, torch.get_rng_state())
            given = case.gradients(step)
            writes |= any(
                w.grad is None or not torch.equal(w.grad, g)
                for w, g in zip(weights, given, strict=True)
                if g is not None
            )
        answers["writes into gradients"] = "yes" if writes else "no"
        answers["draws global random numbers"] = "yes" if draws else "no"
    except Exception as error:
        return {"takes a step": f"no: {_line(error)}"}
    if isinstance(optimizer, torch.optim.Optimizer):
        answers["goes on from a checkpoint bit for bit"] = _resumes(case, make, steps, False)
        answers["loads with weights_only"] = _resumes(case, make, steps, True)
    return answers


def _accepted(make: Maker) -> tuple[Case, list[torch.nn.Parameter], Any]:
    """The first of a few cases that an optimizer can be made for; None in its place if of none."""
    decay = {"weight_decay": 0.1}
    for shapes in (_MIXED, _MATRICES):
        for options in (decay, {}):
            case = Case("conduct", shapes=shapes, options=options)
            weights = case.weights()
            try:
                return case, weights, make(weights, options)
            except Exception:
                continue
    return case, weights, None


def _resumes(case: Case, make: Maker, steps: int, weights_only: bool) -> str:
    """Whether training that is interrupted in the middle ends where it would have."""
    try:
        through = case.weights()
        optimizer = make(through, case.options)
        half = (steps + 1) // 2
        for step in range(1, half + 1):
            _step(case, optimizer, through, step)
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        saved = torch.load(file, weights_only=weights_only)
        resumed = [torch.nn.Parameter(w.detach().clone()) for w in through]
        other = make(resumed, case.options)
        other.load_state_dict(saved)
        for step in range(half + 1, steps + 1):
            _step(case, optimizer, through, step)
            _step(case, other, resumed, step)
    except Exception as error:
        return f"no: {_line(error)}"
    same = all(torch.equal(a, b) for a, b in zip(through, resumed, strict=True))
    return "yes" if same else "no: the weights differ"


def _noise(shape: tuple[int, ...], seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random, dtype=torch.float64, device="cpu")


def _line(error: Exception, longest: int = 160) -> str:
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= longest else text[: longest - 1] + "…"
