"""The fused batch normalisation is Keras': outputs, gradients, moving statistics; and it leaves no trace in files."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from thumbnet_tf import backbones, downscaler
from thumbnet_tf.fused_norm import FusedBatchNormalization, fused, plain


def models() -> dict[str, keras.Model]:
    keras.utils.set_random_seed(1)
    return {"network": backbones.build("resnet18", 32, 3, 0.0625), "downscaler": downscaler.build("learned", 32, 2, 4)}


@pytest.mark.usefixtures("tiny_resnet")
@pytest.mark.parametrize("name", ["network", "downscaler"])
@pytest.mark.parametrize("batch", [2, 5])
def test_a_training_pass_equals_that_of_keras(name, batch, photos):
    ours, theirs = fused(models()[name]), models()[name]
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
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * float(tf.reduce_max(tf.abs(b))) + 1e-7)
    start = [v.numpy() for v in models()[name].non_trainable_variables]
    assert max(np.abs(a - b).max() for a, b in zip(start, ours.non_trainable_variables, strict=True)) > 1e-3


@pytest.mark.usefixtures("tiny_resnet")
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_the_copy_back_is_plain_and_equal(policy, photos):
    keras.config.set_dtype_policy(policy)
    model = models()["network"]
    for variable in model.variables:
        variable.assign(np.random.default_rng(0).uniform(0.5, 1.5, variable.shape))
    images = tf.constant(photos(3, 32), tf.float32)
    trained = fused(model)
    trained(images, training=True)
    back = plain(trained)
    assert not any(isinstance(layer, FusedBatchNormalization) for layer in back.layers)
    assert [layer.name for layer in back.layers] == [layer.name for layer in model.layers]
    np.testing.assert_array_equal(back(images, training=False)["logits"], trained(images, training=False)["logits"])
    assert all(layer.dtype_policy.name == policy for layer in back.layers if "conv" in layer.name)
