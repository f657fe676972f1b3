"""The bench measures what it says: real optimizers, interleaved, with honest arithmetic."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch

import forked
import gradstep.cli
import gradstep.torch_optim
from gradstep.classes import rule_classes
from gradstep.lab import bench, bench_report
from gradstep.lab.bench_case import WRITES
from gradstep.lab.bench_cases import (
    GROUPS,
    NOT_TIMED,
    USUAL,
    by_elements,
    calls_functions,
    others,
)
from gradstep.lab.bench_memory import temporary_bytes
from gradstep.lab.bench_models import Size, sizes
from gradstep.lab.bench_peer_tables import by_class_name
from gradstep.lab.bench_peers import PEERS, Peer, Rivals, compared
from gradstep.lab.bench_steppers import TorchStepper
from gradstep.lab.errors import BadInput

SMALL = Size("small", "two tensors", [(40, 30), (30,)], 3)


def test_sizes_are_the_ones_named():
    known = sizes()
    assert (len(known["lenet"].shapes), known["lenet"].elements()) == (10, 61706)
    transformer, large = known["transformer"], known["large"]
    assert len(transformer.shapes) == 148 and 5.3e6 < transformer.elements() < 5.5e6
    assert len(large.shapes) == 76 and 57e6 < large.elements() < 59e6


@pytest.mark.parametrize("name", list(bench.CASES))
def test_contenders_make_the_same_steps(name):
    case = bench.CASES[name]
    size = SMALL.matrices() if case.matrices_only else SMALL
    optimizers = bench.contenders(case, size, torch.float64, "auto")
    if case.torchs is not None:
        modes = {"torch loop", "torch foreach", *(["torch fused"] if case.torch_fuses else [])}
        assert set(optimizers) - {"gradstep"} == modes - set(case.left_out)
    if case.beside is not None:
        assert set(optimizers) == {"gradstep", f"beside {case.beside[0]}"}
    for optimizer in optimizers.values():
        optimizer.step()
        optimizer.step()
    ours, *others = (o.param_groups[0]["params"] for o in optimizers.values())
    start = size.weights(torch.float64)
    assert all(not torch.equal(a, b) for a, b in zip(ours, start, strict=True))
    # What was rounded in the first step, bfloat16 has to two digits.
    near = 1e-2 if "state_dtype" in case.options else 1e-12
    for other in others:
        for a, b in zip(ours, other, strict=True):
            torch.testing.assert_close(a, b, rtol=near, atol=1e-12)


def test_a_row_counts_bytes_and_ratios():
    row = bench.measure(bench.CASES["adamw"], SMALL, 3)
    # AdamW reads weight, gradient and two states, and writes weight and two states.
    assert row.bytes_moved == 7 * 4 * SMALL.elements()
    assert row.streaming[1] == 2 * 4 * SMALL.elements()
    best = min(t for name, t in row.seconds.items() if name.startswith("torch "))
    assert row.ratio() == best / row.seconds["gradstep"]
    assert 0 < row.kernel < row.seconds["gradstep"]
    expected = row.bytes_moved / row.seconds["gradstep"] * row.streaming[0] / row.streaming[1]
    assert row.share_of_bandwidth() == pytest.approx(expected)
    assert bench.measure(bench.CASES["lion"], SMALL, 1).ratio() is None
    # With states in bfloat16: 20 bytes a weight in place of 28.
    narrow = bench.measure(bench.CASES["adamw-bfloat16-states"], SMALL, 1)
    assert narrow.bytes_moved == 20 * SMALL.elements()


def test_host_work_is_small_and_positive():
    fixed, a_tensor = bench.host_work(rounds=100)
    assert 0 < a_tensor < 20e-6
    assert fixed < 200e-6


def test_report(tmp_path):
    row = bench.Row(
        "sgd",
        "lenet",
        {"gradstep": 2e-5, "torch loop": 9e-5, "torch fused": 5e-5},
        1e-5,
        12,
        (1, 8),
    )
    text = bench_report.table([row]).splitlines()
    assert text[0].split()[:3] == ["rule", "size", "gradstep"]
    assert "20.0 µs" in text[1] and "fused" in text[1] and "2.50" in text[1]
    written = bench_report.write(tmp_path, [row], (1e-5, 1e-6))
    assert [path.name for path in written] == ["bench.json", "bench.png"]
    record = json.loads(written[0].read_text())
    assert record["rows"][0]["ratio_to_best_of_torch"] == 2.5
    assert written[1].stat().st_size > 5000


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return forked.run("-m", "gradstep", "bench", *arguments)


def test_command(tmp_path):
    done = run("--rules", "sgd,lion", "--sizes", "lenet", "--rounds", "5", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "around the kernel:" in done.stdout
    assert {p.name for p in tmp_path.iterdir()} == {"bench.json", "bench.png"}


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--rules", "sdg"), "'sdg' is not known"),
        (("--rules", "lbfgs"), "lbfgs is not timed: it is torch's own class"),
        (("--rules", "sparseadam"), "sparseadam is not timed: it takes sparse gradients"),
        (("--rules", ","), "no name given"),
        (("--peers", "jax"), "'jax' is not known: choose from optax"),
        (("--sizes", "huge"), "'huge' is not known"),
        (("--rounds", "0"), "argument --rounds: 0 is not from 1 to"),
        (("--threads", "-1"), "argument --threads: -1 is not from 1 to"),
        (("--dtype", "int8"), "--dtype"),
        (("--engine", "gpu"), "--engine"),
        (("--out", "/dev/null/x"), "--out"),
    ],
)
def test_bad_arguments(arguments, word):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and word in done.stderr
    assert done.stdout == ""


def test_every_class_is_timed_or_it_is_said_why_not():
    timed = {getattr(case.ours, "__name__", "") for case in bench.CASES.values()}
    untimed = {name for name in gradstep.torch_optim.__all__ if name.lower() in NOT_TIMED}
    assert len(untimed) == len(NOT_TIMED)
    assert timed | untimed >= set(gradstep.torch_optim.__all__)
    assert set(USUAL) < set(bench.CASES)


def test_every_rule_has_a_row_or_is_among_the_others():
    timed = {getattr(case.ours, "__name__", "") for case in bench.CASES.values()}
    rest = {case.ours.__name__ for case in others().values()}
    assert timed.isdisjoint(rest)
    assert timed | rest >= set(rule_classes.load())


#: One that asks for the loss, one for matrices alone, one with states of their own shape.
FEW_OTHERS = ("alig", "adago", "splus", "accsgd")


@pytest.mark.parametrize(
    "name",
    [n if n in FEW_OTHERS else pytest.param(n, marks=pytest.mark.deep) for n in others()],
)
def test_a_rule_without_a_row_is_timed_as_its_class_is(name):
    row = bench.measure(others()[name], SMALL, 1)
    assert set(row.seconds) == {"gradstep"} and row.seconds["gradstep"] > 0
    assert (row.kernel > 0) == (name in by_elements())


def test_the_rules_of_one_pass_and_those_of_matrix_functions():
    elements = by_elements()
    assert {"sgd", "adamw", "rmsprop-centered-momentum", "lion", "accsgd", "srmm"} < set(elements)
    assert not {"lamb", "adafactor", "muon", "prodigy", "adai", "adam+decay"} & set(elements)
    heavy = {name for name, case in others().items() if calls_functions(case)}
    assert {"splus", "kron", "adago", "galore"} < heavy and not heavy & {"accsgd", "adai", "dog"}


def test_aims():
    aims = {name: [case.aim(size) for size in sizes()] for name, case in bench.CASES.items()}
    assert aims["adamw"] == aims["nesterov"] == [2, 1, 1]
    assert aims["adamax"] == [5, 2, 2.5]
    assert aims["nadam"] == aims["radam"] == [5, 3.5, 3]
    assert aims["adadelta"] == aims["rmsprop-centered-momentum"] == [5, 2, 3]
    assert aims["rprop"] == [5, 3.5, 8]
    assert aims["lion"] == [None] * 3
    assert aims["clip+adam+decay"] == [None, None, 0.95]
    assert aims["global-clip+adam+decay"] == [None, None, 0.8]

    def row(seconds, aim):
        times = {"gradstep": 1.0, **seconds}
        return bench.Row("x", "lenet", times, 1e-5, 12, (1, 8), aim=aim)

    assert row({"torch loop": 5.0}, 5.0).reached() is True
    assert row({"torch loop": 9.0, "torch foreach": 4.9}, 5.0).reached() is False
    assert row({"torch loop": 9.0}, None).reached() is None
    assert row({}, 5.0).reached() is None
    text = bench_report.table([row({"torch loop": 5.0}, 5.0), row({"torch loop": 4.0}, 5.0)])
    assert "≥ 5 met" in text and "≥ 5 missed" in text
    assert bench.measure(bench.CASES["adamax"], SMALL, 1, torch.float64).aim is None


def test_temporary_bytes_are_the_most_held_at_once():
    held = torch.ones(10)

    def one_after_the_other():
        for _ in range(3):
            torch.ones(1000)

    def at_once():
        both = [torch.ones(1000), torch.ones(500)]
        del both
        held.add_(held)

    assert temporary_bytes(one_after_the_other) == 4000
    assert temporary_bytes(at_once) == 6000
    assert temporary_bytes(lambda: held.add_(held)) == 0


@pytest.mark.parametrize("name", list(bench.CASES))
def test_temporary_memory_of_every_row(name):
    """In one pass ours has none; torch's foreach mode does, if it takes more than one operation."""
    case = bench.CASES[name]
    row = bench.measure(case, SMALL, 1)
    assert row.temporary.keys() == row.seconds.keys()
    if not row.kernel:
        assert name not in (*GROUPS["torch"], "lion") or name in ("adafactor", "muon")
        return
    assert row.temporary["gradstep"] == 0
    if case.torchs is not None and case.ours not in (gradstep.SGD, gradstep.ASGD):
        assert row.temporary["torch foreach"] >= 4 * SMALL.elements()
    assert bench_report.memory(row.temporary["gradstep"]) == "0 B"


def test_memory_is_written_in_a_readable_unit():
    written = [bench_report.memory(n) for n in (None, 12, 999, 246_800, 232_000_000, 5 * 10**9)]
    assert written == ["-", "12 B", "999 B", "246.8 kB", "232.0 MB", "5000.0 MB"]


def by_torch(kind, **options):
    """A contender from torch.optim, in the place of another library's."""
    return lambda w, g: TorchStepper(lambda p: kind(p, **options), w, g)


def test_a_peers_rule_is_compared_with_ours():
    away, wrote = compared(bench.CASES["adam"], by_torch(torch.optim.Adam))
    assert away < 1e-5 and not wrote
    away, wrote = compared(bench.CASES["adam"], by_torch(torch.optim.Adam, eps=0.1))
    assert away > 0.01 and not wrote
    nesterov = {"lr": 1e-3, "momentum": 0.9, "nesterov": True}
    away, wrote = compared(bench.CASES["nesterov"], by_torch(torch.optim.SGD, **nesterov))
    assert away < 1e-5 and not wrote
    foreach = by_torch(torch.optim.SGD, foreach=True, **nesterov)
    away, wrote = compared(bench.CASES["nesterov"], foreach)
    assert away < 1e-5 and wrote


@pytest.fixture
def stand_in(monkeypatch):
    """torch.optim in the place of optimi: one rule alike, one not, two that cannot be timed."""
    nesterov = {"lr": 1e-3, "momentum": 0.9, "nesterov": True}
    table = {
        "adam": {"loop": by_torch(torch.optim.Adam), "foreach": by_torch(torch.optim.AdamW)},
        "nadam": {"loop": by_torch(torch.optim.Adam)},
        "nesterov": {"foreach": by_torch(torch.optim.SGD, foreach=True, **nesterov)},
        "radam": {"loop": by_torch(torch.optim.RAdam, decay=1)},
    }
    monkeypatch.setitem(PEERS, "optimi", Peer("optimi", "torch", ("torch",), lambda _: table))


def test_peers_are_timed_where_they_agree(stand_in, tmp_path):
    rivals = Rivals(["optimi"])
    assert rivals.versions() == [f"torch {version('torch')}"]
    rows = [
        bench.measure(bench.CASES[name], SMALL, 3, rivals=rivals)
        for name in ("adam", "nadam", "nesterov", "radam", "asgd")
    ]
    assert ["optimi loop" in row.seconds for row in rows] == [True, *[False] * 4]
    assert rows[0].ratio("optimi") == rows[0].seconds["optimi loop"] / rows[0].seconds["gradstep"]
    assert rows[0].temporary["optimi loop"] > 0
    assert "another rule" in rows[0].left_out["optimi foreach"]
    assert "another rule" in rows[1].left_out["optimi loop"]
    assert rows[2].left_out == {"optimi foreach": WRITES, "torch foreach": WRITES}
    assert "raises TypeError" in rows[3].left_out["optimi loop"]
    assert rows[4].left_out == {}
    text = bench_report.table(rows)
    assert text.splitlines()[0].split()[-2:] == ["optimi", "ratio"]
    assert "not timed: nadam of optimi loop: another rule: after 10 steps" in text
    record = json.loads(bench_report.write(tmp_path, rows, None)[0].read_text())
    assert record["rows"][0]["ratio_to_best_of_peer"] == {"optimi": rows[0].ratio("optimi")}
    assert record["rows"][1]["ratio_to_best_of_peer"] == {"optimi": None}


def test_the_command_tells_of_a_peer_without_the_rule(stand_in, capsys):
    arguments = ["--rules", "asgd", "--sizes", "lenet", "--rounds", "1", "--peers", "optimi"]
    assert gradstep.cli.main(["bench", *arguments]) == 0
    printed = capsys.readouterr().out
    assert f"peers: torch {version('torch')}" in printed
    assert "optimi has none of these rules" in printed


def test_a_peer_that_cannot_be_imported(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(sys.modules, "optax", None)  # import then says that there is none
    assert gradstep.cli.main(["bench", "--peers", "optax"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "gradstep bench: argument --peers: optax is not installed: pip install optax jax\n"
    )
    (tmp_path / "half_a_library.py").write_text("import no_such_module_anywhere\n")
    (tmp_path / "broken_library.py").write_text("raise RuntimeError('built for\\nanother torch')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for module, said in {
        "half_a_library": "timm needs no_such_module_anywhere, which is not installed: pip install",
        "broken_library": r"timm cannot be imported \(RuntimeError: built for\): pip install timm",
    }.items():
        monkeypatch.setitem(PEERS, "timm", Peer("timm", module, ("timm",), lambda _: {}))
        with pytest.raises(BadInput, match=said):
            Rivals(["timm"])


#: What a peer has under the same name and with the same hyperparameters, and is not our rule.
OTHERS = {
    *(("optax", name) for name in ("adam-amsgrad", "nadam", "rprop")),
    ("pytorch_optimizer", "lars"),  # since its 4.1
}


@pytest.mark.parametrize("name", list(PEERS))
def test_the_peers_themselves(name):
    """Runs where they are installed."""
    peer = PEERS[name]
    module = pytest.importorskip(peer.module, exc_type=Exception)
    for case, modes in peer.table(module).items():
        if case not in bench.CASES:
            continue  # found by its class's name: the bench times those that prove to be the same
        for mode, make in modes.items():
            away, _ = compared(bench.CASES[case], make)
            assert (away > 0.01) == ((name, case) in OTHERS), (case, mode, away)
            assert away < 1e-3 or (name, case) in OTHERS
    rivals = Rivals([name])
    row = bench.measure(bench.CASES["lion"], SMALL, 2, rivals=rivals)
    assert row.best_of(name) is not None
    mode, _ = row.best_of(name)
    assert row.temporary[mode] >= 0
    assert any(version[0].isdigit() for version in rivals.versions()[0].split())


class Library:
    """Another library, whose classes are called as ours: one is our rule, one is not."""

    NAdamW = gradstep.NAdamW

    class AccSGD(torch.optim.SGD):
        pass


def test_classes_of_a_library_are_found_by_their_names_and_compared():
    table = by_class_name(Library, others().values())
    assert set(table) == {"accsgd", "nadamw"}
    away, _ = compared(others()["nadamw"], table["nadamw"]["foreach"])
    assert away == 0
    away, _ = compared(others()["accsgd"], table["accsgd"]["loop"])
    assert away > 0.01
