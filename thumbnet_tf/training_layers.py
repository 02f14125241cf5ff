"""Layers that compute what Keras' own do, in less time while training.

* Batch normalisation by TensorFlow's fused kernel: Keras computes moments and the normalisation by separate operators,
  whose gradients go over every map again and again.
* Convolutions of many channels on the small maps behind a thumbnail: on a CPU, oneDNN convolves the padding, too, and
  takes longer than products of matrices do.
* Strided convolutions of an image, such as a network's first: on a CPU, oneDNN is slow in the gradient that goes to the
  three channels of the thumbnail, and so to E.

Models are trained with these layers and saved with Keras' own.
"""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf
from keras import layers

from thumbnet_tf.graph import copied
from thumbnet_tf.trimming import Positions, positions

# what `SmallMapConv2D` is for: sides of the kernel and of the map that it makes, and pairs of input and output channels
_SMALL = 4
_MANY = 2**15
_FEW = 4  # channels of what `ImageConv2D` is for


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
    """Keras' convolution for small maps: a matrix product for each position in the kernel, none of the padding.

    In half precision the products are rounded before they are added up, which Keras' own aren't.
    """

    def convolution_op(self, inputs: tf.Tensor, kernel: keras.Variable) -> tf.Tensor:
        if None in inputs.shape[1:3]:
            return super().convolution_op(inputs, kernel)
        sizes = zip(inputs.shape[1:3], self.kernel_size, self.strides, strict=True)
        rows, columns = (positions(*each, same=self.padding == "same") for each in sizes)
        return _convolution(inputs, tf.convert_to_tensor(kernel), rows, columns, self.strides, self.padding.upper())


def _convolution(
    inputs: tf.Tensor, kernel: tf.Tensor, rows: Positions, columns: Positions, strides: tuple[int, int], padding: str
) -> tf.Tensor:
    channels, filters = kernel.shape[2:]
    # outputs and inputs that meet at each position of the kernel, rows and columns of both; None: only padding
    taps = [row and column and (row[0], column[0], row[1], column[1]) for row in rows for column in columns]
    sides = [max(met[0].stop for met in axis if met) for axis in (rows, columns)]
    # whether the inputs of each position lie side by side, so that their gradients can be laid among zeros
    dense = all(met is None or met[1].step == 1 or met[1].stop - met[1].start == 1 for met in (*rows, *columns))

    @tf.custom_gradient
    def convolve(x: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, Callable]:
        matrices = tf.unstack(tf.reshape(weights, (-1, channels, filters)))
        met = [(*tap, matrix) for tap, matrix in zip(taps, matrices, strict=True) if tap]

        def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            upstream = tf.ensure_shape(upstream, (None, *sides, filters))
            to_weights = [
                tf.matmul(_flat(x[:, tap[2], tap[3]]), _flat(upstream[:, tap[0], tap[1]]), transpose_a=True)
                if tap
                else tf.zeros((channels, filters), weights.dtype)
                for tap in taps
            ]
            if dense:
                to_inputs = tf.add_n(
                    [
                        _laid(_times(upstream[:, up, left], matrix, transposed=True), below, right, x.shape[1:3])
                        for up, left, below, right, matrix in met
                    ]
                )
            else:
                to_inputs = tf.raw_ops.Conv2DBackpropInput(
                    input_sizes=tf.shape(x),
                    filter=weights,
                    out_backprop=upstream,
                    strides=[1, *strides, 1],
                    padding=padding,
                )
            return to_inputs, tf.reshape(tf.stack(to_weights), weights.shape)

        outputs = [_laid(_times(x[:, below, right], matrix), up, left, sides) for up, left, below, right, matrix in met]
        return tf.add_n(outputs), gradients

    return convolve(inputs, kernel)


def _flat(maps: tf.Tensor) -> tf.Tensor:
    return tf.reshape(maps, (-1, maps.shape[-1]))


def _times(maps: tf.Tensor, matrix: tf.Tensor, *, transposed: bool = False) -> tf.Tensor:
    """Returns maps whose channels are multiplied by a matrix at each point."""
    product = tf.matmul(_flat(maps), matrix, transpose_b=transposed)
    return tf.reshape(product, (-1, *maps.shape[1:3], product.shape[-1]))


def _laid(maps: tf.Tensor, rows: slice, columns: slice, sides: Sequence[int]) -> tf.Tensor:
    """Returns maps laid into some rows and columns of larger ones of zeros."""
    if (rows.stop - rows.start, columns.stop - columns.start) == tuple(sides):
        return maps
    around = [
        (place.start, side - place.start - length)
        for place, side, length in zip((rows, columns), sides, maps.shape[1:3], strict=True)
    ]
    return tf.pad(maps, [(0, 0), *around, (0, 0)])


class ImageConv2D(layers.Conv2D):
    """Keras' strided convolution of few channels, whose gradient to its inputs is that of one without stride.

    Stride s over an image is no stride over its s x s blocks, laid into channels: then there are enough of them.
    """

    def convolution_op(self, inputs: tf.Tensor, kernel: keras.Variable) -> tf.Tensor:
        height, width = inputs.shape[1:3]
        if height is None or width is None:
            return super().convolution_op(inputs, kernel)
        stride = self.strides[0]
        around, blocks = zip(*(_in_blocks(side, stride) for side in self.kernel_size), strict=True)
        settings = {"strides": [1, stride, stride, 1], "padding": "SAME"}

        @tf.custom_gradient
        def convolve(x: tf.Tensor, weights: tf.Tensor) -> tuple[tf.Tensor, Callable]:
            channels, filters = weights.shape[2:]

            def gradients(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
                whole = tf.pad(weights, [*around, (0, 0), (0, 0)])
                by_block = tf.reshape(whole, (blocks[0], stride, blocks[1], stride, channels, filters))
                to_blocks = tf.raw_ops.Conv2DBackpropInput(
                    input_sizes=[tf.shape(x)[0], height // stride, width // stride, channels * stride**2],
                    filter=tf.reshape(tf.transpose(by_block, (0, 2, 1, 3, 4, 5)), (*blocks, -1, filters)),
                    out_backprop=upstream,
                    strides=[1, 1, 1, 1],
                    padding="SAME",
                )
                to_weights = tf.raw_ops.Conv2DBackpropFilter(
                    input=x, filter_sizes=tf.shape(weights), out_backprop=upstream, **settings
                )
                return tf.nn.depth_to_space(to_blocks, stride), to_weights

            return tf.nn.conv2d(x, weights, **settings), gradients

        return convolve(inputs, tf.convert_to_tensor(kernel))


def _in_blocks(kernel: int, stride: int) -> tuple[tuple[int, int], int]:
    """Returns how a kernel is padded along one axis to whole blocks, and to how many; as `same` pads them, they fit."""
    before = (kernel - stride) // 2  # padding in front of an image of whole blocks, as TensorFlow splits it
    front = -before % stride
    blocks = -(-(front + kernel) // stride)
    return (front, blocks * stride - front - kernel), blocks


def for_training(model: keras.Model) -> keras.Model:
    """Returns a copy of a flat model, with its weights, of the layers above wherever they can stand in for Keras'."""
    return _with(model, _faster)


def plain(model: keras.Model) -> keras.Model:
    """Returns a copy of a flat model, with its weights, of Keras' own layers."""
    own = {
        FusedBatchNormalization: layers.BatchNormalization,
        SmallMapConv2D: layers.Conv2D,
        ImageConv2D: layers.Conv2D,
    }
    return _with(model, lambda layer: own.get(type(layer)))


def _with(model: keras.Model, choose: Callable[[layers.Layer], type[layers.Layer] | None]) -> keras.Model:
    def copy(layer: layers.Layer) -> layers.Layer:
        kind = choose(layer)
        return kind.from_config(layer.get_config()) if kind else copied(layer)

    result = keras.models.clone_model(model, clone_function=copy)
    for ours, theirs in zip(result.layers, model.layers, strict=True):
        ours.set_weights(theirs.get_weights())
    return result


def _faster(layer: layers.Layer) -> type[layers.Layer] | None:
    """Returns the layer that can stand in for one of Keras' in training, if any."""
    if type(layer) is layers.BatchNormalization and len(layer.input.shape) == 4:  # the fused kernel takes maps
        usual = layer.scale and layer.center and layer.axis in (-1, 3) and not getattr(layer, "renorm", False)
        return FusedBatchNormalization if usual else None
    if type(layer) is not layers.Conv2D or tf.config.list_physical_devices("GPU"):
        return None
    sides, kernel, strides = layer.input.shape[1:3], layer.kernel_size, layer.strides
    usual = layer.data_format == "channels_last" and layer.groups == 1 and tuple(layer.dilation_rate) == (1, 1)
    if not usual or None in sides or max(kernel) == 1:
        return None
    channels = layer.input.shape[-1]
    if max(*layer.output.shape[1:3], *kernel) <= _SMALL and channels * layer.filters >= _MANY:
        return SmallMapConv2D
    whole = strides[0] == strides[1] > 1 and layer.padding == "same" and not any(side % strides[0] for side in sides)
    # in half precision the gradient to the kernel takes several times as long as Keras' own
    whole = whole and layer.compute_dtype == "float32"
    return ImageConv2D if whole and channels <= _FEW and min(kernel) >= strides[0] else None
