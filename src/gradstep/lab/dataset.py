"""What a data set is here: images to learn from, images to be tested on."""

import hashlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad


@dataclass(frozen=True)
class Dataset:
    """Images and their labels.

    Images are float32 of shape ``(n, 1, 32, 32)``, with the mean 0 and the spread 1 over the
    training images; labels are int64 of shape ``(n,)``, each from 0 to 9. ``background`` is the
    value that an empty pixel has. ``name`` says where the data came from. A text has stretches of
    characters for images: see :func:`gradstep.lab.text.load_text`.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    background: float

    def limited(self, train_limit: int | None, test_limit: int | None = None) -> "Dataset":
        """The same with only the first images to learn from, and to be tested on (all, if None)."""
        found = self
        if train_limit is not None:
            images, labels = self.train_images[:train_limit], self.train_labels[:train_limit]
            found = replace(found, train_images=images, train_labels=labels)
        if test_limit is not None:
            images, labels = self.test_images[:test_limit], self.test_labels[:test_limit]
            found = replace(found, test_images=images, test_labels=labels)
        return found

    def fingerprint(self) -> str:
        """A short text that is another one as soon as one pixel or label is another."""
        sha256 = hashlib.sha256()
        for tensor in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            sha256.update(str(tuple(tensor.shape)).encode())
            sha256.update(tensor.contiguous().numpy().data)
        return sha256.hexdigest()[:16]


def dataset_from_pixels(
    name: str,
    train_pixels: Tensor,
    train_labels: Tensor,
    test_pixels: Tensor,
    test_labels: Tensor,
) -> Dataset:
    """Make a data set of float32 images ``(n, 1, 32, 32)`` whose empty pixels are 0."""
    mean = train_pixels.mean().item()
    spread = train_pixels.std().item() or 1.0
    return Dataset(
        name=name,
        train_images=(train_pixels - mean) / spread,
        train_labels=train_labels,
        test_images=(test_pixels - mean) / spread,
        test_labels=test_labels,
        background=(0.0 - mean) / spread,
    )


def shifted(images: Tensor, furthest: int, background: float, random: torch.Generator) -> Tensor:
    """Move each image by up to ``furthest`` pixels, up or down and left or right, at random.

    A digit that has moved is the same digit: so the network sees more digits than there are,
    and learns not to depend on where one stands. What comes in at the rim is ``background``.
    ``images`` is ``(n, channels, height, width)`` and stays as it is; the result is a new tensor
    of that shape.
    """
    if furthest == 0:
        return images
    n, _, height, width = images.shape
    framed = pad(images, [furthest] * 4, value=background)
    # Every place that a window of the old size can have in the framed image, without a copy.
    windows = framed.unfold(2, height, 1).unfold(3, width, 1)
    places = 2 * furthest + 1
    down = torch.randint(places, (n,), generator=random)
    right = torch.randint(places, (n,), generator=random)
    return windows[torch.arange(n), :, down, right]
