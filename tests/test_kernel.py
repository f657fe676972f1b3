"""The generated kernels: each operation, each conversion, and the same bits wherever they run."""

from __future__ import annotations

import ctypes
import ctypes.util
import hashlib
import itertools
import math
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from llvmlite import ir
from torch import Tensor

import gradstep
from configurations import fullest, variants
from gradstep.backends.cpu import compiler, team, threads
from gradstep.backends.cpu import run as runs
from gradstep.backends.llvm.element import ElementCode
from gradstep.backends.llvm.walk import write_kernel
from gradstep.optimizer.optimizer import planner_of
from gradstep.program import low_precision
from gradstep.program.kernel_spec import Places, kernel_spec
from gradstep.program.program import Program
from gradstep.program.targets import PLAIN, Target
from gradstep.rule.graph import Graph
from gradstep.rule.trace import trace
from reference import REFERENCES, Reference

x86_only = pytest.mark.skipif(
    platform.machine().lower() not in ("x86_64", "amd64"), reason="about x86-64 instructions"
)

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
INTEGERS = dict(zip(DTYPES, (torch.int32, torch.int64, torch.int16, torch.int16), strict=True))


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether all bits agree, with nan for one value whatever its own bits."""
    kind = INTEGERS[a.dtype]
    return bool(((a.view(kind) == b.view(kind)) | (a.isnan() & b.isnan())).all())


def near(a: Tensor, b: Tensor, units: float) -> bool:
    """Equal, both nan, or no further apart than so many units in the last place."""
    info = torch.finfo(a.dtype)
    a64, b64 = a.double(), b.double()
    unit = (b64.abs() * info.eps).clamp(min=info.smallest_normal * info.eps)
    close = (a64 - b64).abs() <= units * unit
    # One unit beyond the largest number is infinity.
    largest = (a.isinf() | b.isinf()) & ((a64 - b64).abs().isinf()) & (a.sign() == b.sign())
    largest &= torch.minimum(a64.abs(), b64.abs()) >= info.max * (1 - 2 * info.eps)
    return bool((close | (a == b) | (a.isnan() & b.isnan()) | largest).all())


# Operations.

Columns = tuple[Tensor, Tensor, Tensor]


def columns(dtype: torch.dtype) -> Columns:
    """Three columns: every pair of edge values, then random values of like and unlike sizes."""
    info = torch.finfo(dtype)
    edges = [0.0, info.smallest_normal, info.smallest_normal / 4, info.max, math.inf, math.nan]
    edges += [1.0, 0.5, 1 / 3, 2.0, 3.0, 1 + info.eps, 1e-3, 100.5]
    edges += [-x for x in edges]
    pairs = torch.tensor(list(itertools.product(edges, edges)), dtype=torch.float64).t()
    generator = torch.Generator().manual_seed(1)
    thirds = torch.randn(1, pairs.shape[1], dtype=torch.float64, generator=generator)
    alike = torch.randn(3, 2000, dtype=torch.float64, generator=generator)
    sizes = 10 ** torch.randint(-30, 30, (3, 2000), generator=generator).double()
    unlike = torch.randn(3, 2000, dtype=torch.float64, generator=generator) * sizes
    x, y, z = torch.cat([torch.cat([pairs, thirds]), alike, unlike], 1).to(dtype)
    return x, y, z


def run(operation: Callable[..., Any], dtype: torch.dtype, engine: str = "fused") -> Tensor:
    """The operation on the three columns, as the new weight of a rule made of it."""

    @gradstep.rule
    def trial(g: Any, z: Any, *, w: Any) -> Any:
        return gradstep.new_weight(operation(w, g, z)), z

    x, y, z = columns(dtype)
    weight = torch.nn.Parameter(x.clone())
    weight.grad = y.clone()
    optimizer = gradstep.Optimizer([weight], trial, engine=engine)
    optimizer.state[weight]["z"] = z.clone()
    optimizer.step()
    assert set(optimizer.engines_used().values()) == {engine}
    return weight.detach()


def in_numpy(operation: Callable[..., Any], dtype: torch.dtype) -> Tensor:
    """The same by NumPy; for 16-bit types in float32, rounded at the end."""
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    with numpy.errstate(all="ignore"):
        result = operation(*(c.to(wide).numpy() for c in columns(dtype)))
    return torch.from_numpy(result.astype(torch.zeros(0, dtype=wide).numpy().dtype)).to(dtype)


def choose(condition: Any) -> Any:
    """1 where the condition holds and -2 where not, of either language."""
    return (numpy if isinstance(condition, numpy.ndarray) else gradstep).where(condition, 1.0, -2.0)


#: Operations in the rule language and in NumPy, which must agree to the last bit.
EXACT: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "add": (lambda x, y, z: x + y,) * 2,
    "sub": (lambda x, y, z: x - y,) * 2,
    "mul": (lambda x, y, z: x * y,) * 2,
    "div": (lambda x, y, z: x / y,) * 2,
    "neg": (lambda x, y, z: -x,) * 2,
    "number": (lambda x, y, z: 0.1 * x, lambda x, y, z: x.dtype.type(0.1) * x),
    "abs": (lambda x, y, z: gradstep.abs(x), lambda x, y, z: numpy.abs(x)),
    "sqrt": (lambda x, y, z: gradstep.sqrt(x), lambda x, y, z: numpy.sqrt(x)),
    "rsqrt": (lambda x, y, z: gradstep.rsqrt(x), lambda x, y, z: 1 / numpy.sqrt(x)),
    "square": (lambda x, y, z: x**2, lambda x, y, z: x * x),
    "root": (lambda x, y, z: x**0.5, lambda x, y, z: numpy.sqrt(x)),
    "sign": (
        lambda x, y, z: gradstep.sign(x),
        lambda x, y, z: 0.0 + numpy.nan_to_num(numpy.sign(x)),  # +0 for −0 and nan
    ),
    "lt": (lambda x, y, z: choose(x < y),) * 2,
    "le": (lambda x, y, z: choose(x <= y),) * 2,
    "gt": (lambda x, y, z: choose(x > y),) * 2,
    "ge": (lambda x, y, z: choose(x >= y),) * 2,
    "eq": (lambda x, y, z: choose(x == y),) * 2,
    "ne": (lambda x, y, z: choose(x != y),) * 2,
    "with a number": (lambda x, y, z: choose(x >= 0.5),) * 2,
    "and": (lambda x, y, z: choose((x > z) & (y > z)),) * 2,
    "or": (lambda x, y, z: choose((x > z) | (y > z)),) * 2,
    "not": (lambda x, y, z: choose(~(x > y)),) * 2,
    "where": (
        lambda x, y, z: gradstep.where(z > 0, x, y),
        lambda x, y, z: numpy.where(z > 0, x, y),
    ),
    "clamp": (
        lambda x, y, z: gradstep.clamp(x, -0.5, 2.0),
        lambda x, y, z: numpy.clip(x, x.dtype.type(-0.5), x.dtype.type(2)),
    ),
    "negative zero": (
        lambda x, y, z: gradstep.where(z > 0, -0.0, 0.0),
        lambda x, y, z: numpy.where(z > 0, -0.0, 0.0),
    ),
    "infinity and nan": (
        lambda x, y, z: gradstep.where(z > 0, -math.inf, math.nan),
        lambda x, y, z: numpy.where(z > 0, -math.inf, math.nan),
    ),
    "no tie to float64": (lambda x, y, z: (x - y) / (x + y),) * 2,
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", EXACT)
def test_exact_operations(name: str, dtype: torch.dtype) -> None:
    ours, numpys = EXACT[name]
    expected = in_numpy(numpys, dtype)
    assert same_bits(run(ours, dtype), expected)
    eager = run(ours, dtype, "eager")
    # torch's own root is at times off by one unit, and the eager engine is torch.
    assert (
        near(eager, expected, 1) if "sqrt" in name or name == "root" else same_bits(eager, expected)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_extremes(name: str, dtype: torch.dtype) -> None:
    """nan where either is nan, as NumPy and torch have it; which zero is nobody's promise."""
    ours = getattr(gradstep, name)
    expected = in_numpy(lambda x, y, z: getattr(numpy, name)(x, y), dtype)
    for engine in ("fused", "eager"):
        found = run(lambda x, y, z: ours(x, y), dtype, engine)
        assert same_bits(found + 0.0, expected + 0.0)  # −0 becomes 0


def libm(name: str, dtype: torch.dtype) -> Callable[..., Any]:
    """A function of three numbers from C's library, over arrays."""
    kind = ctypes.c_double if dtype == torch.float64 else ctypes.c_float
    path = ctypes.util.find_library("m")
    if path is None:
        pytest.skip("no C library of mathematics to compare with")
    function = getattr(ctypes.CDLL(path), name if kind is ctypes.c_double else name + "f")
    function.argtypes, function.restype = [kind] * 3, kind
    return lambda *arrays: numpy.frompyfunc(function, 3, 1)(*arrays).astype(arrays[0].dtype)


def lerp_in_numpy(fma: Any, start: Any, end: Any, weight: Any) -> Any:
    near = numpy.abs(weight) < 0.5
    return fma(numpy.where(near, weight, weight - 1), end - start, numpy.where(near, start, end))


#: Scaled additions, in the rule language and with C's fused multiply-add.
FUSED: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "product first": (lambda x, y, z: x * y + z, lambda f, x, y, z: f(x, y, z)),
    "product last": (lambda x, y, z: z + x * y, lambda f, x, y, z: f(x, y, z)),
    "less a product": (lambda x, y, z: z - x * y, lambda f, x, y, z: f(-x, y, z)),
    "product less": (lambda x, y, z: x * y - z, lambda f, x, y, z: f(x, y, -z)),
    "two products": (lambda x, y, z: x * y + z * x, lambda f, x, y, z: f(z, x, x * y)),
    "a number": (
        lambda x, y, z: z - 0.1 * y,
        lambda f, x, y, z: f(numpy.full_like(y, -0.1), y, z),
    ),
    "product kept": (  # used twice, so it is rounded by itself
        lambda x, y, z: (lambda product: (product + z) * product)(x * y),
        lambda f, x, y, z: (x * y + z) * (x * y),
    ),
    "lerp": (lambda x, y, z: gradstep.lerp(x, y, z), lerp_in_numpy),
    "lerp by a number": (
        lambda x, y, z: gradstep.lerp(x, y, 0.1),
        lambda f, x, y, z: lerp_in_numpy(f, x, y, numpy.full_like(x, 0.1)),
    ),
    "lerp by 1": (
        lambda x, y, z: gradstep.lerp(x, y, 1.0),
        lambda f, x, y, z: f(numpy.zeros_like(x), y - x, y),
    ),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FUSED)
def test_scaled_additions_round_once(name: str, dtype: torch.dtype) -> None:
    ours, with_fma = FUSED[name]
    fma = libm("fma", dtype)
    expected = in_numpy(lambda x, y, z: with_fma(fma, x, y, z), dtype)
    assert same_bits(run(ours, dtype), expected)


#: Functions that nobody rounds exactly, in the rule language and in NumPy.
CURVED: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "exp": (lambda x, y, z: gradstep.exp(x), lambda x, y, z: numpy.exp(x)),
    "log": (lambda x, y, z: gradstep.log(x), lambda x, y, z: numpy.log(x)),
    "pow": (lambda x, y, z: x**y, lambda x, y, z: x**y),
    "pow of abs": (lambda x, y, z: gradstep.pow(abs(x), z), lambda x, y, z: numpy.abs(x) ** z),
    "cube": (lambda x, y, z: x**3, lambda x, y, z: x**3),
    "reciprocal": (lambda x, y, z: x**-1, lambda x, y, z: 1 / x),
    "power of two": (lambda x, y, z: 2**z, lambda x, y, z: numpy.exp2(z)),
    "cbrt": (  # glibc's own, in float64, is up to four units off
        lambda x, y, z: gradstep.cbrt(x),
        lambda x, y, z: numpy.cbrt(x.astype(numpy.longdouble)).astype(numpy.float64),
    ),
    "tanh": (lambda x, y, z: gradstep.tanh(x), lambda x, y, z: numpy.tanh(x)),
    "atan2": (lambda x, y, z: gradstep.atan2(x, y), lambda x, y, z: numpy.arctan2(x, y)),
}


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("name", CURVED)
def test_curved_functions(name: str, dtype: torch.dtype) -> None:
    """Within two units in the last place of NumPy in float64; inf, nan and 0 where it has them."""
    ours, numpys = CURVED[name]
    wide = [c.double().numpy() for c in columns(dtype)]
    with numpy.errstate(all="ignore"):
        expected = torch.from_numpy(numpys(*wide)).to(dtype)
    for engine in ("fused", "eager"):
        assert near(run(ours, dtype, engine), expected, 2), engine


#: Functions by torch's names, on three columns.
IN_TORCH: dict[str, Callable[..., Tensor]] = {
    "abs": lambda x, y, z: torch.abs(x),
    "sqrt": lambda x, y, z: torch.sqrt(x),
    "rsqrt": lambda x, y, z: torch.rsqrt(x),
    "sign": lambda x, y, z: torch.sign(x),
    "exp": lambda x, y, z: torch.exp(x),
    "log": lambda x, y, z: torch.log(x),
    "pow": lambda x, y, z: torch.pow(x, y),
    "tanh": lambda x, y, z: torch.tanh(x),
    "atan2": lambda x, y, z: torch.atan2(x, y),
    "maximum": lambda x, y, z: torch.maximum(x, y),
    "minimum": lambda x, y, z: torch.minimum(x, y),
    "lerp": lambda x, y, z: torch.lerp(x, y, z),
    "where": lambda x, y, z: torch.where(z > 0, x, y),
    "clamp": lambda x, y, z: torch.clamp(x, -0.5, 2.0),
}


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("name", IN_TORCH)
def test_functions_of_torch_by_the_same_name(name: str, dtype: torch.dtype) -> None:
    x, y, z = columns(dtype)
    pairs = dict.fromkeys(["pow", "atan2", "maximum", "minimum"], 2)
    arguments = {"where": 3, "lerp": 3, "clamp": 1, **pairs}.get(name, 1)
    function = getattr(gradstep, name)
    if name == "where":
        found = run(lambda x, y, z: function(z > 0, x, y), dtype)
    elif name == "clamp":
        found = run(lambda x, y, z: function(x, -0.5, 2.0), dtype)
    else:
        found = run(lambda *c: function(*c[:arguments]), dtype)
    expected = IN_TORCH[name](x, y, z)
    curved = dict.fromkeys(["exp", "log", "pow", "tanh", "atan2"], 4)
    units = {"sqrt": 1, "rsqrt": 2, **curved}.get(name, 0)
    assert near(found, expected, units)


def test_powers_that_are_products_have_torchs_answers_at_the_edges() -> None:
    for exponent in (2.0, 0.5):
        found = run(lambda x, y, z, e=exponent: x**e, torch.float32)
        assert near(found, torch.pow(columns(torch.float32)[0], exponent), 1)


def test_numbers_beyond_float32() -> None:
    x, _, _ = columns(torch.float32)
    assert same_bits(run(lambda x, y, z: x * 1e300, torch.float32), x * math.inf)
    assert same_bits(run(lambda x, y, z: x * -1e300, torch.float32), x * -math.inf)
    assert same_bits(run(lambda x, y, z: x * 1e-300, torch.float32), x * 0.0)


def test_kernels_have_every_operation_of_the_language() -> None:
    """What the language gains must be added to the tables above."""
    tested = {*EXACT, *FUSED, *CURVED, *IN_TORCH, "fma", "stored"}
    tested |= {"sum", "max", "global_sum", "opaque"}  # test_reductions.py
    tested |= {"part"}  # test_matrix_states.py
    from gradstep.rule.operations import OPERATIONS

    assert set(OPERATIONS) <= tested


# Storage types.


def convert(conversion: Callable[..., Any], source: numpy.ndarray, result: Any) -> numpy.ndarray:
    """A conversion of gradstep.program.low_precision, compiled, over an array."""
    kinds = {"uint16": ir.IntType(16), "float32": ir.FloatType()}
    pointer, i64 = ir.PointerType(), ir.IntType(64)
    module = ir.Module(name="conversion")
    signature = ir.FunctionType(ir.VoidType(), [pointer, pointer, i64])
    function = ir.Function(module, signature, "convert")
    for argument in function.args[:2]:
        argument.add_attribute("noalias")
    entry, loop, done = (function.append_basic_block(n) for n in ("entry", "loop", "done"))
    builder = ir.IRBuilder(entry)
    builder.branch(loop)
    builder.position_at_end(loop)
    index = builder.phi(i64)
    index.add_incoming(ir.Constant(i64, 0), entry)
    kind, result_kind = kinds[str(source.dtype)], kinds[str(numpy.dtype(result))]
    value = builder.load(builder.gep(function.args[0], [index], source_etype=kind), typ=kind)
    value = conversion(builder, value)
    builder.store(value, builder.gep(function.args[1], [index], source_etype=result_kind))
    following = builder.add(index, ir.Constant(i64, 1))
    index.add_incoming(following, loop)
    builder.cbranch(builder.icmp_signed("<", following, function.args[2]), loop, done)
    builder.position_at_end(done)
    builder.ret_void()
    code = str(module)
    compiled = compiler.functions(code, lambda: code, {"convert": (3, False)})["convert"]
    out = numpy.zeros(len(source), dtype=result)
    compiled(source.ctypes.data, out.ctypes.data, len(source))
    return out


def conversion_pairs() -> list[Any]:
    pairs = [
        pytest.param(
            torch.bfloat16, low_precision.from_bfloat16, low_precision.to_bfloat16, id="bfloat16"
        ),
        pytest.param(
            torch.float16, low_precision.from_float16, low_precision.to_float16, id="float16"
        ),
        pytest.param(
            torch.float16,
            low_precision.from_float16_by_instruction,
            low_precision.to_float16_by_instruction,
            id="float16 by instruction",
            marks=pytest.mark.skipif(
                "+f16c" not in compiler.cpu()[1].split(","), reason="this CPU has no F16C"
            ),
        ),
    ]
    return pairs


@pytest.mark.parametrize(("dtype", "read", "write"), conversion_pairs())
def test_every_16_bit_number_is_read_and_written_back(
    dtype: torch.dtype, read: Any, write: Any
) -> None:
    bits = numpy.arange(65536, dtype=numpy.uint16)
    theirs = torch.from_numpy(bits.view(numpy.int16)).view(dtype)
    wide = convert(read, bits, numpy.float32)
    assert same_bits(torch.from_numpy(wide), theirs.float())
    back = torch.from_numpy(convert(write, wide, numpy.uint16).view(numpy.int16)).view(dtype)
    assert same_bits(back, theirs)


@pytest.mark.parametrize(("dtype", "read", "write"), conversion_pairs())
def test_float32_is_rounded_as_torch_rounds_it(dtype: torch.dtype, read: Any, write: Any) -> None:
    upper = numpy.arange(65536, dtype=numpy.uint32) << 16
    # Halfway between neighbours, just beside it, and the same for float16's shorter cut.
    lower = [0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF, 0x0FFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x3001]
    random = numpy.random.default_rng(0).integers(0, 2**32, 1_000_000, dtype=numpy.uint32)
    bits = numpy.concatenate([*(upper | low for low in lower), random])
    numbers = bits.view(numpy.float32)
    found = convert(write, numbers, numpy.uint16).view(numpy.int16)
    expected = torch.from_numpy(numbers).to(dtype)
    assert same_bits(torch.from_numpy(found).view(dtype), expected)
    nan = found[numpy.isnan(numbers)].view(numpy.uint16) & 0x7FFF
    assert set(nan.tolist()) == {0x7FC0 if dtype == torch.bfloat16 else 0x7E00}


# The same bits, wherever an element is worked out.


def steps(
    make: Callable[..., gradstep.Optimizer], weights: list[Tensor], gradients: list[list[Tensor]]
) -> list[Tensor]:
    """Weights and states after a step with each list of gradients."""
    optimizer = make(weights)
    for now in gradients:
        for w, g in zip(weights, now, strict=True):
            w.grad = g
        optimizer.step()
    assert set(optimizer.engines_used().values()) == {"fused"}
    columns: list[list[Tensor]] = [[w.detach() for w in weights]]
    names = [n for n in optimizer.state[weights[0]] if optimizer.state[weights[0]][n].dim()]
    columns += [[optimizer.state[w][n] for w in weights] for n in names]
    return [torch.cat([t.reshape(-1) for t in column]) for column in columns]


#: Rules that look beyond single elements have kernels of another kind: test_reductions.py.
ELEMENTWISE = [r for r in REFERENCES if r.elementwise]

every_rule = pytest.mark.parametrize("reference", ELEMENTWISE, ids=lambda r: r.name)


@every_rule
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_threads_change_no_bit(reference: Reference, dtype: torch.dtype) -> None:
    size = runs.PARALLEL + 12_345
    start = torch.randn(size, dtype=dtype)
    gradients = [[torch.randn(size, dtype=dtype)] for _ in range(3)]
    results = []

    def make(weights: list[Tensor]) -> gradstep.Optimizer:
        return reference.ours(weights, engine="fused", **fullest(reference))

    for count in (1, 2, 3):
        torch.set_num_threads(count)
        weight = torch.nn.Parameter(start.clone())
        results.append(
            steps(
                lambda p: reference.ours(p, engine="fused", **fullest(reference)),
                [weight],
                gradients,
            )
        )
    shared = team.lent() is not None or threads._pool is not None
    assert shared  # the work was indeed shared out
    for other in results[1:]:
        assert all(same_bits(a, b) for a, b in zip(results[0], other, strict=True))


@every_rule
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_slice_has_the_bits_of_the_whole(reference: Reference, dtype: torch.dtype) -> None:
    size, cuts = 5003, [0, 1, 4, 5, 22, 101, 2222, 5003]
    start = torch.randn(size, dtype=dtype)
    gradients = [torch.randn(size, dtype=dtype) for _ in range(3)]

    def make(weights: list[Tensor]) -> gradstep.Optimizer:
        return reference.ours(weights, engine="fused", **fullest(reference))

    whole = steps(make, [torch.nn.Parameter(start.clone())], [[g] for g in gradients])
    copy = start.clone()
    pieces = [torch.nn.Parameter(copy[a:b]) for a, b in itertools.pairwise(cuts)]
    sliced = steps(make, pieces, [[g[a:b] for a, b in itertools.pairwise(cuts)] for g in gradients])
    assert all(same_bits(a, b) for a, b in zip(whole, sliced, strict=True))
    # And the other way round, where every element has another place in its vector.
    reverse = steps(make, [torch.nn.Parameter(start.flip(0))], [[g.flip(0)] for g in gradients])
    assert all(same_bits(a, b.flip(0)) for a, b in zip(whole, reverse, strict=True))


def hashes() -> Iterator[str]:
    """A line for every rule, variant and dtype: a hash of all weights and states.

    The data have numbers of every size, subnormal ones and infinities. All nan are one.
    """
    for reference, dtype in itertools.product(ELEMENTWISE, DTYPES):
        x, y, z = columns(dtype)
        finite = [torch.where(t.isnan(), torch.ones_like(t), t) for t in (x, y, z)]
        for options in variants(reference):
            weight = torch.nn.Parameter(finite[0].clone())
            found = steps(
                lambda p, r=reference, o=options: r.ours(p, engine="fused", **o),
                [weight],
                [[finite[1]], [finite[2]], [finite[1].flip(0)]],
            )
            digest = hashlib.sha256()
            for tensor in found:
                one_nan = torch.where(tensor.isnan(), torch.full_like(tensor, math.nan), tensor)
                digest.update(one_nan.view(INTEGERS[dtype]).numpy().tobytes())
            yield f"{reference.name} {options} {dtype} {digest.hexdigest()}"


#: Name, features, and what the machine must have.
CPUS = {
    "AVX-512": ("skylake-avx512", "+avx512f,+avx512vl,+avx512bw,+avx512dq,+f16c,+fma", "avx512bw"),
    "AVX2": ("haswell", "+avx2,+fma,+f16c", "avx2"),
    "plain": ("x86-64", "", None),
}


@x86_only
@pytest.mark.slow
@pytest.mark.deep
def test_every_cpu_computes_the_same_bits() -> None:
    """The kernels compiled for this machine, for AVX-512, for AVX2 and for plain x86-64."""
    has = compiler.cpu()[1].split(",")
    running = {}
    for label, (name, features, needed) in {"this machine": ("", "", None), **CPUS}.items():
        if needed is not None and f"+{needed}" not in has:
            continue
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)]),
        }
        if name:
            environment |= {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": features}
        code = "import test_kernel\nfor line in test_kernel.hashes(): print(line)"
        running[label] = subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
        )
    found = {}
    for label, child in running.items():
        output, _ = child.communicate(timeout=3600)
        assert child.returncode == 0, label
        found[label] = output.splitlines()
    lines = found.pop("this machine")
    assert len(lines) > 4 * len(ELEMENTWISE) and len(set(lines)) == len(lines)
    assert "plain" in found
    for label, others in found.items():
        different = [a for a, b in zip(lines, others, strict=True) if a != b]
        assert not different, f"{label}: {different}"
    left_out = set(CPUS) - set(found)
    if left_out:
        pytest.skip(f"all that this CPU runs agree; it has no {', '.join(left_out)}")


# The loop uses the CPU's vector registers.


def loop_of(reference: Reference, storage: str) -> str:
    """The assembly of a rule's loop over elements."""
    optimizer = reference.ours([torch.zeros(1)], **fullest(reference))
    group = optimizer.param_groups[0]
    values = planner_of(optimizer).reader.hyperparameters(group)
    graph = trace(reference.rule, values, bool(group["maximize"]))
    return line_of(code_of(graph, storage, compiler.target()))


def code_of(graph: Graph, storage: str, target: Target = PLAIN) -> str:
    """The code of a graph's one pass."""
    program = Program(gradstep.sgd, graph, ())
    (each,) = program.passes
    return write_kernel(kernel_spec(each, program.inputs, storage, Places(), target))


def line_of(code: str) -> str:
    """The assembly of a kernel's loop over elements."""
    line = re.search(r"^line:(.*?)^\.Lfunc_end", compiler.assembly(code), re.M | re.S)
    assert line is not None
    return line[1]


def packed(loop: str, instruction: str, register: str) -> int:
    """How many such instructions work on a whole register of that kind."""
    return len(re.findall(rf"^\s+{instruction}\s.*%{register}mm\d", loop, re.M))


@x86_only
@every_rule
@pytest.mark.parametrize("storage", ["float32", "float64", "bfloat16", "float16"])
def test_loops_are_vectorised(
    reference: Reference, storage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, features, _ = CPUS["AVX2"]
    monkeypatch.setenv("NUMBA_CPU_NAME", name)
    monkeypatch.setenv("NUMBA_CPU_FEATURES", features)
    loop = loop_of(reference, storage)
    kind = "pd" if storage == "float64" else "ps"
    # Rprop only chooses between products; the others round sums and products together.
    arithmetic = "vmul" if reference.name == "Rprop" else r"vfn?m(add|sub)\d+"
    assert packed(loop, arithmetic + kind, "y") > 0
    if storage == "bfloat16":
        assert packed(loop, "vpslld", "y") > 0
    if storage == "float16":
        assert packed(loop, "vcvtph2ps", "y") > 0 and packed(loop, "vcvtps2ph", "y") > 0
    assert not re.search(r"^\s+callq?\s", loop, re.M)
    # A plain x86-64 has neither these registers nor a fused multiply-add: the search tells.
    monkeypatch.setenv("NUMBA_CPU_NAME", "x86-64")
    monkeypatch.setenv("NUMBA_CPU_FEATURES", "")
    assert packed(loop_of(reference, storage), r"v\w+", "y") == 0


@x86_only
@every_rule
def test_loops_are_vectorised_for_this_machine(reference: Reference) -> None:
    register = "[yz]" if "+avx" in compiler.cpu()[1].split(",") else "x"
    assert packed(loop_of(reference, "float32"), r"v?(mul|fn?m(add|sub)\d+)ps", register) > 0


@x86_only
def test_the_search_sees_a_loop_that_is_not_vectorised(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sine on each element is a call to C's library, which LLVM does not vectorise."""

    @gradstep.rule
    def slow(g: Any) -> Any:
        return gradstep.sqrt(g)

    monkeypatch.setattr(ElementCode, "_sqrt", lambda code, a: code._intrinsic("sin", a))
    line = line_of(code_of(trace(slow, {}), "float32"))
    assert re.search(r"^\s+callq?\s", line, re.M) or "*%r" in line
