"""Data in the format of MNIST: four files, each a short header and then plain bytes.

A file begins with two zero bytes, one that names the type (8: unsigned bytes), one that says how
many dimensions there are, and then the size of each dimension as a big-endian 32-bit number. The
images have three dimensions (how many, rows, columns), the labels one.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy
import torch
from torch import Tensor
from torch.nn.functional import pad

from gradstep.lab.dataset import Dataset, dataset_from_pixels
from gradstep.lab.errors import DataError

SIDE = 32  # what LeNet takes
CLASSES = 10
_UNSIGNED_BYTES = 8


def load_idx(directory: Path) -> Dataset:
    """Load the four files of MNIST, Fashion-MNIST or the like from ``directory``.

    They are ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte``
    and ``t10k-labels-idx1-ubyte``, plain or with ``.gz``. Images may have up to 32×32 pixels;
    smaller ones, as MNIST's 28×28, get an empty frame. Labels are 0 to 9.

    Raises DataError, naming the file, if one is missing, cut short or of another format, or if
    there are not as many labels as images.
    """
    directory = Path(directory)
    if not directory.exists():
        raise DataError(f"there is no folder {directory}")
    if not directory.is_dir():
        raise DataError(f"{directory} is not a folder")
    train_pixels, train_labels = _load_part(directory, "train")
    test_pixels, test_labels = _load_part(directory, "t10k")
    if train_pixels.shape[2:] != test_pixels.shape[2:]:
        raise DataError(f"{directory}: training and test images differ in size")
    return dataset_from_pixels(
        str(directory), _framed(train_pixels), train_labels, _framed(test_pixels), test_labels
    )


def _load_part(directory: Path, part: str) -> tuple[Tensor, Tensor]:
    """Images ``(n, 1, rows, columns)`` from 0 to 1 and labels ``(n,)`` of one part."""
    images_path = _find(directory, f"{part}-images", "idx3-ubyte")
    labels_path = _find(directory, f"{part}-labels", "idx1-ubyte")
    images = read_idx(images_path, dimensions=3)
    labels = read_idx(labels_path, dimensions=1)
    if len(images) != len(labels):
        raise DataError(
            f"{directory}: {len(images):,} images in {images_path.name}, "
            f"but {len(labels):,} labels in {labels_path.name}"
        )
    if images.numel() == 0:
        raise DataError(f"{images_path}: no images in it")
    if max(images.shape[1:]) > SIDE:
        rows, columns = images.shape[1:]
        raise DataError(
            f"{images_path}: images of {rows}×{columns} pixels; at most {SIDE}×{SIDE} fit"
        )
    if labels.max() >= CLASSES:
        raise DataError(f"{labels_path}: label {labels.max().item()}; labels must be 0 to 9")
    return images.unsqueeze(1).float() / 255, labels.long()


def _find(directory: Path, name: str, kind: str) -> Path:
    """The file, plain or gzipped, with MNIST's hyphen or the dot that some copies have."""
    for separator in "-.":
        for ending in ("", ".gz"):
            path = directory / f"{name}{separator}{kind}{ending}"
            if path.exists():
                return path
    raise DataError(f"{directory}: no file {name}-{kind} (or {name}-{kind}.gz) in it")


def read_idx(path: Path, dimensions: int) -> Tensor:
    """Read one idx file of unsigned bytes as a uint8 tensor with so many dimensions.

    Raises DataError if it cannot be read, is of another format, or does not have the
    number of bytes that its header promises.
    """
    content = _read_bytes(path)
    start = struct.pack(">HBB", 0, _UNSIGNED_BYTES, dimensions)
    if content[:4] != start[: len(content)]:
        what = {1: "labels", 3: "images"}.get(dimensions, f"{dimensions} dimensions")
        raise DataError(
            f"{path}: not an idx file of {what}: "
            f"it begins with {content[:4].hex(' ')}, not {start.hex(' ')}"
        )
    header = 4 + 4 * dimensions
    if len(content) < header:
        raise DataError(f"{path}: cut short: {len(content)} bytes, the header alone has {header}")
    shape = struct.unpack(f">{dimensions}I", content[4:header])
    promised, found = math.prod(shape), len(content) - header
    if found != promised:
        fault = "cut short" if found < promised else "too long"
        raise DataError(
            f"{path}: {fault}: the header promises {promised:,} bytes, {found:,} follow"
        )
    values = numpy.frombuffer(content, numpy.uint8, offset=header)
    return torch.from_numpy(values.copy()).reshape(shape)


def _read_bytes(path: Path) -> bytes:
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as file:
                return file.read()
        return path.read_bytes()
    except EOFError:
        raise DataError(f"{path}: cut short: the gzip file ends too early") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: not a whole gzip file: {error}") from None
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}") from None


def _framed(pixels: Tensor) -> Tensor:
    """Put empty pixels around the images, as many on each side, until they are 32×32."""
    rows, columns = pixels.shape[2:]
    above, left = (SIDE - rows) // 2, (SIDE - columns) // 2
    return pad(pixels, (left, SIDE - columns - left, above, SIDE - rows - above))
