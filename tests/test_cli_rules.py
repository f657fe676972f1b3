"""``gradstep rules`` and ``gradstep explain``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import forked
import gradstep
from gradstep.cli import main
from gradstep.lab.optimizers import CHOICES
from gradstep.sight.catalogue import find_rule, rule_names
from gradstep.sight.description import describe_rule


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """A command as a process of its own, its output in a file."""
    return forked.run("-m", "gradstep", *arguments, cwd=cwd)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    try:
        code = main(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.startswith(f"gradstep {arguments[0]}: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    done = run("rules")
    assert told(capsys, "rules") == done.stdout
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rows = done.stdout.splitlines()
    assert "\033" not in done.stdout
    assert all(len(row) <= 80 for row in rows) and len(rows) < len(rule_names()) + 15
    assert [row.split()[0] for row in rows if row.split("  ")[0] in rule_names()] == rule_names()
    listed = [row for row in rows if row.split("  ")[0] in rule_names()]
    assert {(row[25], row[47]) for row in listed} == {(" ", " ")}  # the columns stay in place
    adam = next(row for row in rows if row.startswith("adam "))
    assert adam.split() == ["adam", "8", "to", "12", "B", "Kingma", "&", "Ba", "2014"]
    assert next(row for row in rows if row.startswith("adafactor ")).split()[1] == "row+column"
    assert next(row for row in rows if row.startswith("muon ")).split()[1:3] == ["4", "B"]


def test_the_table_of_some(capsys: pytest.CaptureFixture[str]) -> None:
    rows = told(capsys, "rules", "SGD", "AdamW", "adan").splitlines()
    assert all(len(row) <= 80 for row in rows)
    sgd = next(i for i, row in enumerate(rows) if row.startswith("sgd "))
    assert rows[sgd + 1] == "    w ← w − lr·g"
    assert "    other formulas with: weight_decay, amsgrad, decoupled_weight_decay" in rows
    small = told(capsys, "rules", "--matrix", "--state", "4")
    assert "\nmuon " in small and "\nsoap " not in small and "\nlion " not in small
    assert "did you mean adam" in refused(capsys, "rules", "adamm")


def test_the_table_as_json() -> None:
    done = run("rules", "--json")
    assert done.returncode == 0, done.stderr
    records = json.loads(done.stdout)
    assert [r["name"] for r in records] == rule_names()
    adam = next(r for r in records if r["name"] == "adam")
    assert adam["kind"] == "rule"
    assert adam["formula_lines"][-1] == "w ← w − lr·direction"
    assert adam["state_bytes_float32"] == {"default": 8, "most": 12}
    assert adam["states"]["max_exp_avg_sq"]["starts_as"] == "0; kept only with amsgrad"
    assert adam["hyperparameters"]["beta1"] == {
        "default": 0.9,
        "allowed": "at least 0 and below 1",
        "meaning": describe_rule(gradstep.adam).hyperparameters["beta1"],
    }
    assert adam["changes_formula"] == ["weight_decay", "amsgrad", "decoupled_weight_decay"]
    adafactor = next(r for r in records if r["name"] == "adafactor")
    assert adafactor["state_bytes_float32"] == {"default": 0, "most": 0}
    assert adafactor["states_along"] == ["row", "column"]
    owners = {name: state["one_for_each"] for name, state in adafactor["states"].items()}
    assert owners == {"row_var": "row", "col_var": "column", "variance": "weight"}
    assert next(r for r in records if r["name"] == "decay_weights")["kind"] == "stage"


def test_explain_as_a_process() -> None:
    done = run("explain", "adam")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\033" not in done.stdout
    text = done.stdout
    assert text.startswith("adam\nAdam: the average gradient")
    assert "    direction ← (correction2 / correction1)·(exp_avg / " in text
    assert "  once a step:\n    correction1 ← 1 − beta1^step\n" in text
    assert "lerp(a, b, x) = a + x·(b − a)" in text
    assert "beta2 = 0.999 (at least 0 and below 1): how much of the average squared" in text
    assert "eps = 1e-8 (at least 0)" in text
    assert "amsgrad = false (true or false)" in text
    assert "max_exp_avg_sq: the largest exp_avg_sq so far. Starts as 0. Kept only with" in text
    assert "arXiv:1412.6980." in text
    assert "Agrees with torch.optim.Adam and AdamW" in text


def test_explain_rules_that_look_around(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "explain", "adafactor")
    assert (
        "  once for each tensor:\n"
        "    size ← max(eps2, rms(w))·min(lr, 1 / √step)\n"
        "  for each row:\n"
        "    row_var ← lerp(row_var, mean(g², −1), step^beta2_decay)\n"
        "  for each column:\n"
        "    col_var ← lerp(col_var, mean(g², −2), step^beta2_decay)\n"
        "  for each weight:\n"
        "    estimate ← row_var·col_var / max(mean(row_var, −2), machine_epsilon)\n"
    ) in text
    assert "mean(a) is the mean of all elements of a tensor." in text
    assert "With −2 behind it, each column has a value of its own: mean(a, −2)." in text
    assert "max(a, b) is the larger" in text
    assert "max(a) is" not in text
    assert "State, kept between steps\n" in text
    assert "Starts as 0, one number a column." in text
    assert "beta2_decay = −0.8 (at most 0)" in text
    assert "eps1 = none (a number, or none)" in text
    text = told(capsys, "explain", "adafactor", "--set", "eps1=0.5")
    assert "Formula with eps1=0.5\n" in text
    assert "max(mean(row_var, −2), 0.5)" in text
    assert told(capsys, "explain", "adafactor", "--set", "eps1=None").count("machine_epsilon²") == 1
    text = told(capsys, "explain", "muon")
    assert "  once for each tensor:\n    scale ← √(max(1, size(w, −2) / size(w, −1)))\n" in text
    assert "size(w, −2) is how many rows the tensor has" in text
    assert "newton_schulz(…) is a function on the whole tensor: Bring the singular values" in text
    assert "--set nesterov=false  --set adjust_lr_fn=…" in text
    assert "adjust_lr_fn = none (one of 'original', 'match_rms_adamw'," in text
    text = told(capsys, "explain", "muon", "--set", "adjust_lr_fn=match_rms_adamw")
    assert "scale ← 0.2·√(max(size(w, −2), size(w, −1)))" in text


@pytest.mark.parametrize("name", rule_names())
def test_explain_every_rule(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "explain", name)
    flat = " ".join(text.split())
    rule, description = find_rule(name), describe_rule(find_rule(name))
    for part in [description.summary, *description.papers, *description.notes]:
        assert " ".join(part.split()) in flat
    for key, meaning in {**description.states, **description.hyperparameters}.items():
        assert key in rule.states or key in rule.hyperparameters
        assert meaning in flat
    assert all(len(row) <= 100 for row in text.splitlines())


@pytest.mark.parametrize("name", CHOICES)
def test_explain_knows_the_names_of_optimizers(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(capsys, "explain", name).startswith(name)


def test_explain_an_optimizers_name_has_its_settings(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "explain", "adamw")
    assert text.startswith("adamw: the rule adam with ")
    assert "decoupled_weight_decay=true" in text.splitlines()[0]
    assert "shrunk ← w·(1 − lr·weight_decay)" in text


def test_explain_with_settings(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "explain", "sgd", "--set", "momentum=0.9", "--set", "nesterov=true")
    assert "Formula with momentum=0.9, nesterov=true\n" in text
    assert "direction ← g + momentum·momentum_buffer\n" in text
    assert "first is true at a weight's first step only." in text
    assert "Other formulas: --set weight_decay=…\n" in text
    text = told(capsys, "explain", "adam", "--set", "amsgrad=yes", "--greek")
    assert "√max_exp_avg_sq + ε·correction2" in text
    text = told(capsys, "explain", "asgd")
    assert "eta: the learning rate of the next step. Starts as lr, one number a parameter." in text


def test_explain_a_rule_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "my_rules.py").write_text(
        "import gradstep\n"
        "@gradstep.rule\n"
        "def heavy_ball(g, velocity, *, momentum: gradstep.Decay = 0.9, kind='plain'):\n"
        '    """A ball that rolls.\n\n'
        "    Hyperparameters:\n"
        '        momentum: how much it keeps.\n    """\n'
        "    velocity = momentum * velocity + g\n"
        "    return velocity, velocity\n"
        "@gradstep.rule\n"
        "def bad(g, *, step):\n"
        "    return g if step > 3 else -g\n"
        "both = gradstep.chain(gradstep.clip_by_value(limit=0.5), heavy_ball)\n"
    )
    done = run("explain", "my_rules:heavy_ball", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("heavy_ball\nA ball that rolls.\n")
    assert "  velocity ← momentum·velocity + g\n" in done.stdout
    assert "  velocity. Starts as 0.\n" in done.stdout
    assert "momentum = 0.9 (at least 0 and below 1): how much it keeps." in done.stdout
    assert "kind = plain (a word)" in done.stdout
    done = run("explain", "my_rules.py:both", cwd=tmp_path)
    assert "g ← min(max(g, −limit), limit)\n" in done.stdout
    assert "limit = 0.5 (at least 0)" in done.stdout
    done = run("explain", "my_rules:bad", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "return g if step > 3 else -g" in done.stderr


def test_bad_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    said = {
        ("explain", "adm"): "unknown rule 'adm': did you mean adam",
        ("explain", "momentun"): "did you mean momentum",
        ("explain", "xyzzy"): "adabelief, adabound, adadelta",
        ("explain", "math:pi"): "math:pi is no rule (it is of type float)",
        ("explain", "adam", "--set", "beta1"): "--set beta1: write NAME=VALUE",
        ("explain", "adam", "--set", "beta=1"): "adam has no setting 'beta': did you mean beta",
        ("explain", "adam", "--set", "xyzzy=1"): "adam has no setting 'xyzzy': it has beta1",
        ("explain", "adam", "--set", "beta1=1"): "beta1 must be at least 0 and below 1",
        ("explain", "adam", "--set", "beta1=x"): "--set beta1=x: beta1 is a number",
        ("explain", "adafactor", "--set", "eps1=x"): "--set eps1=x: eps1 is a number",
        ("explain", "adam", "--set", "amsgrad=2"): "amsgrad is true or false",
        ("explain",): "RULE",
    }
    for arguments, expected in said.items():
        assert expected in refused(capsys, *arguments), arguments


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's device that is full")
def test_an_output_that_is_full_or_closed() -> None:
    command = f"{sys.executable} -m gradstep explain sgd"
    full = subprocess.run(f"{command} > /dev/full", shell=True, capture_output=True, text=True)
    assert full.returncode == 1
    assert full.stderr == "gradstep explain: cannot write the output: No space left on device\n"
    closed = subprocess.run(f"{command} >&-", shell=True, capture_output=True, text=True)
    assert closed.returncode == 0
    assert closed.stderr == ""


def test_help() -> None:
    done = run("explain", "--help")
    assert done.returncode == 0
    assert "gradstep explain my_rules:heavy_ball" in done.stdout
    done = run("rules", "--help")
    assert done.returncode == 0
    assert "--json" in done.stdout
