"""``gradstep.audit`` and ``gradstep audit``: what differs is found, and where."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

import forked
import gradstep
from gradstep.cli import main
from gradstep.lab.audit_pairs import PAIRS, Pair
from gradstep.lab.audit_table import audit_table, known_reason
from gradstep.sight.audit import CASES, Audit

NAMES = [case.name for case in CASES]


class Slip(torch.optim.Optimizer):
    """SGD with a fault that a flag names."""

    def __init__(
        self, params: Any, lr: float = 0.1, weight_decay: float = 0.0, fault: str = ""
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.fault, self.steps, self.first_lr = fault, 0, lr

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.steps += 1
        for group in self.param_groups:
            lr = self.first_lr if self.fault == "keeps lr" else group["lr"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                g = p.grad
                if self.fault == "writes":
                    g.add_(p, alpha=group["weight_decay"])
                else:
                    g = g + group["weight_decay"] * p
                if self.fault == "counts for all" and self.steps > 1 and not self.state[p]:
                    g = g / 2
                if self.fault == "flat":
                    p.view(-1)
                if self.fault == "late" and self.steps == 5:
                    g = g * 1.01
                if self.fault == "draws":
                    torch.rand(1)
                if self.fault == "forgets":
                    g = g * (1 + 0.1 * self.steps)
                p.sub_(lr * g)
                self.state[p]["seen"] = True
        if self.fault == "stops":
            raise RuntimeError("out of luck")


def found(fault: str, **more: Any) -> Audit:
    return gradstep.audit(Slip, gradstep.SGD, their_options={"fault": fault}, **more)


def differing(audit: Audit) -> dict[str, int | None]:
    return {o.case: o.step for o in audit.outcomes if o.agrees is False}


def test_the_same_rule_agrees_in_every_case() -> None:
    audit = found("")
    assert audit.agrees
    assert [o.case for o in audit.outcomes] == NAMES
    assert all(o.agrees and o.difference < 1e-12 for o in audit.outcomes)
    assert audit.conduct == {
        "writes into gradients": "no",
        "draws global random numbers": "no",
        "goes on from a checkpoint bit for bit": "yes",
        "loads with weights_only": "yes",
    }
    assert str(audit).splitlines()[0].endswith("Slip and gradstep.SGD agree (tolerance 1e-09)")


@pytest.mark.parametrize(
    ("fault", "cases"),
    [
        ("keeps lr", {"lr halved": 8}),
        ("counts for all", {"late first gradient": 5}),
        ("late", dict.fromkeys(NAMES, 5)),
    ],
)
def test_what_differs_is_found_in_its_case_and_from_its_step_on(
    fault: str, cases: dict[str, int]
) -> None:
    audit = found(fault)
    assert not audit.agrees
    assert differing(audit) == cases


def test_a_case_that_fails_says_why() -> None:
    outcomes = {o.case: o for o in found("flat").outcomes}
    bad = outcomes["transposed in memory"]
    assert bad.agrees is None and "it fails at step 1: RuntimeError: view size" in bad.reason
    assert outcomes["matrices"].agrees


@pytest.mark.parametrize(
    ("fault", "question", "answer"),
    [
        ("writes", "writes into gradients", "yes"),
        ("draws", "draws global random numbers", "yes"),
        ("forgets", "goes on from a checkpoint bit for bit", "no: the weights differ"),
        ("stops", "takes a step", "no: RuntimeError: out of luck"),
    ],
)
def test_conduct(fault: str, question: str, answer: str) -> None:
    assert found(fault).conduct[question] == answer


def test_an_argument_that_one_side_lacks_is_a_case_that_is_not_compared() -> None:
    def plain(params: Any, lr: float) -> Any:
        return torch.optim.SGD(params, lr=lr)

    outcomes = {o.case: o for o in gradstep.audit(plain, gradstep.sgd).outcomes}
    assert "it refuses: TypeError" in outcomes["weight decay"].reason
    assert all(o.agrees for name, o in outcomes.items() if name != "weight decay")


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has none")
def test_a_class_for_matrices_is_given_matrices() -> None:
    audit = gradstep.audit(torch.optim.Muon, gradstep.Muon, steps=3)
    assert audit.agrees
    assert {o.case for o in audit.outcomes if o.agrees} >= {"matrices", "weight decay, matrices"}


def test_a_rule_of_ones_own_against_torch() -> None:
    audit = gradstep.audit(torch.optim.Adam, gradstep.lion, steps=3)
    assert not audit.agrees and differing(audit)["matrices"] == 1


def test_optax() -> None:
    optax = pytest.importorskip("optax", reason="optax is not installed")
    assert gradstep.audit(optax.sgd, gradstep.SGD, steps=4).outcomes[0].agrees
    assert gradstep.audit(optax.lion, gradstep.Lion, steps=4).outcomes[0].agrees


# The command.


def run(*arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    return forked.run("-m", "gradstep", "audit", *arguments, cwd=folder)


def test_the_command_says_that_two_differ_and_where(tmp_path: Path) -> None:
    done = run("torch.optim.SGD", "--rule", "Lion", "--steps", "3", "--json")
    assert done.returncode == 1, done.stderr
    record = json.loads(done.stdout)
    assert record["theirs"] == "torch.optim.SGD" and record["ours"] == "gradstep.Lion"
    assert record["agrees"] is False and record["cases"][0]["from_step"] == 1
    (tmp_path / "my_rules.py").write_text("import torch\nclass Mine(torch.optim.Adam):\n    pass\n")
    done = run("my_rules.Mine", "--rule", "adam", "--set", "betas=(0.8,0.9)", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "my_rules.Mine and gradstep.Adam agree" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("Adam", "--rule", "adam"), "Adam has no module: write it as torch.optim.Adam"),
        (("torch.optim.Adma", "--rule", "adam"), "torch.optim has no optimizer Adma"),
        (("no_such_library.Adam", "--rule", "adam"), "cannot import no_such_library"),
        (("torch.optim.Adam", "--rule", "adma"), "unknown rule 'adma': did you mean adam"),
        (("torch.optim.Adam", "--rule", "adam", "--set", "eps"), "--set takes NAME=VALUE"),
        (("torch.optim.Adam", "--rule", "adam", "--steps", "0"), "--steps: 0 is not from 1"),
        (("torch.optim.Adam", "--rule", "adam", "--lr", "fast"), "--lr: 'fast' is not a number"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], words: str, capsys: Any) -> None:
    try:
        code: Any = main(["audit", *arguments])
    except SystemExit as stopped:  # what argparse itself refuses
        code = stopped.code
    assert code == 2
    out, error = capsys.readouterr()
    assert out == "" and error.count("\n") == 1 and words in error


# The table.


def test_the_table_says_who_agrees_and_who_is_not_installed() -> None:
    pairs = [
        Pair("torch.optim.Adam", "Adam"),
        Pair("torch.optim.AdamW", "Adam", {"weight_decay": 0.0}),
        Pair("torch.optim.NAdam", "Adam", {}, {"betas": (0.8, 0.9)}, "another rule"),
        Pair("no_such_library.Adam", "Adam"),
    ]
    said: list[str] = []
    text = audit_table(3, said.append, pairs)
    rows = [line.split(" | ") for line in text.splitlines()[2:5]]
    assert [row[2] for row in rows] == ["agrees", "differs", "differs"]
    assert rows[1][3].startswith("weight decay (1: ")
    assert rows[1][4] == "another kind of weight decay"
    assert rows[2][1] == "`Adam` (betas=(0.8, 0.9))" and rows[2][4] == "another rule"
    assert text.endswith("Not installed, so not audited: no_such_library.Adam.")
    assert said == [pair.theirs for pair in pairs]


def test_every_row_of_the_table_names_a_class_of_ours() -> None:
    assert len(PAIRS) > 60
    for pair in PAIRS:
        assert issubclass(getattr(gradstep, pair.ours), gradstep.Optimizer)
    assert len({(pair.theirs, str(pair.their_options)) for pair in PAIRS}) == len(PAIRS)


def test_the_reason_that_the_table_knows_is_said() -> None:
    found = gradstep.audit(
        torch.optim.RAdam,
        gradstep.RAdam,
        steps=6,
        their_options={"weight_decay": 0.1, "decoupled_weight_decay": True},
        our_options={"weight_decay": 0.1},
    )
    assert not found.agrees
    said = known_reason("pytorch_optimizer:RAdam", "RAdam", found)
    assert said == "one step count for all parameters; decay is decoupled"
    assert known_reason("pytorch_optimizer:RAdam", "radam", found) == said
    agrees = gradstep.audit(torch.optim.RAdam, gradstep.RAdam, steps=4)
    assert agrees.agrees and known_reason("pytorch_optimizer:RAdam", "RAdam", agrees) == ""
