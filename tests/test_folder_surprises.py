"""What folders of images may hold that a user doesn't expect to matter: it is taken as it is meant, or told."""

import hashlib
import shutil
import zlib

import pytest
from data_helpers import load, write_folder

from thumbnet_tf.config import UserError


def test_splits_by_other_names(tmp_path):
    write_folder(tmp_path, {f"{split}/{name}": 6 for split in ("Training", "Testing") for name in ("cat", "dog")})
    data = load(f"folder:{tmp_path}")
    assert data.class_names == ("cat", "dog")
    assert {name.split("/")[0] for name in data.splits["test"].names} == {"Testing"}
    assert {name.split("/")[0] for name in data.splits["train"].names} == {"Training"}


def test_a_split_by_an_unknown_name_is_told(tmp_path):
    write_folder(tmp_path, {f"{split}/{name}": 2 for split in ("learn", "probe") for name in ("cat", "dog")})
    with pytest.raises(
        UserError, match="splits are called train, .*testing.*empty learn, which holds folders, such as"
    ):
        load(f"folder:{tmp_path}")


@pytest.mark.parametrize("name", ["caf\udce9", "two\nlines"])
def test_a_class_that_no_file_of_labels_can_hold_is_told(name, tmp_path):
    write_folder(tmp_path, {name: 3, "dog": 3})
    with pytest.raises(
        UserError, match=r"one line of UTF-8 text; rename its folder.*Received: '(caf\\udce9|two\\nlines)'"
    ):
        load(f"folder:{tmp_path}")


def test_images_below_a_class_are_told(tmp_path, caplog):
    caplog.set_level("WARNING", "thumbnet_tf")
    write_folder(tmp_path, {"cat": 20, "dog": 20})
    assert load(f"folder:{tmp_path}") and caplog.text == ""
    fingerprint = load(f"folder:{tmp_path}").fingerprint
    write_folder(tmp_path, {"cat/white": 2, "cat/black/old": 3})
    (tmp_path / "cat" / "white" / "notes.txt").write_text("no image")
    data = load(f"folder:{tmp_path}")
    assert sum(split.num_examples for split in data.splits.values()) == 40
    assert data.fingerprint == fingerprint
    [record] = caplog.records
    assert record.levelname == "WARNING"
    assert "5 images in folders inside a class' folder are left out, such as cat/black/old/0.png" in caplog.text


def test_copies_of_training_images_are_told(tmp_path, caplog):
    caplog.set_level("WARNING", "thumbnet_tf")
    write_folder(tmp_path, {f"{split}/{name}": 5 for split in ("train", "val", "test") for name in ("cat", "dog")}, 7)
    load(f"folder:{tmp_path}")
    assert caplog.text == ""  # images of two splits differ
    for index in range(4):
        shutil.copy(tmp_path / f"train/cat/{index}.png", tmp_path / f"test/dog/copy{index}.png")
    shutil.copy(tmp_path / "train/dog/0.png", tmp_path / "val/dog/3.png")
    (tmp_path / "val/cat/0.png").write_bytes(b"no image")
    data = load(f"folder:{tmp_path}", on_bad_image="skip")
    told = [record.getMessage() for record in caplog.records]
    assert told[0].startswith("validation: 1 of 9 images are copies of training images")
    assert told[0].endswith("such as val/dog/3.png")
    assert told[1].startswith("test: 4 of 14 images") and told[1].endswith(
        "copy0.png, test/dog/copy1.png, test/dog/copy2.png"
    )
    assert len(told) == 2
    checksums = b"".join(
        zlib.crc32((tmp_path / name).read_bytes()).to_bytes(4, "little") for name in data.splits["train"].names
    )
    assert data.splits["train"].digest == hashlib.sha256(checksums).hexdigest()[:16]  # as runs of before have it


def test_which_splits_were_cut_is_known(tmp_path):
    flat = write_folder(tmp_path / "flat", {"cat": 20, "dog": 20})
    whole = {f"{split}/{name}": 10 for split in ("train", "validation", "test") for name in ("cat", "dog")}
    two = {name: count for name, count in whole.items() if not name.startswith("test")}
    assert load(f"folder:{flat}").cut == ("test", "validation")
    assert load(f"folder:{write_folder(tmp_path / 'two', two)}").cut == ("validation",)
    assert load(f"folder:{write_folder(tmp_path / 'whole', whole)}").cut == ()
