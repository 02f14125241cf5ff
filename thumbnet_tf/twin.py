"""The tf_keras twin of a flat Keras 3 model, for TensorFlow's model optimization toolkit (TFMOT), which takes no other.

The twin computes the same function in a form that can be quantised, pruned and clustered:

* Its input, and every tensor of pixels p in [0, 255], is held as (p - 128) / 128. So each `Rescaling` between the two
  units becomes nothing at all, and int8's input scale is exactly 1/128 with zero point 128: raw bytes can be fed.
* Batch normalisation is folded into the convolution before it, and a ReLU behind that becomes the convolution's
  activation. These are the operators and weights that TFLite runs: what is zero, or one of a few values, stays so.

tf_keras is imported inside functions only, so that importing this module changes nothing.
"""

from typing import TYPE_CHECKING

import keras
import tensorflow as tf
from keras import layers

from thumbnet_tf.config import UserError
from thumbnet_tf.downscaler import FROM_PIXELS, TO_PIXELS, ToThumbnail, takers_of_pixels
from thumbnet_tf.folding import folded_weights, only_consumer
from thumbnet_tf.graph import consumers_of

if TYPE_CHECKING:
    import tf_keras

# layers that have a twin of the same name, and the settings that it takes over
_SETTINGS = {
    layers.Conv2D: ("filters", "kernel_size", "strides", "padding", "dilation_rate", "groups"),
    layers.Dense: ("units", "activation", "use_bias"),
    layers.ReLU: ("max_value", "negative_slope", "threshold"),
    layers.Add: (),
    layers.MaxPooling2D: ("pool_size", "strides", "padding"),
    layers.AveragePooling2D: ("pool_size", "strides", "padding"),
    layers.GlobalAveragePooling2D: (),
    layers.Flatten: (),
}
_SUPPORTED = (layers.InputLayer, layers.Rescaling, layers.BatchNormalization, ToThumbnail, *_SETTINGS)
# what Keras 3, tf_keras and TFMOT all know, and compute alike
_ACTIVATIONS = (keras.activations.linear, keras.activations.relu)

LOW, HIGH = -1.0, 127 / 128  # the pixels 0 and 255 in the twin's units


def build(model: keras.Model, *, rounded: bool = True) -> "tf_keras.Model":
    """Builds the twin of a shipped model, with its weights.

    Args:
        model: flat functional model from images `(B, size, size, 3)` in [0, 255] to a dict with `logits`.
        rounded: whether the thumbnail is rounded as in `model`; if not, that is left to a quantiser.

    Returns:
        A tf_keras model from images `(B, size, size, 3)` float32, normalised to (p - 128) / 128, to logits `(B, C)`
        float32. Its layers have the names they have in `model`.

    Raises:
        UserError: when the model holds a layer that has no twin.
    """
    import tf_keras

    check(model)
    consumers = consumers_of(model)
    tensors = {}  # id of a tensor of `model` -> the twin's tensor
    for layer in model.layers:
        if id(layer.output) in tensors:  # was folded into a convolution
            continue
        if isinstance(layer, layers.InputLayer):
            tensors[id(layer.output)] = tf_keras.Input(layer.output.shape[1:], name=layer.name)
            continue
        given = [tensors[id(tensor)] for tensor in tf.nest.flatten(layer.input)]
        x = given if len(given) > 1 else given[0]
        kind = type(layer)
        if kind is layers.Conv2D:
            norm = only_consumer(layer, layers.BatchNormalization, consumers)
            relu = _relu_behind(norm or layer, consumers)
            convolution = _twin(layer, activation="relu" if relu else None)
            x = convolution(x)
            convolution.set_weights(folded_weights(layer, norm))
            tensors |= {id(folded.output): x for folded in (norm, relu) if folded}
        elif kind in _SETTINGS:
            twin = _twin(layer)
            x = twin(x)
            twin.set_weights(layer.get_weights())
        elif kind is ToThumbnail:
            x = _rounding(layer)(x) if rounded else x
        tensors[id(layer.output)] = x
    outputs = model.output
    return tf_keras.Model(tensors[id(model.inputs[0])], tensors[id(outputs["logits"])], name=model.name)


def check(model: keras.Model) -> None:
    """Checks that a flat model has a twin.

    Raises:
        UserError: when it holds a layer that has none.
    """
    consumers = consumers_of(model)
    folded, takers = set(), takers_of_pixels(model)
    for layer in model.operations:
        kind = type(layer)
        if kind is layers.Conv2D:
            norm = only_consumer(layer, layers.BatchNormalization, consumers)
            folded |= {norm.name} if norm else set()
        misfit = (
            kind not in _SUPPORTED
            or (kind is layers.Conv2D and layer.activation is not keras.activations.linear)
            or (kind is layers.Dense and layer.activation not in _ACTIVATIONS)
            or (kind is layers.Rescaling and (layer.scale, layer.offset) not in (FROM_PIXELS, TO_PIXELS))
            or layer.name in takers
            or (kind is layers.BatchNormalization and layer.name not in folded)
        )
        if misfit:
            raise _unsupported(layer)


def normalised(images: tf.Tensor) -> tf.Tensor:
    """Returns images in [0, 255] in the twin's units, (p - 128) / 128 float32."""
    return (tf.cast(images, tf.float32) - 128.0) / 128.0


def _relu_behind(layer: layers.Layer, consumers: dict) -> layers.ReLU | None:
    """Returns the layer behind this one if it is the only one and a plain ReLU."""
    relu = only_consumer(layer, layers.ReLU, consumers)
    plain = relu is not None and (relu.max_value, relu.negative_slope, relu.threshold) == (None, 0, 0)
    return relu if plain else None


def _twin(layer: layers.Layer, **settings):
    import tf_keras

    config = layer.get_config()
    if type(layer) is layers.Conv2D:
        settings["use_bias"] = True
    settings |= {name: config[name] for name in _SETTINGS[type(layer)]}
    return getattr(tf_keras.layers, type(layer).__name__)(**settings, name=layer.name)


def _rounding(layer: ToThumbnail):
    """Returns a layer that clips and rounds thumbnails as `ToThumbnail` does, in the twin's units."""
    import tf_keras

    class Rounding(tf_keras.layers.Layer):
        """Clips and rounds; the gradient passes straight through inside the range."""

        bits = layer.bits

        def call(self, x: tf.Tensor) -> tf.Tensor:
            x = tf.clip_by_value(x, LOW, HIGH)
            if self.bits == 0:
                return x
            step = (HIGH - LOW) / (2**self.bits - 1)
            # in floor and not in a fake quantisation, which TFLite would take as a wish for integers
            return tf.grad_pass_through(lambda y: tf.floor((y - LOW) / step + 0.5) * step + LOW)(x)

    return Rounding(name=layer.name)


def _unsupported(layer: layers.Layer) -> UserError:
    supported = ", ".join(kind.__name__ for kind in _SUPPORTED)
    return UserError(
        "int8_qat, pruned and clustered need a model of plain layers "
        f"({supported}; batch normalisation behind a convolution, no activation but relu in Dense, Rescaling between "
        "pixels p and (p - 128) / 128 only, and nothing else that takes pixels). "
        f"Received: the layer {layer.name!r} of type {type(layer).__name__}"
    )
