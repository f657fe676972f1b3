"""The lesson and the training in two languages: the messages, the choice, the terminals."""

from __future__ import annotations

import ast
import os
import re
import string
import subprocess
import sys
from pathlib import Path

import pytest

from gradstep.cli import main
from gradstep.sight.language import columns, preferred, say, speaking, to_left, to_right
from gradstep.sight.messages import MESSAGES

SOURCES = Path(__file__).parent.parent / "src" / "gradstep"
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def placeholders(text: str) -> list[tuple[str, str, str]]:
    found = string.Formatter().parse(text)
    return sorted((n, f or "", c or "") for _, n, f, c in found if n is not None)


def asked_for() -> list[str]:
    """What the package says, as patterns: the keys in its calls of ``say``."""
    patterns = []
    for path in SOURCES.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "from gradstep.sight.language import" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            if node.func.id not in ("say", "say_lines"):
                continue
            texts = [n for n in ast.walk(node.args[0]) if isinstance(n, ast.JoinedStr)]
            for joined in texts:
                patterns.append("".join(
                    re.escape(str(part.value)) if isinstance(part, ast.Constant) else "[a-z ]+"
                    for part in joined.values
                ))  # fmt: skip
            inside = {id(n) for joined in texts for n in ast.walk(joined)}
            patterns += [
                re.escape(n.value)
                for n in ast.walk(node.args[0])
                if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in inside
            ]
    return patterns


def test_each_message_is_there_in_both_languages_with_the_same_placeholders() -> None:
    for key, (english, chinese) in MESSAGES.items():
        assert placeholders(english) == placeholders(chinese), key
        assert english.strip() and not CHINESE.search(english), key
        assert CHINESE.search(chinese) or not re.search("[a-z]{2}", re.sub("{.*?}", "", english)), (
            key
        )
        for line in (*english.split("\n"), *chinese.split("\n")):
            assert columns(line) <= 130, key  # on the error output; the lesson's lines, see below


def test_every_message_is_said_and_nothing_else_is() -> None:
    patterns = asked_for()
    assert len(patterns) > 80
    keys = {"max"}  # what is compared with inside of a call
    assert {p for p in patterns if not any(re.fullmatch(p, key) for key in MESSAGES)} == keys
    unsaid = {key for key in MESSAGES if not any(re.fullmatch(p, key) for p in patterns)}
    assert unsaid == {"scikit-learn's digits", "sum of", "sum over"}  # by a variable


@pytest.mark.parametrize(
    ("environment", "language"),
    [
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_TW.UTF-8", "LC_ALL": "en_US.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "zh_CN.UTF-8"}, "zh"),
        ({"LANGUAGE": "en:zh", "LC_ALL": "zh_CN.UTF-8"}, "en"),
        ({"LANGUAGE": "", "LANG": "zh"}, "zh"),
        ({"LANG": "C"}, "en"),
        ({"LANG": "fr_FR.UTF-8"}, "en"),
    ],
)
def test_the_locale_chooses(environment: dict[str, str], language: str) -> None:
    assert preferred(environment) == language


def test_what_is_spoken_ends_with_its_block() -> None:
    with pytest.raises(KeyError), speaking("zh"):
        assert say("digits weight") == "权重"
        say("no such message")
    assert say("digits weight") == "weight"


def test_a_chinese_letter_takes_two_columns() -> None:
    assert columns("权重 w，") == 8
    assert [to_left("权重", 6), to_right("权重", 6)] == ["权重  ", "  权重"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--optimizer", "sgd"],
        ["--optimizer", "momentum", "--lr", "0.5"],
        pytest.param(["--optimizer", "adam", "--param", "fc1.weight"], marks=pytest.mark.deep),
        pytest.param(["--optimizer", "lamb", "--param", "fc1.weight"], marks=pytest.mark.deep),
        pytest.param(["--lr", "0"], marks=pytest.mark.deep),
    ],
    ids=" ".join,
)
def test_the_lesson_says_the_same_in_both(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    told = {}
    for language in ("en", "zh"):
        assert main(["update", *arguments, "--language", language]) == 0
        told[language] = capsys.readouterr().out
        assert all(columns(row) <= 100 for row in told[language].splitlines())
    assert not CHINESE.search(told["en"])
    # The same numbers, up to their order in a sentence, and the same code.
    numbers = {k: sorted(re.findall(r"[\d][\d.,e-]*\d|\d", t)) for k, t in told.items()}
    assert numbers["en"] == numbers["zh"]
    start = r" {4,8}(model|image|loss|learning_rate|for f|f\.data|optimizer)\b"
    code = {
        language: [re.sub(" *#.*", "", row) for row in text.splitlines() if re.match(start, row)]
        for language, text in told.items()
    }
    assert code["en"] == code["zh"] and len(code["zh"]) > 10
    words = re.sub(r"(?m)^ {4}.*$", "", told["zh"])
    english = set(re.findall(r"\b[a-z]{4,}\b(?![.(\[=-])", words)) - {
        "backward", "float32", "zero_grad", "gradstep", "update", "explain", "train", "torch",
        "step", "optimizer", "adam", "weight", "bias", "eager", "engine", "momentum", "optim",
        "lamb", "conv",
    }  # fmt: skip
    assert not english


def test_the_training_speaks_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ["--train-limit", "64", "--optimizer", "sgd", "--language", "zh"]
    out = tmp_path / "run"
    assert main(["train", "--epochs", "1", "--watch", *settings, "--out", str(out)]) == 0
    text = capsys.readouterr().out
    for words in (
        "61,706 个权重",
        "scikit-learn 的手写数字",
        "测试准确率",
        "第 1 步",
        "训练用了",
        "检查点。",
    ):
        assert words in text
    table = text.split("优化器")[1].splitlines()
    assert len({columns(row) for row in ["优化器" + table[0], *table[1:3]]}) == 1
    assert main(["train", "--resume", str(out), "--language", "zh"]) == 0
    assert "已经完成：1 轮中完成了 1 轮" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("environment", "arguments", "words", "noted"),
    [
        pytest.param(
            {"PYTHONIOENCODING": "utf-8", "LANG": "zh_CN.UTF-8"},
            [],
            "更新一次网络的权重",
            False,
            marks=pytest.mark.deep,
        ),
        (
            {"PYTHONIOENCODING": "gbk", "LANG": "zh_CN.GBK"},
            [],
            "权重 = 权重 - 学习率 * 梯度",
            False,
        ),
        pytest.param(
            {"PYTHONIOENCODING": "ascii", "LANG": "zh_CN.UTF-8"},
            [],
            "One update",
            False,
            marks=pytest.mark.deep,
        ),
        ({"PYTHONIOENCODING": "ascii"}, ["--language", "zh"], "One update", True),
    ],
    ids=["utf-8", "gbk", "ascii", "ascii asked for Chinese"],
)
def test_terminals_without_the_letters(
    environment: dict[str, str], arguments: list[str], words: str, noted: bool
) -> None:
    names = ("LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-m", "gradstep", "update", *arguments],
        capture_output=True,
        env={**clean, "PYTHONUTF8": "0", **environment},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    text = done.stdout.decode(environment["PYTHONIOENCODING"])
    assert words in text
    assert "?" not in text.replace("Why do some differ?", "").replace("为什么有些不同？", "")
    error = done.stderr.decode("ascii")
    assert (error.count("\n"), "PYTHONIOENCODING=utf-8" in error) == (int(noted), noted)


def test_an_unknown_language_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["update", "--language", "fr"])
    assert stopped.value.code == 2
    assert "--language" in capsys.readouterr().err
