"""A folder of pictures becomes the same data set wherever it lies, and nothing of it is left out without a word."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from pipeline import cli
from pipeline.data import folder, synthetic
from pipeline.params import Data
from pipeline.runs import kept
from pipeline.system import paths
from pipeline.system.errors import UserError
from tests import folders
from tests.settings import set_params

TRAIN = {"epochs": 1, "batch_size": 8, "lr": 0.01, "momentum": 0.9, "log_every": 1}


def settings(path: Path, **others: object) -> Data:
    return Data(source="folder", folder=str(path), **others)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return folders.odd_photos(tmp_path / "photos")


def refused(path: Path, **others: object) -> str:
    with pytest.raises(UserError) as error:
        folder.read(settings(path, **others))
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def test_a_folder_of_pngs_is_the_set_that_it_was_made_of(tmp_path):
    made = synthetic.make(60, 20, 24, 1, 3)
    read = folder.read(settings(folders.write(tmp_path / "pngs", made), size=24, channels=1))
    assert read.classes == tuple(sorted(made.classes))
    order = sorted(range(60), key=lambda index: (made.classes[made.train_labels[index]], index))
    assert (read.train_images == made.train_images[order]).all()
    assert [read.classes[label] for label in read.train_labels] == [made.classes[made.train_labels[index]] for index in order]


@pytest.mark.fault(38)
@pytest.mark.parametrize(
    "place", [lambda name: [-ord(letter) for letter in name], str.casefold], ids=["backwards", "as if case did not count"]
)
def test_another_order_of_the_file_system_other_times_and_a_composed_form_of_names_change_nothing(place, photos, tmp_path, monkeypatch):
    for split in ("train", "test"):
        (photos / split / "a").rename(photos / split / "\u00e4")
        (photos / split / "b").rename(photos / split / "B")
    next((photos / "train" / "B").glob("*.gif")).rename(photos / "train" / "B" / "\u00c4.GIF")
    first = folder.read(settings(photos))
    copy = Path(shutil.copytree(photos, tmp_path / "copy", copy_function=shutil.copyfile))
    for split in ("train", "test"):  # as some file systems decompose them
        (copy / split / "\u00e4").rename(copy / split / "a\u0308")
    for path in copy.rglob("*"):
        os.utime(path, (0, 0))
    scandir = os.scandir

    class Ordered:
        def __init__(self, path: str) -> None:
            self.entries = sorted(scandir(path), key=lambda entry: place(entry.name))

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Ordered)
    second = folder.read(settings(copy))
    assert first.classes == second.classes == ("B", "c", "\u00e4")
    assert first.digest == second.digest


def test_photos_are_trained_on_and_evaluated_and_each_test_photo_gives_its_row_of_the_predictions(photos, folder_with_params, capsys):
    set_params(photos.parent, data={"source": "folder", "size": 24}, train=TRAIN)
    for stage in ("download", "train", "evaluate"):
        assert cli.answer([stage]) == 0
    (run,) = kept.listed(Path("runs"))
    capsys.readouterr()
    tests = sorted(map(str, Path("photos", "test").glob("*/*")))
    assert cli.answer(["predict", str(run), *tests, "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)["images"]
    assert [
        (Path(answer["image"]).parent.name, answer["best"][0]["class"], np.float32(answer["best"][0]["confidence"])) for answer in answers
    ] == [(row.actual, row.predicted, np.float32(row.confidence)) for row in kept.load(run).predictions]
    assert cli.answer(["export", str(run), "--to", "page.html"]) == 0
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed (pip install -r requirements/export.txt)")
    assert cli.answer(["export", str(run), "--to", "net.onnx"]) == 0
    said = capsys.readouterr().out
    assert "checked with onnxruntime on 8 test images of photos: " in said
    assert "; the same class on all 8 " in said


def test_class_folders_alone_are_divided_by_content_so_that_adding_a_file_moves_no_other(tmp_path):
    made = synthetic.make(100, 20, 16, 3, 2)
    folders.write(tmp_path, made)
    before = folder.read(settings(tmp_path / "train", size=16, test_fraction=0.3))
    assert 15 <= len(before.test_images) <= 45
    Image.fromarray(np.zeros((16, 16, 3), np.uint8)).save(tmp_path / "train" / "disc" / "0.png")
    after = folder.read(settings(tmp_path / "train", size=16, test_fraction=0.3))
    black = np.zeros((1, 3, 16, 16), np.uint8)
    for split in ("train_images", "test_images"):
        ours = {image.tobytes() for image in getattr(after, split)} - {black.tobytes()}
        assert ours == {image.tobytes() for image in getattr(before, split)}


def test_val_is_test(photos):
    first = folder.read(settings(photos))
    (photos / "test").rename(photos / "val")
    assert folder.read(settings(photos)).digest == first.digest


@pytest.mark.fault(71)
def test_what_is_left_out_is_said_with_the_reason(photos, capsys):
    clean = folder.read(settings(photos)).digest
    assert "left out" not in capsys.readouterr().err
    (photos / "train" / "a" / ".hidden.png").touch()
    (photos / "train" / "a" / "photo.jfif").touch()
    (photos / "train" / "notes.txt").touch()
    (photos / "extra").mkdir()
    (photos / "train" / "empty").mkdir()
    (photos / "train" / "a" / "loop").symlink_to(photos / "train" / "a")
    assert folder.read(settings(photos)).digest == clean
    said = capsys.readouterr().err
    for part in ("hidden: ", ".hidden.png", "do not end in .png", "photo.jfif", "beside the folders of classes: ", "notes.txt",
                 "beside train/ and test/: ", "folders without pictures: ", "links to a folder that they are in: "):  # fmt: skip
        assert part in said


@pytest.mark.fault(71)
def test_a_picture_that_cannot_be_read_is_one_line_with_its_path(photos):
    whole = min((photos / "train" / "a").glob("*.png"))
    whole.write_bytes(whole.read_bytes()[:-20])
    assert refused(photos).startswith(f"{whole}: damaged or truncated (")
    (photos / "train" / "c" / "text.png").write_text("text")
    assert "(and 1 more: " in refused(photos)


class Endless(io.RawIOBase):
    """What some of the kernel's files are, to which a link in a folder of pictures may lead: they say that they have no bytes."""

    def readable(self) -> bool:
        return True

    def readinto(self, room: memoryview) -> int:
        return pytest.fail("it is read beyond its end")


@pytest.mark.parametrize("divided", [True, False])
def test_of_a_file_no_more_is_read_than_it_says_that_it_has(divided, photos, monkeypatch):
    monkeypatch.setattr(paths, "plain", lambda path, most: contextlib.nullcontext((Endless(), 0)))
    said = refused(photos if divided else photos / "train")
    assert ("not an image that can be read" if divided else "no test images") in said or "no training images" in said


@pytest.mark.fault(39)
def test_links_that_lead_to_one_folder_on_ever_more_ways_are_refused(photos):
    """Thirty folders, each with two links to the next, are a thousand million ways to the last."""
    for number in range(30):
        (photos / "extra" / str(number)).mkdir(parents=True)
        for name in ("x", "y"):
            (photos / "extra" / str(number) / name).symlink_to(photos / "extra" / str(number + 1))
    (photos / "extra" / "30").mkdir()
    (photos / "train" / "a" / "links").symlink_to(photos / "extra" / "0")
    assert "more than 100 ways, by links, to one folder" in refused(photos)


@pytest.mark.fault(39)
def test_folders_within_each_other_are_refused_before_they_are_too_deep_for_python(photos):
    (photos / "train" / "a").joinpath(*"d" * 150).mkdir(parents=True)
    assert "more than 100 folders within each other" in refused(photos)


@pytest.mark.fault(39)
def test_a_folder_in_no_such_layout_is_refused_with_the_layout(photos, tmp_path):
    assert refused(tmp_path / "none").startswith(f"{tmp_path / 'none'}: cannot be read: No such file or directory")
    assert "no training images" in refused(photos / "train" / "a")
    (photos / "test" / "d").mkdir()
    shutil.copy(next((photos / "test" / "a").iterdir()), photos / "test" / "d")
    assert "class 'd' has test images but no training images" in refused(photos)
    shutil.rmtree(photos / "test")
    assert "has train/ alone" in refused(photos)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("a/cifar10-jpeg", "cifar10-jpeg"),
        ("CIFAR10", "CIFAR10-folder"),
        ("my photos!/", "my-photos"),
        ("x" * 99, "x" * 57),
        ("/", "pictures"),
    ],
)
def test_the_name_of_a_set_is_the_folders_in_letters_for_every_path(path, name):
    assert folder.name_of(path) == name


@pytest.mark.full_size
def test_a_full_size_folder_has_every_pixel_that_torchvision_reads():
    named = os.environ.get("PIPELINE_TEST_FOLDER")
    if not named:
        pytest.skip("PIPELINE_TEST_FOLDER names no full-size folder")
    ours = folder.read(settings(Path(named)))
    for split in ("train", "test"):
        theirs = ImageFolder(os.path.join(named, split))
        images, labels = getattr(ours, f"{split}_images"), getattr(ours, f"{split}_labels")
        assert (tuple(theirs.classes), theirs.targets) == (ours.classes, labels.tolist())
        assert all((np.asarray(image).transpose(2, 0, 1) == images[index]).all() for index, (image, _) in enumerate(theirs))
