"""A trained model as one TensorFlow function without variables: the fastest way to run it on a CPU.

With the weights as constants, oneDNN brings each kernel in the order it wants once, not at every call; with batch
normalisation folded, a convolution, its bias and its ReLU become one operator.
"""

import math

import keras
import numpy as np
import tensorflow as tf
from keras import layers
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from thumbnet_tf.folding import fold
from thumbnet_tf.graph import consumers_of, copied


def freeze(
    model: keras.Model, batch_size: int | None = None, dtype: tf.DType = tf.uint8
) -> tf.types.experimental.ConcreteFunction:
    """Makes a function of a model's present weights; later changes of the model don't reach it.

    Args:
        model: flat functional model from images `(B, H, W, 3)` in [0, 255].
        batch_size: B; None for any.
        dtype: of the images, uint8 or float32.

    Returns:
        A function from images to what `model(images, training=False)` returns, in float32. It equals the model up to
        the rounding of folded weights, about 1e-6 of a tensor's range; a rounded thumbnail that lies between two
        levels may so fall to the other one.
    """
    folded = on_pixels(fold(model))
    spec = tf.TensorSpec((batch_size, *model.input.shape[1:]), dtype, name="image")

    @tf.function(input_signature=[spec], autograph=False)
    def variables(image: tf.Tensor) -> dict[str, tf.Tensor] | tf.Tensor:
        return folded(tf.cast(image, tf.float32), training=False)

    constants = convert_variables_to_constants_v2(variables.get_concrete_function())

    # called on its own, what the conversion returns takes longer than the graph of a small model: it first tries
    # whether its argument fits a structured signature, which it has lost, and formats the images for the error
    @tf.function(input_signature=[spec], autograph=False)
    def frozen(image: tf.Tensor) -> dict[str, tf.Tensor] | tf.Tensor:
        return tf.nest.pack_sequence_as(folded.output, tf.nest.flatten(constants(image)))

    return frozen.get_concrete_function()


def on_pixels(model: keras.Model) -> keras.Model:
    """Rewrites a model so that it needs no rescaled copy of its full-size input, where that pays.

    A `Rescaling` of the input stands before average pooling and convolutions, which are linear: pooled pixels are
    rescaled instead of pixels, and a convolution takes the scale into its kernel and the offset into what it adds.
    At the borders, where zeros are padded, that is another sum than inside; so a map is added in place of a bias.
    It is done where the maps behind are smaller than the image, as in E at ratio 4, and not for a first layer that
    makes larger ones, as T's: there a pass over its map would cost more than one over the image.

    Args:
        model: flat functional model without batch normalisation behind its first convolution (see `fold`).

    Returns:
        A model of the same function; `model` itself where there is nothing to rewrite.
    """
    consumers = consumers_of(model)
    first = next((layer for layer in consumers.get(id(model.inputs[0]), ()) if type(layer) is layers.Rescaling), None)
    if first and np.ndim(first.scale) + np.ndim(first.offset):
        return model  # a colour's own scale can't wait until the colours are mixed
    behind = {layer.name: layer for layer in consumers.get(id(first.output), ())} if first else {}
    maps = [layer.output for layer in behind.values() if _is_linear(layer)]
    if len(maps) < max(1, len(behind)) or any(tensor is first.output for tensor in tf.nest.flatten(model.output)):
        return model
    if sum(math.prod(tensor.shape[1:]) for tensor in maps) >= math.prod(first.output.shape[1:]):
        return model

    def copy(layer: layers.Layer) -> layers.Layer:
        settings = {"use_bias": False} if layer.name in behind and type(layer) is layers.Conv2D else {}
        return copied(layer, **settings)

    latest: list[keras.KerasTensor] = []  # what was called last; the layers come by depth, pooling next to its sum

    names: list[str] = []  # of the copies of the rescaling, one behind each pooling

    def call(layer: layers.Layer, x: keras.KerasTensor, *args, **kwargs) -> keras.KerasTensor:
        if layer.name == first.name:
            return x
        if type(layer) is layers.AveragePooling2D and layer.name in behind and latest:
            x = After(name=f"{layer.name}_after")([x, latest[-1]])  # pooled earlier, it would lie beside larger maps
        y = layer(x, *args, **kwargs)
        latest[:] = [y]
        if type(layer) is layers.Conv2D and layer.name in behind:
            return AddMap(name=f"{layer.name}_map")(y)
        if layer.name not in behind:
            return y
        names.append(f"{first.name}_{len(names)}" if names else first.name)
        return copied(first, name=names[-1])(y)

    result = keras.models.clone_model(model, clone_function=copy, call_function=call)
    sources = {layer.name: layer for layer in model.layers}
    for layer in result.layers:
        if isinstance(layer, AddMap):
            source = sources[layer.name.removesuffix("_map")]
            layer.set_weights([_constant_part(source, first.offset)])
        elif layer.name in behind and layer.weights:
            layer.set_weights([sources[layer.name].get_weights()[0] * first.scale])
        elif layer.weights:
            layer.set_weights(sources[layer.name].get_weights())
    return result


class AddMap(layers.Layer):
    """Adds the same map `(h, w, c)` to each image's."""

    def build(self, input_shape: tuple) -> None:
        self.map = self.add_weight(shape=(1, *input_shape[1:]), name="map", trainable=False)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        return x + self.map


class After(layers.Layer):
    """Returns the first of two tensors, once the second is there."""

    def call(self, tensors: list[tf.Tensor]) -> tf.Tensor:
        with tf.control_dependencies([tensors[1]]):
            return tf.identity(tensors[0])


def _is_linear(layer: layers.Layer) -> bool:
    if type(layer) is layers.AveragePooling2D:
        return True
    return type(layer) is layers.Conv2D and layer.activation is keras.activations.linear


def _constant_part(conv: layers.Conv2D, offset: float) -> np.ndarray:
    """Returns what a convolution makes of an image that is `offset` everywhere, `(1, h, w, c)`."""
    return conv(tf.fill((1, *conv.input.shape[1:]), tf.cast(offset, tf.float32))).numpy()
