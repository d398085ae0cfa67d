"""`npz:` and `folder:` sources, right and wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunus.data import load
from prunus.errors import InputError, MissingExtraError, ShapeError, StoredFileError

IMAGES = np.random.default_rng(0).integers(0, 256, (40, 6, 6), dtype=np.uint8)
LABELS = np.arange(40) % 4


def stored(folder: Path, **arrays: Any) -> str:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return f"npz:{path}"


def test_npz_with_named_splits(tmp_path):
    spec = stored(
        tmp_path, train_images=IMAGES[:20], train_labels=LABELS[:20], val_images=IMAGES[20:30],
        val_labels=LABELS[20:30], test_images=IMAGES[30:], test_labels=LABELS[30:], class_names=np.array(["a", "b",
        "c", "d"]), remark=np.array("mine"),
    )  # fmt: skip
    source = load(spec)
    assert [len(s) for s in source.splits.values()] == [20, 10, 10]
    assert source.class_names == ("a", "b", "c", "d")
    assert np.array_equal(source.validation.inputs[:, 0].numpy(), IMAGES[20:30])
    assert source.name == spec


def test_npz_with_one_pool_is_divided(tmp_path):
    source = load(stored(tmp_path, images=IMAGES, labels=LABELS), validation=0.25)
    assert [len(s) for s in source.splits.values()] == [24, 8, 8]


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": IMAGES, "y": LABELS}, "holds x, y. It needs train_images and train_labels"),
        ({}, "holds nothing"),
        ({"images": IMAGES}, "missing: labels"),
        ({"train_images": IMAGES}, "missing: train_labels"),
        ({"test_images": IMAGES, "test_labels": LABELS}, "It needs train_images"),
        ({"train_images": IMAGES, "train_labels": LABELS, "val_images": IMAGES}, "missing: val_labels"),
    ],
)
def test_npz_with_wrong_keys_says_which_it_needs(tmp_path, arrays, says):
    with pytest.raises(InputError, match=says):
        load(stored(tmp_path, **arrays))


def test_npz_with_python_objects_is_never_opened(tmp_path):
    class Trap:
        def __reduce__(self):
            return (open, (str(tmp_path / "sprung"), "w"))

    with pytest.raises(StoredFileError, match="Python objects, which are never opened"):
        load(stored(tmp_path, images=np.array([Trap()], dtype=object), labels=LABELS))
    assert not (tmp_path / "sprung").exists()


def test_npz_that_is_missing_truncated_or_something_else(tmp_path):
    with pytest.raises(StoredFileError, match="does not exist"):
        load(f"npz:{tmp_path / 'absent.npz'}")
    path = Path(stored(tmp_path, images=IMAGES, labels=LABELS).removeprefix("npz:"))
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(StoredFileError, match="cannot be read as .npz|no .npz file"):
        load(f"npz:{path}")
    path.write_bytes(b"")
    with pytest.raises(StoredFileError, match="cannot be read"):
        load(f"npz:{path}")
    path.write_text("hello, this is text")
    with pytest.raises(StoredFileError, match="no .npz file"):
        load(f"npz:{path}")
    np.save(tmp_path / "one.npy", IMAGES)
    with pytest.raises(StoredFileError, match="single array"):
        load(f"npz:{tmp_path / 'one.npy'}")
    tampered = bytearray(Path(stored(tmp_path, images=IMAGES, labels=LABELS).removeprefix("npz:")).read_bytes())
    tampered[400] ^= 0xFF
    path.write_bytes(tampered)
    with pytest.raises(StoredFileError, match="cannot be read"):
        load(f"npz:{path}")


class Folder:
    """Writes image folders: add("train/cat", 3) puts three images there."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(
        self, where: str, count: int, mode: str = "RGB", size: tuple[int, int] = (5, 4), suffix: str = ".png"
    ) -> None:
        image = pytest.importorskip("PIL.Image")
        random = np.random.default_rng(count)
        folder = self.root / where
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(count):
            shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
            pixels = random.integers(0, 256, shape, dtype=np.uint8)
            pixels[0, 0] = i  # tells the images apart
            image.fromarray(pixels).convert(mode).save(folder / f"{mode}{i}{suffix}")


@pytest.fixture
def folder(tmp_path) -> Folder:
    made = Folder(tmp_path / "pictures")
    for part, count in (("train", 6), ("val", 2), ("test", 3)):
        made.add(f"{part}/dog", count)
        made.add(f"{part}/cat", count)
    return made


def test_folder_classes_are_the_sorted_folder_names(folder):
    (folder.root / "train" / "cat" / "notes.txt").write_text("not an image")
    source = load(f"folder:{folder.root}")
    assert source.class_names == ("cat", "dog")
    assert [len(s) for s in source.splits.values()] == [12, 4, 6]
    assert source.train.inputs.shape[1:] == (3, 4, 5)
    assert source.test.targets.tolist() == [0, 0, 0, 1, 1, 1]
    assert source.test.inputs[1, :, 0, 0].tolist() == [1, 1, 1]  # the second image of test/cat


def test_folder_reads_grey_where_all_images_are_grey(tmp_path):
    made = Folder(tmp_path)
    made.add("train/a", 5, "L")
    made.add("train/b", 5, "L", suffix=".bmp")
    assert load(f"folder:{tmp_path}", validation=0).train.inputs.shape == (8, 1, 4, 5)
    made.add("train/b", 1, "RGB")
    assert load(f"folder:{tmp_path}", validation=0).train.inputs.shape[1] == 3


def test_folder_with_holes_says_where(folder):
    root = folder.root
    with pytest.raises(StoredFileError, match="train is not a folder"):
        load(f"folder:{root / 'train'}")
    (root / "train" / "bird").mkdir()
    with pytest.raises(StoredFileError, match="bird holds no images"):
        load(f"folder:{root}")
    folder.add("train/bird", 2)
    with pytest.raises(StoredFileError, match=r"val.bird holds no images"):
        load(f"folder:{root}")
    folder.add("val/bird", 1)
    folder.add("test/bird", 1)
    folder.add("test/fish", 1)
    with pytest.raises(StoredFileError, match="train/ does not have: fish"):
        load(f"folder:{root}")


def test_folder_without_classes(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(StoredFileError, match="holds no class folders"):
        load(f"folder:{tmp_path}")


def test_folder_with_images_of_two_sizes_or_damaged_ones_names_the_file(folder):
    folder.add("train/dog", 1, size=(7, 4), suffix=".jpg")
    with pytest.raises(ShapeError, match=r"RGB0.jpg is \(4, 7\) pixels.*bring all images to one size"):
        load(f"folder:{folder.root}")
    (folder.root / "train" / "dog" / "RGB0.jpg").write_bytes(b"no image at all")
    with pytest.raises(StoredFileError, match="RGB0.jpg cannot be read as an image"):
        load(f"folder:{folder.root}")
    whole = (folder.root / "train" / "dog" / "RGB1.png").read_bytes()
    (folder.root / "train" / "dog" / "RGB0.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoredFileError, match="RGB0.jpg"):
        load(f"folder:{folder.root}")


def test_folder_without_pillow_names_the_extra(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "PIL", None)
    with pytest.raises(MissingExtraError, match=r"prunus\[vision\]"):
        load(f"folder:{folder.root}")
