"""The digits that come with scikit-learn: 1,797 of them, nothing to download."""

import torch
from torch.nn.functional import interpolate

from gradstep.lab.dataset import Dataset, dataset_from_pixels


def load_digits(seed: int = 0) -> Dataset:
    """Load the UCI handwritten digits, 8×8 pixels, enlarged to 32×32.

    A fifth of them, 360, is set aside for the test; each digit has its share in both parts.
    ``seed`` chooses which ones. Needs scikit-learn (``pip install gradstep[lab]``).
    """
    from sklearn.datasets import load_digits as load
    from sklearn.model_selection import train_test_split

    digits = load()
    train, test = train_test_split(
        range(len(digits.target)), test_size=0.2, stratify=digits.target, random_state=seed
    )
    pixels = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    pixels = interpolate(pixels, size=(32, 32), mode="bilinear", align_corners=False)
    labels = torch.tensor(digits.target, dtype=torch.int64)
    return dataset_from_pixels(
        "scikit-learn's digits", pixels[train], labels[train], pixels[test], labels[test]
    )
