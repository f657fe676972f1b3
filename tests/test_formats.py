"""States in formats of their own, against plain optimizers whose states are rounded by hand."""

from __future__ import annotations

import copy
import io
import itertools
import logging
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions

import gradstep
from configurations import CONFIGURATIONS, spelled
from gradstep.optimizer.optimizer import planner_of
from gradstep.program import formats
from gradstep.program.formats import Format, Part, format_of, with_state_dtype
from gradstep.program.kernel_spec import Places, kernel_spec
from gradstep.program.program import Program
from gradstep.rule.trace import trace
from rank_cases import Case
from ranks import run_ranks
from reference_row import Reference, loss_at
from test_distributed_checkpoint import assert_uninterrupted, go_on, save

NAMES = ("bfloat16", "float16", "float32")
WEIGHTS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

Make = Callable[..., Any]


def tensors(shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, seed: int = 0) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=random).to(dtype) for shape in shapes]


def dtype_of(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype


class ByHand:
    """A plain optimizer in float32, or float64, whose states are rounded after each step.

    Args:
        make: the class, with its arguments.
        weights: as they are stored.
        chosen: what a state is stored as, by name; None for what the weight is.
    """

    def __init__(
        self, make: Make, weights: Sequence[Tensor], chosen: Callable[[str], torch.dtype | None]
    ) -> None:
        self.dtype = weights[0].dtype
        self.wide = torch.float64 if self.dtype == torch.float64 else torch.float32
        self.weights = [nn.Parameter(w.to(self.wide)) for w in weights]
        self.optimizer = make(self.weights)
        self.chosen = chosen
        self.begun = False

    def step(self, gradients: Sequence[Tensor], loss: float) -> None:
        for w, g in zip(self.weights, gradients, strict=True):
            w.grad = g.to(self.wide)
        states = planner_of(self.optimizer).rule.states.values()
        if not self.begun and any(s.start in ("weight", "full") for s in states):
            if not self.optimizer.state:
                planner_of(self.optimizer).begin_states()
            self.round()
        self.begun = True
        self.optimizer.step(lambda: loss)
        self.round()

    @torch.no_grad()
    def round(self) -> None:
        for w in self.weights:
            w.copy_(w.to(self.dtype))
            for name, state in self.optimizer.state[w].items():
                if state.shape == w.shape and self.is_formatted(name):
                    state.copy_(state.to(self.chosen(name) or self.dtype))

    def is_formatted(self, name: str) -> bool:
        state = planner_of(self.optimizer).rule.states.get(name)
        return state is not None and state.start != "number" and state.shape == "weight"


def assert_as_by_hand(
    make: Make,
    dtype: torch.dtype,
    state_dtype: Any,
    shapes: Sequence[tuple[int, ...]],
    steps: int = 4,
    scale: float = 1.0,
    **options: Any,
) -> Any:
    """A step is the plain one on the decoded states, whose outcome is rounded when it is stored."""

    def chosen(name: str) -> torch.dtype | None:
        said = state_dtype.get(name) if isinstance(state_dtype, dict) else state_dtype
        return None if said is None else dtype_of(said)

    start = tensors(shapes, dtype)
    weights = [nn.Parameter(w.clone()) for w in start]
    optimizer = make(weights, state_dtype=state_dtype, **options)
    plain = ByHand(lambda params: make(params, **options), start, chosen)
    for step in range(steps):
        gradients = [g * scale for g in tensors(shapes, dtype, 1 + step)]
        for w, g in zip(weights, gradients, strict=True):
            w.grad = g.clone()
        optimizer.step(lambda step=step: loss_at(step))
        plain.step(gradients, loss_at(step))
        for w, q in zip(weights, plain.weights, strict=True):
            assert torch.equal(w.to(q.dtype), q), f"weights at step {step}"
            for name, expected in plain.optimizer.state[q].items():
                state = optimizer.state[w][name]
                if plain.is_formatted(name):
                    assert state.dtype == (chosen(name) or dtype), name
                assert torch.equal(state.to(expected.dtype), expected), f"{name} at step {step}"
    return optimizer


# What a step does.


@pytest.mark.parametrize("engine", ["fused", "eager"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", WEIGHTS, ids=str)
def test_a_state_is_decoded_and_rounded_once(dtype: torch.dtype, name: str, engine: str) -> None:
    shapes = [(6, 5), (3,), (), (0, 4)]
    found = assert_as_by_hand(gradstep.AdamW, dtype, name, shapes, lr=0.1, engine=engine)
    assert set(found.engines_used().values()) == {engine}


@pytest.mark.parametrize("name", ["float32", pytest.param("bfloat16", marks=pytest.mark.deep)])
def test_torch_compile_agrees(name: str) -> None:
    """In bfloat16 weights, where it agrees without formats as well."""
    reached = {}
    for engine in ("fused", "compile"):
        weights = [nn.Parameter(w) for w in tensors([(6, 5), (3,)], torch.bfloat16)]
        optimizer = gradstep.SGD(weights, 0.1, 0.9, engine=engine, state_dtype=name)
        for step in range(3):
            for w, g in zip(weights, tensors([(6, 5), (3,)], torch.bfloat16, step), strict=True):
                w.grad = g
            optimizer.step()
        assert set(optimizer.engines_used().values()) == {engine}
        reached[engine] = [*weights, *(s for w in weights for s in optimizer.state[w].values())]
    assert [t.dtype for t in reached["fused"]][2:] == [dtype_of(name)] * 2
    assert all(map(torch.equal, *reached.values()))


#: A configuration a graph; the quick run has those that differ.
EACH_RULE = [
    pytest.param(reference, options, id=f"{reference.name}-{spelled(options)}")
    for reference, options in CONFIGURATIONS
    if reference.name not in ("SparseAdam", "LBFGS")
    and not any(isinstance(v, Tensor) for v in options.values())
    and "state_dtype" not in options
]


@pytest.mark.parametrize(("reference", "options"), EACH_RULE)
def test_of_every_rule(reference: Reference, options: dict[str, Any]) -> None:
    shapes = [(6, 5), (7,)] if reference.dimensions is None else [(6, 5)]
    assert_as_by_hand(reference.ours, torch.float32, "bfloat16", shapes, **options)


def test_large_tensors_on_any_number_of_threads() -> None:
    for threads in (1, 2):
        torch.set_num_threads(threads)
        mixed = {"exp_avg": "bfloat16", "exp_avg_sq": "float16"}
        found = assert_as_by_hand(gradstep.Adam, torch.float32, mixed, [(700, 511), (41,)], 2)
        assert set(found.engines_used().values()) == {"fused"}


@given(
    st.sampled_from(WEIGHTS),
    st.dictionaries(st.sampled_from(["exp_avg", "exp_avg_sq"]), st.sampled_from(NAMES)),
    st.sampled_from([1e-30, 1e-4, 1.0, 300.0, 1e18]),
    st.lists(st.integers(0, 9), max_size=3).map(tuple),
    st.sampled_from(["fused", "eager"]),
)
@settings(max_examples=25)
def test_of_any_shape_and_size(
    dtype: torch.dtype, state_dtype: dict[str, str], scale: float, shape: Any, engine: str
) -> None:
    if dtype == torch.float16:
        scale = min(scale, 300.0)
    make: Any = gradstep.AdamW
    assert_as_by_hand(make, dtype, state_dtype, [shape, (5,)], 3, scale, engine=engine)


def test_the_direction_is_made_before_the_state_is_rounded() -> None:
    weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = gradstep.SGD([weight], lr=1.0, momentum=0.5, state_dtype="bfloat16")
    weight.grad = torch.tensor([1.0], dtype=torch.float64)
    optimizer.step()
    weight.grad = torch.tensor([2.0**-12], dtype=torch.float64)
    optimizer.step()
    assert weight.item() == -(1.0 + 0.5 + 2.0**-12)
    assert optimizer.state[weight]["momentum_buffer"].item() == 0.5


def test_of_layouts_and_gradients_that_come_and_go() -> None:
    image = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    weights = [
        nn.Parameter(image),
        nn.Parameter(torch.randn(5, 4).t()),
        nn.Parameter(torch.ones(2)),
    ]
    optimizer = gradstep.Adam(weights, state_dtype="bfloat16")
    for step in range(6):
        for i, w in enumerate(weights):
            w.grad = None if i == step % 3 else torch.randn_like(w)
        optimizer.step()
    for w in weights:
        for name in ("exp_avg", "exp_avg_sq"):
            state = optimizer.state[w][name]
            assert state.dtype == torch.bfloat16 and state.stride() == w.stride()
    assert set(optimizer.engines_used().values()) == {"fused"}
    with torch.no_grad():  # the weight is laid out anew, and the states follow
        weights[0].data = weights[0].contiguous()
    before = optimizer.state[weights[0]]["exp_avg"].clone()
    weights[0].grad = torch.zeros_like(weights[0])
    optimizer.param_groups[0]["betas"] = (1.0 - 2**-30, 0.999)
    optimizer.step()
    after = optimizer.state[weights[0]]["exp_avg"]
    assert after.is_contiguous() and after.dtype == torch.bfloat16 and torch.equal(after, before)


@pytest.mark.parametrize("groups", [1, 40])
def test_of_many_small_weights(groups: int) -> None:
    weights = [nn.Parameter(w) for w in tensors([(2, 2), (3,)] * 20, torch.bfloat16)]
    split = [{"params": weights[i::groups]} for i in range(groups)]
    optimizer = gradstep.AdamW(split, state_dtype={"exp_avg_sq": "float32"})
    for step in range(4):
        for i, w in enumerate(weights):
            w.grad = None if step == 2 and i % 3 else torch.ones_like(w)
        optimizer.step()
    kinds = {n: {s[n].dtype for s in optimizer.state.values()} for n in ("exp_avg", "exp_avg_sq")}
    assert kinds == {"exp_avg": {torch.bfloat16}, "exp_avg_sq": {torch.float32}}


def test_sparse_rows() -> None:
    embedding = nn.Embedding(6, 3, sparse=True)
    start = embedding.weight.detach().clone()
    optimizer = gradstep.SparseAdam([*embedding.parameters()], lr=0.1, state_dtype="bfloat16")
    for _ in range(2):
        optimizer.zero_grad()
        embedding(torch.tensor([1, 4])).square().sum().backward()
        optimizer.step()
    states = optimizer.state[embedding.weight]
    assert states["exp_avg"].dtype == torch.bfloat16
    moved = (embedding.weight != start).any(1)
    assert moved.tolist() == [False, True, False, False, True, False]
    assert (states["exp_avg_sq"] != 0).any(1).tolist() == moved.tolist()


def test_a_differentiable_step() -> None:
    weight = torch.ones(3, dtype=torch.float64, requires_grad=True)
    moved = weight * 1.0
    optimizer = gradstep.SGD([moved], 0.5, 0.5, differentiable=True, state_dtype="bfloat16")
    moved.grad = weight * 3
    optimizer.step()
    assert optimizer.state[moved]["momentum_buffer"].dtype == torch.bfloat16
    moved.sum().backward()
    assert torch.equal(weight.grad, torch.full((3,), -0.5, dtype=torch.float64))


def test_a_kernel_s_name_on_disk_tells_formats_apart() -> None:
    def texts(rule: gradstep.Rule) -> list[str]:
        graph = trace(rule, {**rule.hyperparameters, "lr": 0.1})
        program = Program(rule, graph, ["lr", *rule.hyperparameters])
        return [
            kernel_spec(
                each,
                program.inputs,
                "float32",
                Places(),
                formats={n: format_of(name) for n, name in rule.formats.items()},
            ).text()
            for each in program.passes
        ]

    adam = gradstep.adam()
    plain = texts(adam)
    assert plain == texts(gradstep.stored_as(adam, exp_avg=None))
    assert plain == texts(gradstep.stored_as(adam, exp_avg="float32"))
    both = texts(gradstep.stored_as(adam, exp_avg="bfloat16"))
    assert len({*plain, *both, *texts(gradstep.stored_as(adam, exp_avg_sq="bfloat16"))}) == 3


def test_states_of_another_dtype_never_reach_a_kernel() -> None:
    weight = nn.Parameter(torch.ones(4))
    optimizer = gradstep.Adam([weight], state_dtype="bfloat16")
    for _ in range(3):
        weight.grad = torch.ones(4)
        optimizer.step()
    held = optimizer.state[weight]
    before, right = weight.detach().clone(), held["exp_avg"]
    held["exp_avg"] = right.float()
    with pytest.raises(ValueError, match=r"state 'exp_avg' .* is float32 4 .*Expected bfloat16"):
        optimizer.step()
    held["exp_avg"] = right.to(torch.float16)
    with pytest.raises(ValueError, match=r"state 'exp_avg' .* is float16 4 .*Expected bfloat16"):
        optimizer.step()
    assert torch.equal(weight, before)
    held["exp_avg"] = right
    optimizer.step()
    assert not torch.equal(weight, before)


# Rules and classes.


def test_a_rule_with_formats_is_a_rule() -> None:
    rule = gradstep.stored_as(gradstep.adam(beta1=0.8), exp_avg="bfloat16")
    assert rule.formats == {"exp_avg": "bfloat16"}
    assert rule(beta1=0.7).formats == rule.formats and rule.hyperparameters["beta1"] == 0.8
    assert gradstep.stored_as(rule, exp_avg=torch.float16).formats == {"exp_avg": "float16"}
    assert gradstep.stored_as(rule, exp_avg=None) == gradstep.adam(beta1=0.8)
    assert gradstep.stored_as(gradstep.adam) == gradstep.adam
    assert "stored as bfloat16" in rule.states["exp_avg"].words()


def test_chains_have_the_names_of_their_states() -> None:
    inner = gradstep.chain(gradstep.adam(), gradstep.average_weights())
    rule = gradstep.stored_as(inner, exp_avg="bfloat16", average="float32")
    for made in (
        gradstep.chain(gradstep.clip_by_value(1.0), rule),
        gradstep.chain(gradstep.chain(rule)),
        pickle.loads(pickle.dumps(rule)),
        copy.deepcopy(rule),
    ):
        assert made.formats == {"exp_avg": "bfloat16", "average": "float32"}
    stage = gradstep.stored_as(gradstep.adam(), exp_avg="bfloat16")
    twice = gradstep.chain(stage, gradstep.adam())
    assert twice.formats == {"adam_exp_avg": "bfloat16"}
    grafted = gradstep.graft(gradstep.sgd(momentum=0.9), stage)
    assert gradstep.stored_as(grafted, exp_avg_sq="float16").formats == {
        "exp_avg": "bfloat16",
        "exp_avg_sq": "float16",
    }
    weight = nn.Parameter(torch.ones(2))
    optimizer = gradstep.Optimizer([weight], rule, state_dtype={"exp_avg_sq": "float16"})
    weight.grad = torch.ones(2)
    optimizer.step()
    found = {n: s.dtype for n, s in optimizer.state[weight].items() if n != "step"}
    assert found == {
        "exp_avg": torch.bfloat16,
        "exp_avg_sq": torch.float16,
        "average": torch.float32,
    }


@gradstep.rule
def heavy_ball(g: Any, velocity: Any, *, momentum: float = 0.9) -> Any:
    velocity = momentum * velocity + g
    return velocity, velocity


def test_rules_with_formats_are_pickled_by_name() -> None:
    for rule in (heavy_ball, gradstep.adam(beta1=0.5), gradstep.lion):
        first = next(iter(rule.states))
        made = gradstep.stored_as(rule, **{first: "float16"})
        assert pickle.loads(pickle.dumps(made)) == made


@pytest.mark.parametrize("again", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copies_go_on(again: Callable[[Any], Any]) -> None:
    weight = nn.Parameter(torch.randn(5))
    optimizer = gradstep.AdamW([weight], state_dtype="bfloat16")
    for _ in range(2):
        weight.grad = torch.ones(5)
        optimizer.step()
    other = again(optimizer)
    twin = other.param_groups[0]["params"][0]
    for each, w in ((optimizer, weight), (other, twin)):
        w.grad = torch.full((5,), 0.3)
        each.step()
        assert each.state[w]["exp_avg"].dtype == torch.bfloat16
    assert torch.equal(weight, twin)
    assert torch.equal(optimizer.state[weight]["exp_avg"], other.state[twin]["exp_avg"])


def test_states_that_have_not_the_weight_s_shape_stay_as_they_are() -> None:
    weights = [nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(5))]
    optimizer = gradstep.Adafactor(weights, state_dtype="bfloat16")
    assert planner_of(optimizer).rule.formats == {"variance": "bfloat16"}
    for w in weights:
        w.grad = torch.ones_like(w)
    optimizer.step()
    found = [{n: s.dtype for n, s in optimizer.state[w].items() if n != "step"} for w in weights]
    assert found == [
        {"row_var": torch.float32, "col_var": torch.float32},
        {"variance": torch.bfloat16},
    ]


def test_a_format_of_a_state_that_vectors_have_not() -> None:
    weights = [nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(5))]
    for engine in ("fused", "eager"):
        optimizer = gradstep.Optimizer(weights, apart, engine=engine, state_dtype={"a": "bfloat16"})
        for _ in range(2):
            for w in weights:
                w.grad = torch.ones_like(w)
            optimizer.step()
        found = [{n: s.dtype for n, s in optimizer.state[w].items()} for w in weights]
        assert found == [{"a": torch.bfloat16}, {"b": torch.float32}]


@gradstep.rule
def apart(
    g: Any, a: Any = gradstep.zeros(only="matrix"), b: Any = gradstep.zeros(only="vector")
) -> Any:
    if a is not None:
        a = 0.5 * a + g
        return a, a, b
    b = 0.5 * b + g
    return b, a, b


def test_partitions_and_for_model_hand_it_on() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2))
    made: list[Any] = [
        gradstep.for_model(model, gradstep.AdamW, state_dtype="bfloat16"),
        gradstep.partition(
            {"matrices": gradstep.sgd(momentum=0.9), "rest": gradstep.adam()},
            model,
            state_dtype="bfloat16",
        ),
        gradstep.SkipNonFinite(gradstep.Adam(model.parameters(), state_dtype="bfloat16")),
        gradstep.Accumulate(gradstep.Adam(model.parameters(), state_dtype="bfloat16"), 1),
    ]
    for optimizer in made:
        optimizer.zero_grad()
        model(torch.randn(3, 4)).square().mean().backward()
        optimizer.step()
        states = [s for entry in optimizer.state.values() for n, s in entry.items() if n != "step"]
        assert {s.dtype for s in states} == {torch.bfloat16}, optimizer


def test_a_hessian_in_another_format() -> None:
    weight = nn.Parameter(torch.ones(3))
    optimizer = gradstep.Sophia([weight], state_dtype="bfloat16", betas=(0.9, 0.5))
    optimizer.update_hessian([torch.tensor([2.0, 4.0, 1 / 3])])
    expected = torch.tensor([1.0, 2.0, 1 / 6]).to(torch.bfloat16)
    assert torch.equal(optimizer.state[weight]["hessian"], expected)
    weight.grad = torch.ones(3)
    optimizer.step()
    exact = gradstep.Sophia(
        [nn.Parameter(torch.ones(3, dtype=torch.bfloat16))], state_dtype="float32"
    )
    exact.update_hessian([torch.full((3,), 1 / 3, dtype=torch.bfloat16)])
    (entry,) = exact.state.values()
    assert entry["hessian"].dtype == torch.float32


# What is refused.


def weights_of_two() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2, 2))]


@pytest.mark.parametrize(
    ("make", "kind", "said"),
    [
        (
            lambda: gradstep.AdamW(weights_of_two(), state_dtype="int3"),
            ValueError,
            "state_dtype cannot be stored as int3. Choose one of float32, bfloat16, float16",
        ),
        (
            lambda: gradstep.AdamW(weights_of_two(), state_dtype=torch.float64),
            ValueError,
            "state_dtype cannot be stored as float64. Choose one of float32, bfloat16, float16",
        ),
        (
            lambda: gradstep.AdamW(weights_of_two(), state_dtype=16),
            TypeError,
            "state_dtype got 16 as its format. Expected one of float32, bfloat16, float16, int8, ",
        ),
        (
            lambda: gradstep.AdamW(weights_of_two(), state_dtype={"exp_avg": "bf16"}),
            ValueError,
            "state 'exp_avg' of adam cannot be stored as bf16. Choose one of float32, bfloat16",
        ),
        (
            lambda: gradstep.AdamW(weights_of_two(), state_dtype={"exp_avgs": "bfloat16"}),
            TypeError,
            "adam has no state 'exp_avgs' to be stored as bfloat16; it has: exp_avg, exp_avg_sq",
        ),
        (
            lambda: gradstep.AdamW(weights_of_two(), state_dtype={3: "bfloat16"}),
            TypeError,
            "state_dtype names the state 3. Expected its name",
        ),
        (
            lambda: gradstep.Adafactor(weights_of_two(), state_dtype={"row_var": "bfloat16"}),
            ValueError,
            "state 'row_var' of adafactor cannot be stored as bfloat16: it has not the weight's "
            "shape. Leave it out; those that can: variance",
        ),
        (
            lambda: gradstep.stored_as(gradstep.Adam, exp_avg="bfloat16"),  # type: ignore[arg-type]
            TypeError,
            'a class takes state_dtype="bfloat16"',
        ),
        (
            lambda: gradstep.AdamW(
                [("z", nn.Parameter(torch.ones(2, dtype=torch.complex64)))], state_dtype="bfloat16"
            ),
            TypeError,
            "z holds complex64 2 on cpu, and exp_avg would be stored as bfloat16, of real numbers",
        ),
        (
            lambda: gradstep.EMA(gradstep.SGD(weights_of_two()), dtype="int3"),
            ValueError,
            "cannot be stored as int3",
        ),
    ],
)
def test_what_cannot_be_is_refused_at_construction(
    make: Callable[[], Any], kind: type[Exception], said: str
) -> None:
    with pytest.raises(kind) as error:
        make()
    assert said in str(error.value)


# Checkpoints.


def trained(state_dtype: Any, dtype: torch.dtype = torch.float32, make: Any = None) -> Any:
    (start,) = tensors([(4, 3)], dtype)
    weight = nn.Parameter(start)
    options = {} if state_dtype is None else {"state_dtype": state_dtype}
    optimizer = (make or gradstep.AdamW)([weight], lr=0.1, **options)
    take_steps(optimizer, 3)
    return optimizer


def take_steps(optimizer: Any, count: int, seed: int = 5) -> Tensor:
    (weight,) = optimizer.param_groups[0]["params"]
    for step in range(count):
        (weight.grad,) = tensors([weight.shape], weight.dtype, seed + step)
        optimizer.step()
    found: Tensor = weight.detach()
    return found


def states(optimizer: Any) -> dict[str, Tensor]:
    (entry,) = optimizer.state.values()
    return {n: s for n, s in entry.items() if n != "step"}


def through_a_file(state_dict: Any) -> Any:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", WEIGHTS, ids=str)
def test_training_goes_on_from_a_file(dtype: torch.dtype, name: str) -> None:
    """torch converts what it loads to the weight's dtype; nothing of that is left."""
    whole, cut = trained(name, dtype), trained(name, dtype)
    other = trained(name, dtype)
    with torch.no_grad():
        for p, q in zip(*(o.param_groups[0]["params"] for o in (other, cut)), strict=True):
            p.copy_(q)
    other.load_state_dict(through_a_file(cut.state_dict()))
    assert all(s.dtype == dtype_of(name) for s in states(other).values())
    assert torch.equal(take_steps(whole, 3, 20), take_steps(other, 3, 20))
    for key, value in states(whole).items():
        assert torch.equal(states(other)[key], value)


def test_a_checkpoint_is_rounded_with_words(caplog: pytest.LogCaptureFixture) -> None:
    plain, other = trained(None), trained({"exp_avg": "bfloat16"})
    saved = plain.state_dict()
    with caplog.at_level(logging.WARNING, "gradstep"):
        other.load_state_dict(saved)
    (record,) = caplog.records
    assert "rounded as they are loaded" in record.message
    assert record.message.endswith("exp_avg from float32 to bfloat16")
    expected = states(plain)
    assert torch.equal(states(other)["exp_avg"], expected["exp_avg"].to(torch.bfloat16))
    assert torch.equal(states(other)["exp_avg_sq"], expected["exp_avg_sq"])
    assert states(plain)["exp_avg"].dtype == torch.float32  # the file's own is as it was


def test_a_checkpoint_with_formats_loads_into_a_plain_optimizer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stored, plain = trained("bfloat16"), trained(None)
    plain.load_state_dict(through_a_file(stored.state_dict()))
    for name, state in states(plain).items():
        assert state.dtype == torch.float32
        assert torch.equal(state, states(stored)[name].float())
    assert not caplog.records
    exact, narrow = trained("float32", torch.bfloat16), trained("float32", torch.bfloat16)
    narrow.load_state_dict(exact.state_dict())
    assert all(map(torch.equal, states(exact).values(), states(narrow).values()))
    assert not caplog.records


def test_torch_s_optimizer_loads_ours_and_ours_torch_s() -> None:
    ours = trained("bfloat16")
    theirs = trained(None, make=torch.optim.AdamW)
    saved = theirs.state_dict()
    theirs.load_state_dict(ours.state_dict())
    for name, state in states(theirs).items():
        assert torch.equal(state, states(ours)[name].float())
    take_steps(theirs, 1)
    ours.load_state_dict(saved)
    for name, state in states(ours).items():
        assert state.dtype == torch.bfloat16
        (entry,) = saved["state"].values()
        assert torch.equal(state, entry[name].to(torch.bfloat16))
    take_steps(ours, 1)


def test_numbers_that_a_format_cannot_hold_are_refused() -> None:
    plain, other = trained(None), trained("float16")
    (weight,) = plain.param_groups[0]["params"]
    plain.state[weight]["exp_avg_sq"][1, 1] = 1e6
    before = {n: s.clone() for n, s in states(other).items()}
    with pytest.raises(ValueError, match=r"exp_avg_sq of .* numbers up to 1e\+06, which float16"):
        other.load_state_dict(plain.state_dict())
    assert all(torch.equal(s, before[n]) for n, s in states(other).items())


def test_a_partition_s_checkpoint() -> None:
    def made() -> tuple[nn.Module, gradstep.Partition]:
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 2)).to(torch.bfloat16)
        parts = {"matrices": gradstep.sgd(momentum=0.9), "rest": gradstep.adam()}
        return model, gradstep.partition(parts, model, state_dtype="float32")

    def learn(model: nn.Module, optimizer: gradstep.Partition) -> None:
        for _ in range(2):
            optimizer.zero_grad()
            model(torch.ones(3, 4, dtype=torch.bfloat16)).square().mean().backward()
            optimizer.step()

    (model, optimizer), (again, other) = made(), made()
    learn(model, optimizer)
    again.load_state_dict(model.state_dict())
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    learn(model, optimizer)
    learn(again, other)
    assert all(map(torch.equal, model.parameters(), again.parameters()))
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        for name, state in optimizer.state[p].items():
            assert torch.equal(state, other.state[q][name])


def test_shards_saved_on_two_processes_go_on_with_one(tmp_path: Path) -> None:
    options = {"lr": 0.01, "state_dtype": {"exp_avg": "bfloat16", "exp_avg_sq": "float16"}}
    case = Case("AdamW", options, in_torch=False)
    run_ranks(save, 2, case, str(tmp_path), StateDictOptions())
    (reached,) = run_ranks(_go_on_in_numbers, 1, case, str(tmp_path))
    assert_uninterrupted(case, *reached)


def _go_on_in_numbers(rank: int, case: Case, folder: str) -> Any:
    return go_on(rank, case, 1, folder, StateDictOptions())


# Who looks on.


@pytest.mark.parametrize("engine", ["fused", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_an_explanation_says_what_is_stored(dtype: torch.dtype, engine: str) -> None:
    weight = nn.Parameter(tensors([(4, 3)], dtype)[0])
    state_dtype = {"exp_avg": "bfloat16", "exp_avg_sq": "float32"}
    optimizer = gradstep.AdamW([("w", weight)], 0.1, state_dtype=state_dtype, engine=engine)
    for _ in range(3):
        weight.grad = torch.randn(4, 3).to(dtype)
        explanation = gradstep.explain(optimizer, "w", [(1, 2), (3, 0)])
        optimizer.step()
        for account in explanation.accounts:
            assert account.agrees or engine == "eager"
            for name, value in optimizer.state[weight].items():
                found = account.explanation.states.get(name, value)
                exact = engine == "fused" and name != "step"
                stored = float(value[account.element.place]) if value.dim() else float(value)
                assert found == stored if exact else found == pytest.approx(stored, rel=1e-2)
    assert "stored as bfloat16: " in str(explanation)


def test_explanations_of_sums_and_of_what_starts_as_the_weight() -> None:
    weight = nn.Parameter(torch.randn(4, 3))
    for rule in (gradstep.lamb(), gradstep.chain(gradstep.sgd(), gradstep.average_weights())):
        for engine in ("fused", "eager"):
            optimizer = gradstep.Optimizer(
                [("w", weight)], rule, lr=0.1, state_dtype="bfloat16", engine=engine
            )
            for _ in range(2):
                weight.grad = torch.randn(4, 3)
                explanation = gradstep.explain(optimizer, "w", (1, 2))
                optimizer.step()
                (account,) = explanation.accounts
                assert account.agrees or engine == "eager"
                for name, state in optimizer.state[weight].items():
                    if state.dim() == 2 and engine == "fused":
                        found = account.explanation.states[name]
                        assert found == float(state[1, 2]), (rule.name, name)


def test_a_watch_sees_the_same_steps() -> None:
    records = []
    for state_dtype in (None, "float32"):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 1))
        optimizer = gradstep.AdamW(model.parameters(), state_dtype=state_dtype)
        watch = gradstep.watch(model, optimizer, every=1)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).square().mean().backward()
            optimizer.step()
        records.append([record.values.tolist() for record in watch.records])
    assert len(records[0]) == 3 and records[0] == records[1]


# Averages.


def test_an_average_of_weights_in_16_bits_moves() -> None:
    weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = gradstep.EMA(gradstep.SGD([weight], lr=1.0), 0.999)
    average = torch.ones(3, dtype=torch.float64)
    for _ in range(50):
        weight.grad = torch.full((3,), -0.125, dtype=torch.bfloat16)
        optimizer.step()
        average = average.lerp(weight.detach().double(), 1 - 0.999)
    held = optimizer.state[weight]["average"]
    assert held.dtype == torch.float32
    assert torch.allclose(held.double(), average, rtol=1e-6)
    assert average.min() > 1.1  # in bfloat16 it stayed at 1
    trained_weight = weight.detach().clone()
    with optimizer.averages():
        assert torch.equal(weight, held.to(torch.bfloat16))
    assert torch.equal(weight, trained_weight)
    again = nn.Parameter(weight.detach().clone())
    other = gradstep.EMA(gradstep.SGD([again], lr=1.0), 0.999)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    assert torch.equal(other.state[again]["average"], held)


def test_an_average_of_other_weights_is_stored_as_they_are_unless_asked() -> None:
    for dtype in (torch.float32, torch.float64, torch.complex64):
        weight = nn.Parameter(torch.ones(3, dtype=dtype))
        optimizer = gradstep.EMA(gradstep.SGD([weight]))
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        assert optimizer.state[weight]["average"].dtype == dtype
    weight = nn.Parameter(torch.ones(3))
    optimizer = gradstep.EMA(
        gradstep.SGD([weight], 0.1, 0.9, state_dtype="float16"), dtype="bfloat16"
    )
    weight.grad = torch.ones(3)
    optimizer.step()
    found = {n: s.dtype for n, s in optimizer.state[weight].items()}
    assert found == {"momentum_buffer": torch.float16, "average": torch.bfloat16}
    other = gradstep.SGD([nn.Parameter(torch.ones(2, dtype=torch.complex64))])
    with pytest.raises(TypeError, match="Leave dtype out"):
        gradstep.EMA(other, dtype="bfloat16")


def test_schedule_free_with_a_z_in_more_digits() -> None:
    for state_dtype in (None, "float32"):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(5).to(torch.bfloat16))
        optimizer = gradstep.SGDScheduleFree([weight], lr=0.05, state_dtype=state_dtype)
        for _ in range(3):
            weight.grad = torch.full((5,), 0.5, dtype=torch.bfloat16)
            optimizer.step()
        before = weight.detach().clone()
        optimizer.eval()
        optimizer.train()
        assert torch.allclose(weight.float(), before.float(), rtol=1 / 64)
        wrapped = gradstep.AveragedWeights(optimizer)
        with wrapped.averages():
            assert not torch.equal(weight, before)


# A format from outside: this is all of it.


class Cut(Format):
    """The upper half of a float32, the rest cut off: codes, of which torch makes no numbers."""

    name = "cut"
    item_bytes = 2

    def parts(self, state: str, shape: tuple[int, ...]) -> tuple[Part, ...]:
        return (Part(state, shape, torch.int16),)

    def decode(self, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        return (parts[0].to(torch.int32) << 16).view(torch.float32).to(dtype)

    def encode(self, value: Tensor) -> tuple[Tensor, ...]:
        return ((value.float().contiguous().view(torch.int32) >> 16).to(torch.int16),)

    def code(self, converts_half: bool) -> Any:
        from llvmlite import ir

        def read(builder: ir.IRBuilder, bits: Any) -> Any:
            wide = builder.zext(bits, ir.IntType(32))
            return builder.bitcast(builder.shl(wide, ir.Constant(wide.type, 16)), ir.FloatType())

        def write(builder: ir.IRBuilder, value: Any) -> Any:
            bits = builder.bitcast(value, ir.IntType(32))
            upper = builder.lshr(bits, ir.Constant(bits.type, 16))
            return builder.trunc(upper, ir.IntType(16))

        return read, write


class Scaled(Format):
    """8 bits, with one scale for the whole tensor: two tensors, and no code for kernels."""

    name = "scaled"
    suffixes = ("", "_scale")

    def parts(self, state: str, shape: tuple[int, ...]) -> tuple[Part, ...]:
        return Part(state, shape, torch.int8), Part(state + "_scale", (), torch.float32)

    def decode(self, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        return parts[0].to(dtype) * parts[1].to(dtype)

    def encode(self, value: Tensor) -> tuple[Tensor, ...]:
        scale = value.abs().max() / 127 + 1e-30
        return (value / scale).round().to(torch.int8), scale.float()


@pytest.fixture
def own_formats(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for known in ("_COLUMNS", "_STATES"):
        monkeypatch.setattr(formats, known, dict(getattr(formats, known)))
    formats.register(Cut())
    formats.register(Scaled())
    return


def fitted(state_dtype: Any, engine: str = "auto", make: Any = gradstep.AdamW) -> tuple[Any, float]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = make(model.parameters(), 0.02, state_dtype=state_dtype, engine=engine)
    x = torch.randn(64, 6)
    y = x[:, :1] * x[:, 1:2]
    loss = torch.tensor(0.0)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (model(x) - y).square().mean()
        loss.backward()
        optimizer.step()
    return optimizer, loss.item()


@pytest.mark.usefixtures("own_formats")
def test_a_format_is_one_class() -> None:
    plain, loss = fitted(None)
    for name, engine in (("cut", "fused"), ("cut", "eager"), ("scaled", "eager")):
        optimizer, reached = fitted({"exp_avg": name}, engine)
        assert set(optimizer.engines_used().values()) == {engine}
        assert reached < 1.2 * loss + 0.02, (name, engine)
        entry = next(iter(optimizer.state.values()))
        kinds = {"cut": {"exp_avg": torch.int16}, "scaled": {"exp_avg": torch.int8}}[name]
        assert {n: entry[n].dtype for n in kinds} == kinds
        assert ("exp_avg_scale" in entry) == (name == "scaled")
    reached_by = [fitted({"exp_avg": "cut"}, engine)[0] for engine in ("fused", "eager")]
    for ours, other in zip(*(o.state.values() for o in reached_by), strict=True):
        assert ours["exp_avg"].dtype == other["exp_avg"].dtype == torch.int16
    assert set(plain.engines_used().values()) == {"fused"}


@pytest.mark.usefixtures("own_formats")
def test_a_format_without_code_is_run_eagerly_with_words(
    caplog: pytest.LogCaptureFixture,
) -> None:
    optimizer, _ = fitted({"exp_avg": "scaled"})
    assert set(optimizer.engines_used().values()) == {"eager"}
    assert any(
        "its exp_avg is stored as scaled, of which kernels" in r.message for r in caplog.records
    )


@pytest.mark.usefixtures("own_formats")
def test_states_of_one_format_load_into_another() -> None:
    made = {
        name: fitted(name and {"exp_avg": name})[0] for name in (None, "bfloat16", "cut", "scaled")
    }
    for (a, saver), (b, loader) in itertools.permutations(made.items(), 2):
        loader = copy.deepcopy(loader)
        loader.load_state_dict(through_a_file(saver.state_dict()))
        entries = loader.state.values()
        for entry, source in zip(entries, saver.state.values(), strict=True):
            numbers = [
                formats.format_of(name).decode(
                    [e[n] for n in formats.format_of(name).names("exp_avg")], torch.float32
                )
                for name, e in ((a or "float32", source), (b or "float32", entry))
            ]
            largest = float(numbers[0].abs().max())
            assert torch.allclose(*numbers, atol=largest / 100, rtol=0.01), (a, b)
            assert ("exp_avg_scale" in entry) == (b == "scaled")
            assert torch.equal(entry["exp_avg_sq"], source["exp_avg_sq"])
        for p in loader.param_groups[0]["params"]:
            p.grad = torch.ones_like(p)
        loader.step()
    broken = made["scaled"].state_dict()
    del broken["state"][0]["exp_avg_scale"]
    with pytest.raises(ValueError, match=r"exp_avg of .* is int8"):
        copy.deepcopy(made[None]).load_state_dict(broken)


@pytest.mark.usefixtures("own_formats")
def test_averages_of_codes() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = gradstep.EMA(gradstep.SGD([weight], lr=0.5), 0.5, dtype="cut")
    weight.grad = torch.tensor([1.0, 1.0])
    optimizer.step()
    (entry,) = optimizer.state.values()
    assert entry["average"].dtype == torch.int16
    with optimizer.averages():
        assert weight.tolist() == [0.75, -2.25]
    assert weight.tolist() == [0.5, -2.5]
    free = gradstep.SGDScheduleFree([weight], lr=0.5, state_dtype="scaled")
    free.step()
    free.eval()
    free.train()
    assert weight.isfinite().all()


class Nothing(Cut):
    """Under the same name: whatever is written is 0."""

    def code(self, converts_half: bool) -> Any:
        from llvmlite import ir

        read, _ = super().code(converts_half)
        return read, lambda builder, value: ir.Constant(ir.IntType(16), 0)


@pytest.mark.usefixtures("own_formats")
def test_a_format_registered_anew_takes_the_place_of_the_one_of_its_name() -> None:
    rule = gradstep.stored_as(gradstep.adam(), exp_avg="cut")
    for kind, is_kept in ((Cut, True), (Nothing, False)):
        formats.register(kind())
        weight = nn.Parameter(torch.ones(3))
        weight.grad = torch.ones(3)
        optimizer = gradstep.Optimizer([weight], rule, lr=0.1, engine="fused")
        optimizer.step()
        assert set(optimizer.engines_used().values()) == {"fused"}
        assert bool(optimizer.state[weight]["exp_avg"].any()) is is_kept


@pytest.mark.usefixtures("own_formats")
def test_what_register_refuses() -> None:
    with pytest.raises(TypeError, match="register takes a format"):
        formats.register("int8")  # type: ignore[arg-type]
    taken = Cut()
    taken.name = "bfloat16"
    with pytest.raises(ValueError, match="Choose another"):
        formats.register(taken)
    taken.name = ""
    with pytest.raises(ValueError, match="Expected the text"):
        formats.register(taken)


def test_squares_in_bfloat16_shrink_with_a_small_beta2_alone() -> None:
    """What the page says of averages that change by less than their last digit."""
    reached = {}
    for beta2 in (0.999, 0.95):
        weight = nn.Parameter(torch.zeros(1))
        optimizer = gradstep.Adam([weight], betas=(0.9, beta2), state_dtype="bfloat16")
        for g in (1.0, *[0.0] * 200):
            weight.grad = torch.full((1,), g)
            optimizer.step()
        reached[beta2] = optimizer.state[weight]["exp_avg_sq"].item() / (1 - beta2)
    assert reached[0.999] == pytest.approx(1, rel=0.01) and reached[0.95] < 0.1


def test_a_state_says_what_it_takes_of_memory() -> None:
    from gradstep.optimizer.weight_spec import state_specs

    weight = torch.zeros(10, 3)
    rule = with_state_dtype(gradstep.adam(), {"exp_avg": "bfloat16"})
    found = {n: s.bytes(weight, rule.hyperparameters) for n, s in state_specs(rule).items()}
    assert found == {"exp_avg": 60, "exp_avg_sq": 120, "max_exp_avg_sq": 120}
