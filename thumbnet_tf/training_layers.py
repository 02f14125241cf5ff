"""Layers that compute what Keras' own do, in less time while training.

* Batch normalisation by TensorFlow's fused kernel: Keras computes moments and the normalisation by separate operators,
  whose gradients go over every map again and again.
* Convolutions of the small maps behind a thumbnail: on a CPU, oneDNN is slow in the kernel's gradient there, and
  convolves the padding around a single position, too.

Models are trained with these layers and saved with Keras' own.
"""

from collections.abc import Callable

import keras
import tensorflow as tf
from keras import layers

from thumbnet_tf.graph import copied

_SMALL = 4  # side of the largest map, and side of the largest kernel, that `SmallMapConv2D` is for

# for each position along one axis of a kernel, the outputs that meet inputs there, and the inputs; None: only padding
Positions = list[tuple[slice, slice] | None]


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


class SmallMapConv2D(layers.Conv2D):
    """Keras' convolution for small maps: the kernel's gradient is a matrix product for each position in the kernel."""

    def convolution_op(self, inputs: tf.Tensor, kernel: keras.Variable) -> tf.Tensor:
        if None in inputs.shape[1:3]:
            return super().convolution_op(inputs, kernel)
        kernel = tf.convert_to_tensor(kernel)
        sizes = zip(inputs.shape[1:3], self.kernel_size, self.strides, strict=True)
        rows, columns = (_positions(*each, same=self.padding == "same") for each in sizes)
        if self.compute_output_shape(inputs.shape)[1:3] == (1, 1):
            return _product(inputs, kernel, rows, columns)
        return _convolution(inputs, kernel, rows, columns, self.strides, self.padding.upper())


def _positions(size: int, kernel: int, stride: int, *, same: bool) -> Positions:
    """Returns where along one axis, of `size` inputs, each position of a kernel meets them."""
    outputs = -(-size // stride) if same else (size - kernel) // stride + 1
    before = max((outputs - 1) * stride + kernel - size, 0) // 2 if same else 0  # padding, as TensorFlow splits it
    found = []
    for position in range(kernel):
        shift = position - before
        first, last = max(0, -(shift // stride)), min(outputs - 1, (size - 1 - shift) // stride)
        met = slice(first, last + 1), slice(first * stride + shift, last * stride + shift + 1, stride)
        found.append(met if first <= last else None)
    return found


def _product(inputs: tf.Tensor, kernel: tf.Tensor, rows: Positions, columns: Positions) -> tf.Tensor:
    """Convolves to a single position: one matrix product of what isn't padding."""
    (x_rows, k_rows), (x_columns, k_columns) = _span(rows), _span(columns)
    seen, kernel = inputs[:, x_rows, x_columns], kernel[k_rows, k_columns]
    filters = kernel.shape[-1]
    flat = tf.matmul(tf.reshape(seen, (-1, kernel.shape.num_elements() // filters)), tf.reshape(kernel, (-1, filters)))
    return flat[:, None, None]


def _span(positions: Positions) -> tuple[slice, slice]:
    """Returns the inputs that one output meets, and where they meet the kernel."""
    used = [index for index, met in enumerate(positions) if met]
    start, stop = positions[used[0]][1].start, positions[used[-1]][1].stop
    return slice(start, stop), slice(used[0], used[-1] + 1)


def _convolution(
    inputs: tf.Tensor, kernel: tf.Tensor, rows: Positions, columns: Positions, strides: tuple[int, int], padding: str
) -> tf.Tensor:
    @tf.custom_gradient
    def convolve(x: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        settings = {"strides": [1, *strides, 1], "padding": padding}

        def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            to_inputs = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(x), filter=weights, out_backprop=upstream, **settings
            )
            channels, filters = weights.shape[2:]
            products = [
                tf.zeros((channels, filters), weights.dtype)
                if row is None or column is None
                else tf.matmul(
                    tf.reshape(x[:, row[1], column[1]], (-1, channels)),
                    tf.reshape(upstream[:, row[0], column[0]], (-1, filters)),
                    transpose_a=True,
                )
                for row in rows
                for column in columns
            ]
            return to_inputs, tf.reshape(tf.stack(products), weights.shape)

        return tf.nn.conv2d(x, weights, **settings), gradients

    return convolve(inputs, kernel)


def for_training(model: keras.Model) -> keras.Model:
    """Returns a copy of a flat model, with its weights, of the layers above wherever they can stand in for Keras'."""
    kinds = {layers.BatchNormalization: FusedBatchNormalization}
    if not tf.config.list_physical_devices("GPU"):
        kinds[layers.Conv2D] = SmallMapConv2D
    return _with(model, kinds)


def plain(model: keras.Model) -> keras.Model:
    """Returns a copy of a flat model, with its weights, of Keras' own layers."""
    return _with(model, {FusedBatchNormalization: layers.BatchNormalization, SmallMapConv2D: layers.Conv2D})


def _with(model: keras.Model, kinds: dict[type[layers.Layer], type[layers.Layer]]) -> keras.Model:
    def copy(layer: layers.Layer) -> layers.Layer:
        kind = kinds.get(type(layer))
        return kind.from_config(layer.get_config()) if kind and _fits(layer) else copied(layer)

    result = keras.models.clone_model(model, clone_function=copy)
    for ours, theirs in zip(result.layers, model.layers, strict=True):
        ours.set_weights(theirs.get_weights())
    return result


def _fits(layer: layers.BatchNormalization | layers.Conv2D) -> bool:
    if len(layer.input.shape) != 4:  # the fused kernel takes maps
        return False
    if isinstance(layer, layers.BatchNormalization):
        return layer.scale and layer.center and layer.axis in (-1, 3) and not getattr(layer, "renorm", False)
    usual = layer.data_format == "channels_last" and layer.groups == 1 and tuple(layer.dilation_rate) == (1, 1)
    sides = (*layer.output.shape[1:3], *layer.kernel_size)
    return usual and None not in sides and max(sides) <= _SMALL and max(layer.kernel_size) > 1
