"""Conversion of a run's Keras models to TFLite files that take raw pixels, and the check of what came out.

Models are called by what they are: `thumbnet` (E and S in one), `downscaler` (E), `classifier` (S) and `teacher`.
Every file has one signature, `serving_default`, a batch of one, and uint8 RGB input in [0, 255].

`int8` files compute with integers throughout. For them the graph is rewritten without changing what it computes:
normalised pixels (p - 128) / 128 are what int8 holds anyway (scale 1/128), so that all rescaling drops out and a
thumbnail's byte is the rounding of one tensor; and strided layers on three channels become convolutions on
`space_to_depth`, whose 12 or 48 channels fill the integer kernels of a CPU where three don't.
"""

import contextlib
import os
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops
from tensorflow.lite.python import schema_py_generated as schema

from thumbnet_tf.config import UserError
from thumbnet_tf.downscaler import FROM_PIXELS, TO_PIXELS, Bicubic, ToThumbnail, takers_of_pixels

SIGNATURE = "serving_default"
VARIANTS = ("float32", "float16", "dynamic", "int8")

# what a model is -> names of its input and its output in the file
INTERFACES = {
    "thumbnet": ("image", "probabilities"),
    "downscaler": ("image", "thumbnail"),
    "classifier": ("thumbnail", "probabilities"),
    "teacher": ("image", "probabilities"),
}

_FLOATS = (schema.TensorType.FLOAT16, schema.TensorType.FLOAT32, schema.TensorType.FLOAT64)
_BYTE = {"min": -1.0, "max": 127 / 128, "num_bits": 8}  # a pixel's byte, normalised: steps of exactly 1/128


def convert(model: keras.Model, name: str, variant: str, *, calibration: Iterable[np.ndarray] | None = None) -> bytes:
    """Converts a float32 model to a TFLite file, and checks it.

    Args:
        model: flat model from images `(B, H, W, 3)` in [0, 255] to `{"logits": (B, C), ...}`, or for `downscaler` to
            thumbnails `(B, h, w, 3)` in [0, 255].
        name: what it is, one of `INTERFACES`.
        variant: one of `VARIANTS`: float32, float16 (weights stored as halves), dynamic (int8 weights, float
            activations) or int8 (integers only, ranges calibrated).
        calibration: for int8, representative inputs of this very model, for the classifier so thumbnails: uint8
            `(H, W, 3)` or batches `(N, H, W, 3)` in [0, 255], cut as evaluation cuts, from the training split.

    Returns:
        The file's content, without metadata. Input: uint8 `(1, H, W, 3)`, raw pixels. Output: `probabilities`
        `(1, C)`, float32 or in int8 uint8 in steps of 1/256; or `thumbnail`, uint8 `(1, h, w, 3)`, raw pixels.

    Raises:
        UserError: when there are no calibration images, or int8 is asked for thumbnails of other than 8 bits.
        ValueError: on an unknown name or variant, or calibration images of another size.
        RuntimeError: when the converter made something else than promised.
    """
    if name not in INTERFACES or variant not in VARIANTS:
        raise ValueError(f"name must be in {list(INTERFACES)}, variant in {VARIANTS}. Received: {name!r}, {variant!r}")
    integer = variant == "int8"
    images = _calibration_images(model, calibration) if integer else None
    model = _rewritten(model, integer)
    with tempfile.TemporaryDirectory() as folder, _quiet():
        _save(model, name, integer, folder)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[SIGNATURE])
        if variant != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if variant == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if integer:
            converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
            converter.inference_input_type = converter.inference_output_type = tf.uint8
            converter.representative_dataset = lambda: (
                {INTERFACES[name][0]: image[None] / np.float32(128) - np.float32(1)} for image in images
            )
        content = bytes(converter.convert())
    output = model.output["logits"] if isinstance(model.output, dict) else model.output
    check(content, name, model.input.shape[1:], output.shape[1:], integer=integer)
    return content


def check(content: bytes, name: str, input_shape: tuple, output_shape: tuple, *, integer: bool) -> None:
    """Checks that a file is what `convert` promises.

    Args:
        content: the TFLite file.
        name: what it is, one of `INTERFACES`.
        input_shape: of one image, (H, W, 3).
        output_shape: of one result, (C,) or (h, w, 3).
        integer: whether it must do without any float tensor.

    Raises:
        RuntimeError: when names, shapes, types or pixel scales differ, or an operator is no builtin one.
    """
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(content, 0))
    graph = model.subgraphs[0]
    if any(code.customCode for code in model.operatorCodes):
        custom = [code.customCode.decode() for code in model.operatorCodes if code.customCode]
        raise RuntimeError(f"{name}: only builtin operators are allowed. Received: {custom}")
    if integer:
        floats = [tensor.name.decode() for tensor in graph.tensors if tensor.type in _FLOATS]
        if floats or len(model.subgraphs) != 1:
            raise RuntimeError(f"{name}: only integer tensors are allowed. Received: {floats[:4]}")
    ends = {}
    signatures = {signature.signatureKey.decode(): signature for signature in model.signatureDefs or ()}
    if SIGNATURE in signatures:
        both = (*signatures[SIGNATURE].inputs, *signatures[SIGNATURE].outputs)
        ends = {tensor.name.decode(): graph.tensors[tensor.tensorIndex] for tensor in both}
    score = schema.TensorType.UINT8 if integer else schema.TensorType.FLOAT32
    source, result = INTERFACES[name]
    types = {source: schema.TensorType.UINT8, result: score if result == "probabilities" else schema.TensorType.UINT8}
    expected = {source: ([1, *input_shape], types[source]), result: ([1, *output_shape], types[result])}
    found = {key: ([int(n) for n in tensor.shape], tensor.type) for key, tensor in ends.items()}
    if found != expected:
        raise RuntimeError(f"{name}: inputs and outputs (shape, type) must be {expected}. Received: {found}")
    for key, tensor in ends.items() if integer else ():
        allowed = [(1 / 256, 0)] if key == "probabilities" else [(1, 0), (1 / 128, 128)]
        scale = (float(tensor.quantization.scale[0]), int(tensor.quantization.zeroPoint[0]))
        if scale not in allowed:
            raise RuntimeError(f"{name}: scale and zero point of {key} must be in {allowed}. Received: {scale}")


def _calibration_images(model: keras.Model, calibration: Iterable[np.ndarray] | None) -> list[np.ndarray]:
    shape = tuple(model.input.shape[1:])
    images = []
    for item in calibration if calibration is not None else ():
        item = np.asarray(item)
        if item.shape[-3:] != shape or item.dtype != np.uint8:
            raise ValueError(f"calibration images must be uint8 {shape}. Received: {item.dtype} {item.shape}")
        images.extend(item.reshape(-1, *shape))
    if not images:
        raise UserError("int8 needs training images to calibrate with; give at least one, better 100. Received: none")
    return images


def _save(model: keras.Model, name: str, integer: bool, folder: str) -> None:
    """Writes a SavedModel of a batch of one, whose signature names the file's input and output."""
    source, result = INTERFACES[name]

    def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
        if integer:  # normalised pixels, whose range the calibration images need not span
            outputs = model(tf.quantization.fake_quant_with_min_max_args(image, **_BYTE), training=False)
        else:
            outputs = model(tf.cast(image, tf.float32), training=False)
        if result == "probabilities":
            return {result: tf.nn.softmax(outputs["logits"])}
        return {result: outputs if integer else tf.cast(tf.round(outputs), tf.uint8)}

    archive = keras.export.ExportArchive()
    archive.track(model)
    kind = tf.float32 if integer else tf.uint8
    spec = tf.TensorSpec((1, *model.input.shape[1:]), kind, name=source)
    archive.add_endpoint(SIGNATURE, serve, input_signature=[spec])
    archive.write_out(folder, verbose=False)


def _rewritten(model: keras.Model, integer: bool) -> keras.Model:
    """Returns the model in operators that TFLite has; for integers, on normalised pixels from end to end."""
    # of a copy, whose layers are called once: those of S are called in E + S too
    pixels = takers_of_pixels(keras.models.clone_model(model)) if integer else set()

    def call(layer: keras.Operation, x: Any, *args, **kwargs) -> Any:
        if isinstance(layer, Bicubic):
            return _bicubic(x, layer.ratio, layer.name)
        if not integer:
            return _rounded(x, layer.bits) if isinstance(layer, ToThumbnail) else layer(x, *args, **kwargs)
        if isinstance(layer, layers.Rescaling) and (layer.scale, layer.offset) in (FROM_PIXELS, TO_PIXELS):
            return x
        if isinstance(layer, ToThumbnail):
            if layer.bits != 8:
                raise UserError(
                    "int8 needs thumbnails of 8 bits; export another run or no int8 variant. "
                    f"Received: --thumbnail_bits={layer.bits}"
                )
            return ToByte(name=layer.name)(x)
        if layer.name in pixels:  # takes true pixels, p = 128 n + 128
            if isinstance(layer, layers.Rescaling):
                return _scaled(x, layer.scale, layer.offset, layer.name)
            return layer(_scaled(x, 1.0, 0.0, f"{layer.name}_pixels"), *args, **kwargs)
        if isinstance(layer, layers.AveragePooling2D) and x.shape[-1] == 3 and layer.name.startswith("downscaler_"):
            side = layer.pool_size[0]
            return _on_blocks(x, np.tile(np.eye(3, dtype=np.float32) / side**2, (side, side, 1, 1)), side, layer.name)
        if _goes_on_blocks(layer) and x.shape[-1] == 3 and x.shape[1] % layer.strides[0] == 0:
            kernel, *bias = layer.get_weights()
            if not bias:
                return _on_blocks(x, kernel, layer.strides[0], layer.name)
        return layer(x, *args, **kwargs)

    return keras.models.clone_model(model, clone_function=lambda layer: layer, call_function=call)


def _scaled(x: keras.KerasTensor, scale: float | list[float], offset: float | list[float], name: str):
    """Returns `scale p + offset` of normalised pixels (p - 128) / 128, as a convolution: it stays one in integers."""
    conv = layers.Conv2D(12, 1, name=name)
    # on blocks of 2 x 2, for a convolution that takes the input itself gets a scale of its own and floats around it
    y = ops.depth_to_space(conv(ops.space_to_depth(x, 2)), 2)
    scale, offset = (np.tile(np.broadcast_to(np.float32(value), 3), 4) for value in (scale, offset))
    conv.set_weights([np.diag(128 * scale)[None, None], 128 * scale + offset])
    return y


def _goes_on_blocks(layer: keras.Operation) -> bool:
    """Returns whether a layer is a square, strided convolution that does nothing else."""
    if not isinstance(layer, layers.Conv2D) or layer.padding != "same" or layer.groups != 1:
        return False
    (side, other), (stride, across) = layer.kernel_size, layer.strides
    square = side == other and stride == across and layer.dilation_rate == (1, 1)
    return square and side >= stride > 1 and layer.activation is keras.activations.linear


class ToByte(layers.Layer):
    """Rounds normalised pixels to the steps of a byte."""

    def call(self, pixels: tf.Tensor) -> tf.Tensor:
        return tf.quantization.fake_quant_with_min_max_args(pixels, **_BYTE)


def _rounded(x: keras.KerasTensor, bits: int) -> keras.KerasTensor:
    """Rounds as `ToThumbnail` does, without its operator: next to that the converter compresses no weights."""
    x = ops.clip(x, 0.0, 255.0)
    step = 255 / (2**bits - 1) if bits else None
    return ops.floor(x / step + 0.5) * step if bits else x


def _on_blocks(x: keras.KerasTensor, kernel: np.ndarray, stride: int, name: str) -> keras.KerasTensor:
    """Convolves with a stride and `same` padding, as a convolution without stride on blocks of stride x stride pixels.

    Args:
        x: `(B, h, w, c)`, h and w multiples of the stride.
        kernel: `(k, k, c, f)`, k at least the stride.
        stride: of the convolution.
        name: of the layer; a name given by Keras would make each file another.

    Returns:
        `(B, h / stride, w / stride, f)`.
    """
    side, _, channels, filters = kernel.shape
    before = (side - stride) // 2  # pixels that `same` pads above and on the left
    above = -(-before // stride)  # whole blocks that hold them
    blocks = above + 1 + (side - 1 - before) // stride
    start = above * stride - before
    wide = np.zeros((blocks * stride, blocks * stride, channels, filters), np.float32)
    wide[start : start + side, start : start + side] = kernel
    wide = wide.reshape(blocks, stride, blocks, stride, channels, filters).transpose(0, 2, 1, 3, 4, 5)
    conv = layers.Conv2D(filters, blocks, padding="same", use_bias=False, name=name)  # pads `above` blocks
    y = conv(ops.space_to_depth(x, stride))
    conv.set_weights([wide.reshape(blocks, blocks, -1, filters)])
    return y


def _bicubic(x: keras.KerasTensor, ratio: int, name: str) -> keras.KerasTensor:
    """Resizes as `Bicubic` does, as a strided convolution: TFLite has no antialiased resizing."""
    size = x.shape[1]
    middle = size // ratio // 2
    rows = tf.image.resize(tf.eye(size)[None, :, :, None], (size // ratio, size), "bicubic", antialias=True)
    rows = rows[0, :, :, 0].numpy()  # rows[i, j]: weight of pixel j in pixel i of the thumbnail
    start = middle * ratio - 3 * ratio // 2
    taps = rows[middle, start : start + 4 * ratio]
    inside = np.array([taps[2 * ratio] / row[i * ratio + ratio // 2] for i, row in enumerate(rows)], np.float32)
    kernel = np.multiply.outer(np.outer(taps, taps), np.eye(3, dtype=np.float32))
    # where part of the window lies outside the image, the weights inside are scaled up to sum to 1
    return ops.divide(_on_blocks(x, kernel, ratio, name), np.outer(inside, inside)[None, :, :, None])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Holds back what the converter writes to stderr, in Python and C++; shows it if it fails."""
    with warnings.catch_warnings(), tempfile.TemporaryFile() as log:
        warnings.simplefilter("ignore")  # its calibrator uses an interpreter that it deprecates itself
        sys.stderr.flush()
        stderr = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            yield
        except Exception:
            log.seek(0)
            os.write(stderr, log.read())
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
