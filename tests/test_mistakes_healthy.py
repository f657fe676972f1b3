"""Nothing is said of training loops in which nothing is wrong, and no bit of them is changed."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from gradstep.sight.mistakes.script import run_script
from healthy_recipes import RECIPES
from healthy_scripts import HEALTHY

ALL = HEALTHY | RECIPES

#: One of each kind; the others are as good, and left to `make test-all`.
_QUICK = {
    "plain", "accumulation", "gan", "grad-scaler-and-fused", "lbfgs", "averaged-model", "resumed",
    "gradsteps-own", "gan-with-batch-norm", "bert-like", "seq2seq-with-attention",
    "adam-then-lbfgs", "moco", "ppo", "forward-forward", "cifar", "by-hand", "schedule-free",
    "clip-by-hand", "dropout-on-purpose", "regression-as-in-the-tutorial", "survival",
    "softmax-over-experts", "lora", "td3", "conflicting-gradients",
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in _QUICK else pytest.mark.deep) for n in ALL],
)
def test_silence_and_the_same_bits(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "train.py"
    path.write_text(ALL[name], encoding="utf-8")
    outcome = run_script(str(path))
    watched = capsys.readouterr().out
    assert outcome.exit_code == 0
    assert outcome.findings == [], "\n".join(map(str, outcome.findings))
    assert outcome.steps > 0 or outcome.by_hand > 0 or name == "compiled-step"
    runpy.run_path(str(path), run_name="__main__")
    assert watched == capsys.readouterr().out
    assert watched.count("[[") >= 1


def test_those_that_are_quick_are_there() -> None:
    assert set(ALL) >= _QUICK and not set(HEALTHY) & set(RECIPES)
