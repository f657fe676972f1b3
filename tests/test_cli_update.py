"""``gradstep update`` as a beginner meets it: a real process, and numbers that can be checked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
import torch
from torch import nn

import forked
import gradstep
from gradstep.cli import main
from gradstep.lab.errors import SettingsError
from gradstep.lab.lenet import LeNet
from gradstep.lab.lesson import Lesson, choose_optimizer, make_lesson
from gradstep.lab.optimizers import CHOICES
from gradstep.lab.rounding import steps_apart
from printed import holds, number, unbroken

#: A step that is printed: numbers and signs, then what they give.
_EQUATION = re.compile(
    r"(?:^|= |  )((?:sign|max|min|[−(√0-9|])[^=\n]*[0-9)²]) = (−?[0-9][0-9.e-]*)", re.M
)


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own, its output piped."""
    if environment:  # Python itself reads it as it begins
        return subprocess.run(
            [sys.executable, "-m", "gradstep", "update", *arguments],
            capture_output=True,
            encoding="utf-8",
            env={**os.environ, **environment},
            timeout=300,
        )
    return forked.run("-m", "gradstep", "update", *arguments)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The same within this process, which is quicker."""
    assert main(["update", *arguments]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a bad argument gets."""
    try:
        code = main(["update", *arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert captured.err.startswith("gradstep update: ")
    assert captured.err.count("\n") == 1 and captured.err.endswith("\n")
    return captured.err


def sections(text: str) -> list[str]:
    """The lesson, cut at its numbered headings."""
    return re.split(r"^\d\. ", text, flags=re.M)


def check_equations(text: str, at_least: int) -> None:
    found = _EQUATION.findall(unbroken(text))
    assert len(found) >= at_least, text
    for numbers, result in found:
        assert holds(numbers, result), (numbers, result)


def test_the_lesson_as_a_process() -> None:
    done = run()
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    text = done.stdout
    assert "\033" not in text
    assert all(len(row) <= 100 for row in text.splitlines())
    assert "61,706 weights" in text
    assert "conv1.bias.grad = None" in text
    assert "f.data.sub_(f.grad.data * learning_rate)" in text
    assert "optimizer = gradstep.SGD(model.parameters(), lr=0.1)" in text
    assert "torch.optim.SGD rounds once as well: all 61,706 weights agree" in text
    assert "That is what step() wrote, bit for bit." in text
    check_equations(text, at_least=5)
    assert run().stdout == text


def test_the_numbers_are_torchs_own(capsys: pytest.CaptureFixture[str]) -> None:
    """The same net, image and target made here; every number of sections 1 and 2 compared."""
    text = told(capsys, "--seed", "3", "--param", "conv1.bias", "--index", "2", "--lr", "0.05")
    torch.manual_seed(3)
    model = LeNet()
    image, target = torch.randn(1, 1, 32, 32), torch.randn(1, 10)
    before = model.conv1.bias.detach().clone()
    loss = nn.functional.mse_loss(model(image), target)
    loss.backward()
    gradient = model.conv1.bias.grad
    assert gradient is not None
    for f in model.parameters():
        f.data.sub_(f.grad.data * 0.05)
    shown = [
        [float(number(n)) for n in row.split(", ")]
        for row in re.findall(r"^    conv1\.bias(?:\.grad)? +=(?: )\[(.*?)\]", text, re.M)
    ]
    expected = [before, before, gradient, model.conv1.bias.detach()]
    assert len(shown) == len(expected)
    for found, tensor in zip(shown, expected, strict=True):
        assert found == pytest.approx(tensor.tolist(), rel=6e-4)
    (said,) = re.findall(r"The loss is ([\d.]+):", text)
    assert float(said) == pytest.approx(loss.item(), rel=6e-4)
    (row,) = re.findall(r"learning rate\n    (.*) = (.*)\n", sections(text)[2])
    assert holds(*row)
    assert float(number(row[1])) == pytest.approx(model.conv1.bias[2].item(), rel=6e-4)


def test_the_comparison_counts_every_weight(capsys: pytest.CaptureFixture[str]) -> None:
    text = sections(told(capsys))[4]
    counts = [int(n.replace(",", "")) for n in re.findall(r"^ +([\d,]+) +<? ?[\d.]+ %", text, re.M)]
    assert sum(counts) == 61_706
    assert counts[0] > 30_000  # torch.mul and a fused multiply-add agree in most
    assert len(counts) > 1 and counts[1] > 0


def test_the_digits_of_two_roundings(capsys: pytest.CaptureFixture[str]) -> None:
    text = sections(told(capsys))[4]
    found = {
        label.strip(): Decimal(value.replace("−", "-"))
        for label, value in re.findall(r"^    (\S.*?|  rounded .*?)   +(−?\d+\.\d+)", text, re.M)
    }
    weight, gradient, lr = found["weight"], found["gradient"], found["learning rate"]
    product, exact = found["gradient · lr, exact"], found["weight − gradient · lr, exact"]
    twice, once = found["rounded twice, by hand"], found["rounded once, optimizer"]
    tiny = Decimal("1e-13")
    assert abs(product - gradient * lr) < tiny
    assert abs(exact - (weight - product)) < tiny
    assert abs(once - exact) < abs(twice - exact)
    rounded = found["gradient · lr, rounded"]
    as_float32 = torch.tensor(float(gradient)) * torch.tensor(float(lr))
    assert abs(Decimal(as_float32.item()) - rounded) < tiny
    by_hand = torch.tensor(float(weight)) - as_float32
    assert abs(Decimal(by_hand.item()) - twice) < tiny
    (unit,) = re.findall(r"A unit in the last place is (\S+) here", text)
    assert abs(twice - once) == pytest.approx(Decimal(unit), rel=Decimal("0.1"))


def test_forgetting_zero_grad(capsys: pytest.CaptureFixture[str]) -> None:
    """Against the mistake really made, with torch's own optimizer."""
    text = sections(told(capsys, "--seed", "12"))[5]
    results = []
    for forget in (False, True):
        torch.manual_seed(12)
        model = LeNet()
        batches = [(torch.randn(1, 1, 32, 32), torch.randn(1, 10)) for _ in range(2)]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for image, target in batches:
            if not forget:
                optimizer.zero_grad()
            nn.functional.mse_loss(model(image), target).backward()
            optimizer.step()
        assert model.conv1.bias.grad is not None
        results.append((model.conv1.bias.grad[0].item(), model.conv1.bias[0].item()))
    (right_gradient, right), (wrong_gradient, wrong) = results

    def shown(label: str) -> float:
        (row,) = re.findall(rf"^    {re.escape(label)} .*$", text, re.M)
        return float(number(re.findall(r"(−?\d[\d.e-]*)(?:   \D*)?$", row)[0]))

    assert shown("gradient of the second image") == pytest.approx(right_gradient, rel=6e-4)
    assert shown("without zero_grad()") == pytest.approx(wrong_gradient, rel=6e-4)
    assert shown("new weight, with zero_grad()") == pytest.approx(right, rel=6e-4)
    assert shown("new weight, without it") == pytest.approx(wrong, rel=6e-4)
    check_equations(text, at_least=3)


@pytest.mark.parametrize(
    "name",
    [
        *(
            pytest.param(n, marks=[] if n in ("adam", "muon", "lamb") else pytest.mark.deep)
            for n in CHOICES
            if n != "sgd"
        ),
        "clip_by_value",
        "adafactor",
        "clip_by_global_norm",
    ],
)
def test_any_optimizer(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "--optimizer", name, "--param", "fc3.weight", "--index", "2,40")
    assert "fc3.weight[2, 40]" in text
    assert "That is what step() wrote, bit for bit. By hand it was " in text
    assert all(len(row) <= 100 for row in text.splitlines())
    check_equations(text, at_least=5)


def test_adams_own_formula_with_its_own_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    text = sections(told(capsys, "--optimizer", "adam", "--lr", "0.01"))[3]
    assert "gradstep.Adam(model.parameters(), lr=0.01)" in text
    assert "exp_avg ← lerp(exp_avg, g, 1 − beta1)\n" in text
    assert "= 1 − 0.9^1 = 0.1000\n" in text
    assert "= √(1 − 0.999^1) = 0.03162\n" in text
    (row,) = re.findall(r"w ← w − lr·direction\n +=(.*)=(.*)\n", text)
    assert holds(row[0].strip(), row[1].strip())
    check_equations(text, at_least=6)


def test_a_rule_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "rules_of_an_update_test.py").write_text(
        "import gradstep\n"
        "@gradstep.rule\n"
        "def heavy_ball(g, velocity, *, momentum=0.9):\n"
        "    velocity = momentum * velocity + g\n"
        "    return velocity, velocity\n"
        "@gradstep.rule\n"
        "def plain(g):\n"
        "    return g\n"
        "@gradstep.rule\n"
        "def bad(g, *, step):\n"
        "    if step > 3:\n"
        "        g = 2 * g\n"
        "    return g\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*sys.path])
    text = told(capsys, "--optimizer", "rules_of_an_update_test:heavy_ball", "--lr", "0.1")
    assert "velocity ← momentum·velocity + g\n" in text
    assert "rules_of_an_update_test.heavy_ball, lr=0.1)" in text
    text = told(capsys, "--optimizer", "rules_of_an_update_test:plain", "--lr", "0.1")
    assert "torch.optim.SGD rounds once as well: all 61,706 weights agree" in text
    said = refused(capsys, "--optimizer", "rules_of_an_update_test:bad")
    assert "if step > 3:" in said and "Write where(condition, a, b)" in said


def test_edges(capsys: pytest.CaptureFixture[str]) -> None:
    text = told(capsys, "--lr", "0.5")
    assert "61,706   100.0 %   agree in every bit" in text
    assert "gradient · lr needs no rounding" in text
    text = told(capsys, "--lr", "0")
    assert "So it is with all 61,706 weights here." in text
    text = told(capsys, "--lr", "1e-12")
    assert "so small that a float32 number has no digit for it" in text
    text = told(capsys, "--lr", "1e30")
    assert "Choose a smaller learning rate." in text
    text = told(capsys, "--index=-1")
    assert "conv1.bias[5]" in text


def test_a_weight_that_does_not_move(capsys: pytest.CaptureFixture[str]) -> None:
    lesson = make_lesson("sgd", "fc2.bias", None, None, 6)
    still = (lesson.gradient == 0).nonzero()[0].item()
    text = told(capsys, "--param", "fc2.bias", "--index", str(still))
    assert "Its gradient is 0: this weight has no influence on the loss here" in text


def test_bad_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    said = {
        ("--param", "conv1.bais"): "LeNet has no 'conv1.bais': did you mean conv1.bias",
        ("--param", "xyzzy"): "there are conv1.weight, conv1.bias",
        ("--index", "6"): "6 is out of range; conv1.bias has the shape 6, and its last index is 5",
        ("--index", "0,0"): "has the shape 6 and takes one number, such as 0; not 0,0",
        ("--param", "fc1.weight", "--index", "120,0"): "has the shape 120×400",
        ("--param", "fc1.weight", "--index", "3"): "takes 2 numbers, such as 0,0; not 3",
        ("--index", "x"): "'x' is not a whole number",
        ("--lr", "-0.1"): "argument --lr: −0.1 is not from 0",
        ("--lr", "nan"): "nan is not from 0",
        ("--lr", "1e39"): "1e39 is not from 0 to 3.4e38, the largest float32 number",
        ("--lr", "fast"): "'fast' is not a number",
        ("--optimizer", "adm"): "unknown optimizer 'adm': did you mean adam",
        ("--optimizer", "xyzzy"): "there are sgd, momentum",
        ("--optimizer", "no_such_module:x"): "cannot import no_such_module",
        ("--optimizer", "sparse_adam"): "LeNet has none",
        ("--optimizer", "muon"): "muon cannot update all of LeNet's weights: ",
        ("--seed", "-1"): "-1 is not from 0 to 4294967295",
        ("--seed", "1.5"): "'1.5' is not a whole number",
    }
    for arguments, expected in said.items():
        assert expected in refused(capsys, *arguments), arguments


def test_a_bad_argument_as_a_process() -> None:
    done = run("--param", "conv1.bais")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        "gradstep update: argument --param: LeNet has no 'conv1.bais': did you mean conv1.bias or "
        "conv2.bias?\n"
    )


@pytest.mark.deep
def test_an_output_that_has_only_plain_letters() -> None:
    done = run("--optimizer", "adam", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert done.returncode == 0, done.stderr
    assert "w <- w - lr*direction" in done.stdout
    assert "?" not in done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_colours_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    written = forked.on_terminal("-m", "gradstep", "update", TERM="xterm")
    coloured = written.replace("\r\n", "\n")
    assert "\033[1m" in coloured
    assert re.sub(r"\033\[[\d;]*m", "", coloured) == run().stdout


def test_help() -> None:
    done = run("--help")
    assert done.returncode == 0
    for word in ("--param", "--index", "--lr", "--seed", "--optimizer", "pocket calculator"):
        assert word in done.stdout


# The lesson itself.


@pytest.fixture(scope="module")
def lesson() -> Lesson:
    return make_lesson("sgd", "conv1.bias", None, None, 6)


def test_the_lesson_leaves_random_numbers_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    make_lesson("lion", "fc1.bias", (3,), 0.1, 1)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_default_weight_reads_easily(lesson: Lesson) -> None:
    assert lesson.before[lesson.index] > 0
    assert lesson.gradient[lesson.index] > 0
    assert lesson.gradient_before is None


def test_the_steps_of_the_lesson(lesson: Lesson) -> None:
    assert lesson.first.explanation.weight == lesson.first.written == lesson.after[lesson.index]
    assert lesson.remembered.explanation.weight == lesson.remembered.written
    assert lesson.forgotten.explanation.weight == lesson.forgotten.written
    total = torch.tensor(lesson.first.gradient) + torch.tensor(lesson.remembered.gradient)
    assert lesson.forgotten.gradient == total.item()
    assert sum(lesson.comparison.apart.values()) == lesson.comparison.total == 61_706
    assert 0 < lesson.spoiled < 61_706


def test_steps_apart() -> None:
    a = torch.tensor([1.0, 1.0, -1.0, 0.0, 0.0, float("nan"), 1e-45, 1.0])
    b = torch.tensor([1.0, 1.0 + 2**-23, -1.0 - 2**-22, -0.0, 1e-45, float("nan"), -1e-45, 2.0])
    assert steps_apart(a, b).tolist() == [0, 1, 2, 0, 1, 0, 2, 2**23]


def test_chosen_optimizers() -> None:
    assert choose_optimizer("sgd", None).plain
    assert choose_optimizer("sgd", 0.5).lr == 0.5
    nesterov = choose_optimizer("nesterov", None)
    assert not nesterov.plain
    assert nesterov.code == (
        "gradstep.SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True)"
    )
    weight = nn.Parameter(torch.ones(2))
    assert isinstance(choose_optimizer("adamw", 0.1).make([weight]), gradstep.AdamW)
    with pytest.raises(SettingsError, match="did you mean"):
        choose_optimizer("sdg", None)
