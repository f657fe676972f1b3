"""The lesson of ``gradstep update`` in words."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy
from torch import Tensor

from gradstep.lab.lesson import Lesson, Step
from gradstep.lab.rounding import place_name
from gradstep.rule.notation import number_text
from gradstep.sight.digits import Equation, decimal, digits_text
from gradstep.sight.ink import Ink


def lesson_text(lesson: Lesson, ink: Ink) -> str:
    """The whole lesson, as text of about 92 columns."""
    parts = [_beginning, _backward, _by_hand, _by_optimizer, _comparison, _zero_grad, _end]
    return "\n\n".join("\n".join(part(lesson, ink)) for part in parts)


# The parts of the lesson, each as lines.


def _beginning(lesson: Lesson, ink: Ink) -> list[str]:
    weights = sum(lesson.sizes.values())
    return [
        ink.heading("One update of a network's weights"),
        "",
        f"LeNet is a small network that reads digits. It has {weights:,} weights: plain numbers.",
        "To learn is to change each of them a little, again and again:",
        "",
        "    " + ink.code("weight = weight − learning rate · gradient"),
        "",
        "The gradient says how fast the error grows when the weight grows. So the weight goes the",
        "other way, and the learning rate says how far.",
    ]


def _backward(lesson: Lesson, ink: Ink) -> list[str]:
    name = lesson.parameter
    before = _list(lesson.before, lesson, ink)
    loss = digits_text(numpy.float32(lesson.loss), 4)
    return [
        ink.heading("1. The gradient comes from backward()"),
        "",
        *_code(
            ink,
            "model = LeNet()",
            "image, target = torch.randn(1, 1, 32, 32), torch.randn(1, 10)   # at random",
            "loss = nn.functional.mse_loss(model(image), target)",
        ),
        "",
        f"The loss is {loss}: the error of the network's answer. We look at {name},",
        f"{lesson.sizes[name]:,} of the weights:",
        "",
        f"    {name}      = {before}",
        f"    {name}.grad = {lesson.gradient_before}   (nobody has asked for a gradient yet)",
        "",
        *_code(ink, "loss.backward()"),
        "",
        f"    {name}      = {before}   (unchanged)",
        f"    {name}.grad = {_list(lesson.gradient, lesson, ink)}",
    ]


def _by_hand(lesson: Lesson, ink: Ink) -> list[str]:
    rows = [
        ink.heading("2. The update by hand"),
        "",
        *_code(
            ink,
            f"learning_rate = {number_text(lesson.optimizer.lr)}",
            "for f in model.parameters():",
            "    f.data.sub_(f.grad.data * learning_rate)   # sub_ subtracts in place",
        ),
        "",
        f"    {lesson.parameter}      = {_list(lesson.by_hand, lesson, ink)}",
        "",
        f"For {place_name(lesson.parameter, lesson.index)} that was:",
        "",
        "    weight − gradient · learning rate",
        f"    {lesson.hand.numbers} = {ink.result(_result(lesson.hand))}",
    ]
    if lesson.first.gradient == 0:
        rows += [
            "",
            "Its gradient is 0: this weight has no influence on the loss here, and stays as it is.",
            "Choose another one with --index.",
        ]
    elif lesson.optimizer.lr and _same(lesson.by_hand, lesson):
        rows += [
            "",
            "The step is so small that a float32 number has no digit for it: the weight stays the",
            "same.",
        ]
    return rows


def _by_optimizer(lesson: Lesson, ink: Ink) -> list[str]:
    chosen, first = lesson.optimizer, lesson.first
    rule = (
        "Its rule is that very line. (w is the weight, g its gradient, lr the learning rate.)"
        if chosen.plain
        else f"Its rule is another. ('gradstep explain {chosen.name}' says what the names mean.)"
    )
    rows = [
        ink.heading("3. The update by an optimizer"),
        "",
        "The same network with the same gradients. Now an optimizer does the work:",
        "",
        *_code(ink, f"optimizer = {chosen.code}", "optimizer.step()"),
        "",
        rule,
        "",
        first.explanation.text(ink, indent="    "),
        "",
    ]
    if first.explanation.weight == first.written:
        rows.append("That is what step() wrote, bit for bit.")
    else:
        rows.append(f"step() wrote {first.written!r}.")
    if not chosen.plain:
        rows[-1] += f" By hand it was {_result(lesson.hand)}."
    return rows


def _comparison(lesson: Lesson, ink: Ink) -> list[str]:
    found, chosen = lesson.comparison, lesson.optimizer
    if chosen.plain:
        rows = [ink.heading(f"4. By hand and by the optimizer: all {found.total:,} weights"), ""]
    else:
        rows = [
            ink.heading(f"4. Worked out in two ways: all {found.total:,} weights"),
            "",
            "engine='eager' runs this rule as it is written, one of torch's operations after the",
            "other. The optimizer above ran one loop for all of it. Compared:",
            "",
        ]
    rows += [*_counts(found.apart, found.total), ""]
    if set(found.apart) == {0}:
        rows.append("Not one was rounded otherwise.")
        if chosen.plain and chosen.lr and math.frexp(chosen.lr)[0] == 0.5:
            rows.append(
                "With a learning rate such as 0.5 or 0.25, gradient · lr needs no rounding."
            )
    elif chosen.plain:
        rows += [*_WHY, *_digits(lesson, ink)]
    else:
        rows += _WHY_RULE
    if found.torch_agrees is not None:
        all_agree = found.torch_agrees == found.total
        count = (
            f"all {found.total:,}" if all_agree else f"{found.torch_agrees:,} of {found.total:,}"
        )
        rows += [
            "",
            f"torch.optim.SGD rounds once as well: {count} weights agree with the optimizer's, bit "
            "for bit.",
        ]
    return rows


_WHY = [
    "Why do some differ? A float32 number has 24 binary digits, about 7 decimal ones. What does",
    "not fit is rounded off, to the nearest number that fits. By hand, the product is rounded, and",
    "then the difference: twice. The optimizer rounds once, at the end (a fused multiply-add).",
]
_WHY_RULE = [
    "Both are right. A float32 number has 24 binary digits, about 7 decimal ones, and what does",
    "not fit is rounded off. The loop rounds once where torch's operations round twice: a product",
    "and the sum that takes it in are one operation (a fused multiply-add).",
]


def _counts(apart: dict[int, int], total: int) -> list[str]:
    """How many weights are how far apart."""
    width = len(f"{total:,}")

    def row(count: int, text: str) -> str:
        share = f"{100 * count / total:.1f} %" if 1000 * count >= total else "< 0.1 %"
        return f"    {count:>{width},}   {share:>7}   {text}"

    rows = [row(apart.get(0, 0), "agree in every bit")]
    for n in sorted(n for n in apart if 0 < n <= 3):
        rows.append(row(apart[n], f"differ by {n} unit{'s' * (n > 1)} in the last place"))
    far = [n for n in apart if n > 3]
    if far:
        count = sum(apart[n] for n in far)
        to = f"4 to {max(far):,}" if max(far) > 4 else "4"
        rows.append(row(count, f"differ by {to} units in the last place"))
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
        ("weight", found.weight, ""),
        ("gradient", found.gradient, ""),
        ("learning rate", found.lr, "the float32 number nearest to it"),
        ("gradient · lr, exact", found.product, ""),
        ("gradient · lr, rounded", found.rounded_product, "what the update by hand goes on with"),
        ("weight − gradient · lr, exact", found.exact, ""),
        ("  rounded twice, by hand", found.twice, f"off by {off[found.twice]:.2f} units"),
        ("  rounded once, optimizer", found.once, f"off by {off[found.once]:.2f} units"),
    ]
    numbers = [f"{decimal(value):.{places}f}".replace("-", "−") for _, value, _ in table]
    wide, widest = max(len(label) for label, _, _ in table), max(map(len, numbers))
    rows = ["", f"{found.place} with more digits than a float32 number has:", ""]
    for (label, value, note), number in zip(table, numbers, strict=True):
        number = number.rjust(widest)
        row = f"    {label:<{wide}}   {ink.result(number) if value == found.once else number}"
        rows.append(f"{row}   {ink.aside(note)}" if note else row)
    rows += ["", f"A unit in the last place is {found.gap:.1e} here: the gap to the next number."]
    return rows


def _zero_grad(lesson: Lesson, ink: Ink) -> list[str]:
    right, wrong = lesson.remembered, lesson.forgotten
    first, second = (
        digits_text(numpy.float32(g), 4) for g in (lesson.first.gradient, right.gradient)
    )
    place = place_name(lesson.parameter, lesson.index)
    return [
        ink.heading("5. If zero_grad() is forgotten"),
        "",
        "backward() does not replace a gradient: it adds to the one that is there. So the old one",
        "must go before the next image:",
        "",
        *_code(ink, "optimizer.zero_grad()"),
        "",
        f"A second image and target, with that line and without, for {place}:",
        "",
        f"    gradient of the first image    {first}",
        f"    gradient of the second image   {ink.result(second)}   the one that should arrive",
        f"    without zero_grad()            {lesson.piled_up.numbers} = "
        f"{ink.warning(_result(lesson.piled_up))}   the one that does",
        "",
        *_weight_rows(right, wrong, ink),
        "",
        _verdict(lesson),
        _extent(lesson),
    ]


def _weight_rows(right: Step, wrong: Step, ink: Ink) -> list[str]:
    rows = []
    for step, label, mark in (
        (right, "with zero_grad()", ink.result),
        (wrong, "without it", ink.warning),
    ):
        last = next(line for line in step.explanation.lines if line.name == "w")
        start, result = f"    new weight, {label:<16}   ", _result(last.equation)
        if last.equation.numbers:
            longer = f"{start}{last.equation.numbers} = "
            start = longer if len(longer) < 83 and len(longer) + len(result) <= 100 else start
        rows.append(start + mark(result))
    return rows


def _verdict(lesson: Lesson) -> str:
    """What the forgotten line did to this weight."""
    before = float(lesson.after[lesson.index])
    right = lesson.remembered.written - before
    wrong = lesson.forgotten.written - before
    if not (math.isfinite(right) and math.isfinite(wrong)):
        return "These steps are too large for float32 numbers. Choose a smaller learning rate."
    if right == wrong:
        return "This weight is lucky: both steps are the same."
    if right == 0:
        return "The weight moves, and should have stayed."
    if wrong == 0:
        return "The weight stays, and should have moved."
    if wrong * right < 0:
        return "The weight goes the wrong way."
    longer = f"{wrong / right:.3g}"
    if longer == "1":
        return "This weight is lucky: both steps are nearly the same."
    return f"The step is {longer} times as long as it should be."


def _extent(lesson: Lesson) -> str:
    """How many weights it did something to."""
    total = f"{lesson.comparison.total:,}"
    if not lesson.spoiled:
        return f"So it is with all {total} weights here."
    return (
        f"Of all {total} weights, {lesson.spoiled:,} end up elsewhere; further images add to that."
    )


def _end(lesson: Lesson, ink: Ink) -> list[str]:
    other = "adam" if lesson.optimizer.name == "sgd" else "sgd"
    return [
        "So each round of training is:",
        "",
        *_code(
            ink,
            "optimizer.zero_grad()   # forget the old gradients",
            "loss = loss_function(model(image), target)",
            "loss.backward()         # work out new ones",
            "optimizer.step()        # change the weights",
        ),
        "",
        f"Next: gradstep update --optimizer {other}, gradstep explain {lesson.optimizer.name}, "
        "gradstep train",
    ]


# Pieces of text.


def _code(ink: Ink, *lines: str) -> list[str]:
    return [f"    {ink.code(line)}" for line in lines]


def _result(equation: Equation) -> str:
    """The result of an equation; where it shows, also what it was rounded to."""
    kept = equation.kept
    return equation.paper if kept is None else f"{equation.paper}, rounded to {kept}"


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
