"""``gradstep update``: one update of a network's weights, number by number."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from gradstep.cli import arguments
from gradstep.cli.language import add_language, language_of

_EXAMPLES = """\
examples:
  gradstep update                                  the lesson
  gradstep update --lr 0.5                         with longer steps
  gradstep update --param fc3.weight --index 2,40  look at another weight
  gradstep update --optimizer adam                 what Adam makes of the same gradient
  gradstep update --optimizer my_rules:heavy_ball  a rule of your own, in my_rules.py
  gradstep update --language zh                    in Chinese
"""


def add_parser(subparsers: Any) -> None:
    """Add the command to the tree."""
    parser = subparsers.add_parser(
        "update",
        help="a first lesson: one update of a network's weights, number by number",
        description=(
            "How a network learns, in one step that you can check with a pocket calculator: a "
            "weight, its gradient, the update by hand, the same by an optimizer, and what happens "
            "if zero_grad() is forgotten. Needs no data and takes a few seconds."
        ),
        epilog=_EXAMPLES,
        formatter_class=arguments.Help,
    )
    parser.add_argument(
        "--param",
        default="conv1.bias",
        metavar="NAME",
        help="whose weights to look at: conv1, conv2, fc1, fc2 or fc3, followed by .weight or "
        ".bias (default: conv1.bias)",
    )
    parser.add_argument(
        "--index",
        type=arguments.index,
        metavar="I[,J…]",
        help="which weight of it, counted from 0, one number for each dimension (default: the "
        "first one that is above 0 and has a gradient above 0)",
    )
    parser.add_argument(
        "--lr",
        type=arguments.number,
        metavar="X",
        help="learning rate: how far the step goes (default: 0.1, for other optimizers than sgd "
        "what suits them)",
    )
    parser.add_argument(
        "--optimizer",
        default="sgd",
        metavar="NAME",
        help="sgd, momentum, nesterov, adam, adamw, rmsprop, adagrad, lion, any other name that "
        "'gradstep rules' lists, or module:name for a rule of your own (default: sgd)",
    )
    parser.add_argument(
        "--seed",
        type=arguments.seed,
        default=6,
        metavar="N",
        help="another number gives other weights and another image; the same number gives the "
        "same ones (default: 6)",
    )
    add_language(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command; returns the exit code."""
    from gradstep.lab.errors import BadInput
    from gradstep.lab.lesson import make_lesson
    from gradstep.lab.lesson_text import lesson_text
    from gradstep.sight.ink import ink_for, tell
    from gradstep.sight.language import speaking

    try:
        lesson = make_lesson(args.optimizer, args.param, args.index, args.lr, args.seed)
    except BadInput as error:
        print(f"gradstep update: {error}", file=sys.stderr)
        return 2
    with speaking(language_of(args, "gradstep update")):
        return tell("gradstep update", lesson_text(lesson, ink_for(sys.stdout)))
