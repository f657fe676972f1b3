"""Races over text, the cosine, what is tested, and when rules come to the same loss."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

import gradstep
import gradstep.cli
from gradstep.lab import surface
from gradstep.lab.digits import load_digits
from gradstep.lab.errors import DataError, SettingsError
from gradstep.lab.lenet import LeNet
from gradstep.lab.model import check_model
from gradstep.lab.race import Course, Entry, RaceFolder, read_sweep
from gradstep.lab.race_report import arrivals, arrivals_table, final_standings
from gradstep.lab.race_worker import race_data, race_model, race_run
from gradstep.lab.resnet import ResNet
from gradstep.lab.text import CHARACTERS, LENGTH, CharacterTransformer, load_text
from gradstep.lab.training import Learner, evaluate, evaluate_learner

OVER_TEXT = Course(None, None, None, 6, 4, 1.0, 0, 40, text="python", test_limit=5, cosine=True)


def test_a_text_is_cut_into_stretches_and_each_label_is_the_next_character(tmp_path: Path) -> None:
    whole = "".join(chr(32 + i % 95) for i in range(40 * LENGTH)) + "\n\té"
    (tmp_path / "own.txt").write_text(whole, encoding="utf-8")
    data = load_text(str(tmp_path / "own.txt"))
    assert data.name == "own.txt" and len(data.train_images) == 36 and len(data.test_images) == 4
    seen = torch.cat([data.train_images, data.test_images]).flatten()
    following = torch.cat([data.train_labels, data.test_labels]).flatten()
    assert torch.equal(seen[1:], following[:-1])
    assert "".join(chr(31 + n) for n in seen.tolist()) == whole[: 40 * LENGTH]
    assert following[-1] == 0  # a line's end
    assert int(torch.cat([seen, following]).max()) < CHARACTERS


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"short", "5 characters; at least 641"), (b"\xff\xfe", "no text in UTF-8"), (None, "cannot")],
)
def test_what_is_no_text(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        load_text(str(path))


def test_the_transformer_sees_nothing_of_what_comes_after() -> None:
    torch.manual_seed(0)
    net = CharacterTransformer()
    x = torch.randint(CHARACTERS, (2, LENGTH))
    other = x.clone()
    other[:, 40:] = (other[:, 40:] + 1) % CHARACTERS
    with torch.no_grad():
        first, second = net(x), net(other)
    assert first.shape == (2, CHARACTERS, LENGTH)
    torch.testing.assert_close(first[..., :40], second[..., :40])
    assert not torch.allclose(first[..., 40:], second[..., 40:])


def test_a_run_over_text_is_the_plain_loop_with_torchs_adamw() -> None:
    """And with the cosine: the rate as torch's own schedules have it."""
    entry = Entry("adamw", 0.002, seed=1)
    data = race_data(OVER_TEXT, 1)
    assert len(data.train_images) == 40 and len(data.test_images) == 5
    result = race_run(OVER_TEXT, entry, data, lambda done: None)

    model = race_model(OVER_TEXT, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=entry.lr)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6)
    random = torch.Generator().manual_seed(1)
    order = torch.randperm(40, generator=random).split(4)
    losses = []
    for chosen in order[:6]:
        optimizer.zero_grad()
        scores = model(data.train_images[chosen])
        loss = cross_entropy(
            scores.transpose(1, 2).reshape(-1, CHARACTERS), data.train_labels[chosen].reshape(-1)
        )
        loss.backward()
        optimizer.step()
        cosine.step()
        losses.append(loss.item())
    torch.testing.assert_close(result["train_loss"][1:], losses, rtol=1e-5, atol=0)
    test, right = evaluate(model, data.test_images, data.test_labels)
    assert result["final"]["test_loss"] == pytest.approx(test, rel=1e-5)
    assert result["final"]["test_accuracy"] == pytest.approx(right)


def test_the_cosine_rises_first() -> None:
    course = Course(None, None, 2, None, 4, 0.95, 0, None, cosine=True)
    shares = [course.lr_share(step, 100) for step in range(200)]
    assert shares[0] == pytest.approx(0.1) and max(shares) == shares[9] > 0.99
    assert shares[100] == pytest.approx(0.5) and 0 < shares[-1] < 1e-3
    plain = Course(None, None, 2, None, 4, 0.95, 0, None)
    assert [plain.lr_share(step, 100) for step in (0, 99, 100)] == [1, 1, 0.95]


def test_races_of_before_keep_their_folders() -> None:
    """What was added to a course says nothing where it is not asked for."""
    old = {"model", "data", "epochs", "steps", "batch_size", "lr_decay", "shift", "train_limit"}
    assert set(Course(None, None, 2, None, 4, 0.95, 0, None).to_json()) == old
    assert Course(**OVER_TEXT.to_json()) == OVER_TEXT


@pytest.mark.parametrize("name", ["adamw_schedule_free", "adamw"])
def test_schedule_free_is_tested_at_its_average_and_goes_on_with_its_bits(name: str) -> None:
    torch.manual_seed(0)
    model, data = LeNet(), load_digits(0).limited(64, 100)
    optimizer = gradstep.create(name, model, lr=0.01)
    for images, labels in zip(
        data.train_images.split(16), data.train_labels.split(16), strict=True
    ):
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
    before = [p.detach().clone() for p in model.parameters()]
    found = evaluate_learner(Learner(name, 0.01, model, optimizer), data)
    assert all(torch.equal(p, kept) for p, kept in zip(model.parameters(), before, strict=True))
    as_trained = evaluate(model, data.test_images, data.test_labels)
    if name == "adamw":
        assert found == as_trained
        return
    optimizer.eval()
    assert found == evaluate(model, data.test_images, data.test_labels) != as_trained


def test_how_many_rates_around_a_rules_own() -> None:
    assert read_sweep("lr:3").around(0.01) == pytest.approx(
        (0.01 / 10**0.5, 0.01, 0.01 * 10**0.5), 1e-2
    )
    for wrong in ("lr:1", "lr:x", "lr:3=0.1"):
        with pytest.raises(SettingsError, match=r"rates|HOW_MANY"):
            read_sweep(wrong)


def result(test_loss: list[float | None], seconds: float) -> dict[str, Any]:
    return {
        "steps": [0, 10, 20],
        "test_loss": test_loss,
        "final": {"train_loss": test_loss[-1], "test_loss": test_loss[-1], "test_accuracy": 0.5},
        "step_microseconds": 1.0,
        "seconds": seconds,
        "diverged": None,
    }


def test_when_rules_come_to_the_same_loss() -> None:
    results = {
        Entry("slow", 0.1, 0): result([3.0, 2.0, 1.0], 4.0),
        Entry("slow", 0.1, 1): result([3.0, 2.5, 2.0], 4.0),  # ends at 1.5 on average
        Entry("quick", 0.1, 0): result([3.0, 1.0, 0.5], 8.0),
        Entry("quick", 0.1, 1): result([3.0, 1.5, 0.5], 8.0),
        Entry("lost", 0.1, 0): result([3.0, 2.0, 1.9], 1.0),
        Entry("lost", 0.1, 1): result([3.0, None, None], 1.0),
    }
    results[Entry("lost", 0.1, 1)]["diverged"] = 10
    rows = final_standings(results)
    goal, found = arrivals(results, rows, "slow")
    assert goal == 1.5
    quick, slow, lost = found
    assert (quick.optimizer, quick.came, quick.of) == ("quick", 2, 2)
    assert quick.steps is not None and quick.steps.mean == pytest.approx((7.5 + 10) / 2)
    assert quick.seconds is not None and quick.seconds.mean == pytest.approx((3 + 4) / 2)
    assert (slow.came, lost.came) == (1, 0)
    assert slow.steps is not None and slow.steps.mean == pytest.approx(15)
    said = "\n".join(arrivals_table("slow", goal, found))
    assert "never" in said and "1 of 2" in said and "with which slow ends" in said
    with pytest.raises(ValueError, match="adam has no loss"):
        arrivals(results, rows, "adam")


def test_a_race_over_text_by_its_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surface, "PLANE_GRID", 3)
    monkeypatch.setattr(surface, "RATES", (0.001, 0.01))
    command = ["compare", "--optimizer", "adamw,sgd", "--seeds", "1", "--text", "--steps", "4"]
    command += ["--train-limit", "16", "--test-limit", "4", "--batch-size", "4", "--cosine"]
    command += ["--workers", "1", "--same-loss-as", "sgd", "--out", str(tmp_path / "race")]
    assert gradstep.cli.main(command) == 0
    printed = capsys.readouterr().out
    assert "a small transformer, " in printed and "with which sgd ends" in printed
    page = (tmp_path / "race" / "index.html").read_text(encoding="utf-8")
    assert f"stretches of {LENGTH} characters" in page and "half a cosine" in page
    made = RaceFolder(tmp_path / "race").results([Entry("adamw", 0.002, 0)])
    losses = next(iter(made.values()))["test_loss"]
    assert losses[0] == pytest.approx(math.log(CHARACTERS), rel=0.05) and losses[-1] < losses[0]
    assert gradstep.cli.main(["compare", "--same-loss-as", "lion", "--optimizer", "sgd"]) == 2
    assert "lion" in capsys.readouterr().err


def test_a_network_of_ones_own_for_text_is_asked_for_the_right_scores() -> None:
    two = torch.zeros(2, LENGTH, dtype=torch.int64)
    check_model("own", CharacterTransformer(), two, (2, CHARACTERS, LENGTH))
    flat = nn.Sequential(nn.Embedding(CHARACTERS, 10))
    with pytest.raises(SettingsError, match=r"stretches of text; 97 scores.*\(2, 97, 64\)"):
        check_model("own", flat, two, (2, CHARACTERS, LENGTH))
    with pytest.raises(SettingsError, match="does not take int64 stretches of text"):
        check_model("own", LeNet(), two, (2, CHARACTERS, LENGTH))


def test_the_residual_network_has_ten_scores_and_as_many_weights_as_it_says() -> None:
    net = ResNet()
    check_model("own", net)
    count = f"{sum(p.numel() for p in net.parameters()):,}"
    assert count in " ".join((ResNet.__doc__ or "").split())
