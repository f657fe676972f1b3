"""Each mistake is found, alone, and at the right line; nothing of the training is changed by it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradstep.cli import main
from gradstep.sight.mistakes.known import load, table
from gradstep.sight.mistakes.script import run_script
from mistake_scripts import SCRIPTS
from mistake_spellings import SPELLINGS

_ADVICE = {
    "weights-changed-outside", "vanishing-gradient", "exploding-gradient", "dead-units",
    "learning-rate-too-high", "learning-rate-too-low", "decay-on-biases", "eps-too-large",
    "beta2-too-near-1", "evaluated-in-train-mode", "schedule-rises-again",
}  # fmt: skip


#: Whole programs that were missed once, or named at another line.
_MISSED = {
    "softmax-before-cross-entropy": {4}, "gradients-dropped": {3},
    "left-in-eval-mode": {1}, "sigmoid-before-bce-with-logits": {0, 2, 3},
    "softmax-over-batch": {1, 2},
    "loss-broadcasts": {2}, "parameter-replaced": {0},
    "schedule-rises-again": {0},
}  # fmt: skip


@pytest.mark.parametrize(
    "name, script",
    [
        pytest.param(n, s, id=f"{n}-{i}", marks=pytest.mark.deep if i else [])
        for n, all_ in SCRIPTS.items()
        for i, s in enumerate(all_)
    ]
    + [
        pytest.param(
            n,
            s,
            id=f"{n}-program-{i}",
            marks=[] if i in _MISSED.get(n, ()) else pytest.mark.deep,
        )
        for n, all_ in SPELLINGS.items()
        for i, s in enumerate(all_)
    ],
)
@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_it_is_caught_at_its_line(name: str, script: str, tmp_path: Path) -> None:
    path = tmp_path / "train.py"
    path.write_text(script, encoding="utf-8")
    [expected] = [i for i, line in enumerate(script.splitlines(), 1) if line.endswith("# HERE")]
    outcome = run_script(str(path))
    assert outcome.exit_code == 0
    assert [f.name for f in outcome.findings] == [name], "\n".join(map(str, outcome.findings))
    [finding] = outcome.findings
    assert finding.place is not None
    assert (finding.place.file, finding.place.line) == (str(path), expected)
    if name in _ADVICE:
        assert finding.severity == "advice"
    elif name != "parameter-in-two-optimizers":
        assert finding.severity == "mistake"
    assert all((finding.seen, finding.why, finding.write))


def test_the_page_and_the_list_are_made_of_what_the_files_declare(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A new diagnosis is one file, and what it declares: paste the table below into the page."""
    page = Path(__file__).parents[1] / "docs" / "mistakes.md"
    assert table() in page.read_text(encoding="utf-8"), table()
    with pytest.raises(SystemExit) as ended:
        main(["doctor", "--list"])
    assert ended.value.code == 0
    told = " ".join(capsys.readouterr().out.split())
    known = load()[1]
    assert all(text in told for m in known for text in (f"{m.severity}: {m.name}", m.when, m.write))
    assert {m.name for m in known} == set(SCRIPTS)
    assert {m.name for m in known if m.severity == "advice"} == _ADVICE
