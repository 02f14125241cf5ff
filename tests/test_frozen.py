"""Frozen functions: the model's answers, without its variables."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from model_helpers import assert_outputs_same, images, shipped_model, with_random_statistics

from thumbnet_tf import backbones, folding, frozen
from thumbnet_tf.config import Config


def unrounded(ratio: int) -> Config:
    return Config(image_size=64, ratio=ratio, width=0.125, thumbnail_bits=0)


@pytest.mark.parametrize("dtype", [tf.uint8, tf.float32])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_frozen_equals_the_model(batch_size, dtype):
    model = with_random_statistics(backbones.build("resnet18", 64, 5, 0.125))
    function = frozen.freeze(model, batch_size, dtype)
    assert not function.variables
    assert function.structured_input_signature[0][0].shape.as_list() == [batch_size, 64, 64, 3]
    assert_outputs_same(function(tf.cast(images(64), dtype)), model(images(64), training=False))


@pytest.mark.parametrize(("kind", "ratio"), [("learned", 2), ("learned", 4), ("bicubic", 2), ("area", 4)])
def test_frozen_shipped_model_equals_it(kind, ratio):
    model = with_random_statistics(shipped_model(unrounded(ratio), kind))
    assert_outputs_same(frozen.freeze(model)(images(64).astype(np.uint8)), model(images(64), training=False))


def test_frozen_keeps_the_weights_of_its_time():
    model = with_random_statistics(backbones.build("vgg11", 32, 3, 0.125))
    function = frozen.freeze(model)
    before = function(images(32).astype(np.uint8))["logits"].numpy()
    for weight in model.weights:
        weight.assign(tf.zeros(weight.shape))
    np.testing.assert_array_equal(function(images(32).astype(np.uint8))["logits"], before)


def test_a_model_of_one_output_returns_a_tensor():
    image = keras.Input((8, 8, 3), name="image")
    model = keras.Model(image, layers.Conv2D(2, 3, name="conv")(image))
    got = frozen.freeze(model, dtype=tf.float32)(images(8))
    np.testing.assert_allclose(got, model(images(8)), rtol=1e-5)


@pytest.mark.parametrize(("ratio", "rewritten"), [(4, True), (2, False)])
def test_downscaler_reads_pixels_where_its_maps_are_smaller(ratio, rewritten):
    model = folding.fold(with_random_statistics(shipped_model(unrounded(ratio))))
    result = frozen.on_pixels(model)
    names = [layer.name for layer in result.layers]
    assert ("downscaler_1_conv_map" in names) is rewritten
    assert result.get_layer("downscaler_rescaling").output.shape[1] == (16 if rewritten else 64)
    got, expected = result(images(64), training=False), model(images(64), training=False)
    thumbnail = expected["thumbnail"].numpy()
    for edge in (np.s_[:, 0], np.s_[:, -1], np.s_[:, :, 0], np.s_[:, :, -1]):  # where zeros are padded
        np.testing.assert_allclose(got["thumbnail"].numpy()[edge], thumbnail[edge], atol=1e-3)
    assert_outputs_same(got, expected)


def test_first_layer_with_larger_maps_stays():
    model = folding.fold(with_random_statistics(backbones.build("resnet18", 64, 5, 0.5)))
    assert frozen.on_pixels(model) is model


def test_maps_of_several_poolings_are_rescaled_each():
    image = keras.Input((8, 8, 3))
    x = layers.Rescaling(1 / 128, offset=-1.0)(image)
    model = keras.Model(image, [layers.AveragePooling2D(4)(x), layers.AveragePooling2D(8)(x)])
    result = frozen.on_pixels(model)
    assert result is not model
    for got, expected in zip(result(images(8)), model(images(8)), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_rescaled_pixels_that_others_need_stay():
    image = keras.Input((8, 8, 3))
    x = layers.Rescaling(1 / 128, offset=-1.0)(image)
    pooled = layers.AveragePooling2D(4)(x)
    for outputs in ([x, pooled], [layers.ReLU()(x), pooled]):
        model = keras.Model(image, outputs)
        assert frozen.on_pixels(model) is model
