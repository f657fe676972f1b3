"""What rules say of themselves, and rules by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import gradstep
from gradstep.sight.catalogue import (
    UnknownName,
    find_rule,
    graph_with,
    is_stage,
    nearest,
    rule_names,
    shaping_settings,
    state_bytes,
)
from gradstep.sight.description import Description, describe_rule


@pytest.mark.parametrize("name", rule_names())
def test_every_rule_of_the_package_tells_everything(name: str) -> None:
    rule = find_rule(name)
    description = describe_rule(rule)
    assert description.summary.endswith(".")
    assert set(description.states) == set(rule.states)
    assert set(description.hyperparameters) == set(rule.hyperparameters)
    assert all([*description.states.values(), *description.hyperparameters.values()])
    for paper in description.papers:
        assert paper.endswith((".", ".).")) and "  " not in paper
    assert description.papers or name == "clip_by_value"


def test_adam_in_parts() -> None:
    description = describe_rule(gradstep.adam)
    assert description.summary.startswith("Adam: ")
    assert description.states["exp_avg"] == "the moving average of the gradient."
    assert description.hyperparameters["weight_decay"].endswith("by lr · weight_decay.")
    assert [p.split(",")[0] for p in description.papers] == [
        "Kingma & Ba 2014",
        "Reddi",
        "Loshchilov & Hutter 2017",
    ]
    assert description.notes[0].startswith("Agrees with torch.optim.Adam and AdamW")


def test_a_paper_over_two_lines_is_one_paper() -> None:
    papers = describe_rule(gradstep.sgd).papers
    assert len(papers) == 3
    assert papers[2].endswith('in deep learning".')


def test_a_rule_that_says_nothing() -> None:
    @gradstep.rule
    def silent(g: Any, m: Any, *, beta: float = 0.9) -> Any:
        m = beta * m + g
        return m, m

    assert describe_rule(silent) == Description()


def test_a_chain_tells_what_its_stages_tell() -> None:
    rule = gradstep.chain(gradstep.sgd(momentum=0.9), gradstep.adam())
    description = describe_rule(rule)
    assert description.summary == "In order: sgd, adam."
    assert set(description.states) == set(rule.states)
    assert set(description.hyperparameters) == set(rule.hyperparameters)
    assert description.hyperparameters["sgd_weight_decay"].startswith("adds this share")
    assert len(description.papers) == 6
    assert description.notes[0].startswith("sgd: Agrees")


def test_names() -> None:
    names = rule_names()
    assert {"sgd", "adam", "lion", "clip_by_value", "decay_weights"} <= set(names)
    stages = [is_stage(find_rule(name)) for name in names]
    assert stages == sorted(stages)
    assert find_rule("adam") is gradstep.adam
    assert "adam or" in nearest("amad", names)
    assert nearest("xyzzy", names) == ""


def test_a_rule_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rules_for_a_test.py").write_text(
        "import gradstep\n"
        "@gradstep.rule\n"
        "def heavy_ball(g, velocity, *, momentum=0.9):\n"
        "    velocity = momentum * velocity + g\n"
        "    return velocity, velocity\n"
        "class Family:\n"
        "    ball = heavy_ball\n"
        "def plain(g): return g\n"
        "number = 3\n"
    )
    (tmp_path / "broken_rules_for_a_test.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", ["elsewhere"])
    module = "own_rules_for_a_test"
    assert find_rule(f"{module}:heavy_ball").name == "heavy_ball"
    assert find_rule(f"{module}.py:heavy_ball").name == "heavy_ball"
    assert find_rule(f"{module}:Family.ball").name == "heavy_ball"
    for name, said in {
        "adm": "unknown rule 'adm': did you mean adam",
        "xyzzy": "there are accsgd, ",
        f"{module}:heavy": "has no 'heavy': did you mean heavy_ball",
        f"{module}:xyzzy": "it has heavy_ball",
        f"{module}:plain": "plain function: put @gradstep.rule above it",
        f"{module}:number": "is no rule (it is of type int)",
        "math:sin": "is no rule|plain function",
        "math:xyzzy": "it has no rules",
        "no_such_module:x": "cannot import no_such_module: No module named 'no_such_module'",
        "no_such_file.py:x": "there is no file no_such_file.py",
        "broken_rules_for_a_test:x": "ZeroDivisionError: division by zero",
    }.items():
        with pytest.raises(
            UnknownName, match=said.replace("(", r"\(").replace(")", r"\)")
        ) as found:
            find_rule(name)
        assert "\n" not in str(found.value)


def test_settings_that_shape_the_formula() -> None:
    assert shaping_settings(gradstep.sgd) == ["momentum", "weight_decay", "nesterov"]
    assert shaping_settings(gradstep.adam) == [
        "weight_decay",
        "amsgrad",
        "decoupled_weight_decay",
    ]
    assert shaping_settings(gradstep.clip_by_value) == []
    assert len(graph_with(gradstep.adam, {"amsgrad": True}).states) == 3
    with pytest.raises(ValueError, match="beta1"):
        graph_with(gradstep.adam, {"beta1": 2.0})


def test_state_bytes() -> None:
    assert state_bytes(gradstep.sgd) == (0, 4)
    assert state_bytes(gradstep.adam) == (8, 12)
    assert state_bytes(gradstep.adam(amsgrad=True), item_bytes=8) == (24, 24)
    assert state_bytes(find_rule("nadam")) == (8, 8)  # and one number for each tensor
