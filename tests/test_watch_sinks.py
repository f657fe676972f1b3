"""Where a watch's records go: files that survive a kill, TensorBoard, tables, pictures."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import nn

import gradstep
from gradstep.sight import watch_pictures
from gradstep.sight.records import Record, from_dict, read_records
from gradstep.sight.statistics import FIELDS


def watched(to: Any, steps: int = 5, **options: Any) -> gradstep.Watch:
    """A watch of a few steps of a small net, which is still open."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = gradstep.Adam(model.parameters(), lr=1e-2)
    watch = gradstep.watch(model, optimizer, to=to, **{"every": 1, **options})
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 6)).square().mean().backward()
        optimizer.step()
    watch.model, watch.optimizer = model, optimizer  # type: ignore[attr-defined]
    return watch


def same(a: Record, b: Record) -> bool:
    return a.as_dict() == b.as_dict()


def test_json_lines_hold_the_very_numbers(tmp_path: Path) -> None:
    path = tmp_path / "new" / "run.jsonl"
    watch = watched([None, str(path)], histograms=True)
    lines = path.read_text().splitlines()  # before it is closed
    assert len(lines) == 5
    memory = watch.records
    assert all(same(a, b) for a, b in zip(memory, read_records(path), strict=True))
    first = json.loads(lines[0])
    assert first["step"] == 1 and first["loop_seconds"] is None
    assert first["parameters"]["0.weight"]["update_rms"] == memory[0]["0.weight"]["update_rms"]
    assert set(FIELDS) < set(first["parameters"]["0.weight"])


def test_records_are_read_back_where_only_a_file_has_them(tmp_path: Path) -> None:
    watch = watched(tmp_path / "run.jsonl", every=2)
    watch.close()
    assert [record.step for record in watch.records] == [1, 2, 4]
    with pytest.raises(RuntimeError, match=r"keeps no records\. Give it memory as well"):
        _ = watched(lambda record: None).records


def test_nan_and_infinity_are_null_in_strict_json(tmp_path: Path) -> None:
    values = numpy.full((1, len(FIELDS)), 1.0)
    values[0, :3] = math.nan, math.inf, -math.inf
    record = Record(3, (0.1,), math.inf, 1e-3, None, ("wéight",), values)

    def refuse(text: str) -> None:
        raise AssertionError(text)

    content = json.loads(record.as_line(), parse_constant=refuse)
    assert content["gradient_norm"] is None
    assert content["parameters"]["wéight"]["weight_max"] is None
    back = from_dict(content)
    assert math.isnan(back["wéight"]["weight_max"]) and back["wéight"]["nonfinite_weights"] == 1


def test_a_training_that_goes_on_appends(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    watched(path).close()
    with path.open("ab") as file:
        file.write(b'{"step": 6, "lr": [0.')  # a crash of the machine
    second = watched(path, 3)
    assert second.steps == 8
    assert [record.step for record in second.records] == list(range(1, 9))
    second.close()
    third = watched(path, 2, start=5)  # from an earlier checkpoint
    assert [record.step for record in third.records] == list(range(1, 9))
    assert (
        third.records[5]["0.weight"]
        == json.loads(path.read_text().splitlines()[-2])["parameters"]["0.weight"]
    )
    assert len(path.read_text().splitlines()) == 10


def test_a_torn_first_line_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(b'{"step": 1, "lr"')
    assert [record.step for record in watched(path, 2).records] == [1, 2]


@pytest.mark.parametrize("content", [b"name,value\n1,2\n", b"important", b'{"a": 1}\n', b"[]\n"])
def test_a_file_of_something_else_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "other.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="holds something other than a watch's records"):
        watched(path)
    assert path.read_bytes() == content


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    watched(path, 3).close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + b"{}\n" + lines[2])
    with pytest.raises(ValueError, match=r"line 2 of .*run\.jsonl is no record"):
        read_records(path)


def test_a_process_that_is_killed_leaves_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    script = f"""
        import torch, gradstep
        model = torch.nn.Linear(50, 50)
        optimizer = gradstep.SGD(model.parameters(), lr=0.01)
        gradstep.watch(model, optimizer, every=1, to={str(path)!r})
        while True:
            model(torch.randn(8, 50)).square().mean().backward()
            optimizer.step()
            print("step", flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for number, _ in enumerate(process.stdout, start=1):
        if number == 20:
            process.send_signal(signal.SIGKILL)
            break
    process.wait()
    process.stdout.close()
    records = read_records(path)
    assert len(records) >= 20
    assert [record.step for record in records] == list(range(1, len(records) + 1))


@pytest.mark.skipif(os.name != "posix", reason="needs /dev/full and permissions of POSIX")
def test_places_that_cannot_be_written_are_said_before_the_first_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "run.jsonl", tmp_path / "folder.jsonl", "/proc/no/run.jsonl"):
        if place == tmp_path / "folder.jsonl":
            place.mkdir()
        with pytest.raises(
            OSError, match=r"cannot write .* Choose another place for to="
        ) as caught:
            watched(place, 0)
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_ends_the_file_and_not_the_training(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    watch = watched(path, 2)
    sink: Any = watch._file
    os.dup2(os.open("/dev/full", os.O_WRONLY), sink._file.fileno())
    with pytest.warns(RuntimeWarning, match=r"cannot write to .*run\.jsonl any more.*No space"):
        _more(watch, 3)
    _more(watch, 1)
    assert watch.steps == 6
    assert [record.step for record in watch.records] == [1, 2]


def _more(watch: Any, steps: int) -> None:
    for _ in range(steps):
        watch.optimizer.zero_grad()
        watch.model(torch.randn(16, 6)).square().mean().backward()
        watch.optimizer.step()


def test_a_function_gets_each_record() -> None:
    seen: list[Record] = []
    watch = watched([seen.append, None])
    assert [a.step for a in seen] == [1, 2, 3, 4, 5]
    assert all(a is b for a, b in zip(seen, watch.records, strict=True))


def test_tensorboard_shows_what_was_recorded(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="TensorBoard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path / "given"))
    watch = watched([None, tmp_path / "made", writer], histograms=True)
    watch.close()
    writer.add_scalar("still/open", 1.0)
    writer.close()
    for folder in ("made", "given"):
        events = EventAccumulator(str(tmp_path / folder), size_guidance={"histograms": 0})
        events.Reload()
        shown = events.Scalars("update_ratio/0.weight")
        wanted = [record["0.weight"]["update_ratio"] for record in watch.records]
        assert [event.step for event in shown] == [1, 2, 3, 4, 5]
        assert [event.value for event in shown] == pytest.approx(wanted, rel=1e-6)
        assert [e.value for e in events.Scalars("step/lr")] == pytest.approx([1e-2] * 5)
        spread = events.Histograms("gradient/2.weight")[0].histogram_value
        assert sum(spread.bucket) == 24


def test_tensorboard_that_is_not_installed_is_said_at_once(tmp_path: Path) -> None:
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match=r"pip install tensorboard.*\.jsonl"):
            watched(tmp_path / "folder", 0)
    else:
        pytest.skip("TensorBoard is installed")


def test_the_table_has_a_row_for_each_step_and_parameter(tmp_path: Path) -> None:
    watch = watched(tmp_path / "run.jsonl", every=2)
    try:
        import pandas  # noqa: F401
    except ImportError:
        with pytest.raises(ImportError, match=r"pip install pandas.*\.records"):
            watch.frame()
        return
    table = watch.frame()
    assert len(table) == 3 * 4
    own = table[(table.step == 4) & (table.parameter == "2.weight")]
    assert own.update_ratio.item() == watch.records[-1]["2.weight"]["update_ratio"]
    assert own.gradient_norm.item() == watch.records[-1].gradient_norm
    assert str(table.nonfinite_weights.dtype) == "int64"


# Pictures.


def _size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        image.load()
        colours = image.convert("RGB").getcolors(image.width * image.height)
        assert colours is not None and len(colours) > 10
        return image.size


def test_each_kind_of_picture(tmp_path: Path) -> None:
    watch = watched(None, 12, histograms=True)
    for kind in watch_pictures.KINDS:
        watch.plot(tmp_path / f"{kind}.png", kind)
        assert min(_size(tmp_path / f"{kind}.png")) > 400


def test_a_picture_says_which_rule(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn: list[Any] = []
    monkeypatch.setattr(watch_pictures, "write", lambda draw, _: drawn.append(draw()))
    model = torch.nn.Linear(3, 2)
    makers = (gradstep.Lion, lambda p: gradstep.Optimizer(p, gradstep.adan()), torch.optim.SGD)
    for make in makers:
        optimizer = make(model.parameters())
        with gradstep.watch(model, optimizer) as watch:
            model(torch.ones(1, 3)).sum().backward()
            optimizer.step()
        watch.plot(tmp_path / "a.png")
    assert [figure._suptitle.get_text() for figure in drawn] == ["Lion", "adan", "SGD"]


def test_lines_in_the_picture_are_the_records() -> None:
    watch = watched(None, 6)
    figure = watch_pictures.overview(watch.records)
    axes = figure.axes[0]
    lines: dict[str, Any] = {line.get_label(): line for line in axes.get_lines()}
    for name in watch.records[0].names:
        wanted = [record[name]["update_ratio"] for record in watch.records]
        assert lines[name].get_ydata() == pytest.approx(wanted)
        assert list(lines[name].get_xdata()) == [1, 2, 3, 4, 5, 6]
    colours = {name: lines[name].get_color() for name in watch.records[0].names}
    assert colours["0.weight"] == colours["0.bias"] != colours["2.weight"]


def test_the_heat_map_has_a_field_for_each_record() -> None:
    watch = watched(None, 6)
    field = watch_pictures.heatmap(watch.records).axes[0].images[0].get_array()
    assert field is not None and field.shape == (4, 6)
    assert field[2, 3] == watch.records[3]["2.weight"]["update_ratio"]


@pytest.mark.parametrize("kind", ["overview", "heatmap"])
def test_pictures_of_odd_records(tmp_path: Path, kind: str) -> None:
    """One record, parameters that come and go, zeros, nan, no learning rate, 150 parameters."""
    values = numpy.full((1, len(FIELDS)), 0.0)
    one = Record(1, (math.nan,), 0.0, 1e-3, None, ("a",), values)
    broken = Record(2, (0.1, 0.2), math.nan, 1e-3, 1e-2, ("b",), values * math.nan)
    names = tuple(f"layer{i}.weight" for i in range(150))
    many = Record(9, (0.1,), 1.0, 1e-3, 1e-2, names, numpy.full((150, len(FIELDS)), 0.5))
    for number, records in enumerate(([one], [one, broken, many])):
        path = tmp_path / f"{number}.png"
        watch_pictures.save(records, path, kind)
        assert min(_size(path)) > 100


def test_what_cannot_be_drawn_is_said_in_a_line(tmp_path: Path) -> None:
    watch = watched(None)
    with pytest.raises(ValueError, match="kind='pie'; expected one of 'overview', 'heatmap'"):
        watch.plot(tmp_path / "a.png", "pie")
    with pytest.raises(ValueError, match="no histograms were recorded; ask for them"):
        watch.plot(tmp_path / "a.png", "histograms")
    with pytest.raises(ValueError, match="no step with a gradient was recorded"):
        watched(None, 0).plot(tmp_path / "a.png")
    with pytest.raises(ValueError, match="cannot draw to"):
        watch.plot(tmp_path / "a.nothing")
    with pytest.raises(OSError, match="cannot write"):
        watch.plot(tmp_path / "none" / "a.png")
