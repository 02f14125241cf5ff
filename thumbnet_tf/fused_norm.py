"""Batch normalisation by TensorFlow's fused kernel while training: the same function as Keras', in fewer passes.

Keras computes moments and the normalisation by separate operators, whose gradients go over every map again and again.
Models are trained with the fused layers and saved with Keras' own.
"""

from typing import TypeVar

import keras
import tensorflow as tf
from keras import layers

from thumbnet_tf.graph import copied

Kind = TypeVar("Kind", bound=layers.BatchNormalization)


class FusedBatchNormalization(layers.BatchNormalization):
    """Keras' batch normalisation over the last axis of maps, whose training pass is one operator."""

    def call(self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None) -> tf.Tensor:
        if not training or not self.trainable:
            return super().call(inputs, training=training, mask=mask)
        result, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=tf.convert_to_tensor(self.gamma),
            offset=tf.convert_to_tensor(self.beta),
            mean=tf.constant([], tf.float32),
            variance=tf.constant([], tf.float32),
            epsilon=self.epsilon,
            is_training=True,
        )
        count = tf.cast(tf.size(inputs) // inputs.shape[-1], tf.float32)
        variance *= (count - 1) / count  # the kernel's is the unbiased one, Keras keeps the batch's own
        for moving, now in ((self.moving_mean, mean), (self.moving_variance, variance)):
            moving.assign(moving * self.momentum + now * (1 - self.momentum))
        return result


def fused(model: keras.Model) -> keras.Model:
    """Returns a copy of a flat model, with its weights, that normalises by the fused kernel while training.

    What the kernel can't do, normalisations of vectors, over another axis, or without scale or offset, stays Keras'.
    """
    return _with(model, FusedBatchNormalization)


def plain(model: keras.Model) -> keras.Model:
    """Returns a copy of a flat model, with its weights, of Keras' own layers."""
    return _with(model, layers.BatchNormalization)


def _with(model: keras.Model, kind: type[Kind]) -> keras.Model:
    def copy(layer: layers.Layer) -> layers.Layer:
        if isinstance(layer, layers.BatchNormalization):
            fits = layer.scale and layer.center and layer.axis in (-1, 3) and len(layer.input.shape) == 4
            return (kind if fits else layers.BatchNormalization).from_config(layer.get_config())
        return copied(layer)

    result = keras.models.clone_model(model, clone_function=copy)
    for ours, theirs in zip(result.layers, model.layers, strict=True):
        ours.set_weights(theirs.get_weights())
    return result
