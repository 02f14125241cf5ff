"""The split that `own_teacher.py` makes: links to one set of photographs, and never to two."""

import pathlib
import subprocess
import sys

import pytest

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
