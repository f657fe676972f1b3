"""What a rule is: a plain function on tensors, its states and its hyperparameters."""

from __future__ import annotations

import inspect
import itertools
import typing
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, overload

from gradstep.rule.hyperparameter import Interval, check_number, is_number
from gradstep.rule.language import NewWeight
from gradstep.rule.schedule import as_schedule, is_schedule
from gradstep.rule.state import State
from gradstep.rule.symbol import RuleError, Symbol

#: Keyword-only arguments that the optimizer gives a rule, where it names them.
INPUTS: dict[str, str] = {
    "w": "the weight before the step",
    "step": "the weight's own step count, 1 at its first",
    "lr": "the learning rate of the weight's group",
    "first": "true at the weight's first step with this state",
    "loss": "the loss of the step, as its closure returned it",
    "machine_epsilon": "the distance from 1 to the next larger number in the weight's dtype",
    "is_matrix": "whether the weight has two dimensions or more, which a rule may branch on",
    "gradient": "the gradient as it entered the chain, before any other rule of it",
    "next_w": "the weight after the step, as the rules before this one in the chain leave it",
}


@dataclass(frozen=True)
class Rule:
    """An update rule. Made by :func:`rule` from a function, or by :func:`chain` from rules.

    Attributes:
        name: the function's name.
        states: name -> how it starts, in the order of the arguments.
        hyperparameters: name -> default.
        intervals: name -> allowed values, for numbers.
        inputs: which of :data:`INPUTS` it names.
        sparse: ``"rows"`` if a step with a zero gradient changes nothing, so that for a sparse
            gradient only the rows that it names need a step; ``"only"`` if the rule is meant for
            such gradients alone; None otherwise.
        lr: the learning rate that an optimizer has where none is given.
        class_name: what the class over it is called, as in ``gradstep.Lion``; None for a rule
            whose class is written by hand, and for one that has none.
        function: the function itself, for a single rule.
        stages: the rules of a chain, each with the names that its states and hyperparameters have
            in the chain.
    """

    name: str
    states: Mapping[str, State]
    hyperparameters: Mapping[str, Any]
    intervals: Mapping[str, Interval]
    inputs: frozenset[str]
    sparse: str | None = None
    lr: float = 1e-3
    class_name: str | None = None
    function: Callable[..., Any] | None = field(default=None, repr=False)
    stages: tuple[tuple[Rule, Mapping[str, str]], ...] = field(default=(), repr=False)

    def stage_names(self) -> tuple[str, ...]:
        """The names of a chain's rules, numbered where one stands twice; none for a single rule."""
        labels: list[str] = []
        for stage, _ in self.stages:
            labels.append(_free(stage.name, labels))
        return tuple(labels)

    @property
    def tells_vectors_apart(self) -> bool:
        """Whether weights with fewer than two dimensions have other states or steps than others."""
        apart = any(s.shape != "weight" or s.only is not None for s in self.states.values())
        return apart or "is_matrix" in self.inputs

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        if self.function is not None:
            return inspect.getdoc(self.function)
        return "In order: " + ", ".join(stage.name for stage, _ in self.stages) + "."

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """With a gradient: run the function. Without: the same rule with other defaults.

        ``heavy_ball(g, velocity)``, with tensors, returns ``(direction, velocity)``;
        ``adam(beta1=0.8)`` and ``decay_weights(0.1)``, with hyperparameters by name or in their
        order, return a rule.

        Raises:
            TypeError: a keyword that is no hyperparameter of the rule, or more numbers than it has.
            ValueError: a number outside of its interval.
        """
        keywords = {name: as_schedule(value) for name, value in keywords.items()}
        if arguments and (
            isinstance(arguments[0], bool | int | float | str) or is_schedule(arguments[0])
        ):
            if len(arguments) > len(self.hyperparameters):
                raise TypeError(
                    f"{self.name} has {len(self.hyperparameters)} hyperparameter(s); got "
                    f"{len(arguments)}"
                )
            for name, value in zip(self.hyperparameters, arguments, strict=False):
                if name in keywords:
                    raise TypeError(f"{self.name} got {name} twice: by its place and by its name")
                keywords[name] = as_schedule(value)
        elif arguments:
            if self.function is None:
                raise TypeError(f"{self.name} is a chain: call run(), or give it to an optimizer")
            return self.function(*arguments, **{**self.hyperparameters, **keywords})
        for name in keywords:
            if name not in self.hyperparameters:
                raise TypeError(
                    f"{self.name} has no hyperparameter {name!r}; it has: "
                    + (", ".join(self.hyperparameters) or "none")
                )
        changed = {**self.hyperparameters, **keywords}
        for name in keywords:
            self.check(name, changed[name])
        return replace(self, hyperparameters=changed)

    def check(self, name: str, value: Any, spoken: str | None = None) -> None:
        """Raise unless ``value`` is allowed for the hyperparameter ``name``.

        ``spoken`` is what a message calls it.

        Raises:
            TypeError: not a number where the default is one, not a boolean where it is one.
            ValueError: nan, or outside of the interval.
        """
        default = self.hyperparameters[name]
        if not is_number(default):
            if isinstance(default, bool) and not isinstance(value, bool):
                raise TypeError(f"Invalid {name} value: {value!r}; {self.name} takes True or False")
            return
        check_number(name, value, self.intervals.get(name, Interval()), spoken)

    def run(
        self, g: Any, states: Mapping[str, Any], inputs: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        """Run the rule as it is written.

        Args:
            g: the gradient.
            states: name -> tensor, for the states that exist.
            inputs: those of :data:`INPUTS` that it names and every hyperparameter, by name.

        Returns:
            the direction (or a ``NewWeight``), and the new states by name.

        Raises:
            RuleError: the function returned another number of values than it has states.
        """
        if self.function is None:
            return self._run_stages(g, states, inputs)
        if "gradient" in self.inputs:  # in a chain these two are given
            inputs = {"gradient": g, **inputs}
        if "next_w" in self.inputs and "next_w" not in inputs:
            inputs = {"next_w": _moved(g, inputs), **inputs}
        names = [*self.hyperparameters, *self.inputs]
        result = self.function(
            g, *(states.get(name) for name in self.states), **{n: inputs[n] for n in names}
        )
        values = result if isinstance(result, tuple) else (result,)
        if len(values) != 1 + len(self.states):
            wanted = ", ".join(["direction", *self.states])
            raise RuleError(
                f"rule {self.name} returned {len(values)} value(s) and must return "
                f"{1 + len(self.states)}: {wanted}. End it with: return {wanted}"
            )
        new_states = dict(zip(self.states, values[1:], strict=True))
        for name, value in new_states.items():
            if (value is None) != (states.get(name) is None):
                found = "None for" if value is None else "a value for the absent"
                raise RuleError(
                    f"rule {self.name} returned {found} state {name}. "
                    f"Return its new value where it exists, and None where it is None."
                )
        return values[0], {n: v for n, v in new_states.items() if v is not None}

    def _run_stages(
        self, g: Any, states: Mapping[str, Any], inputs: Mapping[str, Any]
    ) -> tuple[Any, dict[str, Any]]:
        new_states: dict[str, Any] = {}
        direction = g
        for position, (stage, names) in enumerate(self.stages):
            if isinstance(direction, Symbol):
                direction.recorder.stage = position
            own_states = {n: states.get(names[n]) for n in stage.states}
            own_inputs = {"gradient": g, **{n: v for n, v in inputs.items() if n in INPUTS}}
            own_inputs.update({n: inputs[names[n]] for n in stage.hyperparameters})
            if "next_w" in stage.inputs:
                own_inputs["next_w"] = _moved(direction, inputs)
            elif isinstance(direction, NewWeight):
                raise RuleError(
                    f"{stage.name} follows a rule that sets the weight outright. "
                    "Such a rule can only stand last in a chain, or before stages that take the "
                    "weight after the step (next_w)."
                )
            direction, changed = stage.run(direction, own_states, own_inputs)
            new_states.update({names[n]: value for n, value in changed.items()})
        return direction, new_states

    def _parts(self) -> tuple[Rule, ...]:
        """The rules of a chain, each with the defaults that it has in it; otherwise itself."""
        if self.function is not None:
            return (self,)
        values = self.hyperparameters
        return tuple(
            replace(stage, hyperparameters={n: values[names[n]] for n in stage.hyperparameters})
            for stage, names in self.stages
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle by name, as functions are: the module's own rule, with its defaults changed."""
        if self.function is None:
            return chain, self._parts()
        module, name = self.function.__module__, self.function.__qualname__
        return _rule_by_name, (module, name, dict(self.hyperparameters))

    def __deepcopy__(self, memo: Any) -> Rule:
        return self


def _moved(direction: Any, inputs: Mapping[str, Any]) -> Any:
    """The weight after a step along a direction, or as a rule has set it."""
    if isinstance(direction, NewWeight):
        return direction.weight
    return inputs["w"] - inputs["lr"] * direction


def _rule_by_name(module: str, name: str, hyperparameters: Mapping[str, Any]) -> Rule:
    import importlib

    found: Any = importlib.import_module(module)
    for part in name.split("."):
        if part == "<locals>":
            raise TypeError(f"rule {name} of {module} is inside a function: move it to the module")
        found = getattr(found, part)
    if not isinstance(found, Rule):
        raise TypeError(f"{module}.{name} is no longer a rule")
    return replace(found, hyperparameters={**found.hyperparameters, **hyperparameters})


@overload
def rule(function: Callable[..., Any], /) -> Rule: ...
@overload
def rule(
    *, sparse: str | None = None, lr: float = 1e-3, class_name: str | None = None
) -> Callable[[Callable[..., Any]], Rule]: ...


def rule(
    function: Callable[..., Any] | None = None,
    /,
    *,
    sparse: str | None = None,
    lr: float = 1e-3,
    class_name: str | None = None,
) -> Any:
    """Make an update rule of a function.

    The function's first argument is the gradient; further positional arguments are state
    tensors (zeros of the weight's shape, unless a default such as ``full(1.0)`` or
    ``zeros(when="centered")`` says otherwise); keyword-only arguments are ``w`` (the weight),
    ``step`` (1 at the weight's first), ``lr`` and ``first`` where it names them, and
    hyperparameters with their defaults. It returns the direction (the weight becomes
    ``w − lr · direction``), then the new states in order, and changes nothing in place::

        @gradstep.rule
        def heavy_ball(g, velocity, *, momentum=0.9):
            velocity = momentum * velocity + g
            return velocity, velocity

    Args:
        function: the function.
        sparse: ``"rows"`` if a zero gradient changes nothing, so that for a sparse gradient only
            the rows it names are updated; ``"only"`` for a rule that takes sparse gradients alone.
        lr: the learning rate that an optimizer has where none is given. Default: 1e-3.
        class_name: what the class over it is called, for the rules of this package.

    Raises:
        RuleError: a signature that is no rule's: no gradient, ``*args``, ``**kwargs``, or a
            hyperparameter without default.
    """
    if function is None:
        return lambda f: replace(rule_from(f, sparse), lr=lr, class_name=class_name)
    return rule_from(function, sparse)


def rule_from(function: Callable[..., Any], sparse: str | None) -> Rule:
    """The :class:`Rule` of a function, read off its signature."""
    name = function.__name__
    parameters = list(inspect.signature(function).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    keyword_only = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    if len(positional) + len(keyword_only) != len(parameters):
        raise RuleError(f"rule {name} has *args or **kwargs. Name every state and hyperparameter.")
    if not positional:
        raise RuleError(f"rule {name} takes no gradient. Its first argument is the gradient.")
    if positional[0].default is not inspect.Parameter.empty:
        raise RuleError(
            f"rule {name}: its first argument, {positional[0].name}, is the gradient and takes no "
            "default. Put hyperparameters behind a *."
        )
    states: dict[str, State] = {}
    for p in positional[1:]:
        if p.name in INPUTS:
            raise RuleError(f"rule {name}: {p.name} is {INPUTS[p.name]}. Put it behind the *.")
        start = State() if p.default is inspect.Parameter.empty else p.default
        if not isinstance(start, State):
            raise RuleError(
                f"rule {name}: the state {p.name} has the default {p.default!r}. Say how it starts "
                f"with zeros(), full({p.default!r}), copy_of_weight() or copy_of_gradient(); or, "
                "if it is a hyperparameter, put it behind a *."
            )
        states[p.name] = start
    hyperparameters: dict[str, Any] = {}
    inputs = {p.name for p in keyword_only if p.name in INPUTS}
    for p in keyword_only:
        if p.name in INPUTS:
            continue
        if p.default is inspect.Parameter.empty:
            raise RuleError(
                f"rule {name}: the hyperparameter {p.name} has no default. Give it one."
            )
        if not (p.default is None or is_number(p.default) or isinstance(p.default, bool | str)):
            raise RuleError(
                f"rule {name}: the hyperparameter {p.name} is a {type(p.default).__name__}. "
                "A hyperparameter is a number (dynamic), or a bool or str (a flag)."
            )
        hyperparameters[p.name] = p.default
    for state_name, state in states.items():
        value = state.value if isinstance(state.value, str) else None
        for needed in (state.when, value, *state.of):
            if needed not in (None, "lr") and needed not in hyperparameters:
                raise RuleError(
                    f"rule {name}: the state {state_name} depends on {needed!r}, which is no "
                    "hyperparameter of it."
                )
    hints = typing.get_type_hints(function, include_extras=True)
    intervals = {
        n: extra
        for n in hyperparameters
        for extra in getattr(hints.get(n), "__metadata__", ())
        if isinstance(extra, Interval)
    }
    return Rule(
        name, states, hyperparameters, intervals, frozenset(inputs), sparse, function=function
    )


def _free(name: str, taken: Collection[str]) -> str:
    """The name, with the first number from 2 on that makes it one of its own."""
    numbered = (name if i == 1 else f"{name}{i}" for i in itertools.count(1))
    return next(n for n in numbered if n not in taken)


def chain(*rules: Rule) -> Rule:
    """Rules in a row: the direction that one returns is the gradient of the next.

    A chain is again a rule, traced and fused as one; a chain within a chain is its rules. A state
    or hyperparameter keeps its name where it is the only one of that name, and gets its rule's
    name in front (and a number, where the same rule stands twice) where it is not.

    Raises:
        TypeError: something that is no rule.
        ValueError: no rules at all; or a rule behind one that takes the weight after the step.
    """
    if not rules:
        raise ValueError("chain() needs at least one rule")
    for r in rules:
        if not isinstance(r, Rule):
            raise TypeError(
                f"chain() takes rules; got {r!r}. Is a decorator @gradstep.rule missing?"
            )
    rules = tuple(part for r in rules for part in r._parts())
    for before, behind in itertools.pairwise(rules):
        if "next_w" in before.inputs and "next_w" not in behind.inputs:
            raise ValueError(
                f"{behind.name} stands behind {before.name}, which takes the weight after the step "
                f"(next_w) and would see one that {behind.name} changes. Put {before.name} last"
            )
    owned = [[*r.states, *r.hyperparameters] for r in rules]
    count = Counter(n for own in owned for n in own)
    labels: list[str] = []
    for r in rules:
        labels.append(_free(r.name, labels))
    taken = [n for n in count if count[n] == 1]
    stages: list[tuple[Rule, dict[str, str]]] = []
    states: dict[str, State] = {}
    hyperparameters: dict[str, Any] = {}
    intervals: dict[str, Interval] = {}
    for r, label, own in zip(rules, labels, owned, strict=True):
        names = {n: n if count[n] == 1 else _free(f"{label}_{n}", taken) for n in own}
        taken += names.values()
        stages.append((r, names))
        for n, state in r.states.items():
            value = (
                names.get(state.value, state.value) if isinstance(state.value, str) else state.value
            )
            when = None if state.when is None else names[state.when]
            of = tuple(names[name] for name in state.of)
            states[names[n]] = replace(state, value=value, when=when, of=of)
        hyperparameters.update({names[n]: d for n, d in r.hyperparameters.items()})
        intervals.update({names[n]: i for n, i in r.intervals.items()})
    inputs = frozenset().union(*(r.inputs for r in rules))
    sparse = "rows" if all(r.sparse == "rows" for r in rules) else None
    name = "chain(" + ", ".join(labels) + ")"
    lr = next((r.lr for r in rules if r.class_name is not None), 1e-3)
    return Rule(name, states, hyperparameters, intervals, inputs, sparse, lr, stages=tuple(stages))
