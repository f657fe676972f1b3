"""Explanations and formulas as Markdown, HTML and LaTeX: well-formed, self-contained, complete."""

from __future__ import annotations

import functools
import io
import re
from html.parser import HTMLParser
from typing import Any

import pytest
import torch
from torch import nn

import gradstep
from gradstep.cli import main
from gradstep.rule.latex import latex_name, latex_number
from gradstep.sight.armed import StepExplanation
from gradstep.sight.catalogue import find_rule, rule_names
from gradstep.sight.ink import Ink
from gradstep.sight.show import Shown
from representatives import Configuration, cover, features
from test_sight_arithmetic import every_setting, everything, surroundings

CHAIN = gradstep.chain(
    gradstep.clip_by_global_norm(1.0),
    gradstep.decay_weights(0.1),
    gradstep.adam(amsgrad=True),
    gradstep.decay_weights(0.2),
)

#: Tags without an end, and attributes by which HTML asks for something from elsewhere.
VOID = {"br", "hr", "img", "meta", "link", "input"}
ALLOWED_TAGS = {"div", "table", "tr", "td", "strong", "em", "code", "span", "p"}


class Reader(HTMLParser):
    """Checks that every tag is closed in its turn, and gathers the cells' words."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ALLOWED_TAGS, tag
        for name, value in attrs:
            assert name in ("style", "colspan", "class"), name
            assert not re.search(r"url\(|@import|//|expression", value or ""), value
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag == "td":
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if "td" in self.open:
            self.rows[-1][-1] += data


def read_html(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    assert not reader.open
    assert "<script" not in html and "http" not in html
    return reader


@functools.cache
def read_mathtext(line: str) -> None:
    """Have matplotlib read a line, which raises for what is no LaTeX; each line once."""
    matplotlib = pytest.importorskip("matplotlib", reason="reads the LaTeX")
    matplotlib.use("agg")
    from matplotlib.mathtext import MathTextParser

    MathTextParser("path").parse(f"${line}$")


def check_latex(latex: str, reading: bool = True) -> None:
    """Balanced, in the environment that it opens, and every line readable for mathtext.

    Without ``reading`` only the former: mathtext takes most of a test's time.
    """
    assert latex.isascii(), latex
    assert latex.count(r"\begin{aligned}") == latex.count(r"\end{aligned}") >= 1
    for block in re.findall(r"\\begin\{aligned\}\n(.*?)\n\\end\{aligned\}", latex, re.S):
        lines = block.split(" \\\\\n")
        assert len(lines) > 1
        for line in lines:
            bare = re.sub(r"\\[{}]", "", line)
            assert bare.count("{") == bare.count("}"), line
            assert line.count(r"\left") - line.count(r"\leftarrow") == line.count(r"\right"), line
            whole = re.sub(r"(?<!\\)&", "", line)
            assert line.count("&") - line.count(r"\&") == 1, line
            if reading:
                read_mathtext(whole)


def check_markdown(markdown: str) -> None:
    """Every row of a table has as many cells as its head, and code is code."""
    width = None
    for line in markdown.splitlines():
        if not line.startswith("|"):
            width = None
            continue
        cells = re.split(r"(?<!\\)\|", line)
        width = width or len(cells)
        assert len(cells) == width, line
        assert line.count("`") % 2 == 0, line


def check_forms(shown: Shown, reading: bool = True) -> None:
    """Each form is sound, and has what the text has."""
    read = read_html(shown.html())
    check_latex(shown.latex(), reading)
    markdown = shown.markdown()
    check_markdown(markdown)
    plain, coloured = shown.text(), shown.text(Ink(True))
    assert re.sub(r"\033\[[\d;]*m", "", coloured) == plain
    assert all(len(row) <= 100 for row in plain.splitlines()), plain
    words = "".join(read.words)
    for page in shown._pages():
        for section in page.sections:
            for row in section.rows:
                formula = f"{row.name} ← {row.formula}"
                assert formula in words
                assert f"`{formula}`".replace("|", "\\|") in markdown
                for part in row.parts:
                    assert part in words
                    assert f"`{part}`".replace("|", "\\|") in markdown


@functools.cache
def with_every_operation() -> set[str]:
    """The names of a few rules, with all settings, whose graphs have every feature of any."""
    rules = [
        Configuration(name, functools.partial(gradstep.Optimizer, rule=find_rule(name)), settings)
        for name in rule_names()
        for settings in list(every_setting(find_rule(name)))[-1:]
    ]
    return {each.name for each in cover(rules, frozenset().union(*map(features, rules)))}


@pytest.mark.parametrize("settings", ["some", pytest.param("all", marks=pytest.mark.deep)])
@pytest.mark.parametrize("name", rule_names())
def test_every_rules_formula(name: str, settings: str) -> None:
    """As it is, and with all settings that change it; in the deep run also with each alone.

    The quick run has the LaTeX read of rules that have every operation of any.
    """
    rule = find_rule(name)
    every = list(every_setting(rule))
    for setting in (every[0], every[-1]) if settings == "some" else every:
        changed = {key: value for key, value in setting.items() if key != "lr"}
        shown = gradstep.formula(rule, **changed)
        new = setting == every[-1] and name in with_every_operation()
        check_forms(shown, reading=settings == "all" or new)
        assert re.search(r"^ +w ← ", shown.text(), re.M)


def explained(optimizer: gradstep.Optimizer, weights: Any, name: str, index: Any) -> Any:
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    explanation = gradstep.explain(optimizer, name, index)
    optimizer.step()
    return explanation


@pytest.mark.parametrize(
    ("rule", "shapes"),
    [
        (gradstep.sgd, [(3,)]),
        (CHAIN, [(2, 3), (4,)]),
        (everything, [(2, 3), (4,)]),
        (surroundings, [(2, 3), (3, 3)]),
        (gradstep.muon, [(2, 3)]),
        (gradstep.radam, [(2, 3)]),
        (gradstep.nadam, [(2, 3)]),
        (gradstep.rprop, [(2, 3)]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_explanations_in_every_form(rule: gradstep.Rule, shapes: Any) -> None:
    weights = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    named = [(f"a_{i}.weight", w) for i, w in enumerate(weights)]
    optimizer = gradstep.Optimizer(named, rule, lr=0.01)
    for _ in range(2):
        shown = explained(optimizer, weights, "a_0.weight", [(0,) * len(shapes[0])])
        check_forms(shown)
        (account,) = shown.accounts
        assert f"{account.title}" in "".join(read_html(shown._repr_html_()).words)


def test_infinite_numbers_and_narrow_types() -> None:
    for value in (float("inf"), -float("inf"), float("nan"), 0.0, 3e38):
        weight = nn.Parameter(torch.tensor([1.0, 2.0]))
        optimizer = gradstep.AdamW([("w", weight)], lr=0.1)
        weight.grad = torch.tensor([value, 1.0])
        shown = gradstep.explain(optimizer, "w", [(0,), (1,)])
        optimizer.step()
        assert all(account.agrees for account in shown.accounts)
        check_forms(shown)
    narrow = nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    optimizer = gradstep.SGD([("w", narrow)], lr=0.1)
    narrow.grad = torch.full((2,), 0.001, dtype=torch.bfloat16)
    shown = gradstep.explain(optimizer, "w", 0)
    optimizer.step()
    assert "0.9999, stored as bfloat16: 1" in shown.text()
    assert r"= 0.9999\text{, stored as bfloat16: }1" in shown.latex()
    check_forms(shown)


def test_a_chain_is_told_rule_by_rule() -> None:
    shown = gradstep.formula(CHAIN)
    headings = ["clip_by_global_norm", "decay_weights", "adam", "decay_weights2", "step"]
    assert re.findall(r"^  (\w+):$", shown.text(), re.M) == headings
    assert [row[0] for row in read_html(shown.html()).rows if row[0] in headings] == headings
    assert re.findall(r"^\*\*(.*)\*\*$", shown.markdown(), re.M) == [
        heading.replace("_", r"\_") for heading in headings
    ]
    assert re.findall(r"&\\text\{(.*):\}", shown.latex()) == [
        heading.replace("_", r"\_") for heading in headings
    ]
    # Each state, and the numbers that it needs, under the rule whose it is.
    adam = shown.text().split("  adam:\n")[1].split("  decay_weights2:\n")[0]
    for name in ("correction1", "correction2", "exp_avg", "exp_avg_sq", "max_exp_avg_sq"):
        assert f"    {name} ← " in adam


def test_the_formula_of_an_optimizer_and_of_flags() -> None:
    model = nn.Linear(3, 2)
    assert gradstep.formula(gradstep.sgd).text() == "sgd\n\n  w ← w − lr·g"
    optimizer = gradstep.AdamW(model.parameters(), weight_decay=0.1, maximize=True)
    shown = gradstep.formula(optimizer, amsgrad=True)
    assert shown.title == (
        "AdamW with weight_decay=0.1, decoupled_weight_decay=True, amsgrad=True, maximize=True"
    )
    for line in ("g ← −g", "shrunk ← w·(1 − lr·weight_decay)", "max(max_exp_avg_sq, exp_avg_sq)"):
        assert line in shown.text()
    assert "√(1 − β₂^step)" in gradstep.formula(gradstep.adam, greek=True).text()
    assert r"\sqrt{1 - \beta_{2}^{\mathrm{step}}}" in gradstep.formula(gradstep.adam).latex()
    assert repr(gradstep.formula(gradstep.adam, beta1=0.5)) == "<formula of adam with beta1=0.5>"
    assert str(gradstep.formula(gradstep.lion)) == gradstep.formula(gradstep.lion).text()
    own = gradstep.Optimizer([model.weight], gradstep.muon, lr=torch.tensor(0.1))
    assert "newton_schulz(" in gradstep.formula(own).text()
    with pytest.raises(TypeError, match="adam has no hyperparameter 'amsgrid'"):
        gradstep.formula(gradstep.adam, amsgrid=True)
    with pytest.raises(ValueError, match="beta1"):
        gradstep.formula(gradstep.adam, beta1=1.5)
    with pytest.raises(TypeError, match="LBFGS searches"):
        gradstep.formula(gradstep.LBFGS(model.parameters()))  # type: ignore[arg-type]
    for wrong in (torch.optim.SGD(model.parameters()), 3, len):
        with pytest.raises(TypeError, match="takes a rule, a chain or an optimizer of gradstep"):
            gradstep.formula(wrong)  # type: ignore[arg-type]


def test_the_formulas_of_a_partition() -> None:
    rules = {"matrices": gradstep.muon, "rest": gradstep.adam}
    shown = gradstep.formula(gradstep.partition(rules, nn.Sequential(nn.Linear(4, 3), nn.ReLU())))
    assert shown.title == "matrices: muon; rest: adam"
    check_forms(shown)
    assert "newton_schulz(" in shown.text() and "exp_avg_sq" in shown.text()


class Output(io.StringIO):
    """A standard output that is a terminal, or not, and has an encoding."""

    def __init__(self, terminal: bool, encoding: str) -> None:
        super().__init__()
        self.terminal, self.letters = terminal, encoding

    def isatty(self) -> bool:
        return self.terminal

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.letters


def test_print_suits_the_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    shown = gradstep.formula(gradstep.sgd)
    for output, expected in (
        (Output(True, "utf-8"), "\033[1msgd\033[0m\n\n  w ← w − lr·g"),
        (Output(False, "utf-8"), "sgd\n\n  w ← w − lr·g"),
        (Output(False, "ascii"), "sgd\n\n  w <- w - lr*g"),
        (None, "sgd\n\n  w ← w − lr·g"),
    ):
        monkeypatch.setattr("sys.stdout", output)
        assert str(shown) == expected


@pytest.mark.parametrize("form", ["markdown", "html", "latex"])
def test_the_command_prints_each_form(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "adamw", "--set", "amsgrad=true", f"--{form}"]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    expected = gradstep.formula(
        gradstep.adam, weight_decay=0.01, decoupled_weight_decay=True, amsgrad=True
    )
    assert printed.out.rstrip("\n") == getattr(expected, form)().rstrip("\n")
    with pytest.raises(SystemExit):
        main(["explain", "adamw", "--html", "--latex"])
    assert "not allowed with" in capsys.readouterr().err


def test_notes_in_every_form() -> None:
    weight = nn.Parameter(torch.zeros(2))
    shown = gradstep.explain(gradstep.SGD([("<a|b_c>", weight)]), "<a|b_c>", 0)
    assert isinstance(shown, StepExplanation)
    note = "<a|b_c>: waits for the next step of SGD"
    assert shown.text() == note
    assert note in read_html(shown.html()).words
    assert shown.markdown() == r"\<a\|b\_c\>: waits for the next step of SGD" + "\n"
    assert shown.latex() == r"\text{<a|b\_c>: waits for the next step of SGD}" + "\n"


@pytest.mark.parametrize(
    ("name", "latex"),
    [
        ("w", "w"),
        ("lr", r"\mathrm{lr}"),
        ("beta1", r"\beta_{1}"),
        ("eps", r"\varepsilon"),
        ("t0", "t_{0}"),
        ("exp_avg_sq", r"\mathrm{exp\_avg\_sq}"),
        ("exp_avg′", r"\mathrm{exp\_avg}'"),
        ("size(w, −1)", r"\operatorname{size}(w, -1)"),
        ("mu_next", r"\mathrm{mu\_next}"),
    ],
)
def test_latex_names(name: str, latex: str) -> None:
    assert latex_name(name) == latex


@pytest.mark.parametrize(
    ("number", "latex"),
    [
        ("0.5", "0.5"),
        ("−0.5", "-0.5"),
        ("1e-8", "10^{-8}"),
        ("−1.25e-5", r"-1.25 \cdot 10^{-5}"),
        ("1.679e7", r"1.679 \cdot 10^{7}"),
        ("−inf", r"-\infty"),
        ("nan", r"\mathrm{nan}"),
    ],
)
def test_latex_numbers(number: str, latex: str) -> None:
    assert latex_number(number) == latex
