"""Bad input: a clear error that names the parameter and changes nothing, and a way on.

Each case has two groups, of which the second is spoilt: the first must not have been updated.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import gradstep
from gradstep.backends.update import Update, check

NAMES = ("first.weight", "first.bias", "second.weight", "second.bias")
SHAPES = ((5, 3), (5,), (4, 3, 2, 2), (4,))
SPOILT = "second.weight"

Params = dict[str, nn.Parameter]


def parameters() -> Params:
    random = torch.Generator().manual_seed(1)
    return {
        n: nn.Parameter(torch.randn(s, generator=random))
        for n, s in zip(NAMES, SHAPES, strict=True)
    }


def groups(params: Params) -> list[dict[str, Any]]:
    items = list(params.items())
    return [{"params": items[:2]}, {"params": items[2:], "lr": 0.02}]


def feed(params: Params, number: int) -> None:
    random = torch.Generator().manual_seed(100 + number)
    for p in params.values():
        p.grad = torch.randn(p.shape, generator=random).to(p.dtype)


def go(params: Params, optimizer: Any, numbers: range) -> None:
    for number in numbers:
        feed(params, number)
        optimizer.step()


def copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


@dataclass
class Everything:
    """A copy of all that a step may write, and of what it reads."""

    weights: dict[str, Tensor]
    states: dict[str, Any]
    groups: list[dict[str, Any]]

    @classmethod
    def of(cls, params: Params, optimizer: Any) -> Everything:
        names = {p: n for n, p in params.items()}
        states = {
            names[p]: {k: copied(v) for k, v in entry.items()} if isinstance(entry, dict) else entry
            for p, entry in optimizer.state.items()
        }
        settings = [
            {k: copied(v) for k, v in g.items() if k != "params"} for g in optimizer.param_groups
        ]
        return cls({n: copied(p) for n, p in params.items()}, states, settings)

    def assert_equals(self, other: Everything) -> None:
        assert_equal(self.weights, other.weights)
        assert_equal(self.states, other.states)
        assert_equal(self.groups, other.groups)


def assert_equal(left: Any, right: Any) -> None:
    """Of the same types, sizes and bits, all the way down."""
    assert type(left) is type(right)
    if isinstance(left, Tensor):
        assert left.device == right.device and left.dtype == right.dtype
        assert left.shape == right.shape and left.layout == right.layout
        if left.layout is torch.strided and left.device.type != "meta":
            assert left.stride() == right.stride()
            torch.testing.assert_close(left, right, rtol=0, atol=0, equal_nan=True)
    elif isinstance(left, dict):
        assert set(left) == set(right)
        for key in left:
            assert_equal(left[key], right[key])
    elif isinstance(left, list | tuple):
        assert len(left) == len(right)
        for a, b in zip(left, right, strict=True):
            assert_equal(a, b)
    elif isinstance(left, float) and math.isnan(left):
        assert math.isnan(right)
    else:
        assert numpy.array_equal(left, right) if isinstance(left, numpy.ndarray) else left == right


Spoil = Callable[[nn.Parameter, Any], Callable[[], None]]


def spoilt_gradient(make: Callable[[Tensor], Tensor]) -> Spoil:
    def spoil(p: nn.Parameter, optimizer: Any) -> Callable[[], None]:
        assert p.grad is not None
        before = p.grad.detach().clone()
        p.grad.data = make(p.grad.detach())

        def repair() -> None:
            p.grad = before

        return repair

    return spoil


def spoilt_data(make: Callable[[Tensor], Tensor], fresh_gradient: bool) -> Spoil:
    def spoil(p: nn.Parameter, optimizer: Any) -> Callable[[], None]:
        data, gradient = p.data, p.grad
        made = make(p.detach())
        if not made.is_floating_point():  # torch refuses it only while a gradient is required
            p.requires_grad_(False)
        p.data = made
        if fresh_gradient:
            p.grad = torch.ones_like(p)

        def repair() -> None:
            p.data = data
            p.requires_grad_(True)
            p.grad = gradient

        return repair

    return spoil


def spoilt_state(key: str, make: Callable[[Any], Any]) -> Spoil:
    def spoil(p: nn.Parameter, optimizer: Any) -> Callable[[], None]:
        before = optimizer.state[p][key]
        optimizer.state[p][key] = make(before.clone())

        def repair() -> None:
            optimizer.state[p][key] = before

        return repair

    return spoil


def missing_state(key: str) -> Spoil:
    def spoil(p: nn.Parameter, optimizer: Any) -> Callable[[], None]:
        before = optimizer.state[p].pop(key)

        def repair() -> None:
            optimizer.state[p][key] = before

        return repair

    return spoil


def freed(which: str) -> Spoil:
    """Storage that was let go, as sharded training does it."""

    def spoil(p: nn.Parameter, optimizer: Any) -> Callable[[], None]:
        tensor = {"weight": p.detach(), "gradient": p.grad}.get(which)
        tensor = optimizer.state[p][which] if tensor is None else tensor
        before, size = tensor.clone(), tensor.untyped_storage().nbytes()
        tensor.untyped_storage().resize_(0)

        def repair() -> None:
            tensor.untyped_storage().resize_(size)
            tensor.copy_(before)

        return repair

    return spoil


#: What is spoilt; the errors that may come; what the message must have, beside the name.
GRADIENTS: dict[str, tuple[Spoil, str]] = {
    "shape": (spoilt_gradient(lambda g: g[:2].clone()), r"gradient of .*2×3×2×2.*4×3×2×2"),
    "size": (spoilt_gradient(lambda g: torch.ones(96)), r"gradient of .*96.*4×3×2×2"),
    "0-dim": (spoilt_gradient(lambda g: torch.tensor(1.0)), r"gradient of .*0-dim.*4×3×2×2"),
    "float64": (spoilt_gradient(lambda g: g.double()), r"gradient of .*float64.*float32"),
    "bfloat16": (spoilt_gradient(lambda g: g.bfloat16()), r"gradient of .*bfloat16.*float32"),
    "int64": (spoilt_gradient(lambda g: g.long()), r"gradient of .*int64.*float32"),
    "complex": (spoilt_gradient(lambda g: g * 1j), r"gradient of .*complex64.*float32"),
    "bool": (spoilt_gradient(lambda g: g > 0), r"gradient of .*bool.*float32"),
    "data of another size": (
        spoilt_data(lambda w: torch.ones(8, 3, 2, 2), False),
        r"gradient of .*4×3×2×2.*8×3×2×2",
    ),
    "data of another dtype": (
        spoilt_data(lambda w: w.double(), False),
        r"gradient of .*float32.*float64",
    ),
    "integer data": (spoilt_data(lambda w: w.long(), False), r"int64.*floating-point"),
    "expanded data": (
        spoilt_data(lambda w: torch.ones(1).expand(4, 3, 2, 2), True),
        r"expanded.*clone\(\)",
    ),
    "gradient let go": (freed("gradient"), r"gradient"),
    "weight let go": (freed("weight"), ""),
}
STATES: dict[str, tuple[Spoil, str]] = {
    "data and gradient of another size": (
        spoilt_data(lambda w: torch.ones(8, 3, 2, 2), True),
        r"state 'exp_avg' of .*4×3×2×2.*8×3×2×2",
    ),
    "data and gradient of another dtype": (
        spoilt_data(lambda w: w.double(), True),
        r"state 'exp_avg' of .*float32.*float64",
    ),
    "dtype": (
        spoilt_state("exp_avg", lambda s: s.double()),
        r"state 'exp_avg' of .*float64.*float32",
    ),
    "half": (
        spoilt_state("exp_avg_sq", lambda s: s.half()),
        r"state 'exp_avg_sq' of .*float16.*float32",
    ),
    "shape": (spoilt_state("exp_avg", lambda s: s[:2]), r"'exp_avg' of .*2×3×2×2.*4×3×2×2"),
    "stride": (
        spoilt_state("exp_avg_sq", lambda s: s.to(memory_format=torch.channels_last)),
        r"'exp_avg_sq' of .*strides.*\(12, 1, 6, 3\).*\(12, 4, 2, 1\)",
    ),
    "expanded": (
        spoilt_state("exp_avg", lambda s: torch.zeros(1).expand(4, 3, 2, 2)),
        r"'exp_avg' of .*strides|expanded",
    ),
    "device": (spoilt_state("exp_avg", lambda s: s.to("meta")), r"'exp_avg' of .*meta.*cpu"),
    "sparse": (spoilt_state("exp_avg", lambda s: s.to_sparse()), r"'exp_avg' of .*sparse"),
    "array": (spoilt_state("exp_avg", lambda s: s.numpy()), r"'exp_avg' of .*ndarray.*tensor"),
    "list": (spoilt_state("exp_avg_sq", lambda s: s.tolist()), r"'exp_avg_sq' of .*list.*tensor"),
    "number": (spoilt_state("exp_avg", lambda s: 0.5), r"'exp_avg' of .*float.*tensor"),
    "text": (spoilt_state("exp_avg", lambda s: "zeros"), r"'exp_avg' of .*str.*tensor"),
    "missing": (missing_state("exp_avg"), r"exp_avg"),
    "None": (spoilt_state("exp_avg_sq", lambda s: None), r"exp_avg_sq"),
    "let go": (freed("exp_avg"), r"state"),
    "step: int": (spoilt_state("step", lambda s: 3), r"'step' of .*int.*torch.tensor"),
    "step: text": (spoilt_state("step", lambda s: "3"), r"'step' of .*str.*torch.tensor"),
    "step: int64": (spoilt_state("step", lambda s: s.long()), r"'step' of .*int64.*float32"),
    "step: two": (spoilt_state("step", lambda s: torch.ones(2)), r"'step' of .*float32 2"),
    "step: meta": (spoilt_state("step", lambda s: s.to("meta")), r"'step' of .*meta"),
    "step: sparse": (
        spoilt_state("step", lambda s: torch.ones(1).to_sparse()),
        r"'step' of .*sparse",
    ),
    "step: missing": (missing_state("step"), r"step"),
}

engines = pytest.mark.parametrize("engine", ["fused", "eager"])


def refuse_and_repair(spoil: Spoil, message: str, engine: str, steps_before: int) -> None:
    params, twin = parameters(), parameters()
    optimizer = gradstep.Adam(groups(params), lr=0.01, engine=engine)
    untouched = gradstep.Adam(groups(twin), lr=0.01, engine=engine)
    go(params, optimizer, range(steps_before))
    go(twin, untouched, range(steps_before))

    feed(params, steps_before)
    repair = spoil(params[SPOILT], optimizer)
    weight_let_go = params[SPOILT].untyped_storage().nbytes() == 0
    watched = {n: p for n, p in params.items() if not (weight_let_go and n == SPOILT)}
    seen = Everything if not is_let_go(params, optimizer) else WithoutLetGo
    before = seen.of(watched, optimizer)
    versions = [p._version for p in params.values()]
    for _ in range(2):  # an error stays an error
        with pytest.raises((ValueError, TypeError)) as caught:
            optimizer.step()
        assert SPOILT in str(caught.value)
        caught.match(message)
        seen.of(watched, optimizer).assert_equals(before)
        assert [p._version for p in params.values()] == versions
    repair()
    optimizer.step()
    go(twin, untouched, range(steps_before, steps_before + 1))
    go(params, optimizer, range(steps_before + 1, steps_before + 4))
    go(twin, untouched, range(steps_before + 1, steps_before + 4))
    Everything.of(params, optimizer).assert_equals(Everything.of(twin, untouched))


def is_let_go(params: Params, optimizer: Any) -> bool:
    tensors = [t for e in optimizer.state.values() for t in e.values() if isinstance(t, Tensor)]
    return any(
        t.layout is torch.strided and t.device.type == "cpu" and t.numel()
        and not t.untyped_storage().nbytes()
        for t in [*params.values(), *tensors]
    )  # fmt: skip


class WithoutLetGo(Everything):
    """The same, leaving out what has no memory to be copied."""

    @classmethod
    def of(cls, params: Params, optimizer: Any) -> Everything:
        names = {p: n for n, p in params.items()}
        states = {
            names[p]: {k: copied(v) for k, v in entry.items() if v.untyped_storage().nbytes()}
            for p, entry in optimizer.state.items()
            if p in names
        }
        return cls({n: copied(p) for n, p in params.items()}, states, [])


@engines
@pytest.mark.parametrize("steps_before", [0, 3], ids=["at the first step", "later"])
@pytest.mark.parametrize("case", GRADIENTS)
def test_a_bad_gradient_or_weight(case: str, steps_before: int, engine: str) -> None:
    refuse_and_repair(*GRADIENTS[case], engine, steps_before)


@engines
@pytest.mark.parametrize("case", STATES)
def test_a_bad_state(case: str, engine: str) -> None:
    refuse_and_repair(*STATES[case], engine, 3)


@engines
def test_memory_that_was_let_go_beside_an_empty_weight(engine: str) -> None:
    """An empty weight has no memory either, and that is no fault."""
    params = {"none": nn.Parameter(torch.ones(0, 3)), SPOILT: nn.Parameter(torch.ones(4, 3))}
    optimizer = gradstep.Adam(params.items(), engine=engine)
    go(params, optimizer, range(2))
    feed(params, 2)
    gradient = params[SPOILT].grad
    assert gradient is not None
    size = gradient.untyped_storage().nbytes()
    gradient.untyped_storage().resize_(0)
    before = {n: copied(p) for n, p in params.items()}
    with pytest.raises(ValueError, match=SPOILT):
        optimizer.step()
    assert_equal({n: copied(p) for n, p in params.items()}, before)
    gradient.untyped_storage().resize_(size)
    gradient.fill_(1.0)
    optimizer.step()


def test_an_entry_that_is_no_dict() -> None:
    params = parameters()
    optimizer = gradstep.Adam(groups(params))
    go(params, optimizer, range(2))
    kept = optimizer.state[params[SPOILT]]
    optimizer.state[params[SPOILT]] = 3
    feed(params, 2)
    before = Everything.of(params, optimizer)
    with pytest.raises((ValueError, TypeError), match=SPOILT):
        optimizer.step()
    Everything.of(params, optimizer).assert_equals(before)
    optimizer.state[params[SPOILT]] = kept
    optimizer.step()


def test_a_message_says_which_parameter_without_names() -> None:
    params = parameters()
    plain = list(params.values())
    optimizer = gradstep.Adam([{"params": plain[:2]}, {"params": plain[2:]}])
    feed(params, 0)
    plain[3].grad.data = torch.ones(5)  # type: ignore[union-attr]
    before = Everything.of(params, optimizer)
    with pytest.raises(ValueError, match=r"parameter 1 of group 1 \(shape \(4,\)\)"):
        optimizer.step()
    Everything.of(params, optimizer).assert_equals(before)


@pytest.mark.parametrize("what", ["gradient", "state 'a'"])
def test_a_tensor_on_another_device(what: str) -> None:
    """torch itself lets nobody set such a gradient from Python, so the check is asked directly."""
    weight = torch.ones(3)
    tensors = {"gradient": torch.ones(3), "state 'a'": torch.ones(3)}
    tensors[what] = torch.ones(3, device="meta")
    states = {"a": tensors["state 'a'"]}
    update = Update(weight, tensors["gradient"], states, {}, False, lambda: "conv.bias")
    with pytest.raises(ValueError, match=f"^{what} of conv.bias is float32 3 on meta.*on cpu"):
        check(update)


def test_a_model_moved_to_another_device() -> None:
    """With swapped tensors the parameter stays the same object."""
    model = nn.Linear(3, 2)
    optimizer = gradstep.Adam(model.named_parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    before = {k: v.clone() for k, v in optimizer.state[model.weight].items()}
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        optimizer.zero_grad()
        held = model.weight
        model.to("meta")
        assert model.weight is held and held.device.type == "meta"
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    held.grad = torch.ones_like(held)
    with pytest.raises(ValueError, match=r"state 'exp_avg' of weight is .*on cpu.*on meta"):
        optimizer.step()
    assert_equal(dict(optimizer.state[held]), before)


# Hyperparameters.


NOT_NUMBERS: list[Any] = ["0.1", None, [0.1], 1j, torch.tensor([0.1, 0.2])]
NAN = float("nan")
#: Neither True nor False, nor a number.
NO_FLAGS: list[Any] = ["yes", "False", "", [True], [], object]

#: What no group may hold, at any time.
HYPERPARAMETERS: list[tuple[str, dict[str, Any], str, list[Any]]] = [
    ("SGD", {}, "lr", NOT_NUMBERS),
    ("SGD", {"momentum": 0.9}, "momentum", NOT_NUMBERS),
    ("SGD", {"momentum": 0.9}, "dampening", ["none", None]),
    ("SGD", {}, "weight_decay", NOT_NUMBERS),
    ("Adam", {}, "lr", NOT_NUMBERS),
    ("Adam", {}, "betas", [
        (0.9,), (0.9, 0.9, 0.9), 0.9, "both", None, ("a", 0.9), (0.9, None), torch.tensor(0.9),
        torch.tensor([0.9]), torch.tensor([[0.9, 0.99]]), {0.9: 0.99}, {0.9, 0.99},
    ]),
    ("Adam", {}, "eps", NOT_NUMBERS),
    ("Adam", {}, "weight_decay", NOT_NUMBERS),
    ("AdamW", {}, "weight_decay", NOT_NUMBERS),
    ("RMSprop", {}, "alpha", NOT_NUMBERS),
    ("RMSprop", {}, "eps", NOT_NUMBERS),
    ("RMSprop", {}, "momentum", NOT_NUMBERS),
    ("Adagrad", {}, "lr", NOT_NUMBERS),
    ("Adagrad", {}, "lr_decay", NOT_NUMBERS),
    ("Adagrad", {}, "initial_accumulator_value", NOT_NUMBERS),
    ("Lion", {}, "betas", [(None, 0.9), 0.9]),
    ("Lion", {}, "weight_decay", NOT_NUMBERS),
]  # fmt: skip

#: What no new group may have, and what torch takes if it is set later: see
#: ``test_changed_options.py``.
OUT_OF_RANGE: list[tuple[str, dict[str, Any], str, list[Any]]] = [
    ("SGD", {}, "lr", [-1.0, NAN, torch.tensor(NAN)]),
    ("SGD", {"momentum": 0.9}, "momentum", [-1.0, NAN]),
    ("SGD", {"momentum": 0.9}, "dampening", [NAN]),
    ("SGD", {}, "weight_decay", [-1.0, NAN]),
    ("SGD", {"momentum": 0.9}, "nesterov", NO_FLAGS),
    ("SGD", {}, "maximize", NO_FLAGS),
    ("Adam", {}, "lr", [-1.0, NAN, torch.tensor(NAN)]),
    ("Adam", {}, "betas", [
        (0.9, 1.0), (-0.1, 0.9), (torch.tensor(0.9), 0.99), (NAN, 0.9), torch.tensor([0.9, 1.0]),
    ]),
    ("Adam", {}, "eps", [-1.0, NAN]),
    ("Adam", {}, "weight_decay", [-1.0, NAN]),
    ("Adam", {}, "amsgrad", NO_FLAGS),
    ("AdamW", {}, "weight_decay", [-1.0, NAN]),
    ("RMSprop", {}, "alpha", [-1.0, NAN]),
    ("RMSprop", {}, "eps", [-1.0, NAN]),
    ("RMSprop", {}, "momentum", [-1.0, NAN]),
    ("RMSprop", {}, "centered", NO_FLAGS),
    ("Adagrad", {}, "lr", [-1.0, NAN]),
    ("Adagrad", {}, "lr_decay", [-1.0, NAN]),
    ("Adagrad", {}, "initial_accumulator_value", [-1.0, NAN]),
    ("Lion", {}, "betas", [(1.0, 0.9), (0.9, 1.5), (NAN, 0.9)]),
    ("Lion", {}, "weight_decay", [-1.0, NAN]),
]  # fmt: skip

#: How a message speaks of what has a longer name there, as torch does.
SPOKEN = {"lr": "learning rate|lr", "eps": "epsilon|eps", "betas": "beta"}


def each_value(rows: list[tuple[str, dict[str, Any], str, list[Any]]]) -> list[Any]:
    return [
        pytest.param(name, options, key, value, id=f"{name}-{key}-{value}")
        for name, options, key, values in rows
        for value in values
    ]


@pytest.mark.parametrize(
    ("name", "options", "key", "value"), each_value([*HYPERPARAMETERS, *OUT_OF_RANGE])
)
def test_a_bad_hyperparameter_at_construction(
    name: str, options: dict[str, Any], key: str, value: Any
) -> None:
    with pytest.raises((ValueError, TypeError), match=SPOKEN.get(key, key)):
        getattr(gradstep, name)(groups(parameters()), **{**options, key: value})
    # In a group of its own, too.
    params = parameters()
    own = groups(params)
    own[1][key] = value
    with pytest.raises((ValueError, TypeError), match=SPOKEN.get(key, key)):
        getattr(gradstep, name)(own, **options)


@pytest.mark.parametrize(("name", "options", "key", "value"), each_value(HYPERPARAMETERS))
def test_a_bad_hyperparameter_set_later(
    name: str, options: dict[str, Any], key: str, value: Any
) -> None:
    params, twin = parameters(), parameters()
    optimizer = getattr(gradstep, name)(groups(params), **options)
    untouched = getattr(gradstep, name)(groups(twin), **options)
    go(params, optimizer, range(2))
    go(twin, untouched, range(2))
    kept = optimizer.param_groups[1][key]
    optimizer.param_groups[1][key] = value
    feed(params, 2)
    before = Everything.of(params, optimizer)
    for _ in range(2):
        with pytest.raises((ValueError, TypeError), match=SPOKEN.get(key, key)):
            optimizer.step()
        Everything.of(params, optimizer).assert_equals(before)
    optimizer.param_groups[1][key] = kept
    go(params, optimizer, range(2, 5))
    go(twin, untouched, range(2, 5))
    Everything.of(params, optimizer).assert_equals(Everything.of(twin, untouched))


@pytest.mark.parametrize("key", ["lr", "betas", "eps", "amsgrad", "maximize"])
def test_a_hyperparameter_that_was_taken_out(key: str) -> None:
    params = parameters()
    optimizer = gradstep.Adam(groups(params))
    go(params, optimizer, range(2))
    kept = optimizer.param_groups[1].pop(key)
    feed(params, 2)
    before = Everything.of(params, optimizer)
    with pytest.raises((ValueError, KeyError), match=key):
        optimizer.step()
    Everything.of(params, optimizer).assert_equals(before)
    optimizer.param_groups[1][key] = kept
    optimizer.step()


def test_an_unknown_hyperparameter_or_engine() -> None:
    params = parameters()
    with pytest.raises(TypeError, match=r"no hyperparameter 'beta'.*beta1"):
        gradstep.Optimizer(params.values(), gradstep.adam, beta=0.9)
    with pytest.raises(ValueError, match=r"'warp'.*auto, eager, fused, compile"):
        gradstep.Adam(params.values(), engine="warp")
    with pytest.raises(TypeError, match="takes a rule"):
        gradstep.Optimizer(params.values(), lambda g: g)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="takes a rule"):
        gradstep.Optimizer(params.values(), gradstep.Adam)  # type: ignore[arg-type]


# Rules.


def test_a_rule_with_the_wrong_number_of_states() -> None:
    @gradstep.rule
    def forgets(g: Any, velocity: Any) -> Any:
        return g + velocity

    @gradstep.rule
    def too_many(g: Any, velocity: Any) -> Any:
        return g, velocity, velocity

    @gradstep.rule
    def nothing(g: Any) -> Any:
        return None

    for rule in (forgets, too_many):
        for wrapped in (rule, gradstep.chain(gradstep.clip_by_value(), rule)):
            with pytest.raises(
                gradstep.RuleError, match=rf"{rule.name} returned .*return direction, velocity"
            ):
                gradstep.Optimizer(parameters().values(), wrapped)
    with pytest.raises(gradstep.RuleError, match="nothing returned None for its direction"):
        gradstep.Optimizer(parameters().values(), nothing)


def test_a_rule_that_returns_a_wrong_shape() -> None:
    @gradstep.rule
    def a_number(g: Any, *, speed: float = 1.0) -> Any:
        return speed * 2

    @gradstep.rule
    def a_state_that_is_a_number(g: Any, velocity: Any, *, speed: float = 1.0) -> Any:
        return g, speed

    @gradstep.rule
    def a_comparison(g: Any) -> Any:
        return g > 0

    @gradstep.rule
    def another_tensor(g: Any) -> Any:
        return g + torch.ones(7)

    for rule, message in (
        (a_number, r"a_number returned a number for its direction.*shape"),
        (a_state_that_is_a_number, r"returned a number for its velocity.*shape"),
        (a_comparison, r"returned the outcome of a comparison for its direction"),
        (another_tensor, r"another_tensor, line \d+:\s+return g \+ torch.ones\(7\)"),
    ):
        with pytest.raises(gradstep.RuleError, match=message):
            gradstep.Optimizer(parameters().values(), rule)


# Parameter lists.


@pytest.mark.parametrize("params", [[], iter([]), (), {}.values()])
def test_an_empty_parameter_list(params: Any) -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        gradstep.Adam(params)


def test_an_empty_group_is_no_error() -> None:
    params = parameters()
    optimizer = gradstep.Adam([{"params": []}, {"params": params.values()}])
    go(params, optimizer, range(2))
    assert len(optimizer.state) == 4


@engines
@pytest.mark.parametrize("name", ["SGD", "Adam", "Adagrad"])
def test_one_parameter_twice_in_a_group(name: str, engine: str) -> None:
    params = parameters()
    items = [*params.items(), ("again", params[SPOILT])]
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = getattr(gradstep, name)(items, engine=engine)
    feed(params, 0)
    before = Everything.of(params, optimizer)
    with pytest.raises(ValueError, match=rf"{SPOILT} .*twice.*once"):
        optimizer.step()
    Everything.of(params, optimizer).assert_equals(before)
    group = optimizer.param_groups[0]  # the way out
    group["params"].pop()
    group["param_names"].pop()
    optimizer.step()
    fresh = parameters()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        alone = getattr(gradstep, name)(fresh.items(), engine=engine)
    feed(fresh, 0)
    alone.step()
    assert_equal({n: copied(p) for n, p in params.items()}, Everything.of(fresh, alone).weights)


def test_one_parameter_in_two_groups() -> None:
    params = parameters()
    own = groups(params)
    own[1]["params"].append(("first.bias", params["first.bias"]))
    with pytest.raises(ValueError, match=r"first\.bias"):
        gradstep.Adam(own)
    plain = list(params.values())
    with pytest.raises(ValueError, match=r"more than one parameter group"):
        gradstep.Adam([{"params": plain[:2]}, {"params": plain[1:]}])


@pytest.mark.parametrize(
    ("tensor", "error", "message"),
    [
        (torch.zeros(3, dtype=torch.int64), TypeError, r"int64 3.*Leave it out"),
        (torch.zeros(3, dtype=torch.uint8), TypeError, r"uint8 3.*Leave it out"),
        (torch.zeros(3, dtype=torch.bool), TypeError, r"bool 3.*Leave it out"),
    ],
    ids=["int64", "uint8", "bool"],
)
def test_integer_parameters(tensor: Tensor, error: type[Exception], message: str) -> None:
    params: dict[str, Any] = {**parameters(), "odd.one": tensor}
    for name in ("SGD", "Adam", "Adagrad"):
        with pytest.raises(error, match=r"odd\.one.*" + message):
            getattr(gradstep, name)(params.items())
        with pytest.raises(error, match=r"parameter 4 of group 0.*" + message):
            getattr(gradstep, name)(params.values())


def test_things_that_are_no_parameters() -> None:
    weight = nn.Parameter(torch.ones(3))
    for wrong, error in (
        (weight, TypeError),
        ([1.0], TypeError),
        ([{"params": {weight}}], TypeError),
        ([weight * 2], ValueError),
        ([("a", weight), nn.Parameter(torch.ones(2))], ValueError),
    ):
        with pytest.raises(error):
            gradstep.Adam(wrong)
        with pytest.raises(error):
            torch.optim.Adam(wrong)


@pytest.mark.parametrize("option", [{"state_dtype": "int8"}, {"low_precision": "kahan"}])
def test_what_is_the_whole_optimizers_is_refused_in_a_group(option: dict[str, Any]) -> None:
    params = parameters()
    first, second = groups(params)
    (name,) = option
    with pytest.raises(ValueError, match=rf"{name}=.* in a parameter group.* gradstep.partition"):
        gradstep.AdamW([first, second | option])
    optimizer = gradstep.AdamW([first])
    with pytest.raises(ValueError, match=name):
        optimizer.add_param_group(second | option)
    assert len(optimizer.param_groups) == 1


def test_a_model_in_the_place_of_its_parameters_is_told_what_to_write() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    for make in (gradstep.AdamW, gradstep.Lion, gradstep.SparseAdam, gradstep.LBFGS):
        with pytest.raises(TypeError, match=r"got a Sequential\. Give it model\.named"):
            make(model)
