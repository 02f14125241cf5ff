"""A shipped model with random weights, and a twin's units."""

import keras
import numpy as np

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
        if isinstance(layer, keras.layers.BatchNormalization):
            size = layer.gamma.shape
            values = (rng.uniform(0.5, 1.5, size), *rng.normal(0, 0.2, (2, *size)), rng.uniform(0.5, 1.5, size))
            layer.set_weights(values)
    return thumbnet.build_shipped(cfg, kind, small, student)


def in_pixels(thumbnails: np.ndarray) -> np.ndarray:
    return np.float64(thumbnails) * 128 + 128
