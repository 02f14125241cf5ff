"""Kernels cut to the positions that meet more than padding: the same function with fewer weights.

On a thumbnail a network's last maps can be as small as 1 x 1. Of a 3 x 3 kernel there only the middle one ever meets an
input; the other eight are multiplied by the zeros of the padding and get no gradient, and still would be decayed,
stored, sent to the phone and read for each image.
"""

import keras
import numpy as np
from keras import layers

from thumbnet_tf.graph import copied

# for each position along one axis of a kernel, the outputs that meet inputs there, and the inputs; None: only padding
Positions = list[tuple[slice, slice] | None]


def positions(size: int, kernel: int, stride: int, *, same: bool) -> Positions:
    """Returns where along one axis each position of a kernel meets inputs, as TensorFlow convolves.

    Args:
        size: inputs along the axis.
        kernel: positions of the kernel along it.
        stride: of the convolution.
        same: whether it pads as `same` does.
    """
    outputs = -(-size // stride) if same else (size - kernel) // stride + 1
    before = max((outputs - 1) * stride + kernel - size, 0) // 2 if same else 0  # padding, as TensorFlow splits it
    found = []
    for position in range(kernel):
        shift = position - before
        first, last = max(0, -(shift // stride)), min(outputs - 1, (size - 1 - shift) // stride)
        met = slice(first, last + 1), slice(first * stride + shift, last * stride + shift + 1, stride)
        found.append(met if first <= last else None)
    return found


def trim(model: keras.Model) -> keras.Model:
    """Copies a model with its weights, without those of its `Conv2D` that meet nothing but the padding of `same`.

    Args:
        model: flat functional model with fixed spatial sizes.

    Returns:
        A model of the same function and the same layers' names; `model` itself where there is nothing to leave out.
    """
    cuts = {layer.name: cut for layer in model.layers if (cut := _cut(layer))}
    if not cuts:
        return model

    def copy(layer: layers.Layer) -> layers.Layer:
        if layer.name not in cuts:
            return copied(layer)
        rows, columns = cuts[layer.name]
        return copied(layer, kernel_size=(rows.stop - rows.start, columns.stop - columns.start))

    result = keras.models.clone_model(model, clone_function=copy)
    for ours, theirs in zip(result.layers, model.layers, strict=True):
        weights = theirs.get_weights()
        if theirs.name in cuts:
            weights[0] = weights[0][cuts[theirs.name]]
        ours.set_weights(weights)
    return result


def _cut(layer: layers.Layer) -> tuple[slice, slice] | None:
    """Returns which rows and columns of a kernel are needed; None where all are, or where it can't be told."""
    if type(layer) is not layers.Conv2D or layer.padding != "same" or layer.data_format != "channels_last":
        return None
    sizes = layer.input.shape[1:3]
    if None in sizes or tuple(layer.dilation_rate) != (1, 1):
        return None
    found = []
    for size, kernel, stride in zip(sizes, layer.kernel_size, layer.strides, strict=True):
        met = positions(size, kernel, stride, same=True)
        used = np.flatnonzero([each is not None for each in met])
        found.append(slice(int(used[0]), int(used[-1]) + 1))
    rows, columns = found
    whole = (rows.stop - rows.start, columns.stop - columns.start) == tuple(layer.kernel_size)
    return None if whole else (rows, columns)
