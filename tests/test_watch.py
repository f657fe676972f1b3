"""A watch's numbers against NumPy; and that it neither changes nor stops the training."""

from __future__ import annotations

import copy
import gc
import math
import textwrap
import warnings
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import forked
import gradstep
from gradstep.sight.statistics import FIELDS, Meter, copies


def net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def batch(number: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(number)
    return torch.randn(16, 6, generator=random), torch.randint(3, (16,), generator=random)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for number in range(first, first + steps):
        inputs, targets = batch(number)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()


def expected(before: Tensor, gradient: Tensor, after: Tensor) -> dict[str, float]:
    """What is measured of a parameter, by NumPy in float64."""

    def plain(tensor: Tensor) -> Any:
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor.resolve_conj())
        return tensor.detach().to_dense().double().numpy()

    with numpy.errstate(invalid="ignore"):
        w, g, u = plain(before), plain(gradient), plain(after) - plain(before)

    def rms(x: Any) -> float:
        return float(numpy.sqrt(numpy.mean(x * x)))

    return {
        "weight_rms": rms(w),
        "weight_max": abs(w).max(),
        "gradient_rms": rms(g),
        "gradient_max": abs(g).max(),
        "update_rms": rms(u),
        "update_max": abs(u).max(),
        "update_ratio": rms(u) / rms(w),
        "zero_gradients": numpy.mean(g == 0),
        "unmoved": numpy.mean(u == 0),
        "nonfinite_weights": (~numpy.isfinite(w)).sum(),
        "nonfinite_gradients": (~numpy.isfinite(g)).sum(),
        "nonfinite_updates": (~numpy.isfinite(u)).sum(),
    }


def _wide(tensor: Tensor) -> Any:
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64).numpy()


def compare(found: Sequence[float], wanted: dict[str, float]) -> None:
    for field, value in zip(FIELDS, found, strict=True):
        exact = field.endswith("max") or field.startswith("nonfinite")
        tolerance = 0.0 if exact else 1e-13
        assert value == pytest.approx(wanted[field], rel=tolerance, abs=0, nan_ok=True), field


def triple(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    before = torch.randn(shape, dtype=dtype)
    gradient = torch.randn(shape, dtype=dtype) * (torch.rand(shape) > 0.3)
    moved = torch.rand(shape) > 0.2
    return before, gradient, torch.where(moved, before - 0.01 * gradient, before)


DTYPES = [
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
def test_each_field_is_what_numpy_says(dtype: torch.dtype) -> None:
    shapes = [(), (1,), (255,), (256,), (257,), (3, 5), (40, 60), (2, 3, 4, 5), (1000, 301)]
    rows = [triple(shape, dtype) for shape in shapes]
    after, gradients = [r[2] for r in rows], [r[1] for r in rows]
    meter = Meter()
    measured = meter.measure(after, gradients, [r[0] for r in rows])
    for found, row in zip(measured.values.tolist(), rows, strict=True):
        compare(found, expected(*row))
    norm = math.sqrt(sum(numpy.sum(abs(_wide(g)) ** 2) for g in gradients))
    assert measured.gradient_norm == pytest.approx(norm, rel=1e-13)


def _transposed(tensor: Tensor) -> Tensor:
    return tensor.t().contiguous().t()


def _strided(tensor: Tensor) -> Tensor:
    wide = torch.empty(tensor.shape[0], 2 * tensor.shape[1], dtype=tensor.dtype)
    wide[:, ::2] = tensor
    return wide[:, ::2]


@pytest.mark.parametrize("lay", [_transposed, _strided, Tensor.to_sparse])
@pytest.mark.parametrize("whose", ["weight", "gradient", "both"])
def test_other_layouts_have_the_same_numbers(lay: Callable[[Tensor], Tensor], whose: str) -> None:
    if lay is Tensor.to_sparse and whose != "gradient":
        pytest.skip("weights are not sparse")
    before, gradient, after = triple((30, 40), torch.float32)
    wanted = expected(before, gradient, after)
    if whose != "gradient":
        before, after = lay(before), lay(after)
    if whose != "weight":
        gradient = lay(gradient)
    meter = Meter()
    for _ in range(2):  # anew, and as it was
        own = copies([before])
        compare(meter.measure([after], [gradient], own).values[0].tolist(), wanted)


def test_tensors_that_no_kernel_reads_have_the_same_numbers() -> None:
    class Own(Tensor):
        pass

    before, gradient, after = triple((30, 40), torch.float32)
    wanted = expected(before, gradient, after)
    found = Meter().measure(
        [after.as_subclass(Own), after], [gradient.as_subclass(Own), gradient], [before, before]
    )
    compare(found.values[0].tolist(), wanted)
    compare(found.values[1].tolist(), wanted)


def test_the_tiniest_and_the_largest_numbers_count() -> None:
    tiny, huge = torch.full((300,), 1e-30), torch.full((300,), 1e30)
    found = Meter().measure([huge, tiny], [tiny, huge], [tiny, huge]).values
    for row, (w, g) in zip(found.tolist(), [(1e-30, 1e30), (1e30, 1e-30)], strict=True):
        own = dict(zip(FIELDS, row, strict=True))
        assert own["weight_rms"] == pytest.approx(w, rel=1e-6)
        assert own["gradient_rms"] == pytest.approx(1 / g if w == g else w, rel=1e-6)


def test_nan_and_infinity_are_counted_and_not_hidden() -> None:
    before, gradient, after = triple((50, 50), torch.float32)
    gradient[3, 4], gradient[0, 0], gradient[7, 7] = math.nan, math.inf, -math.inf
    before[1, 1] = after[1, 1] = math.inf
    wanted = expected(before, gradient, after)
    assert (wanted["nonfinite_gradients"], wanted["nonfinite_updates"]) == (3, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Meter().measure([after], [gradient], [before])
    compare(found.values[0].tolist(), wanted)


def test_sums_have_the_same_bits_for_any_number_of_threads() -> None:
    row = triple((2000, 700), torch.float32)
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(Meter().measure([row[2]], [row[1]], [row[0]]).values.tobytes())
    assert len(set(found)) == 1


# What is recorded.


def test_which_steps_are_recorded_and_what_of_them() -> None:
    model = net()
    optimizer = torch.optim.SGD(
        [{"params": model[0].parameters(), "lr": 0.5}, {"params": model[2].parameters()}], lr=0.25
    )
    with gradstep.watch(model, optimizer, every=3) as watch:
        train(model, optimizer, 2)
        before = copy.deepcopy(model)
        train(model, optimizer, 1, first=2)
        train(model, optimizer, 4, first=3)
    train(model, optimizer, 2)
    assert [record.step for record in watch.records] == [1, 3, 6]
    assert watch.steps == 7
    record = watch.records[1]
    assert record.names == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert record.lr == (0.5, 0.25)
    inputs, targets = batch(2)
    nn.functional.cross_entropy(before(inputs), targets).backward()
    norm = 0.0
    for name, p in before.named_parameters():
        assert p.grad is not None
        after = p - (0.5 if name[0] == "0" else 0.25) * p.grad
        wanted = expected(p, p.grad, after)
        own = record[name]
        assert own["gradient_rms"] == pytest.approx(wanted["gradient_rms"], rel=1e-6)
        assert own["update_ratio"] == pytest.approx(wanted["update_ratio"], rel=1e-4)
        assert own["weight_max"] == pytest.approx(wanted["weight_max"], rel=1e-7)
        norm += float(p.grad.square().sum())
    assert record.gradient_norm == pytest.approx(math.sqrt(norm), rel=1e-6)
    assert watch.records[0].loop_seconds is None
    assert 0 < record.step_seconds < record.loop_seconds * 3
    with pytest.raises(KeyError, match=r"step 3 has no record of 'fc1'; it has 0\.weight"):
        record["fc1"]


def test_the_loops_time_is_what_passes_between_steps() -> None:
    import time

    model = net()
    optimizer = gradstep.SGD(model.parameters(), lr=0.1)
    watch = gradstep.watch(model, optimizer, every=2, to=[None, lambda _: time.sleep(0.2)])
    for _ in range(6):
        train(model, optimizer, 1)
        time.sleep(0.02)
    times = [record.loop_seconds for record in watch.records[1:]]
    assert all(0.02 <= seconds < 0.15 for seconds in times), times  # the sink's time is not in it


def test_parameters_without_gradient_or_elements_are_left_out() -> None:
    model = net()
    model[0].bias.requires_grad_(False)
    empty = nn.Parameter(torch.empty(0, 4))
    empty.grad = torch.empty(0, 4)
    optimizer = torch.optim.SGD([*model.parameters(), empty], lr=0.1)
    watch = gradstep.watch(model, optimizer, every=1)
    train(model, optimizer, 1)
    assert watch.records[0].names == ("0.weight", "2.weight", "2.bias")
    optimizer.zero_grad()
    optimizer.step()
    assert watch.records[1].names == ()
    assert watch.records[1].gradient_norm == 0.0


def test_names_without_a_model_are_the_optimizers() -> None:
    model = net()
    for params, names in (
        (model.parameters(), [f"parameter {i} of group 0" for i in range(4)]),
        (model.named_parameters(), [n for n, _ in model.named_parameters()]),
    ):
        optimizer = torch.optim.SGD(params, lr=0.1)
        with gradstep.watch(None, optimizer, every=1) as watch:
            train(model, optimizer, 1)
        assert list(watch.records[0].names) == names


def test_a_group_that_comes_later_is_recorded() -> None:
    model = net()
    optimizer = gradstep.Adam(model[2].parameters())
    watch = gradstep.watch(model, optimizer, every=1)
    train(model, optimizer, 2)
    optimizer.add_param_group({"params": list(model[0].parameters()), "lr": 0.5})
    train(model, optimizer, 1)
    assert [len(record.names) for record in watch.records] == [2, 2, 4]
    assert watch.records[-1].lr == (1e-3, 0.5)
    assert watch.records[-1]["0.weight"]["update_max"] == pytest.approx(0.5, rel=1e-3)


def test_a_closures_gradient_is_that_of_the_step() -> None:
    model = net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=1, lr=0.1)
    watch = gradstep.watch(model, optimizer, every=1)
    inputs, targets = batch(0)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        return loss

    before = copies(list(model.parameters()))
    optimizer.step(closure)
    for old, p, name in zip(before, model.parameters(), watch.records[0].names, strict=True):
        assert p.grad is not None
        compare(list(watch.records[0][name].values()), expected(old, p.grad, p))


def test_gradients_are_seen_though_another_hook_clears_them() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.register_step_post_hook(lambda o, *_: o.zero_grad(set_to_none=False))
    watch = gradstep.watch(model, optimizer, every=1)
    train(model, optimizer, 1)
    assert watch.records[0]["0.weight"]["gradient_rms"] > 0
    optimizer.register_step_pre_hook(
        lambda *_: [nn.utils.clip_grad_norm_(model.parameters(), 1e-3), None][1]
    )
    train(model, optimizer, 1)
    assert watch.records[1].gradient_norm == pytest.approx(1e-3, rel=1e-2)


def test_histograms_count_every_element_in_its_place() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    watch = gradstep.watch(model, optimizer, every=1, histograms=True)
    train(model, optimizer, 1)
    record = watch.records[0]
    assert record.histograms is not None
    for name, p in model.named_parameters():
        for what, tensor in (("weight", p.detach()), ("gradient", p.grad)):
            found = record.histograms[name][what]
            assert tensor is not None
            limit = float(tensor.abs().max())
            assert found.limit == limit
            counts, _ = numpy.histogram(tensor.numpy(), len(found.counts), (-limit, limit))
            assert sum(found.counts) == tensor.numel()
            # An element on the edge of two bins may fall into either.
            assert abs(numpy.array(found.counts) - counts).sum() <= 2
    model[0].weight.data[0, 0] = math.nan
    train(model, optimizer, 1)
    assert watch.latest is not None and watch.latest.histograms is not None
    spoilt = watch.latest.histograms["0.weight"]["weight"]
    assert sum(spoilt.counts) == model[0].weight.numel() - 1


# The training is left alone.

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "gradstep-adamw": lambda p: gradstep.AdamW(p, lr=1e-2),
    "gradstep-sgd-eager": lambda p: gradstep.Optimizer(p, gradstep.sgd(), lr=0.1, engine="eager"),
    "gradstep-adafactor": lambda p: gradstep.Adafactor(p),
    "gradstep-clipped": lambda p: gradstep.Optimizer(
        p, gradstep.chain(gradstep.clip_by_global_norm(0.5), gradstep.adam())
    ),
    "torch-adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "torch-adam-fused": lambda p: torch.optim.Adam(p, lr=1e-2, fused=True),
    "torch-sgd-foreach": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, foreach=True),
    "torch-asgd": lambda p: torch.optim.ASGD(p),
}


def bits(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[bytes]:
    tensors = [*model.parameters(), *(p.grad for p in model.parameters() if p.grad is not None)]
    for entry in optimizer.state.values():
        tensors += [value for value in entry.values() if isinstance(value, Tensor)]
    tensors.append(torch.get_rng_state())
    return [tensor.detach().numpy().tobytes() for tensor in tensors]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("every", [1, 3])
def test_bit_for_bit_with_and_without(name: str, every: int, tmp_path: Path) -> None:
    ends = []
    for watched in (False, True):
        model = net()
        optimizer = OPTIMIZERS[name](model.parameters())
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        if watched:
            sinks = [None, tmp_path / "run.jsonl", lambda record: record.as_dict()]
            sinks += tensorboard_sinks(tmp_path)
            watch = gradstep.watch(model, optimizer, every=every, to=sinks, histograms=True)
        for number in range(7):
            train(model, optimizer, 1, first=number)
            schedule.step()
        ends.append(bits(model, optimizer))
    assert ends[0] == ends[1]
    assert len(watch.records) == (7 if every == 1 else 3)


def tensorboard_sinks(folder: Path) -> list[Any]:
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        return []
    return [folder / "tensorboard"]


def test_a_sink_that_fails_is_warned_of_once_and_the_others_go_on() -> None:
    model, twin = net(), net()
    optimizer = gradstep.Adam(model.parameters())
    twin_optimizer = gradstep.Adam(twin.parameters())
    calls = []

    def third_fails(record: Any) -> None:
        calls.append(record.step)
        if record.step == 3:
            raise OSError(28, "No space left on device")

    watch = gradstep.watch(model, optimizer, every=1, to=[third_fails, None])
    with pytest.warns(RuntimeWarning) as caught:
        train(model, optimizer, 6)
    train(twin, twin_optimizer, 6)
    assert bits(model, optimizer) == bits(twin, twin_optimizer)
    assert calls == [1, 2, 3] and len(watch.records) == 6
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "third_fails" in text and "No space left" in text and "step 3" in text
    assert "\n" not in text


def test_where_warnings_are_errors_the_training_goes_on_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(record: Any) -> None:
        raise ValueError("full")

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = gradstep.watch(model, optimizer, every=1, to=fails)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, optimizer, 3)
    assert watch.steps == 3
    assert [record.getMessage() for record in caplog.records if "full" in record.getMessage()]


def test_a_watch_that_fails_itself_ends_and_says_so() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = gradstep.watch(model, optimizer, every=1)
    train(model, optimizer, 1)
    optimizer.param_groups[0]["lr"] = torch.tensor([0.1, 0.1])  # for no optimizer's good
    optimizer.register_step_pre_hook(lambda o, *_: o.param_groups[0].update(lr=0.1))
    with pytest.warns(RuntimeWarning, match="stopped watching at step 1.* Training goes on"):
        train(model, optimizer, 2)
    assert watch.steps == 1 and len(watch.records) == 1
    watch.close()
    assert len(optimizer._optimizer_step_pre_hooks) == 1  # the test's own


def test_a_sink_may_close_the_watch() -> None:
    model = net()
    optimizer = gradstep.Adam(model.parameters())
    watch = gradstep.watch(model, optimizer, every=1, to=[None, lambda record: watch.close()])
    train(model, optimizer, 3)
    assert len(watch.records) == 1


def test_an_error_of_the_step_is_the_users_and_the_count_is_right() -> None:
    model = net()
    optimizer = gradstep.Adam(model.parameters())
    watch = gradstep.watch(model, optimizer, every=1)
    train(model, optimizer, 1)
    good = model[0].weight.grad
    model[0].weight.data = model[0].weight.data.double()
    with pytest.raises((ValueError, RuntimeError)):
        optimizer.step()
    model[0].weight.data = model[0].weight.data.float()
    model[0].weight.grad = good
    optimizer.step()
    assert [record.step for record in watch.records] == [1, 2]


def test_a_skipped_step_of_grad_scaler_is_no_step() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    watch = gradstep.watch(model, optimizer, every=1)
    for number in range(3):
        inputs, targets = batch(number)
        optimizer.zero_grad()
        scaler.scale(nn.functional.cross_entropy(model(inputs), targets)).backward()
        if number == 1:
            model[0].weight.grad[0, 0] = math.inf
        scaler.step(optimizer)
        scaler.update()
    assert [record.step for record in watch.records] == [1, 2]


@pytest.mark.parametrize("kind", [torch.optim.Adam, gradstep.Adam])
def test_gradients_have_their_own_size_where_the_step_unscales_them(kind: Any) -> None:
    norms = []
    for scale in (1.0, 1024.0):
        model = net()
        optimizer = kind(model.parameters(), fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        watch = gradstep.watch(model, optimizer, every=1)
        inputs, targets = batch(0)
        scaler.scale(nn.functional.cross_entropy(model(inputs), targets)).backward()
        scaler.step(optimizer)
        assert watch.latest is not None
        norms.append((watch.latest.gradient_norm, watch.latest["0.weight"]["gradient_max"]))
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_a_dtensors_own_part_is_measured() -> None:
    script = """
        import os, torch, gradstep
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
        import torch.distributed as dist
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import distribute_tensor, Shard
        store = dist.HashStore()
        dist.init_process_group("gloo", store=store, rank=0, world_size=1)
        mesh = init_device_mesh("cpu", (1,))
        whole = torch.arange(12.0).reshape(4, 3)
        p = torch.nn.Parameter(distribute_tensor(whole, mesh, [Shard(0)]))
        p.grad = distribute_tensor(torch.full((4, 3), 2.0), mesh, [Shard(0)])
        for kind in (gradstep.SGD, torch.optim.SGD):
            optimizer = kind([p], lr=0.25)
            watch = gradstep.watch(None, optimizer, every=1, histograms=True)
            optimizer.step()
            own = watch.latest[watch.latest.names[0]]
            assert (own["gradient_rms"], own["update_rms"]) == (2.0, 0.5), own
        dist.destroy_process_group()
        print("done")
    """
    done = forked.run("-c", textwrap.dedent(script))
    assert done.stdout == "done\n", done.stderr[-2000:]


def test_closing_ends_it_and_paused_steps_do_not_count() -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch = gradstep.watch(model, optimizer, every=1)
    train(model, optimizer, 1)
    with watch.paused():
        train(model, optimizer, 2)
    train(model, optimizer, 1)
    watch.close()
    watch.close()
    train(model, optimizer, 1)
    assert [record.step for record in watch.records] == [1, 2]
    assert not optimizer._optimizer_step_pre_hooks and not optimizer._optimizer_step_post_hooks


def test_optimizer_model_and_gradients_go_with_their_last_reference() -> None:
    model = net()
    optimizer = gradstep.Adam(model.parameters())
    watch = gradstep.watch(model, optimizer, every=1)
    train(model, optimizer, 2)
    references = [weakref.ref(optimizer), weakref.ref(model), weakref.ref(model[0].weight)]
    gc.disable()
    try:
        del optimizer, model
        assert [reference() for reference in references] == [None, None, None]
    finally:
        gc.enable()
    assert len(watch.records) == 2


def test_copies_of_the_optimizer_are_not_watched() -> None:
    model = net()
    optimizer = gradstep.Adam(model.parameters())
    watch = gradstep.watch(model, optimizer, every=1)
    train(model, optimizer, 1)
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    train(twin, twin_optimizer, 3)
    assert watch.steps == 1


@pytest.mark.deep
@pytest.mark.slow
def test_a_step_under_torch_compile_is_recorded() -> None:
    script = """
        import torch, gradstep
        model = torch.nn.Linear(3, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.125, foreach=False)
        watch = gradstep.watch(model, optimizer, every=1)
        step = torch.compile(lambda: optimizer.step(), backend="eager")
        for _ in range(3):
            model.zero_grad()
            model(torch.ones(4, 3)).sum().backward()
            step()
        assert [r.step for r in watch.records] == [1, 2, 3], watch.records
        assert abs(watch.records[2]["weight"]["update_rms"] - 0.5) < 1e-6
        print("done")
    """
    done = forked.run("-c", textwrap.dedent(script))
    assert done.stdout == "done\n", done.stderr[-2000:]


# Mistakes.


def test_mistakes_are_found_on_request() -> None:
    model = net()
    optimizer = gradstep.SGD(model.parameters(), lr=0.1)
    with gradstep.watch(model, optimizer, every=2, on_mistake="list") as watch:
        for number in range(3):  # without zero_grad()
            inputs, targets = batch(number)
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    assert any("zero_grad" in finding.write for finding in watch.findings)
    assert [record.step for record in watch.records] == [1, 2]
    assert not optimizer._optimizer_step_pre_hooks


def test_a_mistake_stops_the_training_where_that_is_asked_for() -> None:
    from gradstep.sight.mistakes import MistakeError

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.raises(MistakeError),
        gradstep.watch(model, optimizer, every=1, on_mistake="raise"),
    ):
        for number in range(3):
            inputs, targets = batch(number)
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    assert not optimizer._optimizer_step_pre_hooks


# Bad input.


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"model": 3}, TypeError, "takes the model first; got a int"),
        ({"optimizer": None}, TypeError, "takes an optimizer second; got a NoneType"),
        ({"every": 0}, ValueError, "every=0; expected a whole number of steps, 1 or more"),
        ({"every": 2.5}, ValueError, "every=2.5; expected a whole number"),
        ({"every": True}, ValueError, "every=True"),
        ({"start": -1}, ValueError, "start=-1; expected how many steps were made before"),
        ({"on_mistake": "shout"}, ValueError, "on_mistake='shout'; expected None, 'warn', 'list'"),
        ({"on_mistake": "list", "model": None}, ValueError, "on_mistake= needs the model"),
        ({"to": 5}, TypeError, "to= is a int. Expected None"),
        ({"to": []}, ValueError, r"to=\[\] names no place"),
        ({"to": ""}, ValueError, "no name of a file or folder"),
        ({"to": "run.csv"}, ValueError, r"ends in \.jsonl"),
    ],
)
def test_what_does_not_fit_is_said_at_once(
    arguments: dict[str, Any], error: type[Exception], text: str
) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(error, match=text) as caught:
        gradstep.watch(**{"model": model, "optimizer": optimizer, **arguments})
    assert "\n" not in str(caught.value)
    assert not optimizer._optimizer_step_pre_hooks
