"""States in 8 and 4 bits: against NumPy, other packages, the eager engine, threads and files."""

from __future__ import annotations

import copy
import io
import logging
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.extra.numpy as npst
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions

import gradstep
from gradstep import rules
from gradstep.program.block_formats import BLOCK_FORMATS, SMALL, BlockFormat, Companded, Mapped
from gradstep.program.code_maps import dynamic_map, linear_map
from gradstep.program.formats import format_of
from gradstep.rule.signs import never_negative
from rank_cases import Case
from ranks import run_ranks
from test_distributed_checkpoint import assert_uninterrupted, go_on, save

NAMES = [format.name for format in BLOCK_FORMATS]
#: Which no other package has.
OWN = ("int8", "int8 unsigned", "float8 unsigned")
EVERY = [
    name for format in BLOCK_FORMATS for name in dict.fromkeys([format.name, format.unsigned.name])
]


def block_format(name: str) -> BlockFormat:
    format = format_of(name)
    assert isinstance(format, BlockFormat)
    return format


def raw(tensor: Tensor) -> Tensor:
    """The bytes of a tensor of codes, which torch.equal takes of any dtype."""
    return tensor.reshape(-1).contiguous().view(torch.uint8)


# What a code stands for, worked out anew in NumPy.


def table_of(name: str) -> tuple[np.ndarray[Any, Any], float]:
    """What each code is for in units of the scale, and the largest number of a block likewise."""
    kind, _, unsigned = name.partition(" ")
    if kind == "int8":
        codes = np.arange(256 if unsigned else 128)
        units = (1 + codes % 16 / 16) * 2.0 ** (codes // 16) - 1
        return (units if unsigned else np.concatenate([-units[:0:-1], units])), float(units[-1])
    if kind == "float8":
        codes = np.arange(127)
        small, large = codes / 512, (1 + codes % 8 / 8) * 2.0 ** (codes // 8 - 7)
        units = np.where(codes < 8, small, large)
        return np.concatenate([-units[:0:-1], units]), 448.0
    bits = 4 if kind == "int4" else 8
    if kind == "int4" and unsigned:
        return np.arange(1, 17) / 16, 1.0
    found = [0.0, 1.0]
    for i in range(bits - 1):
        ends = np.linspace(0.1, 1, 2**i * (2 if unsigned else 1) + 1)
        means = (ends[1:] + ends[:-1]) / 2 * 10.0 ** (i - bits + 2)
        found += [*means, *([] if unsigned else -means)]
    return np.sort(found), 1.0


def assert_nearest(name: str, numbers: np.ndarray[Any, Any]) -> None:
    """Every number comes back as the nearest that its block's scale knows, ties aside."""
    format = block_format(name)
    made = format.encode(torch.from_numpy(numbers))
    scales = made[1].double().numpy().reshape(-1)
    back = format.numbers(made, torch.float32, numbers.shape).double().numpy().reshape(-1)
    units, top = table_of(name)
    flat = numbers.astype(np.float64).reshape(-1)
    for block in range(-(-flat.size // format.block)):
        own = slice(block * format.block, (block + 1) * format.block)
        largest = np.abs(flat[own]).max()
        scale = scales[block]
        if isinstance(format, Companded) and largest < 2.0**-100:
            assert scale == 0 and not back[own].any()
            continue
        assert scale == pytest.approx(max(largest, 0 if "int8" in name else 1e-12) / top, rel=1e-6)
        entries = units * scale
        misses = np.abs(back[own, None] - entries[None]).min(1)
        assert (misses <= 1e-6 * np.abs(back[own]) + 1e-37).all(), "a number that no code is for"
        off = np.abs(back[own] - flat[own])
        best = np.abs(flat[own, None] - entries[None]).min(1)
        if name in ("int8 unsigned", "float8 unsigned"):  # where a positive number is never 0
            some = np.abs(flat[own, None] - entries[entries > 0][None]).min(1)
            best = np.where(flat[own] > 0, some, best)
        assert (off <= best * (1 + 1e-4) + 1e-6 * np.abs(flat[own]) + 1e-6 * largest / top).all()


@pytest.mark.parametrize("name", EVERY)
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_as_a_reference_in_numpy_has_it(name: str, data: st.DataObject) -> None:
    low = 0.0 if "unsigned" in name else -(2.0**60)
    numbers = st.floats(low, 2.0**60, width=32)
    shape = data.draw(st.sampled_from([(1,), (129,), (3, 100), (2, 256), (5, 7, 11)]))
    assert_nearest(name, data.draw(npst.arrays(np.float32, shape, elements=numbers)))


@pytest.mark.parametrize("name", EVERY)
def test_of_numbers_over_many_orders_of_magnitude(name: str) -> None:
    random = np.random.default_rng(0)
    numbers = random.normal(size=5000) * 10.0 ** random.normal(scale=4, size=5000)
    assert_nearest(name, (np.abs(numbers) if "unsigned" in name else numbers).astype(np.float32))


@pytest.mark.parametrize("name", EVERY)
def test_zeros_and_what_is_not_finite(name: str) -> None:
    format = block_format(name)
    zeros = torch.zeros(300)
    back = format.numbers(format.encode(zeros), torch.float32, (300,))
    assert back.max() <= (1e-13 if name == "int4 unsigned" else 0)  # which has no code for 0
    for made, expected in zip(format.zeros(zeros), format.encode(zeros), strict=True):
        if made.dtype != torch.float32:  # a scale of zeros may be any
            assert torch.equal(raw(made), raw(expected))
    for odd in (math.nan, math.inf):
        numbers = torch.rand(600) + 0.5
        numbers[7] = odd
        back = format.numbers(format.encode(numbers), torch.float32, (600,))
        assert not back[7].isfinite()
        assert (
            back[format.block * 2 :].isfinite().all() and not back[: format.block].isfinite().all()
        )


@pytest.mark.parametrize("name", ["int8 unsigned", "float8 unsigned"])
def test_a_positive_number_without_sign_does_not_become_zero(name: str) -> None:
    numbers = torch.full((256,), 1e-30)
    numbers[0], numbers[1] = 1.0, 0.0
    format = block_format(name)
    back = format.numbers(format.encode(numbers), torch.float32, (256,))
    assert back[1] == 0 and (back[2:128] > 0).all()


# Other packages.


def test_maps_are_those_of_the_paper() -> None:
    """As torch's own linspace gives them to bitsandbytes and torchao, to the last bit."""
    for signed, bits in ((True, 8), (False, 8), (True, 4)):
        found = [0.0, 1.0]
        for i in range(bits - 1):
            ends = torch.linspace(0.1, 1, (2**i if signed else 2 ** (i + 1)) + 1)
            means = 10 ** (i - bits + 2) * ((ends[:-1] + ends[1:]) / 2)
            found += [*means.tolist(), *((-means).tolist() if signed else [])]
        assert list(dynamic_map(signed, bits).entries) == sorted(found)
    assert list(linear_map(16).entries) == torch.linspace(0, 1, 17)[1:].tolist()


def numbers_of_states() -> Tensor:
    random = torch.Generator().manual_seed(0)
    numbers = torch.randn(64, 512, generator=random)
    return numbers * 10 ** torch.randn(64, 512, generator=random)


@pytest.mark.parametrize(
    "name", ["dynamic8", "dynamic8 unsigned", "int4", "int4 unsigned", "float8"]
)
def test_code_by_code_as_torchao(name: str) -> None:
    pytest.importorskip("torchao")
    from torchao.optim import subclass_4bit, subclass_8bit, subclass_fp8

    signed = "unsigned" not in name
    numbers = numbers_of_states() if signed else numbers_of_states().square()
    format = block_format(name)
    if name == "float8":
        theirs = subclass_fp8.OptimStateFp8.zeros(numbers.shape, block_size=256)
    elif isinstance(format, Mapped) and format.per_byte == 2:
        theirs = subclass_4bit.OptimState4bit.zeros(numbers.shape, signed, 128)
    else:
        theirs = subclass_8bit.OptimState8bit.zeros(numbers.shape, signed, 256)
    theirs.copy_(numbers)
    codes, scales = format.encode(numbers)
    assert torch.equal(scales.flatten(), theirs.scale.flatten())
    back = format.numbers((codes, scales), torch.float32, numbers.shape)
    differing = (back != theirs.dequantize()).float().mean()
    assert differing < 1e-3
    of_theirs = (theirs.codes.view(codes.shape), theirs.scale.view(scales.shape))
    assert torch.equal(format.numbers(of_theirs, torch.float32, numbers.shape), theirs.dequantize())


@pytest.mark.parametrize("name", ["dynamic8", "dynamic8 unsigned"])
def test_the_codes_of_bitsandbytes(name: str) -> None:
    """Theirs are read as they read them; ours are as near or nearer.

    On CPUs bitsandbytes 0.50 finds codes in a table of 65,536 steps from -1 to 1, and so not always
    the nearest of small numbers; its kernels for GPUs search, as ours do.
    """
    pytest.importorskip("bitsandbytes")
    from bitsandbytes import functional

    signed = "unsigned" not in name
    numbers = numbers_of_states() if signed else numbers_of_states().square()
    code = functional.create_dynamic_map(signed=signed)
    assert code.tolist() == list(dynamic_map(signed).entries)
    theirs, state = functional.quantize_blockwise(numbers, code=code, blocksize=256)
    format = block_format(name)
    codes, scales = format.encode(numbers)
    assert torch.allclose(scales.flatten(), state.absmax)
    shape = numbers.shape
    read = format.numbers((theirs, state.absmax.view(scales.shape)), torch.float32, shape)
    assert torch.allclose(read, functional.dequantize_blockwise(theirs, state), rtol=1e-6)
    ours = format.numbers((codes, scales), torch.float32, shape)
    slack = (read - numbers).abs() * 1e-4 + 1e-7 * numbers.abs()
    assert ((ours - numbers).abs() <= (read - numbers).abs() + slack).all()
    large = (numbers / state.absmax.repeat_interleave(256).view(shape)).abs() > 0.1
    assert (codes == theirs)[large].float().mean() > 0.99


# What kernels do.


@gradstep.rule
def keeping(g: Any, kept: Any) -> Any:
    """The state as it was moves the weight, and the gradient is kept: only that is rounded."""
    return kept, g


@gradstep.rule
def keeping_sizes(g: Any, kept: Any) -> Any:
    """The same, of a state that has no sign."""
    return kept, gradstep.abs(g)


def kept_by(engine: str, rule: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
    weight = nn.Parameter(torch.zeros(shape, dtype=dtype))
    optimizer = gradstep.Optimizer([weight], rule, lr=0.5, engine=engine)
    random = torch.Generator().manual_seed(0)
    for step in range(3):
        numbers = torch.randn(shape, generator=random)
        numbers *= 10 ** (3 * torch.randn(shape, generator=random))
        flat = numbers.view(-1)
        flat[300:1000] = 0.0
        flat[1000:1300] *= 1e-30
        flat[1400:1700] *= 1e-40
        weight.grad = numbers.to(dtype) * (1 + step)
        optimizer.step()
    assert set(optimizer.engines_used().values()) == {engine}
    return weight, optimizer.state[weight]


@pytest.mark.parametrize("rule", [keeping, keeping_sizes], ids=str)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((130, 257), torch.float32),
        ((32, 256), torch.float64),
        ((4097,), torch.bfloat16),
        ((9, 5, 100), torch.float16),
    ],
    ids=str,
)
def test_kernels_and_torch_write_the_same_bits(
    name: str, rule: Any, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    stored = gradstep.stored_as(rule, kept=name)
    (a, ours), (b, theirs) = (kept_by(e, stored, shape, dtype) for e in ("fused", "eager"))
    assert torch.equal(a, b) or (a.isnan() == b.isnan()).all()
    assert set(ours) == set(theirs) == {"kept", "kept_scale"}
    for part, tensor in ours.items():
        assert torch.equal(raw(tensor), raw(theirs[part])), part


@pytest.mark.parametrize("name", NAMES)
def test_the_number_of_threads_changes_no_bit(name: str) -> None:
    """Over several tiles, and with sums over whole tensors between."""
    before = torch.get_num_threads()
    reached: dict[Any, list[Tensor]] = {}
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for make in (gradstep.AdamW, gradstep.LAMB):
                random = torch.Generator().manual_seed(1)
                weight = nn.Parameter(torch.randn(700, 700, generator=random))
                optimizer = make([weight], lr=0.01, state_dtype=name)
                for _ in range(2):
                    weight.grad = torch.randn(700, 700, generator=random)
                    optimizer.step()
                assert set(optimizer.engines_used().values()) == {"fused"}
                found = [weight.detach(), *optimizer.state[weight].values()]
                known = reached.setdefault(make, found)
                assert all(torch.equal(raw(a), raw(b)) for a, b in zip(known, found, strict=True))
    finally:
        torch.set_num_threads(before)


def test_what_stays_as_it_is() -> None:
    """Small weights, and states that have not the weight's shape."""
    big, small = nn.Parameter(torch.randn(64, 64)), nn.Parameter(torch.randn(SMALL - 1))
    optimizer = gradstep.AdamW([big, small], state_dtype="int8")
    for p in (big, small):
        p.grad = torch.randn_like(p)
    optimizer.step()
    assert optimizer.state[big]["exp_avg"].dtype == torch.int8
    assert optimizer.state[big]["exp_avg_sq_scale"].dtype == torch.float32
    assert set(optimizer.state[small]) == {"step", "exp_avg", "exp_avg_sq"}
    assert optimizer.state[small]["exp_avg"].dtype == torch.float32
    came = gradstep.CAME([big], state_dtype="int8")
    came.step()
    shapes = {n: tuple(t.shape) for n, t in came.state[big].items() if t.dtype == torch.float32}
    assert {shapes[n] for n in shapes if n.endswith(("row", "col"))} == {(64, 1), (1, 64)}


def test_rows_that_are_cut_by_blocks(caplog: pytest.LogCaptureFixture) -> None:
    """A rule that looks along rows takes blocks of whole rows in its kernel, others eagerly."""
    used = {}
    for columns in (128, 100):
        weight = nn.Parameter(torch.randn(64, columns))
        weight.grad = torch.randn(64, columns)
        optimizer = gradstep.CAME([("w", weight)], state_dtype="int8")
        with caplog.at_level(logging.WARNING, "gradstep"):
            optimizer.step()
        used[columns] = optimizer.engines_used()["w"]
    assert used == {128: "fused", 100: "eager"}
    assert "w is updated by the eager engine: its exp_avg is stored in blocks of 128" in caplog.text


def test_a_weight_that_lies_otherwise_has_the_same_numbers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    reached = []
    for lie in (torch.contiguous_format, torch.channels_last):
        random = torch.Generator().manual_seed(0)
        start = torch.randn(16, 32, 3, 3, generator=random)
        weight = nn.Parameter(start.to(memory_format=lie))
        optimizer = gradstep.Lion([("w", weight)], 0.01, state_dtype="int8", engine="auto")
        for _ in range(3):
            weight.grad = torch.randn(16, 32, 3, 3, generator=random).to(memory_format=lie)
            with caplog.at_level(logging.WARNING, "gradstep"):
                optimizer.step()
        reached.append((weight.detach(), optimizer.state[weight]["exp_avg"]))
    assert "stored in blocks of rows, and its rows do not lie so in memory" in caplog.text
    (a, codes), (b, others) = reached
    assert (a - b).abs().max() <= 1e-6
    assert (codes.int() - others.int()).abs().max() <= 1


# Signs.


def test_which_states_have_no_sign() -> None:
    expected = {
        "adam": {"exp_avg_sq", "max_exp_avg_sq"},
        "adagrad": {"sum"},
        "adadelta": {"square_avg", "acc_delta"},
        "adamax": {"exp_inf"},
        "lion": set(),
        "rmsprop": {"square_avg"},
    }
    for name, states in expected.items():
        rule = getattr(gradstep, name)()
        assert never_negative(rule) & set(rule.states) == states, name


@pytest.mark.parametrize("name", sorted(rules.load()))
def test_a_state_without_sign_is_never_negative(name: str) -> None:
    rule = rules.load()[name]
    claimed = never_negative(rule)
    random = torch.Generator().manual_seed(3)
    weight = nn.Parameter(torch.randn(6, 8, generator=random))
    for flag in [None, *(n for n, v in rule.hyperparameters.items() if isinstance(v, bool))]:
        own = rule if flag is None else rule(**{flag: not rule.hyperparameters[flag]})
        if rule.sparse == "only":
            continue
        optimizer = gradstep.Optimizer([weight], own, lr=0.01, engine="eager")
        for _ in range(5):
            scale = 10 ** (3 * torch.randn((), generator=random))
            weight.grad = torch.randn(6, 8, generator=random) * scale
            optimizer.step(lambda: 1.0)
            for state in claimed & set(optimizer.state[weight]):
                assert (optimizer.state[weight][state] >= 0).all(), (state, flag)


# Files.


def trained(state_dtype: Any, steps: int = 3, make: Callable[..., Any] = gradstep.AdamW) -> Any:
    random = torch.Generator().manual_seed(2)
    weight = nn.Parameter(torch.randn(40, 128, generator=random))
    options = {} if state_dtype is None else {"state_dtype": state_dtype}
    optimizer = make([weight], 0.01, **options)
    return take_steps(optimizer, steps)


def take_steps(optimizer: Any, steps: int, seed: int = 5) -> Any:
    random = torch.Generator().manual_seed(seed)
    (weight,) = optimizer.param_groups[0]["params"]
    for _ in range(steps):
        weight.grad = torch.randn(weight.shape, generator=random)
        optimizer.step()
    return optimizer


def through_a_file(state_dict: Any) -> Any:
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def everything(optimizer: Any) -> dict[str, Tensor]:
    (weight,) = optimizer.param_groups[0]["params"]
    return {"weight": weight.detach(), **optimizer.state[weight]}


@pytest.mark.parametrize("name", NAMES)
def test_training_goes_on_from_a_file_and_in_copies(name: str) -> None:
    whole, cut, other = trained(name), trained(name), trained(name, 1)
    with torch.no_grad():
        everything(other)["weight"].copy_(everything(cut)["weight"])
    other.load_state_dict(through_a_file(cut.state_dict()))
    copies = [other, copy.deepcopy(cut)]
    if name != "float8":  # which torch's tensors alone cannot: without torch.save they do not load
        copies.append(pickle.loads(pickle.dumps(cut)))
    expected = everything(take_steps(whole, 3, 20))
    for each in copies:
        found = everything(take_steps(each, 3, 20))
        assert all(torch.equal(raw(found[n]), raw(t)) for n, t in expected.items())


@pytest.mark.parametrize("target", [None, "bfloat16", *NAMES])
@pytest.mark.parametrize("source", [None, "bfloat16", *NAMES])
def test_states_of_one_format_load_into_another(source: Any, target: Any) -> None:
    saver, loader = trained(source), trained(target, 1)
    loader.load_state_dict(through_a_file(saver.state_dict()))
    for state in ("exp_avg", "exp_avg_sq"):
        numbers = []
        for name, optimizer in ((source, saver), (target, loader)):
            entry = everything(optimizer)
            if name in NAMES:
                format = format_of(name) if state == "exp_avg" else format_of(name).unsigned
                parts = [entry[n] for n in format.names(state)]
                numbers.append(format.numbers(parts, torch.float32, entry["weight"].shape))
            else:
                numbers.append(entry[state].float())
        if source == target:
            assert torch.equal(*numbers)
        off = float((numbers[0] - numbers[1]).abs().max() / numbers[0].abs().max())
        assert off <= (0.13 if target == "int4" else 0.04)
    take_steps(loader, 1)


def test_torch_s_optimizer_takes_no_codes_and_says_so_by_its_own_words() -> None:
    plain = trained(None)
    ours = trained("int8")
    ours.load_state_dict(trained(None, make=torch.optim.AdamW).state_dict())
    expected = everything(plain)["exp_avg"]
    format = format_of("int8")
    entry = everything(ours)
    back = format.numbers([entry["exp_avg"], entry["exp_avg_scale"]], torch.float32, (40, 128))
    assert (back - expected).abs().max() <= 0.04 * expected.abs().max()


@pytest.mark.parametrize("broken", ["missing", "short", "other dtype"])
def test_codes_and_scales_that_do_not_match(broken: str) -> None:
    saved, other = trained("int8").state_dict(), trained("int8", 1)
    before = {n: t.clone() for n, t in everything(other).items()}
    entry = saved["state"][0] = dict(saved["state"][0])
    if broken == "missing":
        del entry["exp_avg_scale"]
    elif broken == "short":
        entry["exp_avg_scale"] = entry["exp_avg_scale"][1:]
    else:
        entry["exp_avg"] = entry["exp_avg"].to(torch.int16)
    with pytest.raises(ValueError, match=r"exp_avg of .* is int(8|16) 40×128.*cut"):
        other.load_state_dict(saved)
    for name, tensor in everything(other).items():
        assert torch.equal(raw(tensor), raw(before[name]))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("int-8", "Did you mean 'int8'?"),
        ("dynamic", "Did you mean 'dynamic8'?"),
        ("fp8", "Did you mean 'float8'?"),
    ],
)
def test_a_format_that_is_not_there(wrong: str, said: str) -> None:
    with pytest.raises(ValueError, match="Choose one of float32, bfloat16") as error:
        gradstep.AdamW([nn.Parameter(torch.zeros(2))], state_dtype=wrong)
    assert said in str(error.value)


# Shards.


def _step_on_shards(rank: int, name: str, shape: tuple[int, ...], processes: int) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (processes,))
    random = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=random)
    weight = nn.Parameter(distribute_tensor(start, mesh, [Shard(0)]))
    try:
        optimizer = gradstep.AdamW([("w", weight)], 0.01, state_dtype=name)
    except TypeError as error:
        return str(error)
    for _ in range(3):
        gradient = torch.randn(shape, generator=random)
        weight.grad = distribute_tensor(gradient, mesh, [Shard(0)])
        optimizer.step()
    return weight.full_tensor().detach().numpy(), set(optimizer.engines_used().values())


@pytest.mark.parametrize("name", ["int8", pytest.param("int4", marks=pytest.mark.deep)])
@pytest.mark.parametrize(
    "shape", [(33, 256), pytest.param((8192,), marks=pytest.mark.deep)], ids=str
)
def test_steps_on_shards_are_those_of_the_whole(name: str, shape: tuple[int, ...]) -> None:
    found = run_ranks(_step_on_shards, 2, name, shape, 2)
    random = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(shape, generator=random))
    optimizer = gradstep.AdamW([weight], 0.01, state_dtype=name)
    for _ in range(3):
        weight.grad = torch.randn(shape, generator=random)
        optimizer.step()
    for reached, engines in found:
        assert engines == {"fused"}
        assert np.array_equal(reached, weight.detach().numpy())


def test_a_block_that_a_shard_cuts_is_refused() -> None:
    for said in run_ranks(_step_on_shards, 2, "int8", (67, 100), 2):
        assert "w holds float32 67×100" in said and "its shards do not end where blocks do" in said


@pytest.mark.deep
@pytest.mark.parametrize("processes", [1, 3])
def test_shards_saved_on_two_processes_go_on_with_others(tmp_path: Path, processes: int) -> None:
    case = Case("AdamW", {"lr": 0.01, "state_dtype": "int8"}, in_torch=False)
    run_ranks(save, 2, case, str(tmp_path), StateDictOptions())
    (reached, *_) = run_ranks(_go_on, processes, case, processes, str(tmp_path))
    assert_uninterrupted(case, *reached)


def _go_on(rank: int, case: Case, processes: int, folder: str) -> Any:
    return go_on(rank, case, processes, folder, StateDictOptions())


# Who looks on.


@pytest.mark.parametrize("engine", ["fused", "eager"])
@pytest.mark.parametrize("name", NAMES)
def test_an_explanation_says_what_is_stored(name: str, engine: str) -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(70, 80))
    optimizer = gradstep.AdamW([("w", weight)], 0.1, state_dtype=name, engine=engine)
    for _ in range(2):
        weight.grad = torch.randn(70, 80)
        explanation = gradstep.explain(optimizer, "w", [(1, 2), (69, 79)])
        optimizer.step()
        for account in explanation.accounts:
            assert account.agrees or engine == "eager"
            entry = optimizer.state[weight]
            for state, format in (("exp_avg", format_of(name)), ("exp_avg_sq", None)):
                kind = format or format_of(name).unsigned
                parts = [entry[n] for n in kind.names(state)]
                stored = kind.numbers(parts, torch.float32, (70, 80))[account.element.place]
                assert account.explanation.states[state] == float(stored)
    assert f"stored as {name}: " in str(explanation)


def test_a_rule_whose_states_codes_do_not_suit_says_so(caplog: pytest.LogCaptureFixture) -> None:
    weight = nn.Parameter(torch.zeros(3))
    with caplog.at_level(logging.WARNING, "gradstep"):
        gradstep.QHAdam([weight], state_dtype="int8")
        gradstep.QHM([weight], state_dtype="bfloat16")
        assert not caplog.records
        gradstep.QHM([weight], state_dtype="int8")
        gradstep.Optimizer([weight], gradstep.chain(gradstep.ftrl()), state_dtype={"n": "int4"})
        gradstep.AdaSmooth([weight], state_dtype="int8")
        gradstep.AdaSmooth([weight], state_dtype="int4")
    first, second, third = caplog.records
    assert "of adasmooth in int4: 16 numbers are too few for it" in third.message
    assert first.message.startswith("momentum_buffer of qhm in int8: its momentum is an average of")
    assert second.message.startswith("n of ftrl in int4: its weight is made of its states anew")
