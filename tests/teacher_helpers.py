"""Teachers of somebody else's making that tell tinted photographs apart, made without training, and such a folder."""

import keras
import numpy as np
import pytest
from data_helpers import write_pngs
from keras import layers

from thumbnet_tf.config import Config

CLASSES = ("blue", "green", "red")
SIZE = 32


def trunk(expects: str = "0..1", size: int | None = SIZE) -> keras.Model:
    """Returns a functional trunk to maps of the colours at 1/8; values above 1 saturate, so that the range matters."""
    image = keras.Input((size, size, 3), name="pixels")
    x = layers.Rescaling(1 / 255, name="scale")(image) if expects == "0..255" else image
    if expects == "-1..1":
        x = layers.Rescaling(0.5, offset=0.5, name="scale")(x)
    x = layers.Conv2D(3, 3, padding="same", use_bias=False, name="conv1")(x)
    x = layers.BatchNormalization(name="bn1")(x)
    x = layers.ReLU(max_value=1.0, name="relu1")(x)
    x = layers.AveragePooling2D(2, name="pool1")(x)
    x = layers.DepthwiseConv2D(3, 2, padding="same", use_bias=False, name="depthwise2")(x)
    x = layers.BatchNormalization(scale=False, name="bn2")(x)
    x = layers.AveragePooling2D(2, name="pool2")(x)
    x = layers.Conv2D(8, 1, name="conv3")(x)
    model = keras.Model(image, x, name="trunk")
    middle = np.zeros((3, 3), np.float32)
    middle[1, 1] = 1
    model.get_layer("conv1").set_weights([middle[..., None, None] * np.eye(3)])
    model.get_layer("depthwise2").set_weights([np.repeat(middle[..., None, None], 3, axis=2)])
    spread = np.zeros((1, 1, 3, 8), np.float32)
    spread[0, 0, :, :3] = np.eye(3)
    model.get_layer("conv3").set_weights([spread, np.zeros(8)])
    return model


def teacher(
    expects: str = "0..1", order: tuple[int, ...] = (2, 1, 0), activation: str | None = "softmax"
) -> keras.Model:
    """Returns the usual shape of transfer learning: augmentation, a trunk as a layer, pooling, a classifier.

    Args:
        expects: values of its input: 0..255, 0..1 or -1..1.
        order: the colour channel that each class is told by; (2, 1, 0) is blue, green, red.
        activation: of the last layer.
    """
    model = keras.Sequential(
        [
            keras.Input((SIZE, SIZE, 3)),
            layers.RandomFlip("horizontal"),
            trunk(expects),
            layers.GlobalAveragePooling2D(),
            layers.Dropout(0.2),
            layers.Dense(len(order), activation=activation, name="head"),
        ]
    )
    kernel = np.zeros((8, len(order)), np.float32)
    for index, channel in enumerate(order):
        kernel[:3, index] = -15
        kernel[channel, index] = 30
    model.get_layer("head").set_weights([kernel, np.zeros(len(order))])
    return model


@pytest.fixture
def tinted(tmp_path, photos):
    """Returns an image folder of three tints, 20 images each to train on, to validate and to test on."""
    root = tmp_path / "tinted"
    for part, seed in (("train", 0), ("validation", 10), ("test", 20)):
        for index, name in enumerate(CLASSES):
            images = photos(20, 40, seed=seed + index).astype(int)
            images -= (images.mean((1, 2), keepdims=True) - images.mean((1, 2, 3), keepdims=True)).astype(int)
            images[..., 2 - index] += 40
            write_pngs(root / part / name, np.clip(images, 0, 255).astype(np.uint8))
    return root


@pytest.fixture
def own(tmp_path, tinted):
    """Returns a function that makes the configuration of a run with such a teacher."""

    def make(model: keras.Model | None = None, **values) -> Config:
        path = tmp_path / "mine.keras"
        if model is not None:
            model.save(path)
        common = {
            "dataset": f"folder:{tinted}",
            "run_dir": str(tmp_path / "run"),
            "teacher": str(path),
            "image_size": SIZE,
            "ratio": 2,
            "downscaler_width": 4,
            "augment": "none",
            "batch_size": 8,
            "teacher_epochs": 1,
            "epochs": 1,
            "methods": ("direct",),
            "strategy": "none",
            "tensorboard": False,
        }
        return Config(**{**common, **values})

    return make
