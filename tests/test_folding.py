"""Folding batch normalisation into convolutions."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers
from model_helpers import assert_outputs_same, images, normalisations, shipped_model, with_random_statistics

from thumbnet_tf import backbones, folding, graph, thumbnet
from thumbnet_tf.config import Config


def small(ratio: int = 2, bits: int = 8) -> Config:
    return Config(image_size=64, ratio=ratio, width=0.125, thumbnail_bits=bits)


@pytest.mark.parametrize("backbone", ["resnet18", "resnet34", "resnet50", "vgg11"])
def test_folded_backbone_equals_the_source_at_all_taps(backbone):
    model = with_random_statistics(backbones.build(backbone, 64, 5, 0.125))
    before = [weight.numpy() for weight in model.weights]
    folded = folding.fold(model)
    assert normalisations(model) and not normalisations(folded)
    assert_outputs_same(folded(images(64), training=False), model(images(64), training=False))
    kept = [layer.name for layer in model.layers if not isinstance(layer, layers.BatchNormalization)]
    assert sorted(layer.name for layer in folded.layers) == sorted(kept)
    for weight in folded.weights:
        weight.assign(tf.zeros(weight.shape))
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight.numpy(), value)  # they share nothing


@pytest.mark.parametrize("bits", [0, 8])
@pytest.mark.parametrize(("kind", "ratio"), [("learned", 2), ("learned", 4), ("bicubic", 2), ("area", 4)])
def test_folded_shipped_model_equals_the_source(kind, ratio, bits):
    model = with_random_statistics(shipped_model(small(ratio, bits), kind))
    folded = folding.fold(model)
    assert not normalisations(folded)
    got, expected = folded(images(64), training=False), model(images(64), training=False)
    if bits:  # a value between two levels may fall to the other one; nearly none does, and S hardly sees it
        levels = np.abs(got["thumbnail"].numpy() - expected["thumbnail"].numpy())
        assert levels.max() <= 1.001 and np.mean(levels > 0.001) < 1e-3
        expected = {"logits": folded_tail(model, got["thumbnail"])}
        assert_outputs_same({"logits": got["logits"]}, expected)
    else:
        assert_outputs_same(got, expected)


def folded_tail(model: keras.Model, thumbnail: tf.Tensor) -> tf.Tensor:
    parts = thumbnet.deployed(model, model)
    return parts.student(thumbnail, training=False)["logits"]


def test_parts_cut_from_a_model_can_be_folded():
    model = with_random_statistics(shipped_model(small(bits=0)))
    parts = thumbnet.deployed(model, model)
    for part, size in ((parts.downscaler, 64), (parts.student, 32)):
        folded = folding.fold(part)
        assert not normalisations(folded)
        got, expected = folded(images(size), training=False), part(images(size), training=False)
        assert_outputs_same(*({"it": x["logits"] if isinstance(x, dict) else x} for x in (got, expected)))
        assert folded.input_shape == part.input_shape


def test_a_model_of_mixed_precision_is_folded_to_float32():
    with graph.precision("mixed_bfloat16"):
        model = with_random_statistics(backbones.build("resnet18", 32, 5, 0.125))
    folded = folding.fold(model)
    assert {layer.compute_dtype for layer in folded.layers} == {"float32"}
    plain = backbones.build("resnet18", 32, 5, 0.125)
    plain.set_weights(model.get_weights())
    assert_outputs_same(folded(images(32), training=False), plain(images(32), training=False))


def test_a_model_of_mixed_precision_can_keep_it():
    with graph.precision("mixed_bfloat16"):
        model = with_random_statistics(backbones.build("resnet18", 32, 5, 0.125))
    folded = folding.fold(model, keep_precision=True)
    assert not normalisations(folded)
    computes = {layer.name: layer.compute_dtype for layer in model.layers if layer.weights}
    assert {layer.name: layer.compute_dtype for layer in folded.layers if layer.weights}.items() <= computes.items()
    kept = {layer.name: layer.variable_dtype for layer in folded.layers if layer.weights}
    assert kept.pop("logits") == "float32" and set(kept.values()) == {"bfloat16"}
    got, expected = folded(images(32), training=False), folding.fold(model)(images(32), training=False)
    assert got["logits"].dtype == tf.float32 and got["stage2"].dtype == tf.bfloat16
    got = {name: tf.cast(value, tf.float32) for name, value in got.items()}
    assert_outputs_same(got, expected, tolerance=0.05)  # bfloat16 has 8 bits


def test_normalisations_that_stand_elsewhere_are_kept():
    image = keras.Input((8, 8, 3))
    shared = layers.Conv2D(4, 3, name="seen_by_two")(image)
    x = layers.Add()([shared, layers.BatchNormalization(name="one_of_two")(shared)])
    x = layers.Conv2D(4, 3, activation="relu", name="not_linear")(x)
    x = layers.BatchNormalization(name="behind_relu")(x)
    seen = layers.Conv2D(4, 1, name="an_output")(x)
    x = layers.BatchNormalization(name="behind_an_output")(seen)
    x = layers.Conv2D(4, 1, name="plain")(x)
    x = layers.BatchNormalization(name="foldable", center=False, scale=False)(x)
    model = keras.Model(image, {"seen": seen, "x": layers.BatchNormalization(name="behind_a_norm")(x)})

    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.moving_mean.assign([0.1, -0.2, 0.3, 0.4])
            layer.moving_variance.assign([0.5, 2.0, 1.5, 0.7])
    folded = folding.fold(model)
    assert set(normalisations(folded)) == set(normalisations(model)) - {"foldable"}
    assert_outputs_same(folded(images(8) / 255, training=False), model(images(8) / 255, training=False))


def test_a_convolution_with_a_bias_is_folded_into_one():
    image = keras.Input((8, 8, 3))
    model = with_random_statistics(
        keras.Model(image, {"x": layers.BatchNormalization()(layers.Conv2D(4, 3, name="biased")(image))})
    )
    model.get_layer("biased").bias.assign([1.0, -2.0, 3.0, -4.0])
    folded = folding.fold(model)
    assert [type(layer).__name__ for layer in folded.layers] == ["InputLayer", "Conv2D"]
    assert_outputs_same(folded(images(8) / 255, training=False), model(images(8) / 255, training=False))
