"""What folders of images may hold that a user doesn't expect to matter: it is taken as it is meant, or told."""

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
    with pytest.raises(UserError, match="splits are called train, .*testing.*empty learn, which holds folders, such as"):
        load(f"folder:{tmp_path}")


def test_images_below_a_class_are_told(tmp_path, caplog):
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
