"""Models with random weights and statistics, and what to compare of them."""

import keras
import numpy as np
from keras import layers

from thumbnet_tf import thumbnet
from thumbnet_tf.config import Config


def shipped_model(cfg: Config, kind: str = "learned", classes: int = 5) -> keras.Model:
    """Returns E + S with random weights and batch statistics, as if trained."""
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    teacher = thumbnet.build_teacher(cfg, classes)
    student, _ = thumbnet.build_student(cfg, teacher)
    small = thumbnet.build_downscaler(cfg, kind)
    for layer in (*small.layers, *student.layers):
        if isinstance(layer, layers.BatchNormalization):
            size = layer.gamma.shape
            values = (rng.uniform(0.5, 1.5, size), *rng.normal(0, 0.2, (2, *size)), rng.uniform(0.5, 1.5, size))
            layer.set_weights(values)
    return thumbnet.build_shipped(cfg, kind, small, student)


def in_pixels(thumbnails: np.ndarray) -> np.ndarray:
    """Returns a twin's thumbnails in the units of pixels."""
    return np.float64(thumbnails) * 128 + 128


def with_random_statistics(model: keras.Model, seed: int = 0) -> keras.Model:
    """Gives every batch normalisation and bias values that hide no error, as gamma 0 or mean 0 would."""
    random = np.random.default_rng(seed)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            size = layer.moving_mean.shape
            signs = random.choice([-1.0, 1.0], size)
            layer.gamma.assign(signs * random.uniform(0.5, 1.5, size))
            layer.beta.assign(random.normal(0, 0.5, size))
            layer.moving_mean.assign(random.normal(0, 0.5, size))
            layer.moving_variance.assign(random.uniform(0.3, 3.0, size))
        elif getattr(layer, "use_bias", False):
            layer.bias.assign(random.normal(0, 0.1, layer.bias.shape))
    return model


def normalisations(model: keras.Model) -> list[str]:
    """Returns the names of its batch normalisations."""
    return [layer.name for layer in model.layers if isinstance(layer, layers.BatchNormalization)]


def images(size: int, count: int = 2) -> np.ndarray:
    """Returns noise of pixels, float32 (count, size, size, 3)."""
    return np.random.default_rng(1).integers(0, 256, (count, size, size, 3)).astype(np.float32)


def assert_outputs_same(got: dict, expected: dict, tolerance: float = 1e-4) -> None:
    """Compares all outputs of two models."""
    assert sorted(got) == sorted(expected)
    for name, value in expected.items():
        value = value.numpy()
        assert np.abs(value).max() > 0.01, f"{name} is all zero: nothing is compared"
        assert np.abs(got[name].numpy() - value).max() <= tolerance * np.abs(value).max(), name


def area(images: np.ndarray, ratio: int) -> np.ndarray:
    """Returns the means of squares of `ratio` pixels, float64 (N, H / ratio, W / ratio, C)."""
    n, height, width, channels = images.shape
    return images.reshape(n, height // ratio, ratio, width // ratio, ratio, channels).mean((2, 4), dtype=np.float64)
