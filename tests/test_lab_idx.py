"""MNIST's file format: files that this test writes by hand, whole and broken in every way."""

import gzip
import struct
from pathlib import Path

import numpy
import pytest
import torch

from gradstep.lab.errors import DataError
from gradstep.lab.idx import load_idx, read_idx

FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist


def idx(values: numpy.ndarray) -> bytes:
    """The format as its authors describe it, written independently of the reader."""
    return (
        bytes([0, 0, 8, values.ndim])
        + b"".join(struct.pack(">i", size) for size in values.shape)
        + values.astype(numpy.uint8).tobytes()
    )


def write_folder(folder: Path, side: int = 28, packed: bool = False, dot: bool = False) -> Path:
    """Twelve training and five test images of random pixels."""
    random = numpy.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    for part, count in (("train", 12), ("t10k", 5)):
        images = random.integers(0, 256, (count, side, side))
        labels = random.integers(0, 10, count)
        for kind, content in (
            ("images-idx3-ubyte", idx(images)),
            ("labels-idx1-ubyte", idx(labels)),
        ):
            name = f"{part}-{kind}"
            if dot:
                name = name.replace("-idx", ".idx")
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
    return folder


def test_images_of_28_pixels_stand_in_the_middle_of_32(tmp_path: Path) -> None:
    data = load_idx(write_folder(tmp_path))
    assert data.train_images.shape == (12, 1, 32, 32)
    assert data.test_images.shape == (5, 1, 32, 32)
    assert data.train_labels.dtype == torch.int64
    pixels = numpy.random.default_rng(0).integers(0, 256, (12, 28, 28))
    framed = numpy.pad(pixels / 255, ((0, 0), (2, 2), (2, 2)))
    expected = (framed - framed.mean()) / framed.std(ddof=1)
    numpy.testing.assert_allclose(data.train_images[:, 0].numpy(), expected, atol=1e-5)
    assert data.background == pytest.approx(-framed.mean() / framed.std(ddof=1))


def test_gzipped_or_with_a_dot_in_the_name_they_are_the_same_data(tmp_path: Path) -> None:
    plain = load_idx(write_folder(tmp_path / "plain")).fingerprint()
    assert load_idx(write_folder(tmp_path / "packed", packed=True)).fingerprint() == plain
    assert load_idx(write_folder(tmp_path / "dot", dot=True)).fingerprint() == plain


@pytest.mark.parametrize("side", [1, 27, 32])
def test_other_sizes_up_to_32_fit(tmp_path: Path, side: int) -> None:
    assert load_idx(write_folder(tmp_path, side)).train_images.shape == (12, 1, 32, 32)


def broken(folder: Path, name: str, content: bytes | None) -> None:
    """Replace a file of the folder, or take it away."""
    path = folder / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
FAULTS = {
    "missing images": (IMAGES, None, "no file train-images-idx3-ubyte"),
    "missing labels": ("t10k-labels-idx1-ubyte", None, "no file t10k-labels-idx1-ubyte"),
    "empty file": (IMAGES, b"", "cut short"),
    "half a magic number": (IMAGES, b"\0\0", "cut short"),
    "half a header": (IMAGES, idx(numpy.zeros((12, 28, 28)))[:11], "cut short"),
    "one byte short": (IMAGES, idx(numpy.zeros((12, 28, 28)))[:-1], "cut short"),
    "one byte too many": (IMAGES, idx(numpy.zeros((12, 28, 28))) + b"\0", "too long"),
    "a header that lies": (IMAGES, bytes([0, 0, 8, 3]) + b"\xff" * 12, "cut short"),
    "labels for images": (IMAGES, idx(numpy.zeros(12)), "not an idx file of images"),
    "images for labels": (LABELS, idx(numpy.zeros((12, 28, 28))), "not an idx file of labels"),
    "text": (IMAGES, b"hello, world, this is no image", "not an idx file"),
    "floats": (LABELS, bytes([0, 0, 13, 1]) + struct.pack(">i", 12) + bytes(48), "not an idx"),
    "little-endian": (LABELS, bytes([1, 8, 0, 0]) + bytes(16), "not an idx file"),
    "fewer labels": (LABELS, idx(numpy.zeros(11)), "12 images .* but 11 labels"),
    "more labels": (LABELS, idx(numpy.zeros(13)), "12 images .* but 13 labels"),
    "label 10": (LABELS, idx(numpy.full(12, 10)), "label 10"),
    "images too large": (IMAGES, idx(numpy.zeros((12, 33, 28))), "33×28 pixels"),
    "another size than the test": (IMAGES, idx(numpy.zeros((12, 20, 20))), "differ in size"),
    "no images at all": (IMAGES, idx(numpy.zeros((0, 28, 28))), "12 labels"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_file_is_named_with_its_fault(tmp_path: Path, fault: str) -> None:
    name, content, message = FAULTS[fault]
    write_folder(tmp_path)
    broken(tmp_path, name, content)
    with pytest.raises(DataError, match=message) as caught:
        load_idx(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_without_images_is_an_error(tmp_path: Path) -> None:
    write_folder(tmp_path)
    broken(tmp_path, IMAGES, idx(numpy.zeros((0, 28, 28))))
    broken(tmp_path, LABELS, idx(numpy.zeros(0)))
    with pytest.raises(DataError, match="no images"):
        load_idx(tmp_path)


def test_a_gzip_file_that_is_cut_short_or_spoilt_is_an_error(tmp_path: Path) -> None:
    write_folder(tmp_path, packed=True)
    path = tmp_path / f"{IMAGES}.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cut short"):
        load_idx(tmp_path)
    path.write_bytes(whole[:200] + bytes(20) + whole[220:])
    with pytest.raises(DataError, match=IMAGES):
        load_idx(tmp_path)
    path.write_bytes(b"not gzip at all")
    with pytest.raises(DataError, match="not a whole gzip file"):
        load_idx(tmp_path)


def test_a_folder_that_is_not_there_or_is_a_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        load_idx(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is not a folder"):
        load_idx(tmp_path / "file")
    write_folder(tmp_path / "data")
    broken(tmp_path / "data", IMAGES, None)
    (tmp_path / "data" / IMAGES).mkdir()
    with pytest.raises(DataError, match=IMAGES):
        load_idx(tmp_path / "data")


def test_read_idx_gives_the_values_in_their_shape(tmp_path: Path) -> None:
    values = numpy.arange(2 * 3 * 4, dtype=numpy.uint8).reshape(2, 3, 4)
    path = tmp_path / "values"
    path.write_bytes(idx(values))
    tensor = read_idx(path, dimensions=3)
    assert tensor.dtype == torch.uint8
    assert numpy.array_equal(tensor.numpy(), values)


@pytest.mark.skipif(not FASHION.is_dir(), reason="the package dataset-fashion-mnist is not here")
def test_fashion_mnist_as_debian_packs_it() -> None:
    data = load_idx(FASHION)
    assert data.train_images.shape == (60_000, 1, 32, 32)
    assert data.test_images.shape == (10_000, 1, 32, 32)
    assert data.train_labels.bincount().tolist() == [6000] * 10
    assert data.test_labels.bincount().tolist() == [1000] * 10
