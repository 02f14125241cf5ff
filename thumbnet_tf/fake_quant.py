"""Fake quantisation of a twin: TFMOT's, with a thumbnail on the grid of pixels and with ranges that fit from the start.

tf_keras and TFMOT are imported inside functions only.
"""

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf

from thumbnet_tf import twin

if TYPE_CHECKING:
    import tf_keras

PREFIX = "quant_"  # what TFMOT puts before a layer's name

_ON_PIXEL_GRID = ("downscaler_area", "downscaler_add")  # the layers whose outputs are images
_SMALLEST_RANGE = 1e-6  # of a kernel; TFLite can't divide by a scale of 0


def import_tfmot() -> Any:
    """Imports TFMOT, which sets TF_USE_LEGACY_KERAS for the whole process, and puts that back."""
    before = os.environ.get("TF_USE_LEGACY_KERAS")
    try:
        import tensorflow_model_optimization
    finally:
        os.environ.pop("TF_USE_LEGACY_KERAS", None)
        if before is not None:
            os.environ["TF_USE_LEGACY_KERAS"] = before
    return tensorflow_model_optimization


def quantise(plain: "tf_keras.Model", calibration: np.ndarray, batch_size: int) -> "tf_keras.Model":
    """Returns a twin's copy with fake quantisation to int8 of its input, kernels and activations.

    Args:
        plain: the twin, its thumbnail not rounded.
        calibration: uint8 (n, S, S, 3) images in [0, 255], at least one.
        batch_size: images taken at a time; a range is the mean over batches of a batch's extremes.
    """
    import tf_keras

    quantization = import_tfmot().quantization.keras

    class PixelGrid(quantization.quantizers.Quantizer):
        """Rounds to the 256 pixel values, whatever the data."""

        def build(self, tensor_shape, name, layer):
            return {}

        def __call__(self, inputs, training, weights, **kwargs):
            return on_pixel_grid(inputs)

        def get_config(self):
            return {}

    class OnPixelGrid(quantization.QuantizeConfig):
        """Quantises a layer's output by `PixelGrid`, and nothing else."""

        def get_weights_and_quantizers(self, layer):
            return []

        def get_activations_and_quantizers(self, layer):
            return []

        def set_quantize_weights(self, layer, quantize_weights):
            pass

        def set_quantize_activations(self, layer, quantize_activations):
            pass

        def get_output_quantizers(self, layer):
            return [PixelGrid()]

        def get_config(self):
            return {}

    def annotated(layer: "tf_keras.layers.Layer") -> "tf_keras.layers.Layer":
        config = OnPixelGrid() if layer.name in _ON_PIXEL_GRID else None
        return quantization.quantize_annotate_layer(layer, config)

    with quantization.quantize_scope({"OnPixelGrid": OnPixelGrid}):
        model = quantization.quantize_apply(tf_keras.models.clone_model(plain, clone_function=annotated))
    _set_activation_ranges(model, plain, calibration, batch_size)
    set_kernel_ranges(model)
    return model


def on_pixel_grid(images: tf.Tensor) -> tf.Tensor:
    """Rounds images in the twin's units to pixel values; the gradient passes straight through inside the range."""
    return tf.quantization.fake_quant_with_min_max_args(images, twin.LOW, twin.HIGH)


def set_kernel_ranges(model: "tf_keras.Model") -> None:
    """Sets the ranges of all kernels to their present values; training leaves those of the step before the last."""
    for layer in model.layers:
        weights = weights_by_name(layer)
        if "kernel_max" in weights:
            kernel = np.abs(weights["kernel"].numpy())  # `layer.layer.kernel` is its fake quantisation by now
            axes = (0, 1, 2) if weights["kernel_max"].shape.rank else None  # each channel of a convolution has its own
            largest = np.maximum(kernel.max(axis=axes), _SMALLEST_RANGE)
            weights["kernel_min"].assign(-largest)
            weights["kernel_max"].assign(largest)


def weights_by_name(layer: "tf_keras.layers.Layer") -> dict[str, tf.Variable]:
    """Returns a layer's variables by the last part of their names, such as `kernel`, `kernel_min` and `output_max`."""
    return {weight.name.split("/")[-1].split(":")[0]: weight for weight in layer.weights}


def _set_activation_ranges(
    model: "tf_keras.Model", plain: "tf_keras.Model", calibration: np.ndarray, batch_size: int
) -> None:
    """Sets the ranges of all activations to what the float twin shows on the calibration images.

    TFMOT starts them at -6 and 6 and moves them by a thousandth a step, which would take thousands of steps.
    """
    import tf_keras

    pairs = {}  # name in the float twin -> the variables of the lower and the upper end
    for layer in model.layers:
        weights = weights_by_name(layer)
        if (low := weights.get(f"{layer.name}_min")) is not None:  # the input's, whose range is known
            low.assign(twin.LOW)
            weights[f"{layer.name}_max"].assign(twin.HIGH)
        for name in ("post_activation", "output"):
            if f"{name}_min" in weights:
                pairs[layer.name.removeprefix(PREFIX)] = weights[f"{name}_min"], weights[f"{name}_max"]
    probe = tf_keras.Model(plain.input, [plain.get_layer(name).output for name in pairs])
    seen = []
    for start in range(0, len(calibration), batch_size):
        outputs = probe(twin.normalised(calibration[start : start + batch_size]), training=False)
        seen.append([(output.numpy().min(), output.numpy().max()) for output in outputs])
    for (low, high), (smallest, largest) in zip(pairs.values(), np.mean(seen, axis=0), strict=True):
        low.assign(min(smallest, 0.0))
        high.assign(max(largest, 0.0))
