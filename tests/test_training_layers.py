"""Layers for training are Keras': outputs, gradients, moving statistics; and they leave no trace in files."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from thumbnet_tf import backbones, downscaler, graph, training_layers
from thumbnet_tf.training_layers import FusedBatchNormalization, ImageConv2D, SmallMapConv2D, for_training, plain


@pytest.fixture(autouse=True)
def few_channels(monkeypatch):
    """Lets small models have what pays for many channels only."""
    monkeypatch.setattr(training_layers, "_MANY", 5)


def models() -> dict[str, keras.Model]:
    keras.utils.set_random_seed(1)
    return {"network": backbones.build("resnet18", 32, 3, 0.0625), "downscaler": downscaler.build("learned", 32, 2, 4)}


@pytest.mark.usefixtures("tiny_resnet")
@pytest.mark.parametrize("name", ["network", "downscaler"])
@pytest.mark.parametrize("batch", [2, 5])
def test_a_training_pass_equals_that_of_keras(name, batch, photos):
    ours, theirs = for_training(models()[name]), models()[name]
    images = tf.constant(photos(batch, 32), tf.float32)
    found = []
    for model in (ours, theirs):
        with tf.GradientTape() as tape:
            outputs = model(images, training=True)
            outputs = outputs["stage2"] if isinstance(outputs, dict) else outputs
            loss = tf.reduce_mean(tf.square(outputs))
        gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
        found.append([outputs, *[g for g in gradients if g is not None], *[v.value for v in model.variables]])
    kinds = {type(layer) for layer in ours.layers if isinstance(layer, keras.layers.BatchNormalization)}
    assert kinds == {FusedBatchNormalization}
    assert any(isinstance(layer, ImageConv2D) for layer in ours.layers)
    assert any(isinstance(layer, SmallMapConv2D) for layer in ours.layers) == (name == "network")
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(tf.reduce_max(tf.abs(b))) + 1e-7)
    start = [v.numpy() for v in models()[name].non_trainable_variables]
    assert max(np.abs(a - b).max() for a, b in zip(start, ours.non_trainable_variables, strict=True)) > 1e-3


def test_what_the_fused_kernel_does_not_compute_stays_keras_own():
    image = keras.Input((8, 8, 3))
    own = [keras.layers.BatchNormalization(**settings) for settings in ({"renorm": True}, {"scale": False})]
    trained = for_training(keras.Model(image, own[1](own[0](keras.layers.BatchNormalization()(image)))))
    assert [type(layer) is FusedBatchNormalization for layer in trained.layers[1:]] == [True, False, False]


@pytest.mark.usefixtures("tiny_resnet")
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_the_copy_back_is_plain_and_equal(policy, photos):
    keras.config.set_dtype_policy(policy)
    model = models()["network"]
    for variable in model.variables:
        variable.assign(np.random.default_rng(0).uniform(0.5, 1.5, variable.shape))
    images = tf.constant(photos(3, 32), tf.float32)
    trained = for_training(model)
    trained(images, training=True)
    back = plain(trained)
    assert any(isinstance(layer, SmallMapConv2D) for layer in trained.layers)
    assert {type(layer).__module__.split(".")[0] for layer in back.layers} == {"keras"}
    assert [layer.name for layer in back.layers] == [layer.name for layer in model.layers]
    expected = trained(images, training=False)["logits"].numpy()
    tolerance = 1e-5 if policy == "float32" else 0.02
    np.testing.assert_allclose(
        back(images, training=False)["logits"], expected, atol=tolerance * np.abs(expected).max()
    )
    assert all(layer.dtype_policy.name == policy for layer in back.layers if "conv" in layer.name)


SHAPES = [
    # size of the map, side of the kernel, stride, padding
    ((1, 1), 3, 1, "same"),
    ((2, 2), 3, 1, "same"),
    ((2, 2), 3, 2, "same"),
    ((3, 1), 3, 2, "same"),
    ((3, 4), 3, 2, "same"),
    ((4, 4), (4, 2), 1, "same"),
    ((5, 7), 3, 3, "same"),
    ((4, 4), 4, 1, "valid"),
    ((7, 7), 3, 2, "valid"),
    ((8, 5), 2, 3, "valid"),
    ((4, 4), 2, (1, 2), "same"),
]


IMAGES = [
    ((8, 8), 7, 2, "same"),
    ((8, 12), 7, 4, "same"),
    ((6, 4), 3, 2, "same"),
    ((4, 4), (2, 5), 2, "same"),
    ((9, 6), (4, 3), 3, "same"),
    ((64, 64), 11, 4, "same"),
]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize(
    ("kind", "channels", "shape"),
    [*((SmallMapConv2D, 5, shape) for shape in SHAPES), *((ImageConv2D, 3, shape) for shape in IMAGES)],
)
def test_a_convolution_equals_that_of_keras(kind, channels, shape, use_bias, batch, monkeypatch):
    size, kernel, stride, padding = shape
    if kind is ImageConv2D:
        monkeypatch.setattr(training_layers, "_MANY", 2**15)
    image = keras.Input((*size, channels))
    layer = keras.layers.Conv2D(6, kernel, stride, padding=padding, use_bias=use_bias, activation="tanh", name="conv")
    theirs = keras.Model(image, layer(image))
    random = np.random.default_rng(0)
    for variable in theirs.variables:
        variable.assign(random.normal(0, 0.3, variable.shape))
    ours = for_training(theirs)
    assert type(ours.get_layer("conv")) is kind
    maps = tf.constant(random.normal(size=(batch, *size, channels)), tf.float32)
    upstream = tf.constant(random.normal(size=(batch, *theirs.output.shape[1:])), tf.float32)
    found = []
    for model in (ours, theirs):
        with tf.GradientTape() as tape:
            tape.watch(maps)
            outputs = model(maps, training=True)
            loss = tf.reduce_sum(outputs * upstream)
        found.append([outputs, *tape.gradient(loss, [maps, *(v.value for v in model.trainable_variables)])])
    for a, b in zip(*found, strict=True):
        assert a.shape == b.shape and np.abs(b).max() > 0.01
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "size", "channels"), [(SmallMapConv2D, 3, 8), (keras.layers.Conv2D, 12, 3)], ids=["small", "image"]
)
@pytest.mark.parametrize("half", [tf.bfloat16, tf.float16])
def test_a_convolution_in_half_precision_and_a_graph_of_any_batch(kind, size, channels, half):
    with graph.precision(f"mixed_{half.name}"):
        image = keras.Input((size, size, channels))
        theirs = keras.Model(image, keras.layers.Conv2D(8, 3, 2, padding="same", use_bias=False)(image))
    ours = for_training(theirs)
    assert type(ours.layers[-1]) is kind
    maps = np.random.default_rng(0).normal(size=(5, size, size, channels)).astype(np.float32)
    found = []
    for model in (ours, theirs):

        @tf.function(input_signature=[tf.TensorSpec((None, size, size, channels))])
        def gradients(maps, model=model):
            with tf.GradientTape() as tape:
                tape.watch(maps)
                outputs = model(maps, training=True)
                loss = tf.reduce_sum(tf.square(tf.cast(outputs, tf.float32)))
            return outputs, tape.gradient(loss, [maps, model.layers[-1].kernel.value])

        found.append(tf.nest.flatten(gradients(maps)))
    assert [each.dtype for each in found[0]] == [each.dtype for each in found[1]]
    assert found[0][0].dtype == half and found[0][2].dtype == tf.float32
    for a, b in zip(*found, strict=True):
        a, b = tf.cast(a, tf.float32), tf.cast(b, tf.float32)
        assert np.abs(a - b).max() < 0.02 * np.abs(b).max()  # bfloat16 has 8 bits


@pytest.mark.parametrize(("kind", "size", "stride"), [(SmallMapConv2D, 4, 1), (ImageConv2D, 12, 2)])
def test_images_of_unknown_size_are_convolved_by_keras(kind, size, stride):
    image = keras.Input((size, size, 3))
    theirs = keras.Model(image, keras.layers.Conv2D(4, 3, stride, padding="same")(image))
    ours = for_training(theirs)
    assert type(ours.layers[-1]) is kind
    maps = np.random.default_rng(0).normal(size=(2, size, size, 3)).astype(np.float32)
    found = tf.function(ours.layers[-1], input_signature=[tf.TensorSpec((None, None, None, 3))])(maps)
    np.testing.assert_allclose(found, theirs(maps), rtol=1e-4, atol=1e-5)
    image = keras.Input((None, None, 3))
    anysize = for_training(keras.Model(image, keras.layers.Conv2D(4, 3, stride, padding="same")(image)))
    assert type(anysize.layers[-1]) is keras.layers.Conv2D


def test_other_convolutions_stay_those_of_keras():
    image = keras.Input((20, 20, 3))
    x = keras.layers.Conv2D(4, 3, 2, name="image_unpadded")(image)
    x = keras.layers.Conv2D(4, 3, 2, padding="same", name="image_of_odd_size")(x)
    x = keras.layers.ZeroPadding2D(10)(x)  # 5 x 5 to 25 x 25
    x = keras.layers.Conv2D(6, 3, padding="same", name="no_stride")(x)
    x = keras.layers.Conv2D(4, 5, 5, padding="same", name="many_channels")(x)
    x = keras.layers.ZeroPadding2D(((9, 10), (9, 10)))(x)  # 5 x 5 to 24 x 24
    x = keras.layers.Conv2D(4, 3, (2, 1), padding="same", name="unequal_strides")(x)
    x = keras.layers.Conv2D(4, 2, 3, padding="same", name="gaps")(x)  # 12 x 24 to 4 x 8
    x = keras.layers.Conv2D(4, 3, 2, name="small_map")(x)
    x = keras.layers.Conv2D(4, 5, padding="same", name="large_kernel")(x)
    x = keras.layers.Conv2D(4, 1, name="one_by_one")(x)
    x = keras.layers.Conv2D(4, 3, dilation_rate=2, padding="same", name="dilated")(x)
    x = keras.layers.Conv2D(4, 3, groups=2, padding="same", name="grouped")(x)
    x = keras.layers.Conv2D(1, 3, padding="same", name="few_channels")(x)
    model = for_training(keras.Model(image, keras.layers.DepthwiseConv2D(1, name="depthwise")(x)))
    kinds = {layer.name: type(layer) for layer in model.layers if isinstance(layer, (SmallMapConv2D, ImageConv2D))}
    assert kinds == {"small_map": SmallMapConv2D}
