"""What a GPU of NVIDIA's alone can show of the engine ``cuda``.

Written on a machine without one: nobody has run it yet.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gradstep
from configurations import FLAG_CONFIGURATIONS, spelled
from gradstep.backends.cuda.self_check import unlike
from gradstep.backends.update import in_pairs
from reference import REFERENCES, Reference
from torchs_table import optim_db

if not torch.cuda.is_available():
    pytest.skip("needs a GPU of NVIDIA's", allow_module_level=True)

CUDA = torch.device("cuda", 0)
SHAPES = ((), (1030,), (3, 5), (0,), (9, 2), (2, 16_401))
FLAT = [(r, o) for r, o in FLAG_CONFIGURATIONS if r.elementwise]
NAMES = [f"{r.name}-{spelled(o)}" for r, o in FLAT]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def equal(found: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    """Bit for bit, or both nan."""
    pairs = [(in_pairs(a).cpu(), in_pairs(b).cpu()) for a, b in zip(found, right, strict=True)]
    return not any(bool(unlike(a.reshape(-1), b.reshape(-1)).any()) for a, b in pairs)


def held(params: Sequence[Tensor], optimizer: Any) -> list[Tensor]:
    """Weights and states."""
    found: list[Any] = [p.detach() for p in params]
    for p in params:
        found += [t for t in optimizer.state[p].values() if isinstance(t, Tensor)]
    return [t.detach().cpu() for t in found]


def trained(
    device: torch.device, make: Any, dtype: torch.dtype, steps: int = 3, **options: Any
) -> tuple[list[Tensor], set[str]]:
    """Weights and states after some steps; and what made them."""
    draw = torch.Generator().manual_seed(1)

    def normal(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=draw).to(dtype)

    params = [nn.Parameter(normal(shape).to(device)) for shape in SHAPES]
    params.append(nn.Parameter(normal((400,)).to(device)[1:]))  # no multiple of 16 bytes
    optimizer = make(params, **options)
    for step in range(steps):
        for number, p in enumerate(params):
            gradient = (normal(tuple(p.shape)) * 10.0 ** -(step + number)).to(device)
            p.grad = None if number == 1 and step == 0 else gradient
        optimizer.step(lambda: torch.tensor(0.7))
    return held(params, optimizer), set(optimizer.engines_used().values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("reference", "options"), FLAT, ids=NAMES)
def test_bits_of_the_cpu(reference: Reference, options: dict[str, Any], dtype: torch.dtype) -> None:
    right, _ = trained(torch.device("cpu"), reference.ours, dtype, **options)
    found, engines = trained(CUDA, reference.ours, dtype, engine="cuda", **options)
    assert engines == {"cuda"}
    assert equal(found, right)


@pytest.mark.parametrize("reference", [r for r in REFERENCES if not r.elementwise], ids=str)
def test_bits_of_rules_that_sum(reference: Reference) -> None:
    options = {"capturable": True} if "capturable" in reference.default_group() else {}
    try:
        right, _ = trained(torch.device("cpu"), reference.ours, torch.float32, **options)
    except (ValueError, RuntimeError):
        pytest.skip("it takes matrices alone, or no numbers without dimensions")
    found, engines = trained(CUDA, reference.ours, torch.float32, engine="cuda", **options)
    if engines != {"cuda"}:
        pytest.skip("left to another engine")
    for a, b in zip(found, right, strict=True):  # powers of the device's numbers
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32", "int8", "int4", "float8"])
def test_states_in_other_types(name: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        options = {"state_dtype": name}
        right, _ = trained(torch.device("cpu"), gradstep.AdamW, dtype, **options)
        found, engines = trained(CUDA, gradstep.AdamW, dtype, engine="cuda", **options)
        assert engines == {"cuda"} and equal(found, right)


def test_auto_takes_cuda_first() -> None:
    _, engines = trained(CUDA, gradstep.Adam, torch.float32)
    assert engines == {"cuda"}


@pytest.mark.parametrize("info", optim_db, ids=lambda info: info.optim_cls.__name__)
def test_torchs_own_configurations(info: Any) -> None:
    """Against torch's loop over tensors on the same device, within what torch's tests allow."""
    name = info.optim_cls.__name__
    if name in ("SparseAdam", "LBFGS"):
        pytest.skip("torch's own class, or sparse gradients alone")
    ours = getattr(gradstep, name)
    for given in info.optim_inputs_func(device=CUDA):
        options = {k: v for k, v in given.kwargs.items() if k not in ("foreach", "fused")}
        shapes = [(4, 6), (7, 3)] if name == "Muon" else [(4, 6), (9,), ()]
        draw = torch.Generator().manual_seed(2)
        weights = [torch.randn(s, generator=draw) for s in shapes]
        one, other = ([nn.Parameter(w.to(CUDA)) for w in weights] for _ in range(2))
        theirs = info.optim_cls(one, **options, **({} if name == "Muon" else {"foreach": False}))
        mine = ours(other, **options)
        for _ in range(10):
            for a, b in zip(one, other, strict=True):
                a.grad = torch.randn(a.shape, generator=draw).to(CUDA)
                b.grad = a.grad.clone()
            theirs.step()
            mine.step()
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1.3e-5, atol=1e-5, msg=given.desc)


# Streams, graphs, mixed precision, checkpoints.


def weights(count: int = 4, side: int = 256) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(3)
    made = [nn.Parameter(torch.randn(side, side, generator=draw).to(CUDA)) for _ in range(count)]
    for p in made:
        p.grad = torch.randn(side, side, generator=draw).to(CUDA)
    return made


def test_two_streams() -> None:
    """Each optimizer's steps go to the stream that is current, behind what was put there before."""
    right = weights()
    optimizer = gradstep.Adam(right, lr=0.1, engine="cuda")
    for _ in range(20):
        optimizer.step()
    found = []
    streams = [torch.cuda.Stream(CUDA) for _ in range(2)]
    for stream in streams:
        with torch.cuda.stream(stream):
            params = weights()
            own = gradstep.Adam(params, lr=0.1, engine="cuda")
            found.append((stream, params, own))
    for _ in range(20):
        for stream, params, own in found:
            with torch.cuda.stream(stream):
                torch.cuda._sleep(100_000)
                for p in params:
                    p.grad = p.grad.clone()  # another address, that the last step's may get
                own.step()
    torch.cuda.synchronize()
    for _, params, _ in found:
        assert equal(params, right)


def test_no_step_waits() -> None:
    params = weights()
    optimizer = gradstep.AdamW(params, engine="cuda")
    optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.cuda._sleep(1_000_000_000)
        begun = torch.cuda.Event()
        begun.record()
        for _ in range(10):
            optimizer.step()
        assert not begun.query()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()


@pytest.mark.parametrize("make", [gradstep.SGD, gradstep.Lion])
def test_a_graph_of_a_rule_that_counts_nothing(make: Any) -> None:
    params, others = weights(), weights()
    optimizer, eager = (make(p, lr=0.01, engine="cuda") for p in (params, others))
    for each in (optimizer, eager):
        each.step()
        each.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for _ in range(3):
        graph.replay()
        eager.step()
    assert equal(params, others)
    for each in (optimizer, eager):
        each.param_groups[0]["lr"] = 0.5
        each.step()
        each.param_groups[0]["lr"] = 0.01
    graph.replay()
    eager.step()
    assert equal(params, others)


def test_a_graph_that_counts_and_finds_lr_changed() -> None:
    params, others = weights(), weights()
    lr = torch.tensor(0.1, device=CUDA, dtype=torch.float64)
    optimizer = gradstep.AdamW(params, lr=lr, engine="cuda", capturable=True)
    eager = gradstep.AdamW(others, lr=0.1, engine="cuda")
    for _ in range(3):
        optimizer.step()
        eager.step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for rate in (0.1, 0.3, 0.01):
        lr.fill_(rate)
        eager.param_groups[0]["lr"] = rate
        graph.replay()
        eager.step()
    for a, b in zip(params, others, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
    assert {float(optimizer.state[p]["step"]) for p in params} == {6.0}


def test_scale_and_verdict_without_a_wait() -> None:
    params = weights()
    optimizer = gradstep.AdamW(params, lr=0.1, engine="cuda", fused=True)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0)
    scaler.scale(torch.zeros((), device=CUDA))
    for _ in range(3):
        scaler.step(optimizer)
        scaler.update()
    torch.cuda.set_sync_debug_mode("error")
    try:
        scaler.step(optimizer)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_count_on_the_cpu_is_not_captured() -> None:
    params = weights()
    optimizer = gradstep.Adam(params, engine="cuda")
    optimizer.step()
    optimizer.step()
    with (
        pytest.raises(RuntimeError, match="capturable=True"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        optimizer.step()


@pytest.mark.parametrize("fused", [False, True])
def test_grad_scaler(fused: bool) -> None:
    """An infinite gradient is skipped, and the scale divides the others away."""
    found = []
    for scale in (1.0, 2.0**10):
        params = weights()
        optimizer = gradstep.AdamW(params, lr=0.01, engine="auto", fused=fused)
        scaler = torch.amp.GradScaler("cuda", init_scale=scale, growth_interval=1000)
        scaler.scale(torch.zeros((), device=CUDA))
        for step in range(4):
            for number, p in enumerate(params):
                draw = torch.Generator(CUDA).manual_seed(10 * step + number)
                p.grad = torch.randn(p.shape, generator=draw, device=CUDA) * scaler.get_scale()
            if step == 2:
                params[0].grad[0, 0] = torch.inf
            before = [p.detach().clone() for p in params]
            scaler.step(optimizer)
            assert equal(before, params) == (step == 2)
            scaler.update()
        found.append(held(params, optimizer))
    torch.testing.assert_close(*found)


def test_checkpoints_between_devices() -> None:
    """Two steps on one device, saved, two on the other: the bits of four on either."""
    cpu = torch.device("cpu")

    def run(devices: Sequence[torch.device]) -> list[Tensor]:
        draw = torch.Generator().manual_seed(4)
        model = nn.Linear(33, 17)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.randn(p.shape, generator=draw))
        saved: Any = None
        for device in devices:
            model = model.to(device)
            optimizer = gradstep.AdamW(model.parameters(), lr=0.1)
            if saved is not None:
                optimizer.load_state_dict(saved)
            for p in model.parameters():
                p.grad = torch.randn(p.shape, generator=draw).to(device)
            optimizer.step()
            file = io.BytesIO()
            torch.save(optimizer.state_dict(), file)
            file.seek(0)
            saved = torch.load(file, map_location="cpu")
        return held(list(model.parameters()), optimizer)

    right = run([cpu] * 4)
    for devices in ([CUDA] * 4, [CUDA, cpu, CUDA, cpu], [cpu, cpu, CUDA, CUDA]):
        assert equal(run(devices), right)


def test_copies_go_on_where_they_are() -> None:
    params = weights(1)
    optimizer = gradstep.Adam(params, lr=0.1, engine="cuda")
    optimizer.step()
    other = copy.deepcopy(optimizer)
    optimizer.step()
    (twin,) = other.param_groups[0]["params"]
    twin.grad = params[0].grad.clone()
    other.step()
    assert equal([twin], params)


def test_two_gpus_in_one_group() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    second = torch.device("cuda", 1)
    draw = torch.Generator().manual_seed(5)
    start = [torch.randn(100, generator=draw) for _ in range(2)]
    found = []
    for devices in ((CUDA, CUDA), (CUDA, second)):
        params = [nn.Parameter(w.to(d)) for w, d in zip(start, devices, strict=True)]
        optimizer = gradstep.Adam(params, lr=0.1, engine="cuda")
        for _ in range(3):
            for p in params:
                p.grad = torch.ones_like(p)
            optimizer.step()
        assert set(optimizer.engines_used().values()) == {"cuda"}
        found.append(held(params, optimizer))
    assert equal(*found)


def test_memory_that_is_full_in_the_first_step() -> None:
    params = weights(1)
    before = [p.detach().clone() for p in params]
    optimizer = gradstep.Adam(params, lr=0.1, engine="cuda")
    free, _ = torch.cuda.mem_get_info(CUDA)
    taken = []
    try:
        for size in (1 << 30, 1 << 24, 1 << 18):
            while True:
                try:
                    taken.append(torch.empty(size, dtype=torch.uint8, device=CUDA))
                except torch.OutOfMemoryError:
                    break
        with pytest.raises(torch.OutOfMemoryError):
            optimizer.step()
    finally:
        taken.clear()
        torch.cuda.empty_cache()
    assert free and equal(params, before) and not optimizer.state
    optimizer.step()
    assert not equal(params, before)
