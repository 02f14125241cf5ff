"""What makes a thumbnail: the learned downscaler E and its fixed rivals, bicubic and area.

Every downscaler maps images `(B, size, size, 3)` in [0, 255] to thumbnail images `(B, size/r, size/r, 3)` in [0, 255],
rounded to 8 bits, so that a thumbnail can be looked at, stored as a PNG, sent, and read back without loss.
"""

import keras
import tensorflow as tf
from keras import layers

from thumbnet_tf.backbones import BATCH_NORM

FIXED = ("bicubic", "area")


@keras.saving.register_keras_serializable(package="thumbnet_tf")
class ToThumbnail(layers.Layer):
    """Clips to [0, 255] and rounds to `bits` bits; the gradient passes straight through inside the range."""

    def __init__(self, bits: int = 8, **kwargs) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(**kwargs)
        self.bits = bits

    def call(self, images: tf.Tensor) -> tf.Tensor:
        if self.bits == 0:
            return tf.clip_by_value(images, 0.0, 255.0)
        return tf.quantization.fake_quant_with_min_max_args(images, min=0.0, max=255.0, num_bits=self.bits)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return input_shape

    def get_config(self) -> dict:
        return {**super().get_config(), "bits": self.bits}


def build(kind: str, size: int, ratio: int, width: int = 16, bits: int = 8, *, synchronized: bool = False) -> keras.Model:
    """Builds a downscaler.

    Args:
        kind: `learned` (E), `bicubic` (antialiased) or `area`.
        size: side of the square input in pixels.
        ratio: r, 2 or 4.
        width: channels inside E.
        bits: bits a thumbnail's channel is rounded to; 0 for none.
        synchronized: whether E's batch statistics are taken over all replicas.

    Returns:
        A model from `(B, size, size, 3)` to `(B, size/r, size/r, 3)` float32, both in [0, 255].
    """
    image = keras.Input((size, size, 3), name="image")
    thumbnail = connect(kind, image, ratio, width, bits, synchronized=synchronized)
    return keras.Model(image, thumbnail, name=f"{kind}_downscaler")


def connect(
    kind: str, image: keras.KerasTensor, ratio: int, width: int = 16, bits: int = 8, *, synchronized: bool = False
) -> keras.KerasTensor:
    """Lays a downscaler's layers upon an image tensor and returns the thumbnail's tensor (arguments as in `build`)."""
    if kind == "bicubic":
        size = image.shape[1] // ratio
        x = layers.Resizing(size, size, "bicubic", antialias=True, dtype="float32", name="downscaler_bicubic")(image)
    elif kind == "area":
        x = layers.AveragePooling2D(ratio, dtype="float32", name="downscaler_area")(image)
    elif kind == "learned":
        x = _learned(image, ratio, width, synchronized)
    else:
        raise ValueError(f"kind must be learned, {' or '.join(FIXED)}. Received: {kind!r}")
    return ToThumbnail(bits, name="thumbnail")(x)


def _learned(image: keras.KerasTensor, ratio: int, width: int, synchronized: bool) -> keras.KerasTensor:
    """E: the r x r average plus a residual, which starts at 0, of two strided-first convolutions and a mixing one.

    The stride stands in the first convolution, so that hardly any work is done at full size; batch normalisation
    lifts weak fine texture to unit variance; its rectified responses, pooled by the second convolution, tell
    textures apart that the average can't carry.
    """
    x = layers.Rescaling(1 / 128, offset=-1.0, dtype="float32", name="downscaler_rescaling")(image)
    area = layers.AveragePooling2D(ratio, dtype="float32", name="downscaler_area")(x)
    for index, (kernel, stride) in enumerate(((2 * ratio - 1, ratio), (3, 1)), 1):
        x = layers.Conv2D(
            width, kernel, stride, padding="same", use_bias=False, kernel_initializer="he_normal", name=f"downscaler_{index}_conv"
        )(x)
        x = layers.BatchNormalization(synchronized=synchronized, name=f"downscaler_{index}_bn", **BATCH_NORM)(x)
        x = layers.ReLU(name=f"downscaler_{index}_relu")(x)
    residual = layers.Conv2D(3, 1, kernel_initializer="zeros", dtype="float32", name="downscaler_residual")(x)
    x = layers.Add(dtype="float32", name="downscaler_add")([area, residual])
    return layers.Rescaling(128.0, offset=128.0, dtype="float32", name="downscaler_pixels")(x)
