"""Tests of the rendered set: its label must be in the fine texture and nowhere else."""

import dataclasses
import functools
import hashlib

import numpy as np
import pytest
import tensorflow_datasets as tfds
from model_helpers import area

from thumbnet_tf.data import fine_detail
from thumbnet_tf.data.fine_detail import FineDetail, FineDetailConfig, render

CONFIGS = FineDetail.builder_configs
# Regenerate only together with a new FineDetail.VERSION.
GOLDEN = {"default": "8a1d35f7327df25f3046d792deb80d111a951550", "hard": "04a2ca547212890b7a9c68ac5444f0f8ca1de1ad"}

each_config = pytest.mark.parametrize("name", list(CONFIGS))


@functools.cache
def images_and_labels(name: str, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first images of a split, (count, 96, 96, 3) uint8, and their labels, (count,)."""
    images, labels = zip(*(render(CONFIGS[name], split, index) for index in range(count)), strict=True)
    return np.stack(images), np.array(labels)


def power(images: np.ndarray) -> np.ndarray:
    """Returns the windowed brightness' power spectrum, (N, S, S) float64."""
    grey = images.mean(-1)
    window = np.hanning(grey.shape[1])
    grey = (grey - grey.mean((1, 2), keepdims=True)) * np.outer(window, window)
    return np.abs(np.fft.fft2(grey)) ** 2


def oracle(images: np.ndarray, config: FineDetailConfig) -> np.ndarray:
    """Tells labels from the energy along each class's angles within the ring of the set's periods.

    Frequencies are in cycles per pixel of a 96-pixel image, whatever the images' size; what lies past a thumbnail's
    highest frequency is looked for where it aliases to.
    """
    side = images.shape[1]
    low, high = 1 / config.periods[1], 1 / config.periods[0]
    spectrum = power(images)
    angles = sorted({angle % 180 for waves in config.patterns.values() for angle in waves})
    energy = np.zeros((len(images), len(angles)))
    for column, angle in enumerate(angles):
        for turn in np.deg2rad(angle + np.linspace(-config.angle_jitter, config.angle_jitter, 9)):
            radius = np.linspace(low, high, 40) * 96
            row, col = (np.rint(radius * part).astype(int) % side for part in (np.cos(turn), np.sin(turn)))
            energy[:, column] = np.maximum(energy[:, column], spectrum[:, row, col].max(1))
    templates = np.array([[a in {w % 180 for w in waves} for a in angles] for waves in config.patterns.values()], float)
    amplitude = np.sqrt(energy)
    amplitude -= amplitude.min(1, keepdims=True)
    return (amplitude @ (templates / np.linalg.norm(templates, axis=1, keepdims=True)).T).argmax(1)


def nearest_centroid(train: np.ndarray, train_labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Labels `test` by the class mean of the training images' log spectra that is nearest."""
    known, new = (np.log(power(images) + 1.0).reshape(len(images), -1) for images in (train, test))
    centroids = np.stack([known[train_labels == label].mean(0) for label in np.unique(train_labels)])
    return ((new[:, None] - centroids) ** 2).sum(-1).argmin(1)


@each_config
def test_same_arguments_give_the_same_known_pixels(name):
    image, label = render(CONFIGS[name], "train", 7)
    again, _ = render(CONFIGS[name], "train", 7)
    assert image.shape == (96, 96, 3) and image.dtype == np.uint8
    assert label == 7 % len(CONFIGS[name].class_names)
    np.testing.assert_array_equal(image, again)
    assert hashlib.sha1(image.tobytes()).hexdigest() == GOLDEN[name]


@each_config
def test_labels_are_balanced(name):
    _, labels = images_and_labels(name, "train", 480)
    counts = np.bincount(labels, minlength=len(CONFIGS[name].class_names))
    assert counts.max() == counts.min()


def test_no_image_occurs_twice_within_or_across_splits_and_configs():
    seen = {
        image.tobytes()
        for config in CONFIGS.values()
        for split in fine_detail.SPLIT_SIZES
        for image in (render(config, split, index)[0] for index in range(20))
    }
    assert len(seen) == 20 * len(fine_detail.SPLIT_SIZES) * len(CONFIGS)


@each_config
def test_another_class_changes_neither_mean_nor_contrast(name):
    """Draws the same pictures with every class in turn; only the texture's arrangement may change."""
    config = CONFIGS[name]
    names = config.class_names
    for index in range(8):
        variants = []
        for shift in range(len(names)):
            patterns = {key: config.patterns[key] for key in names[shift:] + names[:shift]}
            variants.append(render(dataclasses.replace(config, patterns=patterns), "train", index)[0].astype(float))
        assert len({image.tobytes() for image in variants}) == len(names)
        # Rounding to 8 bits moves the mean of 9,216 pixels by about 0.3 / 96.
        assert np.ptp([image.mean((0, 1)) for image in variants], axis=0).max() < 0.03
        assert np.ptp([image.std() for image in variants]) < 0.1


@each_config
def test_mean_colour_does_not_tell_the_class(name):
    images, labels = images_and_labels(name, "train", 480)
    means = images.mean((1, 2))
    classes = np.stack([means[labels == label].mean(0) for label in np.unique(labels)])
    standard_error = means.std(0) / np.sqrt(np.bincount(labels).min())
    assert (np.abs(classes - means.mean(0)) < 3.5 * standard_error).all()


@each_config
def test_texture_is_never_clipped(name):
    images, _ = images_and_labels(name, "train", 480)
    assert images.min() > 0 and images.max() < 255


@each_config
def test_full_size_images_tell_the_class_and_thumbnails_do_not(name):
    config = CONFIGS[name]
    train, train_labels = images_and_labels(name, "train", 480)
    test, labels = images_and_labels(name, "test", 480)
    chance = 1 / len(config.class_names)
    small_train, small_test = (np.rint(area(images, 4)) for images in (train, test))
    assert (oracle(test, config) == labels).mean() > 0.9
    assert (oracle(small_test, config) == labels).mean() < chance + 0.1
    assert (nearest_centroid(train, train_labels, test) == labels).mean() > 0.9
    assert (nearest_centroid(small_train, train_labels, small_test) == labels).mean() < chance + 0.1


def test_builder_round_trip(tmp_path, monkeypatch):
    sizes = {"train": 10, "validation": 8, "test": 9}
    monkeypatch.setattr(FineDetail, "split_sizes", sizes)
    builder = FineDetail(config="hard", data_dir=tmp_path)
    builder.download_and_prepare()
    assert tuple(builder.info.features["label"].names) == CONFIGS["hard"].class_names
    assert builder.info.supervised_keys == ("image", "label")
    for split, count in sizes.items():
        stored = {
            (image.tobytes(), int(label))
            for image, label in tfds.as_numpy(builder.as_dataset(split=split, as_supervised=True))
        }
        rendered = {
            (image.tobytes(), label)
            for image, label in (render(CONFIGS["hard"], split, index) for index in range(count))
        }
        assert len(stored) == count and stored == rendered


def test_class_names():
    assert CONFIGS["default"].class_names == (
        "stripes_0deg",
        "stripes_45deg",
        "stripes_90deg",
        "stripes_135deg",
        "checks_0deg",
        "checks_45deg",
    )
    assert CONFIGS["hard"].class_names[:3] == ("stripes_0deg", "stripes_22p5deg", "stripes_45deg")
