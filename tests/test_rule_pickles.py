"""Rules in pickles: what comes back is the rule that went in, or saving it says why not."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import forked
import gradstep
from gradstep.optimizer.optimizer import planner_of

cloudpickle = pytest.importorskip("cloudpickle")


@gradstep.rule
def halved(g: Any, *, factor: float = 0.5) -> Any:
    return g * factor


earlier = halved


@gradstep.rule
def halved(g: Any, *, factor: float = 0.5) -> Any:
    return -g * factor


def plain(g: Any, *, factor: gradstep.Positive = 3.0) -> Any:
    return g * factor


tripled = gradstep.rule(lambda g: g * 3)


def made(factor: float) -> gradstep.Rule:
    @gradstep.rule
    def inner(g: Any, state: Any = gradstep.zeros(when="on"), *, on: bool = False) -> Any:
        return g * factor, state

    return inner


by_factory = made(7.0)


@gradstep.rule
def replaced(g: Any) -> Any:
    return g * 11


was_replaced = [replaced]


@gradstep.rule
def replaced(g: Any) -> Any:
    return g * 13


class Owner:
    def method(self, g: Any) -> Any:
        return g * 17


RULES = {
    "by name": lambda: halved,
    "with other numbers": lambda: halved(factor=2.0),
    "defined anew, under another name": lambda: earlier,
    "a named lambda": lambda: tripled,
    "of a function": lambda: by_factory,
    "over a function of the module": lambda: gradstep.rule(plain),
    "over that, with more": lambda: gradstep.rule(lr=0.5, sparse="rows")(plain)(factor=0.25),
    "a method": lambda: gradstep.rule(Owner().method),
    "gradstep's": lambda: gradstep.adam(beta1=0.5),
    "chain": lambda: gradstep.chain(
        gradstep.clip_by_value(limit=0.01), earlier(factor=4.0), gradstep.adam()
    ),
    "graft": lambda: gradstep.graft(tripled, by_factory),
}
UNNAMED = {
    "lambda": (lambda: gradstep.rule(lambda g: g * 5), "its function is a lambda"),
    "inner": (lambda: made(5.0), "its function inner is inside the function made"),
    "replaced": (lambda: was_replaced[0], r"test_rule_pickles\.replaced is another rule now"),
    "in a chain": (
        lambda: gradstep.chain(gradstep.sgd(), gradstep.rule(lambda g: g * 5)),
        "its function is a lambda",
    ),
}


def weight_after_a_step(rule: gradstep.Rule) -> list[float]:
    w = nn.Parameter(torch.ones(2))
    optimizer = gradstep.Optimizer([w], rule)
    w.grad = torch.tensor([0.5, -1.0])
    optimizer.step()
    return [planner_of(optimizer).rule.lr, *w.tolist()]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", RULES)
def test_the_very_rule_comes_back(name: str, protocol: int) -> None:
    rule = RULES[name]()
    for module in (pickle, cloudpickle):
        found = pickle.loads(module.dumps(rule, protocol=protocol))
        assert found.hyperparameters == rule.hyperparameters
        assert (found.sparse, found.lr, found.name) == (rule.sparse, rule.lr, rule.name)
        assert weight_after_a_step(found) == weight_after_a_step(rule)


@pytest.mark.parametrize("name", UNNAMED)
def test_a_rule_without_a_name_is_refused_by_pickle_and_saved_by_cloudpickle(name: str) -> None:
    make, reason = UNNAMED[name]
    rule = make()
    optimizer = gradstep.Optimizer([nn.Parameter(torch.ones(2))], rule)
    for each in (rule, optimizer):
        with pytest.raises(pickle.PicklingError, match=f"cannot be saved by pickle: .*{reason}"):
            pickle.dumps(each)
        with pytest.raises(pickle.PicklingError, match=r"save optimizer\.state_dict\(\)"):
            torch.save(each, io.BytesIO())
    found = pickle.loads(cloudpickle.dumps(rule))
    assert weight_after_a_step(found) == weight_after_a_step(rule)
    assert copy.deepcopy(rule) is copy.copy(rule) is rule


def test_a_whole_optimizer_and_a_partition_in_a_file(tmp_path: Path) -> None:
    named = [("a", nn.Parameter(torch.ones(2))), ("b", nn.Parameter(torch.ones(2)))]
    both = gradstep.partition({"one": earlier, "rest": tripled}, named, where={"one": "a"})
    optimizer = gradstep.Optimizer([p for _, p in named], gradstep.chain(earlier, tripled))
    for each in (both, optimizer):
        torch.save((named, each), tmp_path / "both.pt")
        weights, found = torch.load(tmp_path / "both.pt", weights_only=False)
        for (_, p), (_, q) in zip(named, weights, strict=True):
            p.grad, q.grad = torch.ones(2), torch.ones(2)
        each.step()
        found.step()
        assert [p.tolist() for _, p in named] == [q.tolist() for _, q in weights]


def test_a_name_that_is_gone_is_said() -> None:
    saved = pickle.dumps(by_factory)
    module = sys.modules[__name__]
    try:
        del module.by_factory  # type: ignore[attr-defined]
        with pytest.raises(TypeError, match=rf"the rule {__name__}\.by_factory, .* is not there"):
            pickle.loads(saved)
        module.by_factory = plain  # type: ignore[attr-defined]
        with pytest.raises(TypeError, match=r"by_factory, .* is no rule"):
            pickle.loads(saved)
    finally:
        module.by_factory = was_by_factory  # type: ignore[attr-defined]


was_by_factory = by_factory

SCRIPT = """
import multiprocessing, os, pickle, sys
import cloudpickle, torch
import gradstep
from gradstep import lerp, shaped
from torch import nn

SCALE = 3.0

@gradstep.opaque
def turned(x):
    return -x

@gradstep.rule
def mine(g, m, own=shaped(lambda shape: (2,), when="on"), *, on=False,
         beta: gradstep.Decay = 0.5):
    m = lerp(m, g, 1 - beta)
    return turned(m) * SCALE, m, own

nameless = [gradstep.rule(lambda g: g * 2)]

def train(rule):
    w = nn.Parameter(torch.ones(2))
    optimizer = gradstep.Optimizer([w], rule, lr=0.5)
    w.grad = torch.ones(2)
    optimizer.step()
    return w.tolist(), os.getpid()

def in_another_process(rule):
    return train(rule)[0], rule

if __name__ == "__main__":
    here = train(mine(beta=0.25))[0]
    if sys.argv[1] == "spawn":
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            there, back = pool.apply(in_another_process, [mine(beta=0.25)])
            assert there == here and train(back)[0] == here
            try:
                pool.apply(in_another_process, nameless)
                raise SystemExit("saved")
            except pickle.PicklingError as error:
                assert "its function is a lambda" in str(error), error
    elif sys.argv[1] == "loky":
        from joblib import Parallel, delayed
        work = [delayed(train)(rule) for rule in (mine(beta=0.25), nameless[0])]
        found = Parallel(n_jobs=2)(work)
        assert [w for w, _ in found] == [here, train(nameless[0])[0]], found
        assert os.getpid() not in [pid for _, pid in found]
    else:
        with open(sys.argv[1], "wb") as file:
            cloudpickle.dump([mine(beta=0.25), nameless[0], here], file)
    print("fine")
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path / "script.py"


def ran(*arguments: str) -> str:
    done = forked.run(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.deep
@pytest.mark.parametrize("way", ["spawn", "loky"])
def test_rules_of_a_script_in_other_processes(way: str, script: Path) -> None:
    if way == "loky":
        pytest.importorskip("joblib")
    # A Python of its own: those that it starts read its __main__ anew.
    command = [sys.executable, str(script), way]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


def test_rules_of_a_script_in_a_process_without_the_script(script: Path) -> None:
    """As in workers of ray and dask, which have another ``__main__``."""
    file = script.with_name("rules.pkl")
    ran(str(script), str(file))
    code = f"""
        import pickle, torch, gradstep
        *rules, expected = pickle.load(open({str(file)!r}, "rb"))
        for rule in rules:
            w = torch.nn.Parameter(torch.ones(2))
            optimizer = gradstep.Optimizer([w], rule, lr=0.5)
            w.grad = torch.ones(2)
            optimizer.step()
            print(w.tolist() == expected)
        try:
            del rule; pickle.dumps(rules[0])
        except pickle.PicklingError as error:
            print("__main__.mine is not it" in str(error))
    """
    assert ran("-c", textwrap.dedent(code)).split() == ["True", "False", "True"]
