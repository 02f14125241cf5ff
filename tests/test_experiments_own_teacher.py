"""The split that `own_teacher.py` makes: links to one set of photographs, and never to two."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
from data_helpers import encode, picture

from experiments import own_teacher


@pytest.fixture
def data(tmp_path):
    """Twelve photographs for training and two for testing, of one class."""
    for part, count in (("train", 12), ("test", 2)):
        folder = tmp_path / "data" / part / "rose"
        folder.mkdir(parents=True)
        for index in range(count):
            (folder / f"{index:02}.jpg").write_bytes(bytes([index]))
    return tmp_path / "data"


def names(photos: pathlib.Path, part: str) -> list[str]:
    return sorted(path.name for path in (photos / part / "rose").iterdir())


def test_every_tenth_photograph_for_training_is_for_validation(data, tmp_path):
    photos = tmp_path / "photos"
    for _ in range(2):  # the same again changes nothing
        own_teacher.split(data, photos)
        assert names(photos, "train") == [f"{index:02}.jpg" for index in range(12) if index != 9]
        assert names(photos, "validation") == ["09.jpg"]
        assert names(photos, "test") == ["00.jpg", "01.jpg"]
        assert (photos / "validation" / "rose" / "09.jpg").read_bytes() == b"\x09"


def test_a_photograph_that_is_gone_is_gone_from_the_split(data, tmp_path):
    photos = tmp_path / "photos"
    own_teacher.split(data, photos)
    (data / "test" / "rose" / "01.jpg").unlink()
    own_teacher.split(data, photos)
    assert names(photos, "test") == ["00.jpg"]


@pytest.mark.slow
def test_another_set_is_not_mixed_in(data, tmp_path):
    photos, other = tmp_path / "photos", tmp_path / "other"
    own_teacher.split(data, photos)
    data.rename(other)
    command = [sys.executable, own_teacher.__file__, f"--data={other}", f"--photos={photos}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--photos must be a new folder, or one made from the same --data. Received: " in done.stderr.splitlines()[-1]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(ValueError, match="must be a new folder"):
        own_teacher.split(other, tmp_path / "mine")
    assert (tmp_path / "mine" / "photo.jpg").read_bytes() == b"mine"


def test_a_folder_without_photographs_is_refused(tmp_path):
    for part in ("train", "test"):
        (tmp_path / "empty" / part / "rose").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"must hold photographs named \*\.jpg"):
        own_teacher.split(tmp_path / "empty", tmp_path / "photos")


def test_a_class_that_a_part_would_lack_is_refused_before_the_training(data, tmp_path):
    few = tmp_path / "data" / "train" / "tulip"
    few.mkdir()
    for index in range(9):  # the tenth would be the first one for validation
        (few / f"{index}.jpg").write_bytes(b"tulip")
    with pytest.raises(ValueError, match=r"at least 10 for training .*Received: none for validation of tulip in"):
        own_teacher.split(data, tmp_path / "photos")
    (few / "9.jpg").write_bytes(b"tulip")
    with pytest.raises(ValueError, match="Received: none for test of tulip in"):
        own_teacher.split(data, tmp_path / "photos")


def test_photographs_by_other_suffixes_count(tmp_path):
    for part, count in (("train", 10), ("test", 1)):
        folder = tmp_path / "data" / part / "rose"
        folder.mkdir(parents=True)
        for index in range(count):
            suffix, kind = ((".JPG", "JPEG"), (".jpeg", "JPEG"), (".png", "PNG"))[index % 3]
            (folder / f"{index:02}{suffix}").write_bytes(encode(picture(40, 40, index), kind))
        (folder / "notes.txt").write_text("no photograph")
    own_teacher.split(tmp_path / "data", tmp_path / "photos")
    assert names(tmp_path / "photos", "validation") == ["09.JPG"]
    found, labels = own_teacher.images(tmp_path / "photos" / "train", ["rose"], 36, 0)
    assert labels.tolist() == [0] * 9
    centre = picture(40, 40, 2).astype(int)[2:38, 2:38]  # of the PNG
    assert np.abs(found[2] - centre).max() <= 1
