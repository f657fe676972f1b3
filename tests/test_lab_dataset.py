"""Data sets: the digits and their split, random shifts, fingerprints."""

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gradstep.lab.dataset import Dataset, dataset_from_pixels, shifted
from gradstep.lab.digits import load_digits


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_digits(seed=0)


def test_the_digits_are_split_four_to_one_with_each_digit_in_both(digits: Dataset) -> None:
    assert digits.train_images.shape == (1437, 1, 32, 32)
    assert digits.test_images.shape == (360, 1, 32, 32)
    assert digits.train_images.dtype == torch.float32
    assert digits.train_labels.dtype == torch.int64
    train, test = (Counter(labels.tolist()) for labels in (digits.train_labels, digits.test_labels))
    assert sorted(train) == sorted(test) == list(range(10))
    for digit in range(10):
        assert abs(test[digit] - 0.2 * (train[digit] + test[digit])) < 1


def test_train_and_test_digits_together_are_those_of_scikit_learn(digits: Dataset) -> None:
    """Enlarging keeps each image's brightness, so that pairs it with the original."""
    from sklearn.datasets import load_digits as load

    images = torch.cat([digits.train_images, digits.test_images])
    labels = torch.cat([digits.train_labels, digits.test_labels])
    brightness = (images - digits.background).mean((1, 2, 3))
    original = torch.tensor(load().images, dtype=torch.float32).mean((1, 2))
    brightness *= original.mean() / brightness.mean()
    ours = sorted(zip(labels.tolist(), brightness.tolist(), strict=True))
    theirs = sorted(zip(load().target.tolist(), original.tolist(), strict=True))
    assert [label for label, _ in ours] == [label for label, _ in theirs]
    assert [value for _, value in ours] == pytest.approx([value for _, value in theirs], rel=1e-4)


def test_another_seed_chooses_other_test_digits(digits: Dataset) -> None:
    assert load_digits(seed=0).fingerprint() == digits.fingerprint()
    assert load_digits(seed=1).fingerprint() != digits.fingerprint()


def test_images_have_mean_0_and_spread_1_and_an_empty_pixel_is_background() -> None:
    pixels = torch.rand(50, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    pixels[:, :, :5] = 0
    labels = torch.zeros(50, dtype=torch.int64)
    data = dataset_from_pixels("some", pixels, labels, pixels[:7], labels[:7])
    assert data.train_images.mean().item() == pytest.approx(0, abs=1e-5)
    assert data.train_images.std().item() == pytest.approx(1, abs=1e-5)
    assert (data.train_images[:, :, :5] == data.background).all()
    assert torch.equal(data.test_images, data.train_images[:7])


def test_images_that_are_all_alike_are_no_division_by_zero() -> None:
    labels = torch.zeros(3, dtype=torch.int64)
    blank = torch.zeros(3, 1, 32, 32)
    assert dataset_from_pixels("blank", blank, labels, blank, labels).train_images.isfinite().all()


def test_limited_keeps_the_first_training_images_and_all_test_images(digits: Dataset) -> None:
    few = digits.limited(10)
    assert torch.equal(few.train_images, digits.train_images[:10])
    assert torch.equal(few.train_labels, digits.train_labels[:10])
    assert few.test_images is digits.test_images
    assert digits.limited(None) is digits


@pytest.mark.parametrize("part", ["train_images", "train_labels", "test_images", "test_labels"])
def test_the_fingerprint_changes_with_a_single_value(digits: Dataset, part: str) -> None:
    changed: Tensor = getattr(digits, part).clone()
    changed.view(-1)[17] += 1
    assert replace(digits, **{part: changed}).fingerprint() != digits.fingerprint()


def test_shifted_moves_each_image_whole_and_fills_with_background() -> None:
    images = torch.arange(2 * 6 * 7, dtype=torch.float32).reshape(2, 1, 6, 7).repeat(100, 1, 1, 1)
    moved = shifted(images, 2, -1.0, torch.Generator().manual_seed(0))
    seen = set()
    for image, result in zip(images, moved, strict=True):
        matches = [
            (down, right)
            for down in range(-2, 3)
            for right in range(-2, 3)
            if torch.equal(result[0], moved_by_hand(image[0], down, right, -1.0))
        ]
        assert len(matches) == 1
        seen.update(matches)
    assert len(seen) == 25  # 200 images: every one of the places occurs


def moved_by_hand(image: Tensor, down: int, right: int, background: float) -> Tensor:
    rows, columns = image.shape
    result = torch.full_like(image, background)
    for row in range(rows):
        for column in range(columns):
            if 0 <= row + down < rows and 0 <= column + right < columns:
                result[row + down, column + right] = image[row, column]
    return result


def test_shifted_leaves_its_input_alone_and_repeats_with_the_same_generator() -> None:
    images = torch.randn(5, 1, 32, 32)
    before = images.clone()
    first = shifted(images, 3, 0.0, torch.Generator().manual_seed(4))
    again = shifted(images, 3, 0.0, torch.Generator().manual_seed(4))
    other = shifted(images, 3, 0.0, torch.Generator().manual_seed(5))
    assert torch.equal(images, before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(shifted(images, 0, 0.0, torch.Generator()), images)
