"""Copies of flat functional models: on another input, in another precision, at another size."""

import contextlib
import math
import re
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from thumbnet_tf.config import UserError

FROZEN = ("input_bgr", "two_classes")  # layers of T that S doesn't train either: constants around it


@contextlib.contextmanager
def precision(policy: str) -> Iterator[None]:
    """Sets Keras' global precision policy for a while."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def copied(operation: keras.Operation, **settings) -> keras.Operation:
    """Returns a new layer of the same settings but those given; what is no layer takes name and size alone."""
    config = operation.get_config()
    if not isinstance(operation, layers.Layer):
        settings = {key: value for key, value in settings.items() if key in ("name", "size") and key in config}
    return type(operation).from_config({**config, **settings})


def in_float32(model: keras.Model) -> keras.Model:
    """Returns a flat model that computes in float32, whatever it was trained in: itself, or a copy of its weights."""
    if all(layer.compute_dtype == "float32" for layer in model.layers):
        return model
    result = keras.models.clone_model(model, clone_function=lambda layer: copied(layer, dtype="float32"))
    result.set_weights(model.get_weights())
    return result


def run_through(model: keras.Model, image: keras.KerasTensor, call: Any) -> Any:
    """Goes through a model's graph anew and returns its outputs, in the structure of `model.output`.

    Args:
        model: functional model of one input.
        image: stands in for the model's input; any tensor, so that the graph is laid on and stays flat.
        call: takes an operation of `model`, and the tensors and other arguments of one call to it; returns the result.
    """
    # what `keras.models.clone_model` does too; that one takes inputs only and not the output of another layer
    return model._run_through_graph(image, call_fn=call)


def lay(
    model: keras.Model, image: keras.KerasTensor, *, synchronized: bool = False, dtype: str | None = None
) -> dict[str, keras.KerasTensor]:
    """Lays copies of a flat model's layers, with new weights, on an image that may be smaller than the model's own.

    What states a size in pixels is adapted: `Resizing`, `CenterCrop` and `ops.image.resize` keep their share of the
    input's side, padding that was computed from the size of a map (as `keras.applications` do) is computed anew,
    pooling and convolutions over a whole map stay so, and what reshapes a map to a vector flattens it.

    Args:
        model: flat functional model, each layer called once, from an image to a dict.
        image: `(B, size, size, 3)`.
        synchronized: whether batch statistics are taken over all replicas.
        dtype: of all layers; None = as they are.

    Returns:
        The outputs by name.

    Raises:
        UserError: when the image is too small for the network, or a layer states a size that can't be adapted.
    """
    shrink = model.input.shape[1] / image.shape[1]
    paddings = _computed_paddings(model)

    def call(operation: keras.Operation, *args, **kwargs) -> Any:
        settings: dict[str, Any] = {"trainable": operation.name not in FROZEN}  # T, which may be frozen, is not
        if dtype is not None:
            settings["dtype"] = dtype
        if isinstance(operation, layers.BatchNormalization):
            settings["synchronized"] = synchronized
        if isinstance(operation, (layers.Resizing, layers.CenterCrop)):
            settings |= {"height": round(operation.height / shrink), "width": round(operation.width / shrink)}
        if type(operation).__name__ == "Resize":  # of keras.ops.image
            settings["size"] = [round(side / shrink) for side in operation.size]
        if operation.name in paddings:
            settings["padding"] = _computed_padding(args[0].shape[1:3], paddings[operation.name])
        kernel = _whole_map(operation)
        if kernel:
            settings[kernel] = args[0].shape[1:3]
        try:
            if type(operation).__name__ == "Reshape" and len(operation.output.shape) == 2:
                result = layers.Flatten(name=operation.name)(args[0])
            else:
                result = copied(operation, **settings)(*args, **kwargs)
        except (ValueError, tf.errors.OpError) as error:
            text = re.sub(r"\x1b\[\d+m|\{\{.*?\}\}", "", str(error))  # Keras' bold letters, TensorFlow's names
            reason = " ".join(text.split())[:120]
            raise _too_small(operation, image, reason) from None
        for tensor in tf.nest.flatten(result):
            if any(side is not None and side < 1 for side in tensor.shape[1:]):
                raise _too_small(operation, image, f"its output would be {tuple(tensor.shape[1:])}")
        return result

    return run_through(model, image, call)


def producer(model: keras.Model, tensor: keras.KerasTensor) -> keras.Operation:
    """Returns the operation of a flat model that makes a tensor."""
    return next(op for op in reversed(model.operations) if any(t is tensor for t in tf.nest.flatten(op.output)))


def consumers_of(model: keras.Model) -> dict[int, list[keras.Operation]]:
    """Returns the operations that take a tensor, by the tensor's id, of a model that calls each of them once."""
    consumers: dict[int, list[keras.Operation]] = {}
    for operation in model.operations:
        for tensor in [] if isinstance(operation, layers.InputLayer) else tf.nest.flatten(operation.input):
            consumers.setdefault(id(tensor), []).append(operation)
    return consumers


def maps_of(model: keras.Model) -> Iterator[tuple[layers.Layer, tuple[int, int, int]]]:
    """Yields the layers that make a map `(B, h, w, c)` larger than one point, from the input on, with its (h, w, c)."""
    for layer in model.layers:
        if isinstance(layer, (layers.InputLayer, layers.ZeroPadding2D, layers.Cropping2D)):
            continue
        if not isinstance(layer.output, keras.KerasTensor):
            continue
        shape = tuple(layer.output.shape[1:])
        if len(shape) == 3 and min(shape[:2]) > 1:
            yield layer, shape


def _whole_map(operation: keras.Operation) -> str | None:
    """Returns the setting by which a layer covers its whole map, if it does: its kernel, or what it pools over."""
    for kinds, setting in (
        ((layers.AveragePooling2D, layers.MaxPooling2D), "pool_size"),
        ((layers.Conv2D, layers.DepthwiseConv2D), "kernel_size"),
    ):
        if isinstance(operation, kinds) and getattr(operation, "dilation_rate", 1) in (1, (1, 1)):
            sides = tuple(operation.input.shape[1:3])
            if sides == tuple(getattr(operation, setting)) > (1, 1) and operation.padding == "valid":
                return setting
    return None


def _too_small(operation: keras.Operation, image: keras.KerasTensor, reason: str) -> UserError:
    return UserError(
        f"T's layer {operation.name} ({type(operation).__name__}) can't be laid on a thumbnail of {image.shape[1]} "
        f"pixels; raise --image_size, lower --ratio, or give T a layer of any size there, such as "
        f"GlobalAveragePooling2D. Received: {reason}"
    )


def _computed_paddings(model: keras.Model) -> dict[str, tuple[int, int]]:
    """Returns, by name, the paddings that equal what is computed from size and kernel, and the kernel behind each."""
    consumers, found = consumers_of(model), {}
    for layer in model.layers:
        if isinstance(layer, layers.ZeroPadding2D):
            behind = consumers.get(id(layer.output), [])
            kernels = {getattr(other, "kernel_size", getattr(other, "pool_size", None)) for other in behind}
            kernel = kernels.pop() if len(kernels) == 1 else None
            strided = kernel is not None and all(math.prod(other.strides) > 1 for other in behind)
            if strided and layer.padding == _computed_padding(layer.input.shape[1:3], kernel):
                found[layer.name] = kernel
    return found


def _computed_padding(sides: tuple[int, int], kernel: tuple[int, int]) -> tuple[tuple[int, int], ...]:
    """Returns the padding that makes a `valid` convolution of stride 2 one of `same`, a pair for each side."""
    return tuple((size // 2 - (1 - side % 2), size // 2) for side, size in zip(sides, kernel, strict=True))
