"""The quick run looks at every feature that any rule has, and at new ones by itself."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

import gradstep
from classes import IN_TORCH, ROWS
from configurations import FLAG_CONFIGURATIONS
from rank_cases import Case
from reference import REFERENCES
from representatives import (
    Configuration,
    Features,
    cover,
    deep,
    every_configuration,
    features,
    representatives,
    wanted,
    with_arguments,
)


def all_of(configurations: Any) -> Features:
    return frozenset().union(*map(features, configurations))


def test_every_feature_of_any_configuration_has_a_representative() -> None:
    """But flags and words of one class alone: those change its formula, and nothing else."""
    missing = all_of(every_configuration()) - all_of(representatives())
    assert {kind for kind, *_ in missing} <= {"flag", "word"}, missing
    owners = {
        feature: {each.name for each in every_configuration() if feature in features(each)}
        for feature in missing
    }
    assert all(len(names) == 1 for names in owners.values()), owners


def test_there_are_few_and_none_is_there_for_nothing() -> None:
    chosen = representatives()
    assert len(chosen) < len(every_configuration()) / 8
    for each in chosen:
        rest = all_of(other for other in chosen if other is not each)
        assert wanted() & features(each) - rest, f"{each} has nothing that others have not"


@gradstep.rule
def with_a_new_feature(g: Any, *, width: float = 1.0) -> Any:
    """The hyperbolic tangent, which no rule of the package takes."""
    return gradstep.tanh(g / width)


def test_a_rule_with_a_new_feature_is_chosen_by_itself() -> None:
    make = functools.partial(gradstep.Optimizer, rule=with_a_new_feature, lr=0.1)
    new = Configuration("new", make, {})
    assert ("operation", "tanh") in features(new) - wanted()
    every = [*every_configuration(), new]
    assert new in cover(every, wanted() | features(new))
    assert new not in cover(every, wanted())


def items(rows: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"row": row, "options": o, **more} for row in rows for o in row.configurations]


@pytest.mark.parametrize(
    "given",
    [
        items(ROWS),
        items(IN_TORCH),
        items(row for row in ROWS if row.coupled),
        [{"reference": r, "options": options} for r, options in FLAG_CONFIGURATIONS],
        [{"reference": r, "options": options} for r, options in FLAG_CONFIGURATIONS[::7]],
    ],
    ids=["classes", "torch's classes", "sums over all", "rules", "some rules"],
)
def test_what_a_test_keeps_has_every_feature_of_what_it_leaves(given: Any) -> None:
    """Whatever the test is parametrized by, and whether or not representatives are among it."""
    by_depth: dict[bool, list[Configuration]] = {False: [], True: []}
    for item, is_deep in zip(given, deep(given), strict=True):
        subject = next(iter(item.values()))
        by_depth[is_deep].append(Configuration(subject.name, subject.ours, item["options"]))
    assert by_depth[True] and len(by_depth[False]) < len(given) / 2
    assert wanted() & all_of(by_depth[True]) <= all_of(by_depth[False])


def test_who_is_asked_for_what_is_its_own_is_always_asked() -> None:
    """In float64 by the fused engine; otherwise the representatives are."""
    every = items(ROWS)
    for more in ({"dtype": torch.float64}, {"engine": "fused"}):
        later = deep(items(ROWS, **more), every_rule=True)
        assert 0 < sum(later) < sum(deep(every))
        kept: dict[str, set[Any]] = {}
        have: dict[str, set[Any]] = {}
        for item, is_later in zip(every, later, strict=True):
            row = item["row"]
            found = with_arguments(Configuration(row.name, row.ours, item["options"]))
            have.setdefault(row.name, set()).update(found)
            if not is_later:
                kept.setdefault(row.name, set()).update(found)
        # Every class, with each argument, flag, operation and state that it ever has.
        assert kept == have
    for dtype in (torch.float32, torch.bfloat16):
        assert deep(items(ROWS, dtype=dtype), every_rule=True) == deep(items(ROWS))
    assert deep(items(ROWS, engine="eager"), every_rule=True) == deep(items(ROWS))


def test_who_names_a_few_has_chosen_them() -> None:
    assert deep([{"reference": r} for r in REFERENCES[:4]]) == [False] * 4
    assert any(deep([{"reference": r} for r in REFERENCES]))


def test_whatever_has_options_and_the_name_of_a_class_stands_for_it() -> None:
    as_cases = deep([{"case": Case(r.name, o)} for r, o in FLAG_CONFIGURATIONS])
    assert as_cases == deep([{"reference": r, "options": o} for r, o in FLAG_CONFIGURATIONS])
    settings = [{"rule": r.rule, "settings": {"lr": 0.1}} for r in REFERENCES]
    assert sum(deep(settings)) > len(settings) / 2


def test_other_parameters_leave_nothing_out() -> None:
    assert not any(deep([{"name": r.name, "lr": 0.1, "options": 3} for r in REFERENCES]))
    assert not any(deep([{"rule": r.rule} for r in REFERENCES]))
    classes = [{"of": a, "into": b} for a in IN_TORCH for b in IN_TORCH]
    pairs = [(i["of"].name, i["into"].name) for i, d in zip(classes, deep(classes)) if not d]  # noqa: B905
    assert len(pairs) == len({a for a, _ in pairs}) ** 2 < len(classes)
