"""Batch normalisation folded into the convolution before it: the same function with fewer operators.

Trained statistics are constants, so a normalisation behind a convolution is another kernel and a bias. In this form
TensorFlow's graph optimiser makes one operator of a convolution, its bias and the ReLU behind it.
"""

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from thumbnet_tf.graph import consumers_of, copied


def fold(model: keras.Model, *, keep_precision: bool = False) -> keras.Model:
    """Copies a model, folding each batch normalisation that is the only consumer of a convolution into it.

    Args:
        model: flat functional model of any precision.
        keep_precision: whether layers that compute in half precision go on to, with their weights in it, too.

    Returns:
        A model of the same function, with the same names, inputs and outputs, that shares nothing with `model`; it
        computes in float32 unless `keep_precision`. Normalisations that stand elsewhere are kept.
    """
    trained = {layer.name: layer for layer in model.layers}
    # each layer is called once in the copy
    plain = keras.models.clone_model(model, clone_function=lambda layer: copied(layer, dtype="float32"))
    consumers = consumers_of(plain)
    outputs = {id(tensor) for tensor in tf.nest.flatten(plain.output)}
    norms = {}  # name of a convolution -> the normalisation behind it
    for layer in plain.layers:
        if type(layer) is layers.Conv2D and id(layer.output) not in outputs:
            norm = only_consumer(layer, layers.BatchNormalization, consumers)
            if norm is not None and can_fold(layer, norm):
                norms[layer.name] = norm
    folded = {norm.name for norm in norms.values()}

    def copy(layer: layers.Layer) -> layers.Layer:
        dtype = getattr(trained[layer.name], "compute_dtype", "float32") if keep_precision else "float32"
        return copied(layer, dtype=dtype, **({"use_bias": True} if layer.name in norms else {}))

    def call(layer: layers.Layer, x: keras.KerasTensor, *args, **kwargs) -> keras.KerasTensor:
        return x if layer.name in folded else layer(x, *args, **kwargs)

    result = keras.models.clone_model(plain, clone_function=copy, call_function=call)
    for layer in result.layers:
        if layer.weights:
            source, norm = trained[layer.name], norms.get(layer.name)
            layer.set_weights(folded_weights(source, trained[norm.name]) if norm else source.get_weights())
    return result


def folded_weights(conv: layers.Conv2D, norm: layers.BatchNormalization | None) -> list[np.ndarray]:
    """Returns the kernel and bias of a convolution with the batch normalisation behind it."""
    kernel = np.float64(conv.kernel.numpy())
    bias = np.float64(conv.bias.numpy()) if conv.use_bias else np.zeros(conv.filters)
    if norm is not None:
        scale = 1 / np.sqrt(np.float64(norm.moving_variance.numpy()) + norm.epsilon)
        if norm.scale:
            scale *= norm.gamma.numpy()
        kernel, bias = kernel * scale, (bias - norm.moving_mean.numpy()) * scale
        if norm.center:
            bias += norm.beta.numpy()
    return [np.float32(kernel), np.float32(bias)]


def can_fold(conv: layers.Conv2D, norm: layers.BatchNormalization) -> bool:
    """Returns whether a normalisation behind a convolution is nothing but another kernel and bias of it."""
    linear = conv.activation is keras.activations.linear
    return linear and conv.data_format == "channels_last" and norm.axis in (-1, 3)


def only_consumer(layer: layers.Layer, kind: type, consumers: dict[int, list[keras.Operation]]) -> layers.Layer | None:
    """Returns the layer behind this one if it is the only one and of a kind."""
    behind = consumers.get(id(layer.output), [])
    return behind[0] if len(behind) == 1 and type(behind[0]) is kind else None
