"""The pictures: what they show, read back from the figures and from their pixels."""

import io
import math
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from gradstep.lab import race_page
from gradstep.lab.colours import COLOURS, colour_of
from gradstep.lab.optimizers import TRAINABLE
from gradstep.lab.plots import draw_curves, draw_filters, draw_mistakes, png
from gradstep.lab.rule_pages import draw


def records(**accuracies: list[float]) -> list[dict[str, Any]]:
    return [
        {
            "epoch": epoch + 1,
            "optimizer": name,
            "train_loss": 2.0 / (epoch + 1),
            "test_accuracy": values[epoch],
        }
        for epoch in range(len(next(iter(accuracies.values()))))
        for name, values in accuracies.items()
    ]


def pixels(figure: Any) -> numpy.ndarray:
    from matplotlib.image import imread

    image: numpy.ndarray = imread(io.BytesIO(png(figure)), format="png")
    return image


def test_no_two_optimizers_look_alike() -> None:
    figure = draw_curves(records(**{name: [0.5, 0.9] for name in TRAINABLE}))
    lines = figure.axes[0].lines
    looks = {(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}
    assert len(looks) == len(TRAINABLE)


def test_a_rule_has_one_colour_in_all_pictures() -> None:
    # The pages' pictures are drawn in these: a rule that is added must not change them.
    colours = {"sgd": "#0072B2", "adam": "#CC79A7", "lion": "#8C6BB1", "adan": "#56B4E9"}
    assert {name: colour_of(name) for name in colours} == colours
    curves = draw_curves(records(**{name: [0.5, 0.9] for name in colours})).axes[0].lines
    assert [line.get_color() for line in curves] == list(colours.values())
    valley = draw("adan", None).axes[0]
    assert valley.lines[0].get_color() == colours["adan"]  # its path; then start and lowest point


def test_curves_have_a_line_for_each_optimizer_in_both_halves() -> None:
    figure = draw_curves(records(sgd=[0.5, 0.9, 0.95], adam=[0.8, 0.97, 1.0]))
    loss_axes, accuracy_axes = figure.axes
    assert [line.get_ydata().tolist() for line in loss_axes.lines] == [
        pytest.approx([2, 1, 2 / 3])
    ] * 2
    assert [line.get_ydata().tolist() for line in accuracy_axes.lines] == [
        pytest.approx([50, 90, 95]),
        pytest.approx([80, 97, 100]),
    ]
    assert [text.get_text() for text in accuracy_axes.get_legend().get_texts()] == [
        "sgd: 95.0 %",
        "adam: 100.0 %",
    ]
    lowest, highest = accuracy_axes.get_ylim()
    assert lowest < 50 and highest >= 100  # nothing is cut off
    assert len({line.get_color() for line in loss_axes.lines}) == 2
    image = pixels(figure)
    assert image.shape[0] > 500 and image.shape[1] > 1000
    assert image.std() > 0.05


@pytest.mark.parametrize("accuracy", [0.0, 0.1, 0.9, 1.0])
def test_curves_of_a_single_epoch_and_of_any_accuracy_can_be_drawn(accuracy: float) -> None:
    figure = draw_curves(records(sgd=[accuracy]))
    pixels(figure)
    lowest, highest = figure.axes[1].get_ylim()
    assert lowest <= 100 * accuracy <= highest
    assert all(lowest <= tick <= highest for tick in figure.axes[1].get_yticks())


def test_curves_without_a_finite_loss_can_be_drawn() -> None:
    broken = records(sgd=[0.1, 0.1])
    for record in broken:
        record["train_loss"] = math.nan
    pixels(draw_curves(broken))
    broken[0]["train_loss"] = math.inf
    pixels(draw_curves(broken))


def test_filters_stand_in_rows_before_and_after_with_their_own_values() -> None:
    torch.manual_seed(0)
    before, sgd, lion = torch.randn(3, 6, 1, 5, 5)
    figure = draw_filters(before, {"sgd": sgd, "lion": lion})
    (sheet,) = figure.axes
    shown = [i.get_array() for i in sheet.images if i.get_array().shape == (5, 5)]
    for picture, kernel in zip(shown, torch.cat([before, sgd, lion]), strict=True):
        numpy.testing.assert_array_equal(picture, kernel[0])
    texts = [text.get_text() for text in figure.texts]
    assert texts[1:] == ["before", "after sgd", "after lion"]
    pixels(figure)


def test_filters_of_zeros_or_nan_can_be_drawn() -> None:
    pixels(draw_filters(torch.zeros(6, 1, 5, 5), {"sgd": torch.full((6, 1, 5, 5), math.nan)}))


def scores_for(answers: list[int], sureness: list[float]) -> torch.Tensor:
    scores = torch.zeros(len(answers), 10)
    for row, (answer, sure) in enumerate(zip(answers, sureness, strict=True)):
        scores[row, answer] = sure
    return scores


def test_mistakes_show_the_wrong_images_with_both_labels_the_surest_first() -> None:
    images = torch.arange(6.0).reshape(6, 1, 1, 1).expand(6, 1, 32, 32)
    labels = torch.tensor([0, 1, 2, 3, 4, 5])
    scores = scores_for([0, 7, 2, 8, 4, 9], [9, 2, 9, 6, 9, 4])
    figure = draw_mistakes(images, labels, {"adam": scores})
    assert [text.get_text() for text in figure.texts] == ["adam: 3 of 6 test images read wrong"]
    (sheet,) = figure.axes
    assert [float(image.get_array()[0, 0]) for image in sheet.images] == [3.0, 5.0, 1.0]
    words = [text.get_text() for text in sheet.texts]
    assert words == ["says 8", "is 3", "says 9", "is 5", "says 7", "is 1"]
    for image, says, truth in zip(sheet.images, sheet.texts[::2], sheet.texts[1::2], strict=True):
        left, right, bottom, top = image.get_extent()
        assert says.get_position()[0] == truth.get_position()[0]
        assert left < says.get_position()[0] < right
        assert truth.get_position()[1] < bottom < top < says.get_position()[1]
    pixels(figure)


def test_no_mistake_is_a_picture_too() -> None:
    labels = torch.tensor([1, 2])
    right = scores_for([1, 2], [5, 5])
    figure = draw_mistakes(torch.zeros(2, 1, 32, 32), labels, {"adam": right})
    assert figure.texts[0].get_text() == "adam: 0 of 2 test images read wrong"
    assert not figure.axes[0].images
    pixels(figure)


def test_many_mistakes_fill_four_rows_of_one_or_one_row_of_each() -> None:
    images, labels = torch.zeros(100, 1, 32, 32), torch.zeros(100, dtype=torch.int64)
    wrong = scores_for([1] * 100, [1.0] * 100)
    alone = draw_mistakes(images, labels, {"adam": wrong})
    assert len(alone.axes[0].images) == 40
    assert alone.texts[0].get_text() == "adam: 100 of 100 test images read wrong; the 40 surest"
    both = draw_mistakes(images, labels, {"adam": wrong, "sgd": wrong})
    assert len(both.axes[0].images) == 20
    pixels(both)


def test_the_page_of_a_race_has_the_same_colours() -> None:
    figure = draw_curves(records(**{name: [0.5, 0.6] for name in TRAINABLE}))
    drawn = [line.get_color() for line in figure.axes[0].get_lines()]
    assert drawn == [colour_of(name) for name in TRAINABLE]
    page = Path(race_page.__file__).with_suffix(".js").read_text(encoding="utf-8")
    assert ", ".join(f'"{colour}"' for colour in COLOURS) in page
