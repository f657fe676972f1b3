"""The lesson of ``gradstep update`` in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy
from torch import Tensor

from gradstep.lab.lesson import Lesson, Step
from gradstep.lab.rounding import place_name
from gradstep.rule.notation import number_text
from gradstep.sight.digits import Equation, decimal, digits_text
from gradstep.sight.ink import Ink
from gradstep.sight.language import columns, say, say_lines, to_left


def lesson_text(lesson: Lesson, ink: Ink) -> str:
    """The whole lesson, as text of about 92 columns."""
    parts = [_beginning, _backward, _by_hand, _by_optimizer, _comparison, _zero_grad, _end]
    return "\n\n".join("\n".join(part(lesson, ink)) for part in parts)


# The parts of the lesson, each as lines.


def _beginning(lesson: Lesson, ink: Ink) -> list[str]:
    return [
        ink.heading(say("lesson heading")),
        "",
        *say_lines("lesson beginning", weights=sum(lesson.sizes.values())),
        "",
        "    " + ink.code(say("lesson rule")),
        "",
        *say_lines("lesson meaning"),
    ]


def _backward(lesson: Lesson, ink: Ink) -> list[str]:
    name = lesson.parameter
    before = _list(lesson.before, lesson, ink)
    loss = digits_text(numpy.float32(lesson.loss), 4)
    random = say("code at random")
    return [
        ink.heading(say("backward heading")),
        "",
        *_code(
            ink,
            "model = LeNet()",
            f"image, target = torch.randn(1, 1, 32, 32), torch.randn(1, 10)   # {random}",
            "loss = nn.functional.mse_loss(model(image), target)",
        ),
        "",
        *say_lines("backward loss", loss=loss, name=name, count=lesson.sizes[name]),
        "",
        f"    {name}      = {before}",
        f"    {name}.grad = {lesson.gradient_before}   {say('backward nobody asked')}",
        "",
        *_code(ink, "loss.backward()"),
        "",
        f"    {name}      = {before}   {say('backward unchanged')}",
        f"    {name}.grad = {_list(lesson.gradient, lesson, ink)}",
    ]


def _by_hand(lesson: Lesson, ink: Ink) -> list[str]:
    rows = [
        ink.heading(say("hand heading")),
        "",
        *_code(
            ink,
            f"learning_rate = {number_text(lesson.optimizer.lr)}",
            "for f in model.parameters():",
            f"    f.data.sub_(f.grad.data * learning_rate)   # {say('code in place')}",
        ),
        "",
        f"    {lesson.parameter}      = {_list(lesson.by_hand, lesson, ink)}",
        "",
        say("hand place", place=place_name(lesson.parameter, lesson.index)),
        "",
        f"    {say('hand rule')}",
        f"    {lesson.hand.numbers} = {ink.result(_result(lesson.hand))}",
    ]
    if lesson.first.gradient == 0:
        rows += ["", *say_lines("hand no gradient")]
    elif lesson.optimizer.lr and _same(lesson.by_hand, lesson):
        rows += ["", *say_lines("hand too small")]
    return rows


def _by_optimizer(lesson: Lesson, ink: Ink) -> list[str]:
    chosen, first = lesson.optimizer, lesson.first
    rows = [
        ink.heading(say("optimizer heading")),
        "",
        say("optimizer beginning"),
        "",
        *_code(ink, f"optimizer = {chosen.code}", "optimizer.step()"),
        "",
        say("optimizer same rule" if chosen.plain else "optimizer other rule", name=chosen.name),
        "",
        first.explanation.text(ink, indent="    "),
        "",
    ]
    if first.explanation.weight == first.written:
        rows.append(say("optimizer agrees"))
    else:
        rows.append(say("optimizer wrote", written=repr(first.written)))
    if not chosen.plain:
        rows[-1] += say("optimizer by hand", result=_result(lesson.hand))
    return rows


def _comparison(lesson: Lesson, ink: Ink) -> list[str]:
    found, chosen = lesson.comparison, lesson.optimizer
    if chosen.plain:
        rows = [ink.heading(say("comparison heading", total=found.total)), ""]
    else:
        rows = [
            ink.heading(say("comparison heading two ways", total=found.total)),
            "",
            *say_lines("comparison engines"),
            "",
        ]
    rows += [*_counts(found.apart, found.total), ""]
    if set(found.apart) == {0}:
        rows.append(say("comparison none"))
        if chosen.plain and chosen.lr and math.frexp(chosen.lr)[0] == 0.5:
            rows.append(say("comparison no rounding"))
    elif chosen.plain:
        rows += [*say_lines("comparison why"), *_digits(lesson, ink)]
    else:
        rows += say_lines("comparison why rule")
    if found.torch_agrees is not None:
        if found.torch_agrees == found.total:
            count = say("count all", total=found.total)
        else:
            count = say("count of", part=found.torch_agrees, total=found.total)
        rows += ["", say("comparison torch", count=count)]
    return rows


def _counts(apart: dict[int, int], total: int) -> list[str]:
    """How many weights are how far apart."""
    width = len(f"{total:,}")

    def row(count: int, text: str) -> str:
        share = f"{100 * count / total:.1f} %" if 1000 * count >= total else "< 0.1 %"
        return f"    {count:>{width},}   {share:>7}   {text}"

    rows = [row(apart.get(0, 0), say("count agree"))]
    for n in sorted(n for n in apart if 0 < n <= 3):
        rows.append(row(apart[n], say("count differ" if n > 1 else "count differ by one", units=n)))
    far = [n for n in apart if n > 3]
    if far:
        count = sum(apart[n] for n in far)
        to = say("count range", low=4, high=max(far)) if max(far) > 4 else "4"
        rows.append(row(count, say("count differ", units=to)))
    return rows


def _digits(lesson: Lesson, ink: Ink) -> list[str]:
    """One weight with all its digits."""
    found = lesson.comparison.example
    if found is None:
        return []
    places = max(0, 3 - math.floor(math.log10(found.gap)))
    off = {
        value: float(abs(Fraction(value) - found.exact) / Fraction(found.gap))
        for value in (found.twice, found.once)
    }
    table: list[tuple[str, Any, str]] = [
        (say("digits weight"), found.weight, ""),
        (say("digits gradient"), found.gradient, ""),
        (say("digits rate"), found.lr, say("digits rate note")),
        (say("digits product exact"), found.product, ""),
        (say("digits product rounded"), found.rounded_product, say("digits product note")),
        (say("digits difference exact"), found.exact, ""),
        (say("digits twice"), found.twice, say("digits off", units=off[found.twice])),
        (say("digits once"), found.once, say("digits off", units=off[found.once])),
    ]
    numbers = [f"{decimal(value):.{places}f}".replace("-", "−") for _, value, _ in table]
    wide, widest = max(columns(label) for label, _, _ in table), max(map(len, numbers))
    rows = ["", say("digits beginning", place=found.place), ""]
    for (label, value, note), number in zip(table, numbers, strict=True):
        number = number.rjust(widest)
        marked = ink.result(number) if value == found.once else number
        row = f"    {to_left(label, wide)}   {marked}"
        rows.append(f"{row}   {ink.aside(note)}" if note else row)
    rows += ["", say("digits end", gap=found.gap)]
    return rows


def _zero_grad(lesson: Lesson, ink: Ink) -> list[str]:
    right, wrong = lesson.remembered, lesson.forgotten
    first, second = (
        digits_text(numpy.float32(g), 4) for g in (lesson.first.gradient, right.gradient)
    )
    place = place_name(lesson.parameter, lesson.index)
    labels = [say(f"zero {which}") for which in ("first gradient", "second gradient", "without")]
    labels += [say("zero weight with"), say("zero weight without")]
    wide = max(map(columns, labels))
    one, two, without, *new = (to_left(label, wide) for label in labels)
    return [
        ink.heading(say("zero heading")),
        "",
        *say_lines("zero beginning"),
        "",
        *_code(ink, "optimizer.zero_grad()"),
        "",
        say("zero second", place=place),
        "",
        f"    {one}   {first}",
        f"    {two}   {ink.result(second)}   {say('zero should')}",
        f"    {without}   {lesson.piled_up.numbers} = "
        f"{ink.warning(_result(lesson.piled_up))}   {say('zero does')}",
        "",
        *_weight_rows((right, wrong), new, ink),
        "",
        _verdict(lesson),
        _extent(lesson),
    ]


def _weight_rows(steps: Sequence[Step], labels: Sequence[str], ink: Ink) -> list[str]:
    rows = []
    for step, label, mark in zip(steps, labels, (ink.result, ink.warning), strict=True):
        last = next(line for line in step.explanation.lines if line.name == "w")
        start, result = f"    {label}   ", _result(last.equation)
        if last.equation.numbers:
            longer = f"{start}{last.equation.numbers} = "
            length = columns(longer)
            start = longer if length < 83 and length + columns(result) <= 100 else start
        rows.append(start + mark(result))
    return rows


def _verdict(lesson: Lesson) -> str:
    """What the forgotten line did to this weight."""
    before = float(lesson.after[lesson.index])
    right = lesson.remembered.written - before
    wrong = lesson.forgotten.written - before
    if not (math.isfinite(right) and math.isfinite(wrong)):
        return say("verdict too large")
    if right == wrong:
        return say("verdict same")
    if right == 0:
        return say("verdict moved")
    if wrong == 0:
        return say("verdict stayed")
    if wrong * right < 0:
        return say("verdict wrong way")
    longer = f"{wrong / right:.3g}"
    if longer == "1":
        return say("verdict nearly")
    return say("verdict longer", times=longer)


def _extent(lesson: Lesson) -> str:
    """How many weights it did something to."""
    total = lesson.comparison.total
    if not lesson.spoiled:
        return say("extent none", total=total)
    return say("extent some", total=total, spoiled=lesson.spoiled)


def _end(lesson: Lesson, ink: Ink) -> list[str]:
    other = "adam" if lesson.optimizer.name == "sgd" else "sgd"
    commands = (
        f"gradstep update --optimizer {other}",
        f"gradstep explain {lesson.optimizer.name}",
        "gradstep train",
    )
    return [
        say("end beginning"),
        "",
        *_code(
            ink,
            f"optimizer.zero_grad()   # {say('code forget')}",
            "loss = loss_function(model(image), target)",
            f"loss.backward()         # {say('code work out')}",
            f"optimizer.step()        # {say('code change')}",
        ),
        "",
        say("end next", commands=say("between commands").join(commands)),
    ]


# Pieces of text.


def _code(ink: Ink, *lines: str) -> list[str]:
    return [f"    {ink.code(line)}" for line in lines]


def _result(equation: Equation) -> str:
    """The result of an equation; where it shows, also what it was rounded to."""
    kept = equation.kept
    return equation.paper if kept is None else equation.paper + say("rounded to", number=kept)


def _same(tensor: Tensor, lesson: Lesson) -> bool:
    """Whether the weight that the lesson looks at has not changed."""
    return bool(tensor[lesson.index] == lesson.before[lesson.index])


def _list(tensor: Tensor, lesson: Lesson, ink: Ink) -> str:
    """Up to six elements, among them the one that the lesson looks at."""
    flat = tensor.flatten().numpy()
    position = int(numpy.ravel_multi_index(lesson.index, tuple(tensor.shape)))
    start = max(0, min(position - 2, len(flat) - 6))
    texts = [
        ink.result(digits_text(flat[i], 4)) if i == position else digits_text(flat[i], 4)
        for i in range(start, min(start + 6, len(flat)))
    ]
    before = ["…"] if start > 0 else []
    after = ["…"] if start + 6 < len(flat) else []
    return f"[{', '.join([*before, *texts, *after])}]"
