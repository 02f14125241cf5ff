"""A teacher T of somebody else's making as one of ours: flat, on RGB images in [0, 255], with logits and one map.

`standardise` takes any functional or sequential Keras classifier.
"""

import inspect
import logging
import math

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from thumbnet_tf import graph
from thumbnet_tf.config import AUTO, Config, FlagError, UserError

NAME = "own_teacher"
INPUTS = ("0..255", "0..1", "-1..1", "bgr_0..255", "bgr_0..1", "bgr_-1..1", "caffe", "torch")
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's colours, RGB in [0, 1]
_BGR = {  # scale and offsets of BGR in [0, 255], as OpenCV reads images
    "bgr_0..255": (1, (0, 0, 0)),
    "bgr_0..1": (1 / 255, (0, 0, 0)),
    "bgr_-1..1": (1 / 127.5, (-1, -1, -1)),
    "caffe": (1, (-103.939, -116.779, -123.68)),
}
_TWO_CLASSES = "two_classes"
_RESERVED = ("image", "thumbnail", "logits", "label", "other_label", "share", "id", "view", "mask", _TWO_CLASSES)
_AUGMENTATION = ("RandAugment", "AugMix", "Solarization", "Equalization")  # beside Random...
_INPUT_LAYERS = ("input_rescaling", "input_bgr")
_MOMENTUM = 0.9  # of batch statistics at most, as in `backbones`; what Keras' networks have is for a million steps
_HINT = "T must be a functional or sequential image classifier of Keras' own layers"

_log = logging.getLogger(__name__)


def standardise(
    model: keras.Model, size: int, mode: str, tap: str = AUTO, *, synchronized: bool = False
) -> keras.Model:
    """Copies a classifier into the form that T has here.

    Nested models are laid out flat, augmentation is left out, a softmax at the end is taken off (or turned into its
    logarithm), and what the classifier demands of its input is a layer in front. The one score of two classes, from
    which a sigmoid is taken off, becomes the second logit beside 0. All computes in float32.

    Args:
        model: functional or sequential classifier of one image.
        size: side of the square input in pixels.
        mode: what `model` expects, one of `INPUTS`.
        tap: name of the layer whose map FM decodes; `auto` = the deepest at an eighth of the input's side.
        synchronized: whether batch statistics are taken over all replicas.

    Returns:
        A model `own_teacher` from RGB images `(B, size, size, 3)` in [0, 255] to `logits` `(B, C)` and the tap's map
        `(B, h, w, c)`, by name.

    Raises:
        UserError: when the model is of a kind that can't be used, with what and why.
        FlagError: when the size or the tap doesn't go with it.
    """
    _check_kind(model, size)
    with graph.precision("float32"):
        image = keras.Input((size, size, 3), name="image")
        copy = _Copy(synchronized)
        try:
            output = copy.lay(model, preprocess(image, mode))
            copy.set_weights()
            logits = _logits(keras.Model(image, output))
            if tuple(logits.shape[1:]) == (1,):
                logits = _two_logits(logits)
            flat = keras.Model(image, logits, name=NAME)
        except UserError:
            raise
        except (ValueError, TypeError, NotImplementedError, tf.errors.OpError) as error:
            reason = " ".join(str(error).split())[:300]
            raise UserError(f"T can't be laid out on images of {size} pixels. Received: {reason}") from None
        if len(flat.output.shape) != 2 or (flat.output.shape[-1] or 0) < 2:
            raise UserError(
                f"{_HINT} with one score for each of two or more classes. Received: an output of shape "
                f"{tuple(flat.output.shape)}"
            )
    return with_tap(flat, tap)


def with_tap(teacher: keras.Model, tap: str) -> keras.Model:
    """Returns a T of this module's form whose map is that of another layer, sharing its weights.

    Raises:
        UserError: when no layer makes a map.
        FlagError: when the layer named doesn't.
    """
    logits = teacher.output["logits"] if isinstance(teacher.output, dict) else teacher.output
    maps = {layer.name: shape for layer, shape in graph.maps_of(teacher) if layer.name not in _INPUT_LAYERS}
    if not maps:
        raise UserError(f"{_HINT}, with convolutions. Received: a model without any map of its image")
    if tap == AUTO:
        side = teacher.input.shape[1]
        # the nearest to an eighth, and of equally near ones the deepest
        distance = {name: abs(round(math.log2(side / shape[0])) - 3) for name, shape in maps.items()}
        tap = min(reversed(maps), key=distance.get)
        height, width, channels = maps[tap]
        _log.info("T: FM's map is that of %s, %d x %d x %d (--fm_tap chooses another)", tap, height, width, channels)
    if tap not in maps:
        some = ", ".join(list(maps)[:: max(1, len(maps) // 6)])
        raise FlagError(f"--fm_tap must name a layer of T that makes a map, such as {some}. Received: {tap!r}")
    return keras.Model(teacher.input, {"logits": logits, tap: teacher.get_layer(tap).output}, name=NAME)


def without_input(teacher: keras.Model) -> keras.Model:
    """Returns T from what the classifier in it expects to its logits, sharing its weights."""
    front = next((layer for layer in teacher.layers if layer.name in _INPUT_LAYERS), None)
    return keras.Model(front.output if front else teacher.input, teacher.output["logits"])


def preprocess(image: keras.KerasTensor, mode: str) -> keras.KerasTensor:
    """Lays the layers that turn RGB in [0, 255] into what a classifier expects, one of `INPUTS`."""
    if mode == "0..1":
        return layers.Rescaling(1 / 255, name="input_rescaling")(image)
    if mode == "-1..1":
        return layers.Rescaling(1 / 127.5, offset=-1.0, name="input_rescaling")(image)
    if mode == "torch":
        scale, offset = [1 / (255 * s) for s in _STD], [-m / s for m, s in zip(_MEAN, _STD, strict=True)]
        return layers.Rescaling(scale, offset=offset, name="input_rescaling")(image)
    if mode in _BGR:  # a frozen 1 x 1 convolution that turns the colours round: every exporter knows it
        scale, offset = _BGR[mode]
        turn = layers.Conv2D(3, 1, trainable=False, name="input_bgr")
        x = turn(image)
        turn.set_weights([np.float32(scale * np.eye(3)[None, None, ::-1]), np.float32(offset)])
        return x
    return image


class _Copy:
    """Copies the layers of a model, and of models inside it, under names of their own."""

    def __init__(self, synchronized: bool) -> None:
        self.synchronized = synchronized
        self.names = {*_RESERVED, *_INPUT_LAYERS}
        self.pairs: list[tuple[layers.Layer, layers.Layer]] = []

    def lay(self, model: keras.Model, x: keras.KerasTensor) -> keras.KerasTensor:
        if isinstance(model, keras.Sequential):
            for layer in model.layers:
                x = self._call(layer, x)
            return x
        _check_graph(model)
        (output,) = tf.nest.flatten(graph.run_through(model, x, self._call))
        return output

    def set_weights(self) -> None:
        for theirs, ours in self.pairs:
            if theirs.weights:
                ours.set_weights(theirs.get_weights())

    def _call(self, operation: keras.Operation, *args, **kwargs) -> keras.KerasTensor:
        kind = type(operation).__name__
        if not args:  # called by keyword, as in trunk(inputs=x)
            args = (kwargs.pop(next(iter(inspect.signature(operation.call).parameters))),)
        if isinstance(operation, keras.Model):
            return self.lay(operation, args[0])
        if isinstance(operation, layers.Pipeline):
            x = args[0]
            for layer in operation.layers:
                x = self._call(layer, x)
            return x
        if kind == "RandomCrop":
            raise UserError(f"{_HINT}; cut images before T. Received: the layer {operation.name} of RandomCrop")
        if kind in _AUGMENTATION or (kind.startswith("Random") and isinstance(operation, layers.Layer)):
            return args[0]  # augmentation: nothing at inference, and the student's images are augmented already
        if isinstance(operation, layers.Lambda):
            raise UserError(f"{_HINT}; replace the Lambda by such a layer. Received: the Lambda layer {operation.name}")
        if getattr(operation, "quantization_mode", None):
            raise UserError(
                f"{_HINT} in floating point; give the model before it was quantized. Received: the layer "
                f"{operation.name} in {operation.quantization_mode}"
            )
        if getattr(operation, "weights", None) and any(operation is other for other, _ in self.pairs):
            raise UserError(
                f"{_HINT}, each called once. Received: {operation.name}, which shares its weights between two places"
            )
        if not isinstance(operation, layers.Layer):  # a function of keras.ops
            return graph.copied(operation, name=self._name(f"t_{operation.name}"))(*args, **kwargs)
        kwargs.pop("training", None)  # a trunk that was called with training=False shall learn in S
        settings = {"dtype": "float32", "name": self._name(operation.name), "trainable": True}
        if isinstance(operation, layers.BatchNormalization):
            # else a short training ends with statistics that are mostly T's: 0.999^930 is 39 %
            settings |= {"synchronized": self.synchronized, "momentum": min(operation.momentum, _MOMENTUM)}
        if isinstance(operation, layers.Normalization) and operation.input_mean is None:  # adapted: as constants
            mean, variance = (np.squeeze(np.asarray(v)).tolist() for v in (operation.mean, operation.variance))
            settings |= {"mean": mean, "variance": variance}
            ours = graph.copied(operation, **settings)
            return ours(*args, **kwargs)
        if isinstance(operation, layers.Rescaling):  # numbers or lists, which compare and save plainly
            settings |= {name: np.asarray(getattr(operation, name)).tolist() for name in ("scale", "offset")}
        ours = graph.copied(operation, **settings)
        self.pairs.append((operation, ours))
        return ours(*args, **kwargs)

    def _name(self, name: str) -> str:
        base = f"t_{name}" if name.startswith(("downscaler_", "decoder_")) else name
        number, chosen = 1, base
        while chosen in self.names:
            number, chosen = number + 1, f"{base}_{number}"
        self.names.add(chosen)
        return chosen


def _check_kind(model: object, size: int) -> None:
    """Checks that a model is a classifier of one RGB image, as far as that shows without running it."""
    if not isinstance(model, keras.Sequential) and not isinstance(model, keras.Function):
        raise UserError(f"{_HINT}. Received: {type(model).__name__}, a subclassed model, whose graph isn't known")
    if isinstance(model, keras.Sequential) and not model.built:
        raise UserError(f"{_HINT}, saved after it was built. Received: a Sequential that knows no input shape")
    _check_graph(model)
    shape = tuple(model.inputs[0].shape)
    if len(shape) != 4 or shape[-1] != 3:
        raise UserError(f"{_HINT} of RGB, (height, width, 3). Received: an input of shape {shape[1:]}")
    if any(side not in (None, size) for side in shape[1:3]):
        raise FlagError(
            f"--image_size must be the size of T's input, {shape[1]} x {shape[2]} (square ones only). Received: {size}"
        )
    if None in shape[1:3] and size == Config.image_size:
        _log.warning(
            "T takes images of any size, and gets %d x %d pixels, the default; --image_size should be the size that "
            "it was trained on",
            *(size, size),
        )


def _check_graph(model: keras.Model) -> None:
    """Checks that a model is a graph with one input and one output."""
    if not isinstance(model, (keras.Sequential, keras.Function)):
        raise UserError(f"{_HINT}. Received: {type(model).__name__} inside it, a subclassed model")
    for what, tensors in (("inputs", model.inputs), ("outputs", model.outputs)):
        if len(tensors) != 1:
            names = [tensor.name for tensor in tensors]
            raise UserError(f"{_HINT} with one input and one output. Received: {len(names)} {what}: {', '.join(names)}")


def _logits(flat: keras.Model) -> keras.KerasTensor:
    """Returns a classifier's output before its softmax, or the logarithm of what turns out to be probabilities."""
    output = flat.output
    if not isinstance(output, keras.KerasTensor):
        (output,) = flat.outputs
    last = graph.producer(flat, output)
    activation = getattr(last, "activation", None)
    if type(last).__name__ == "Softmax" or (isinstance(last, layers.Activation) and _is_softmax(activation)):
        _log.info("T: the softmax at its end is taken off")
        return last.input if isinstance(last.input, keras.KerasTensor) else last.input[0]
    if isinstance(last, (layers.Dense, layers.Conv2D)) and _is_softmax(activation):
        _log.info("T: the softmax at its end is taken off")
        last.activation = keras.activations.linear  # of our copy
        return output
    while activation is keras.activations.linear and isinstance(last, layers.Activation):  # as mixed precision has it
        last = graph.producer(flat, last.input)
        activation = getattr(last, "activation", None)
    if type(last).__name__ == "Sigmoid" or activation is keras.activations.sigmoid:
        if output.shape[-1] != 1:
            raise UserError(f"{_HINT} of classes that exclude each other. Received: an output behind a sigmoid")
        _log.info("T: the sigmoid at its end is taken off")
        if isinstance(last, layers.Activation) or not isinstance(last, layers.Layer):
            return last.input if isinstance(last.input, keras.KerasTensor) else last.input[0]
        last.activation = keras.activations.linear  # of our copy
        return output
    noise = np.random.default_rng(0).uniform(0, 255, (4, *flat.input.shape[1:])).astype(np.float32)
    scores = np.asarray(flat(noise, training=False))
    if scores.ndim == 2 and scores.min() >= 0 and np.allclose(scores.sum(-1), 1, atol=1e-3) and scores.shape[-1] > 1:
        _log.info("T: its output is probabilities; their logarithm takes the place of logits")
        return ops.log(ops.maximum(output, 1e-7))
    return output


def _two_logits(score: keras.KerasTensor) -> keras.KerasTensor:
    """Returns the logits (0, z) of a score z `(B, 1)`: their softmax is the sigmoid of z for the second class."""
    beside = layers.Dense(2, use_bias=False, trainable=False, name=_TWO_CLASSES)
    logits = beside(score)
    beside.set_weights([np.float32([[0, 1]])])
    _log.info("T: its one score is that of the second class, and 0 that of the first")
    return logits


def _is_softmax(activation: object) -> bool:
    return activation is keras.activations.softmax
