"""The tf_keras twin: the same function, and what has none."""

import contextlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from model_helpers import in_pixels, shipped_model

from thumbnet_tf import foreign, thumbnet, twin
from thumbnet_tf.config import Config, UserError


@pytest.mark.parametrize(
    ("backbone", "ratio", "width", "bits"),
    [("resnet18", 2, 0.125, 8), ("resnet18", 4, 0.0625, 4), ("resnet50", 2, 0.0625, 0), ("vgg11", 4, 0.03125, 8)],
)
def test_twin_equals_the_model(backbone, ratio, width, bits, photos, monkeypatch):
    if backbone.startswith("resnet"):  # two stages of one block
        monkeypatch.setitem(thumbnet.backbones.RESNETS, backbone, ((1, 1), backbone == "resnet50"))
    size = 128 if backbone == "vgg11" else 64
    cfg = Config(backbone=backbone, image_size=size, ratio=ratio, width=width, downscaler_width=4, thumbnail_bits=bits)
    model = shipped_model(cfg)
    copy = twin.build(model)
    assert not any("BatchNormalization" in type(layer).__name__ for layer in copy.layers)
    assert {layer.name for layer in copy.layers} <= {layer.name for layer in model.layers}
    for images in (photos(1, size), photos(5, size, seed=1)):
        expected = model(tf.cast(images, tf.float32), training=False)
        got = copy(twin.normalised(images), training=False).numpy()
        scale = np.abs(expected["logits"]).max()
        assert scale > 0.1
        assert np.abs(got - expected["logits"]).max() / scale < 1e-5
        small = copy.get_layer("thumbnail").output
        thumbnail = keras_probe(copy, small)(twin.normalised(images), training=False)
        np.testing.assert_allclose(in_pixels(thumbnail), expected["thumbnail"], atol=1e-3)


def keras_probe(model, output):
    import tf_keras

    return tf_keras.Model(model.input, output)


def test_twin_refuses_what_it_does_not_know():
    cfg = Config(image_size=64, width=0.0625, downscaler_width=4)
    with pytest.raises(UserError, match=r"Conv2D.*Received: the layer 'downscaler_bicubic' of type Bicubic"):
        twin.build(shipped_model(cfg, "bicubic"))
    image = keras.Input((16, 16, 3))
    other_units = keras.layers.Rescaling(1 / 255, name="units")(image)
    norm = keras.layers.BatchNormalization(name="lone_norm")(image)
    for x, name in ((other_units, "units"), (norm, "lone_norm")):
        with pytest.raises(UserError, match=f"Received: the layer '{name}'"):
            twin.build(keras.Model(image, {"logits": x}))


@pytest.mark.parametrize("mode", ["raw pixels", "caffe"])
def test_twin_refuses_a_network_that_takes_raw_pixels(mode):
    image = keras.Input((16, 16, 3))
    x = foreign.preprocess(image, mode)
    x = keras.layers.Conv2D(4, 3, use_bias=False, name="first")(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.ReLU()(x)
    model = keras.Model(image, {"logits": keras.layers.Dense(3)(keras.layers.GlobalAveragePooling2D()(x))})
    with pytest.raises(UserError, match=f"Received: the layer '{'first' if mode == 'raw pixels' else 'input_bgr'}'"):
        twin.check(model)


@pytest.mark.parametrize(("activation", "allowed"), [("relu", True), ("elu", False), ("hard_sigmoid", False)])
def test_twin_takes_activations_that_all_compute_alike(activation, allowed):
    image = keras.Input((16, 16, 3))
    x = keras.layers.Rescaling(1 / 128, offset=-1.0)(image)
    x = keras.layers.Dense(4, activation=activation, name="hidden")(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(image, {"logits": keras.layers.Dense(3)(x)})
    with contextlib.nullcontext() if allowed else pytest.raises(UserError, match="Received: the layer 'hidden'"):
        twin.check(model)
