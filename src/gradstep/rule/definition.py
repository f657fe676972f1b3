"""What a rule is: a plain function on tensors, its states and its hyperparameters."""

from __future__ import annotations

import inspect
import itertools
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, overload

from gradstep.rule.hyperparameter import (
    Choice,
    Interval,
    check_number,
    is_number,
    is_truth_value,
    like_default,
)
from gradstep.rule.noise import NOISE_KEY, standard_normal
from gradstep.rule.pickling import by_name, reduced
from gradstep.rule.schedule import as_schedule, is_schedule
from gradstep.rule.state import State
from gradstep.rule.symbol import RuleError, Symbol
from gradstep.rule.value import NewWeight

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
    "noise": "a normal number for each element, of mean 0 and variance 1, another one at each "
    "step; a hyperparameter seed chooses others",
    "next_w": "the weight after the step, as the rules before this one in the chain leave it",
}


@dataclass(frozen=True)
class Rule:
    """An update rule, of a function by :func:`rule`, or of rules by ``chain`` and ``graft``.

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
        stages: the rules that it is made of, each with the names that its states and
            hyperparameters have in it.
        made_by: what made it of them, and does it again.
        join: makes one direction of those of the stages, which then each get the gradient; None
            for a chain, where each gets the direction of the one before.
        low_precision: how weights of 16 bits are kept, see ``gradstep.low_precision``.
        against_codes: why states in codes of 8 or 4 bits are known not to suit it, or in a format
            alone: format -> why; empty where they do, or nobody knows.
        unnamed: the inputs that it does not name itself, and needs for others.
        choices: name -> allowed values, for flags that list them.
        kept: what optimizers keep with it for the next one, by keys of their own.
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
    made_by: Callable[..., Rule] | None = field(default=None, repr=False)
    join: Callable[..., Any] | None = field(default=None, repr=False)
    low_precision: str = "nearest"
    against_codes: str | Mapping[str, str] = ""
    unnamed: frozenset[str] = frozenset()
    choices: Mapping[str, Choice] = field(default_factory=dict)
    kept: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def stage_names(self) -> tuple[str, ...]:
        """The names of a chain's rules, numbered where one stands twice; none for a single rule.

        Last that of what joins their directions, if there is such a thing.
        """
        names = numbered([stage.name for stage, _ in self.stages])
        return names if self.join is None else (*names, self.join.__name__)

    @property
    def formats(self) -> dict[str, str]:
        """State -> the name of its format, for those that are not stored as their weight."""
        return {n: s.format for n, s in self.states.items() if s.format is not None}

    def with_formats(self, formats: Mapping[str, str | None]) -> Rule:
        """The same rule with these formats of states; unchecked, see ``gradstep.stored_as``."""
        changed = {n: f for n, f in formats.items() if f != self.states[n].format}
        if not changed:
            return self
        states = {n: replace(self.states[n], format=name) for n, name in changed.items()}
        made: Rule = self.kept.setdefault(  # one object, so that its optimizers share what it keeps
            f"with formats {changed}", replace(self, states={**self.states, **states})
        )
        return made

    def with_low_precision(self, low_precision: str) -> Rule:
        """The same rule with this way; unchecked, see ``gradstep.low_precision``."""
        if low_precision == self.low_precision:
            return self
        made: Rule = self.kept.setdefault(
            f"with low precision {low_precision}", replace(self, low_precision=low_precision)
        )
        return made

    @property
    def counts_steps(self) -> bool:
        """Whether the steps of each weight are counted: for the rule, or for chances."""
        return "step" in self.inputs or self.low_precision.startswith("stochastic")

    @property
    def keeps_own_shapes(self) -> bool:
        """Whether it has states of a shape of their own, such as matrices."""
        return any(state.shape == "own" for state in self.states.values())

    @property
    def tells_vectors_apart(self) -> bool:
        """Whether weights with fewer than two dimensions have other states or steps than others."""
        apart = any(s.shape != "weight" or s.only is not None for s in self.states.values())
        return apart or "is_matrix" in self.inputs

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]
        if self.function is not None:
            return inspect.getdoc(self.function)
        if self.join is not None:
            return inspect.getdoc(self.join)
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
                kind = getattr(self.made_by, "__name__", "")
                raise TypeError(f"{self.name} is a {kind}: call run(), or give it to an optimizer")
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
            changed[name] = like_default(changed[name], self.hyperparameters[name])
        return replace(self, hyperparameters=changed)

    def check(
        self,
        name: str,
        value: Any,
        spoken: str | None = None,
        interval: Interval | None = None,
    ) -> None:
        """Raise unless ``value`` is allowed for the hyperparameter ``name``.

        ``spoken`` is what a message calls it, ``interval`` a range in the place of its own.

        Raises:
            TypeError: not a number where the default is one, not a boolean where it is one.
            ValueError: nan, or outside of the interval.
        """
        default = self.hyperparameters[name]
        if not is_number(default):
            if isinstance(default, bool) and not is_truth_value(value):
                raise TypeError(f"Invalid {name} value: {value!r}; {self.name} takes True or False")
            if isinstance(default, str) and not isinstance(value, str):
                raise TypeError(
                    f"Invalid {name} value: {value!r}; {self.name} takes text, such as {default!r}"
                )
            if name in self.choices:
                self.choices[name].check(name, value)
            return
        interval = interval or self.intervals.get(name, Interval())
        check_number(name, value, interval, spoken)

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
        key = None
        if "noise" in self.inputs:
            begun = inputs["w"] + inputs.get("gradient", g)
            seed = inputs.get("seed", 0.0)
            noise, key = standard_normal(begun, states[NOISE_KEY], inputs["step"], seed)
            inputs = {**inputs, "noise": noise}
        own = [name for name in self.states if name != NOISE_KEY]
        names = [*self.hyperparameters, *(self.inputs - self.unnamed)]
        result = self.function(
            g, *(states.get(name) for name in own), **{n: inputs[n] for n in names}
        )
        values = result if isinstance(result, tuple) else (result,)
        if len(values) != 1 + len(own):
            wanted = ", ".join(["direction", *own])
            raise RuleError(
                f"rule {self.name} returned {len(values)} value(s) and must return "
                f"{1 + len(own)}: {wanted}. End it with: return {wanted}"
            )
        new_states = dict(zip(own, values[1:], strict=True))
        if key is not None:
            new_states[NOISE_KEY] = key
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
        directions = [g]
        alone = "gradient" not in inputs  # within another, that counts the stages
        for position, (stage, names) in enumerate(self.stages):
            given = g if self.join is not None else directions[-1]
            if isinstance(given, Symbol) and alone:
                given.recorder.stage = position
            own_states = {n: states.get(names[n]) for n in stage.states}
            own_inputs = {"gradient": g, **{n: v for n, v in inputs.items() if n in INPUTS}}
            own_inputs.update({n: inputs[names[n]] for n in stage.hyperparameters})
            if "next_w" in stage.inputs:
                own_inputs["next_w"] = _moved(given, inputs)
            elif isinstance(given, NewWeight):
                raise RuleError(
                    f"{stage.name} follows a rule that sets the weight outright. "
                    "Such a rule can only stand last in a chain, or before stages that take the "
                    "weight after the step (next_w)."
                )
            direction, changed = stage.run(given, own_states, own_inputs)
            directions.append(direction)
            new_states.update({names[n]: value for n, value in changed.items()})
        if self.join is None:
            return directions[-1], new_states
        if isinstance(g, Symbol) and alone:
            g.recorder.stage = len(self.stages)
        return self.join(*directions[1:]), new_states

    # The functional form. What makes steps stands above this room, and is read when asked for.

    def init(self, params: Any, *, lr: float | None = None) -> Any:
        """The states of parameters before their first step: half of the functional form.

        ::

            state = rule.init(params)
            params, state = rule.update(grads, state, params, lr=0.01)

        Args:
            params: tensors, in any nest of dicts, lists and tuples; or a single one.
            lr: the learning rate, for the few rules of which a state starts with it: ASGD and
                Rprop. Default: the rule's own.

        Returns:
            the same nest, with a dict of states by name in the place of each tensor; ``step`` is
            the count of its steps.

        Raises:
            TypeError: a leaf that is no floating-point or complex tensor.
        """
        from gradstep.optimizer import functional

        return functional.init(self, params, lr=lr)

    def update(self, grads: Any, state: Any, params: Any, **options: Any) -> tuple[Any, Any]:
        """A step as a pure function, the other half of the functional form.

        Nothing that is given is changed. Where nothing follows the numbers, the bits are those of
        :class:`gradstep.Optimizer`. Under autograd, torch.func, vmap and torch.compile they are
        those of torch's operations, as of ``engine="eager"``; then a rule that calls opaque
        functions needs such as torch can follow.

        Args:
            grads: gradients in the nest of ``params``; None for a parameter that stays.
            state: from :meth:`init` or the step before.
            params: the parameters.
            options: ``lr``, a number or tensor (the rule's own by default); any hyperparameter;
                ``maximize``; ``loss``, for rules that ask for it; ``engine``.

        Returns:
            the new parameters, and the new states.

        Raises:
            TypeError: an unknown hyperparameter.
            ValueError: a nest that is not that of ``params``, or a state that is missing.
        """
        from gradstep.optimizer import functional

        return functional.update(self, grads, state, params, **options)

    def functions(self) -> list[Callable[..., Any]]:
        """The functions that it is made of, those of its stages included."""
        if self.function is not None:
            return [self.function]
        inside = [function for stage, _ in self.stages for function in stage.functions()]
        return inside if self.join is None else [*inside, self.join]

    def parts(self) -> tuple[Rule, ...]:
        """The rules that it is made of, each with the defaults and formats that it has in it."""
        values, states = self.hyperparameters, self.states
        return tuple(
            replace(
                stage, hyperparameters={n: values[names[n]] for n in stage.hyperparameters}
            ).with_formats({n: states[names[n]].format for n in stage.states})
            for stage, names in self.stages
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle by name where it leads back to this rule; see :mod:`gradstep.rule.pickling`.

        Raises:
            pickle.PicklingError: when pickle saves a rule that no name leads to.
        """
        if self.low_precision != "nearest":
            plain = self.with_low_precision("nearest")
            return Rule.with_low_precision, (plain, self.low_precision)
        if self.function is None:
            return self.made_by, self.parts()
        if self.formats:
            plain = self.with_formats(dict.fromkeys(self.formats))
            return Rule.with_formats, (plain, self.formats)
        return reduced(self, _rule_over)

    def __copy__(self) -> Rule:
        return self

    def __deepcopy__(self, memo: Any) -> Rule:
        return self


def _moved(direction: Any, inputs: Mapping[str, Any]) -> Any:
    """The weight after a step along a direction, or as a rule has set it."""
    if isinstance(direction, NewWeight):
        return direction.weight
    return inputs["w"] - inputs["lr"] * direction


@overload
def rule(function: Callable[..., Any], /) -> Rule: ...
@overload
def rule(
    *,
    sparse: str | None = None,
    lr: float = 1e-3,
    class_name: str | None = None,
    against_codes: str | Mapping[str, str] = "",
) -> Callable[[Callable[..., Any]], Rule]: ...


def rule(
    function: Callable[..., Any] | None = None,
    /,
    *,
    sparse: str | None = None,
    lr: float = 1e-3,
    class_name: str | None = None,
    against_codes: str | Mapping[str, str] = "",
) -> Any:
    """Make an update rule of a function.

    The function's first argument is the gradient; further positional arguments are state
    tensors (zeros of the weight's shape, unless a default such as ``full(1.0)`` or
    ``zeros(when="centered")`` says otherwise); keyword-only arguments are ``w`` (the weight),
    ``step`` (1 at the weight's first), ``lr``, ``first`` and ``noise`` (a normal number for each
    element, the same bits in all engines and after a checkpoint; a hyperparameter ``seed`` chooses
    others) where it names them, and hyperparameters with their defaults. It returns the direction
    (the weight becomes ``w − lr · direction``), then the new states in order, and changes nothing
    in place::

        @gradstep.rule
        def heavy_ball(g, velocity, *, momentum=0.9):
            velocity = momentum * velocity + g
            return velocity, velocity

    A global, a variable of an enclosing function or an attribute that it reads is looked at again
    before each step: where it has another value, the rule is traced anew, which a hyperparameter
    spares. What cannot be looked at (a generator of random numbers, the time, a large list) is
    refused.

    Args:
        function: the function.
        sparse: ``"rows"`` if a zero gradient changes nothing, so that for a sparse gradient only
            the rows it names are updated; ``"only"`` for a rule that takes sparse gradients alone.
        lr: the learning rate that an optimizer has where none is given. Default: 1e-3.
        class_name: what the class over it is called, for the rules of this package.
        against_codes: why states in codes of 8 or 4 bits do not suit it, if they were seen not to,
            or format -> why: an optimizer with such states says so.

    Raises:
        RuleError: a signature that is no rule's: no gradient, ``*args``, ``**kwargs``, or a
            hyperparameter without default.
    """
    if function is None:
        return lambda f: replace(
            rule_from(f, sparse), lr=lr, class_name=class_name, against_codes=against_codes
        )
    return rule_from(function, sparse)


def rule_from(function: Callable[..., Any], sparse: str | None) -> Rule:
    """The :class:`Rule` of a function, read off its signature."""
    if not isinstance(function, types.FunctionType | types.MethodType):
        kind = function.__name__ if isinstance(function, type) else type(function).__name__
        raise RuleError(
            f"gradstep.rule takes a function, of def or lambda, whose text is read; got {kind}. "
            "Write def my_rule(g, *, …), with what an object or functools.partial holds as "
            "hyperparameters: my_rule(beta=0.8) is the same rule with another default."
        )
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
    if "noise" in inputs:
        states[NOISE_KEY] = State("zeros", 0.0, None, "own", own_shape=lambda _: (2,))
    unnamed = frozenset({"step"} if "noise" in inputs and "step" not in inputs else ())
    choices = {n: Choice(c) for n in hyperparameters if (c := _listed(hints.get(n)))}
    return Rule(
        name,
        states,
        hyperparameters,
        intervals,
        frozenset(inputs) | unnamed,
        sparse,
        function=function,
        unnamed=unnamed,
        choices=choices,
    )


def _listed(annotation: Any) -> tuple[Any, ...]:
    """The values that a flag's annotation lists: ``Literal["a", "b"] | None``; none for another."""
    parts = typing.get_args(annotation) if _is_union(annotation) else (annotation,)
    listed = [v for p in parts if typing.get_origin(p) is Literal for v in typing.get_args(p)]
    if not listed or any(
        p is not type(None) and typing.get_origin(p) is not Literal for p in parts
    ):
        return ()
    return (*listed, None) if type(None) in parts else tuple(listed)


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _rule_over(function: Any, sparse: str | None, lr: float, class_name: str | None) -> Rule:
    return replace(rule_from(function, sparse), lr=lr, class_name=class_name)


#: What it was called when pickles were saved that are still loaded.
_rule_by_name = by_name


def free_name(name: str, taken: Collection[str]) -> str:
    """The name, with the first number from 2 on that makes it one of its own."""
    tried = (name if i == 1 else f"{name}{i}" for i in itertools.count(1))
    return next(n for n in tried if n not in taken)


def numbered(names: Iterable[str]) -> tuple[str, ...]:
    """The names, each one of its own: with a number where it stands again."""
    found: list[str] = []
    for name in names:
        found.append(free_name(name, found))
    return tuple(found)
