"""Tests of listing, splitting and checking: folders, bad images, fingerprints and stores."""

import hashlib
import io
import os
import shutil

import numpy as np
import pytest
from data_helpers import SPLITS, encode, exif, load, picture, pixels, write_folder
from PIL import Image

from thumbnet_tf import preprocess, progress
from thumbnet_tf.config import Config, UserError
from thumbnet_tf.data import listing, sources, store
from thumbnet_tf.runs import RunDir


@pytest.fixture
def pets(tmp_path):
    """A folder without split folders: 20 cats, 15 dogs."""
    return write_folder(tmp_path / "pets", {"cat": 20, "dog": 15})


# --- folders


def test_folder_with_all_splits(tmp_path, caplog):
    write_folder(tmp_path, {f"{s}/{c}": n for s, n in (("train", 12), ("val", 2), ("test", 3)) for c in ("n2", "n10")})
    (tmp_path / "train/n2/11.png").rename(tmp_path / "train/n2/11.PNG")
    (tmp_path / "train/n2/Thumbs.db").write_bytes(b"x")
    (tmp_path / "train/n10/.hidden.png").write_bytes(b"x")
    (tmp_path / "train/readme.txt").write_text("x")
    caplog.set_level("INFO", "thumbnet_tf")
    data = load(f"folder:{tmp_path}")
    assert data.class_names == ("n10", "n2")  # as Keras and TFDS number them
    train = data.splits["train"]
    assert train.names[20:24] == ("train/n2/8.png", "train/n2/9.png", "train/n2/10.png", "train/n2/11.PNG")
    np.testing.assert_array_equal(train.labels, [0] * 12 + [1] * 12)
    assert data.splits["validation"].names == ("val/n10/0.png", "val/n10/1.png", "val/n2/0.png", "val/n2/1.png")
    assert data.splits["test"].num_examples == 6
    assert any("3 files or folders ignored" in line for line in caplog.messages)
    for name, image in zip(train.names, pixels(train), strict=True):
        np.testing.assert_array_equal(image, preprocess.decode_image((tmp_path / name).read_bytes()))


def test_names_that_go_on_with_a_number_are_sorted(tmp_path):
    names = ("cat", "cat2", "cat10", "covid", "covid19")
    write_folder(tmp_path, {f"{split}/{name}": 2 for split in ("train", "test") for name in names})
    (tmp_path / "train/cat/0.png").rename(tmp_path / "train/cat/1 (2).png")
    assert sorted([*names[::-1], "Cat"], key=listing.natural_key) == ["Cat", *names]
    data = load(f"folder:{tmp_path}", splits=("train",))
    assert data.class_names == ("cat", "cat10", "cat2", "covid", "covid19")
    found = listing.list_folder(tmp_path).splits["train"]().names
    assert found[:2] == ("train/cat/1 (2).png", "train/cat/1.png")


def test_cut_is_fixed():
    names = [f"cat/{i}.png" for i in range(10)] + [f"dog/{i}.png" for i in range(7)]
    labels = np.array([0] * 10 + [1] * 7)
    parts = {part: [names[i] for i in rows] for part, rows in sources.cut(names, labels, True, True).items()}
    # Other names here make the results of all stored runs incomparable.
    assert parts["test"] == GOLDEN_TEST
    assert parts["validation"] == GOLDEN_VALIDATION
    assert sorted(parts["train"] + parts["validation"] + parts["test"]) == sorted(names)
    by_hash = sorted(names[:10], key=lambda name: hashlib.sha1(name.encode()).hexdigest())
    assert set(by_hash[:2]) < set(parts["test"]) and by_hash[2] in parts["validation"]


GOLDEN_TEST = ["cat/5.png", "cat/8.png", "dog/3.png", "dog/5.png"]
GOLDEN_VALIDATION = ["cat/7.png", "dog/4.png"]


def test_cut_does_not_depend_on_the_order():
    names = [f"{i}" for i in range(100)]
    labels = np.arange(100) % 2
    parts = sources.cut(names, labels, True, True)
    turned = sources.cut(names[::-1], labels[::-1], True, True)
    assert {part: len(rows) for part, rows in parts.items()} == {"train": 72, "validation": 8, "test": 20}
    for part, rows in parts.items():
        assert {names[i] for i in rows} == {names[::-1][i] for i in turned[part]}


def test_cut_leaves_one_image_to_train():
    parts = sources.cut(["a", "b", "c"], np.array([0, 1, 1]), True, True)
    assert sorted(np.array([0, 1, 1])[parts["train"]]) == [0, 1]
    assert [len(parts[part]) for part in SPLITS] == [2, 0, 1]


def test_missing_splits_are_cut_from_train(pets):
    data = load(f"folder:{pets}")
    assert [data.splits[name].num_examples for name in SPLITS] == [14 + 10, 2 + 2, 4 + 3]
    names = [name for split in data.splits.values() for name in split.names]
    assert len(set(names)) == 35
    assert load(f"folder:{pets}", splits=("test",)).splits["test"].names == data.splits["test"].names


def test_validation_without_test_becomes_the_test_split(tmp_path, caplog):
    write_folder(tmp_path, {f"{s}/{c}": n for s, n in (("train", 10), ("valid", 3)) for c in "ab"})
    caplog.set_level("INFO", "thumbnet_tf")
    data = load(f"folder:{tmp_path}")
    assert {name.split("/")[0] for name in data.splits["test"].names} == {"valid"}
    assert {name.split("/")[0] for name in data.splits["validation"].names} == {"train"}
    assert [data.splits[name].num_examples for name in SPLITS] == [18, 2, 6]
    assert any("used as such" in line for line in caplog.messages)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({"cat": 2}, "at least 2 class folders"),
        ({"cat": 2, "dog": 0}, "empty dog"),
        ({"train": 3}, "at least 2 class folders"),
        ({"test/cat": 2, "test/dog": 2}, "needs a folder train beside test"),
        ({"train/cat": 2, "train/dog": 2, "test/cat": 2, "test/cow": 2}, "only in one: cow, dog"),
        ({"train/cat": 2, "train/dog": 2, "val/cat": 2, "validation/cat": 2}, "two validation folders"),
    ],
)
def test_folder_mistakes_are_told(tmp_path, folders, message):
    write_folder(tmp_path, folders)
    with pytest.raises(UserError, match=message) as error:
        load(f"folder:{tmp_path}")
    assert "Received: " in str(error.value) and "\n" not in str(error.value)


def test_a_class_may_be_called_like_a_split(tmp_path, caplog):
    assert load(f"folder:{write_folder(tmp_path / 'a', {'train': 20, 'car': 20})}").class_names == ("car", "train")
    folders = {f"{split}/{name}": 20 for split in ("train", "test") for name in ("valid", "invalid")}
    caplog.set_level("INFO", "thumbnet_tf")
    data = load(f"folder:{write_folder(tmp_path / 'b', folders | {'more': 2})}")
    assert (data.class_names, data.splits["test"].num_examples) == (("invalid", "valid"), 40)
    assert "1 files or folders beside the splits are left out, such as more\n" in caplog.text


def test_a_folder_that_can_not_be_read_is_told(pets, monkeypatch):
    inside = os.listdir
    for closed in ("pets", "dog"):  # may be read and not entered

        def denied(path, closed=closed):
            if str(path).endswith(f"/{closed}/."):
                raise PermissionError(13, "Permission denied", path)
            return inside(path)

        monkeypatch.setattr(listing.os, "listdir", denied)
        with pytest.raises(UserError, match=rf"must be readable. Received: .*{closed} \(Permission denied\)"):
            load(f"folder:{pets}")


def test_a_folder_that_has_moved_is_the_same_data(pets, tmp_path):
    cfg = Config(dataset=f"folder:{pets}", data_dir="sets")
    run = RunDir(tmp_path)
    run.claim(cfg)
    run.bind_data(sources.load(cfg).facts())
    kept = shutil.copytree(pets, tmp_path / "kept")
    moved = sources.moved(cfg, str(kept))
    assert (moved.dataset, moved.data_dir) == (f"folder:{kept}", "sets")
    run.check_data(sources.load(moved).facts())
    next(kept.rglob("*.png")).unlink()
    with pytest.raises(UserError, match="the data changed since this run started"):
        run.check_data(sources.load(moved).facts())
    assert sources.moved(cfg, "") == cfg
    tfds_set = Config(dataset="tf_flowers", data_dir="then")
    assert sources.moved(tfds_set, "now") == Config(dataset="tf_flowers", data_dir="now")


def test_absent_folder_is_told(tmp_path):
    with pytest.raises(UserError, match=r"existing folder.*nowhere"):
        load(f"folder:{tmp_path}/nowhere")


# --- bad images


@pytest.fixture
def spoilt(pets):
    """`pets` with four bad files."""
    good = (pets / "cat/0.png").read_bytes()
    (pets / "cat/bad1.png").write_bytes(b"")
    (pets / "cat/bad2.png").write_bytes(good[:500])
    (pets / "dog/bad3.jpg").write_text("a text with a wrong name")
    (pets / "dog/bad4.jpeg").write_bytes(encode(picture(40, 40), "JPEG")[:300])
    return pets


def test_bad_images_are_an_error(spoilt):
    with pytest.raises(UserError, match=r"^4 images can't be decoded; .*--on_bad_image=skip.*Received: ") as error:
        load(f"folder:{spoilt}")
    assert all(name in str(error.value) for name in ("cat/bad1.png (it is empty)", "bad2.png", "bad3.jpg", "bad4.jpeg"))
    assert "\n" not in str(error.value) and "node" not in str(error.value)


def test_bad_images_can_be_skipped(spoilt, caplog):
    caplog.set_level("INFO", "thumbnet_tf")
    data = load(f"folder:{spoilt}", on_bad_image="skip")
    bad = dict(item for split in data.splits.values() for item in split.bad)
    assert sorted(bad) == ["cat/bad1.png", "cat/bad2.png", "dog/bad3.jpg", "dog/bad4.jpeg"]
    assert bad["dog/bad3.jpg"].startswith("Unknown image file format")
    assert sum(split.num_examples for split in data.splits.values()) == 35
    assert any("4 images left out" in line for line in caplog.messages)
    for limit in (0.0, 1.0):  # the others keep their places, read anew or in memory
        train = load(f"folder:{spoilt}", on_bad_image="skip", memory_limit_gb=limit).splits["train"]
        assert not any("bad" in name for name in train.names)
        for name, image in zip(train.names, pixels(train), strict=True):
            np.testing.assert_array_equal(image, preprocess.decode_image((spoilt / name).read_bytes()))


def test_a_class_of_bad_images_only_is_told(tmp_path):
    write_folder(tmp_path, {"a": 9, "b": 9})
    for path in (tmp_path / "b").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"readable training image.*none in b"):
        load(f"folder:{tmp_path}", on_bad_image="skip")


def test_unreadable_file_is_a_bad_image(pets):
    found = listing.list_folder(pets)
    raw = found.splits["train"]()
    (pets / "cat/0.png").unlink()
    bad, *_ = store.check_images(raw.items(np.arange(3)), raw.fetch, 3, "checking", 1e9)
    assert bad == {0: "No such file or directory"}


def test_a_jpeg_that_exif_says_to_turn_is_seen(tmp_path, monkeypatch):
    path = tmp_path / "photo.jpg"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # the largest photographs are looked at too
    for orientation, wanted in ((None, False), (0, False), (1, False), (6, True), (3, True)):
        path.write_bytes(encode(picture(20, 24), "JPEG", exif=exif(orientation)))
        assert store.is_turned(str(path)) == store.is_turned(io.BytesIO(path.read_bytes())) == wanted
    path.write_bytes(path.read_bytes()[:40])
    assert not store.is_turned(path)
    path.write_bytes(encode(picture(20, 24), "PNG", exif=exif(6)))
    assert not store.is_turned(path)
    os.mkfifo(tmp_path / "pipe")
    assert not store.is_turned(tmp_path / "pipe") and not store.is_turned(tmp_path / "missing.jpg")


def test_images_that_exif_says_to_turn_are_told(pets, caplog):
    for name in ("cat/1.png", "dog/2.png", "dog/3.png"):
        (pets / name).with_suffix(".jpg").write_bytes(encode(picture(20, 24), "JPEG", exif=exif(6)))
    caplog.set_level("INFO", "thumbnet_tf")
    loaded = load(f"folder:{pets}")
    told = {line.split(": ")[0]: line for line in caplog.messages if "EXIF orientation, which is ignored" in line}
    lying = {
        name: sum(file.endswith(".jpg") for file in split.names)
        for name, split in loaded.splits.items()
        if any(file.endswith(".jpg") for file in split.names)
    }
    assert sum(lying.values()) == 3 and told.keys() == lying.keys()
    for name, count in lying.items():
        assert told[name].startswith(f"{name}: {count} of {loaded.splits[name].num_examples} images carry")


# --- fingerprint


def test_fingerprint_follows_the_content_only(pets):
    first = load(f"folder:{pets}").fingerprint
    assert load(f"folder:{pets}", splits=("test",), memory_limit_gb=0.0, seed=5).fingerprint == first
    moved = shutil.copytree(pets, pets.parent / "moved")
    assert load(f"folder:{moved}").fingerprint == first
    seen = {first}
    for change in (
        lambda: (moved / "cat/3.png").unlink(),
        lambda: (moved / "cat/4.png").rename(moved / "cat/44.png"),
        lambda: (moved / "cat/5.png").rename(moved / "dog/55.png"),
        lambda: (moved / "cat/6.png").write_bytes(encode(picture(20, 20), "PNG")),
        lambda: (moved / "dog").rename(moved / "wolf"),
    ):
        change()
        seen.add(load(f"folder:{moved}").fingerprint)
    assert len(seen) == 6


# --- stores


def test_memory_limit_and_chunks(pets, monkeypatch):
    whole = load(f"folder:{pets}").splits["train"]
    images = pixels(whole)
    assert whole.store.num_bytes == sum(image.size for image in images)
    monkeypatch.setattr(store, "CHUNK_BYTES", 5000)  # two images each
    chunked = load(f"folder:{pets}").splits["train"]
    files = load(f"folder:{pets}", memory_limit_gb=0.0).splits["train"]
    limit = whole.store.num_bytes / 2**30
    below = load(f"folder:{pets}", memory_limit_gb=limit * 0.99)
    exact = load(f"folder:{pets}", memory_limit_gb=limit)
    kinds = [type(s.store).__name__ for s in (whole, chunked, files, below.splits["train"], exact.splits["train"])]
    assert kinds == ["MemoryStore", "MemoryStore", "FileStore", "FileStore", "MemoryStore"]
    assert type(below.splits["test"].store).__name__ == "MemoryStore"  # there is room for the smaller ones
    assert type(exact.splits["test"].store).__name__ == "FileStore"  # what is left of the limit is for all
    for a, b, c in zip(images, pixels(chunked), pixels(files), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


def test_progress_shows_after_a_while_only(capsys, monkeypatch):
    assert list(progress.track(range(3), 3, "quick work")) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "QUIET_SECONDS", 0.0)
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    assert list(progress.track(range(3), 3, "slow work")) == [0, 1, 2]
    lines = capsys.readouterr().err.splitlines()
    assert "3/3" in lines[-1] and lines[-1].startswith("slow work")
    assert "\r" not in "".join(lines)
