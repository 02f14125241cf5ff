"""Tests of listing, splitting and checking TFDS sets: prepared, mocked and absent ones."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from data_helpers import SPLITS, TinyPhotos, load, pixels

from thumbnet_tf import preprocess
from thumbnet_tf.config import UserError
from thumbnet_tf.data import fine_detail, listing


@pytest.fixture(scope="module")
def tiny_dir(tmp_path_factory):
    """A data_dir in which all configurations of `tiny_photos` are prepared."""
    root = tmp_path_factory.mktemp("tfds")
    for config in TinyPhotos.BUILDER_CONFIGS:
        TinyPhotos(config=config.name, data_dir=root).download_and_prepare()
    return str(root)


def test_prepared_set_with_all_splits(tiny_dir):
    data = load("tiny_photos/train_validation_test", data_dir=tiny_dir)
    assert data.class_names == ("ant", "bee", "cow")
    assert [data.splits[name].num_examples for name in SPLITS] == [24, 24, 24]
    train = data.splits["train"]
    assert train.names[0] == "tiny_photos-train.tfrecord-00000-of-00001__0"
    builder = tfds.builder("tiny_photos/train_validation_test", data_dir=tiny_dir)
    expected = list(builder.as_dataset(split="train", as_supervised=True).as_numpy_iterator())
    np.testing.assert_array_equal(train.labels, [label for _, label in expected])
    for (image, _), got in zip(expected, pixels(train), strict=True):
        np.testing.assert_array_equal(got, image)


def test_a_prepared_set_is_known_by_its_name_and_by_what_its_files_hold(tiny_dir):
    files = sorted(pathlib.Path(tiny_dir, "tiny_photos/train_validation/1.0.0").glob("*-train.tfrecord*"))
    records = list(tf.data.TFRecordDataset([str(path) for path in files]).as_numpy_iterator())
    name, train, validation = listing.list_tfds("tiny_photos/train_validation", tiny_dir).identity
    assert name == "tiny_photos/train_validation/1.0.0"
    assert train == f"train 24 {sum(map(len, records)) / 1024:.2f} KiB [24]"
    assert validation.startswith("validation 24 ") and validation.split()[2] != train.split()[2]


def test_prepared_sets_lacking_splits(tiny_dir, caplog):
    data = load("tiny_photos/train", data_dir=tiny_dir)
    assert [data.splits[name].num_examples for name in SPLITS] == [15, 3, 6]
    data = load("tiny_photos/train_validation", data_dir=tiny_dir)
    assert [data.splits[name].num_examples for name in SPLITS] == [21, 3, 24]
    assert all("-validation." in name for name in data.splits["test"].names)
    caplog.set_level("INFO", "thumbnet_tf")
    data = load("tiny_photos/train_validation_test_hidden", data_dir=tiny_dir)
    assert [data.splits[name].num_examples for name in SPLITS] == [21, 3, 24]
    assert all("-validation." in name for name in data.splits["test"].names)
    assert "the test split has no labels and is left out" in caplog.messages
    assert len({load(f"tiny_photos/{c}", data_dir=tiny_dir).fingerprint for c in ("train", "train_validation")}) == 2


def test_stream_gives_the_same_examples_as_memory(tiny_dir):
    memory = load("tiny_photos/train", data_dir=tiny_dir)
    stream = load("tiny_photos/train", data_dir=tiny_dir, memory_limit_gb=0.0)
    assert stream.fingerprint == memory.fingerprint
    for name in SPLITS:
        assert stream.splits[name].names == memory.splits[name].names
        records = list(stream.splits[name].store.encoded().as_numpy_iterator())
        assert [index for index, _ in records] == list(range(memory.splits[name].num_examples))
        for (_, data), image in zip(records, pixels(memory.splits[name]), strict=True):
            np.testing.assert_array_equal(preprocess.decode_image(data), image)


def test_mocked_set():
    with tfds.testing.mock_data(num_examples=30):
        data = load("cifar10")
    assert len(data.class_names) == 10
    assert data.splits["train"].store.get(tf.constant(0)).shape == (32, 32, 3)
    assert sum(split.num_examples for split in data.splits.values()) == 30


def test_mocked_grey_set_becomes_rgb():
    with tfds.testing.mock_data(num_examples=30):
        image = load("mnist").splits["train"].store.get(tf.constant(0)).numpy()
    assert image.shape == (28, 28, 3) and image.std() > 10
    np.testing.assert_array_equal(image[..., 0], image[..., 2])


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("tf_flower", "did you mean tf_flowers"),
        ("qqqqqqq", "tensorflow.org/datasets/catalog"),
        ("not a name!", "can't be opened"),
        ("tiny_photos/none_such", "can't be opened .*none_such"),
        ("tiny_photos/test", "needs a train split.*with test"),
        ("tiny_photos/unsupervised", r"supervised_keys \(image, label\).*with None"),
        ("tiny_photos/unlabelled", "without a label"),
        ("fine_detail/none_such", "takes one of default, hard"),
    ],
)
def test_tfds_mistakes_are_told(dataset, message, tiny_dir):
    with pytest.raises(UserError, match=message) as error:
        load(dataset, data_dir=tiny_dir)
    assert "Received: " in str(error.value) and "\n" not in str(error.value)


def test_a_folder_without_its_word_is_told(tmp_path):
    with pytest.raises(UserError, match=rf"did you mean folder:{tmp_path}\? Received: {tmp_path}"):
        load(str(tmp_path))


def test_set_of_another_kind_is_told():
    with tfds.testing.mock_data(num_examples=3), pytest.raises(UserError, match=r"Image and a ClassLabel.*Text"):
        load("imdb_reviews")


def test_failed_download_says_what_to_put_where(tmp_path, monkeypatch):
    def fail(self, **kwargs):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(TinyPhotos, "download_and_prepare", fail)
    with pytest.raises(
        UserError, match=r"ConnectionError: no route to host.*download_and_prepare\(\).*copy its folder"
    ) as error:
        load("tiny_photos/train", data_dir=str(tmp_path))
    assert str(tmp_path / "tiny_photos" / "train" / "1.0.0") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_set_that_another_process_prepares_first_is_taken(tmp_path, monkeypatch):
    prepare = TinyPhotos.download_and_prepare

    def lose(self, **kwargs):
        prepare(TinyPhotos(config="train", data_dir=tmp_path))
        raise FileExistsError("the folder is there already")

    monkeypatch.setattr(TinyPhotos, "download_and_prepare", lose)
    found = load("tiny_photos/train", data_dir=str(tmp_path))
    assert [found.splits[name].num_examples for name in SPLITS] == [15, 3, 6]
    assert found.class_names == ("ant", "bee", "cow")


def test_fine_detail_is_prepared_where_asked(tmp_path, monkeypatch):
    monkeypatch.setattr(fine_detail.FineDetail, "split_sizes", {"train": 40, "validation": 10, "test": 10})
    data = load("fine_detail", data_dir=str(tmp_path))
    assert [data.splits[name].num_examples for name in SPLITS] == [40, 10, 10]
    assert (tmp_path / "fine_detail").is_dir()
    assert data.splits["train"].store.get(tf.constant(3)).shape == (96, 96, 3)
