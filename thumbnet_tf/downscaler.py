"""What makes a thumbnail: the learned downscaler E and its fixed rivals, bicubic and area.

Every downscaler maps images `(B, size, size, 3)` in [0, 255] to thumbnail images `(B, size/r, size/r, 3)` in [0, 255],
rounded to 8 bits (or `--thumbnail_bits`), so that a thumbnail can be looked at, stored as a PNG, sent, and read back
without loss.
"""

import keras
import tensorflow as tf
from keras import layers

from thumbnet_tf.backbones import BATCH_NORM
from thumbnet_tf.config import UserError
from thumbnet_tf.initializers import LostBand

FROM_PIXELS, TO_PIXELS = (1 / 128, -1.0), (128.0, 128.0)  # scale and offset of E's and S's `Rescaling`: to and fro
KINDS = ("learned", "bicubic", "area")
_KERNEL = {2: 5, 4: 7}  # side of E's first convolution by ratio: about two thumbnail pixels


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


@keras.saving.register_keras_serializable(package="thumbnet_tf")
class Bicubic(layers.Layer):
    """Antialiased bicubic downscaling by a whole ratio.

    `keras.layers.Resizing` would do, but its call defaults to training=True, which a functional model that is called
    without `training` hands on to the batch normalisation behind it.
    """

    def __init__(self, ratio: int, **kwargs) -> None:
        super().__init__(**kwargs)
        self.ratio = ratio

    def call(self, images: tf.Tensor) -> tf.Tensor:
        size = [images.shape[1] // self.ratio, images.shape[2] // self.ratio]
        return tf.image.resize(images, size, "bicubic", antialias=True)

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        return (input_shape[0], input_shape[1] // self.ratio, input_shape[2] // self.ratio, input_shape[3])

    def get_config(self) -> dict:
        return {**super().get_config(), "ratio": self.ratio}


def build(
    kind: str,
    size: int,
    ratio: int,
    width: int = 16,
    bits: int = 8,
    residual: float = 0.3,
    filters: str = "band",
    *,
    synchronized: bool = False,
) -> keras.Model:
    """Builds a downscaler.

    Args:
        kind: `learned` (E), `bicubic` (antialiased) or `area`.
        size: side of the square input in pixels.
        ratio: r, 2 or 4.
        width: channels inside E.
        bits: bits a thumbnail's channel is rounded to; 0 for none.
        residual: how strongly E departs from the average before training; at 0 it starts as the average.
        filters: what E's first convolution starts with: `band` (see `LostBand`) or `random`.
        synchronized: whether E's batch statistics are taken over all replicas.

    Returns:
        A model from `(B, size, size, 3)` to `(B, size/r, size/r, 3)` float32, both in [0, 255].

    Raises:
        UserError: on another kind or ratio, or a size that isn't a multiple of the ratio.
    """
    if kind not in KINDS or ratio not in _KERNEL or size % ratio:
        raise UserError(
            f"a downscaler is of kind {', '.join(KINDS)}, ratio 2 or 4 and a size that is a multiple of it. "
            f"Received: {kind!r}, {ratio} and {size}"
        )
    image = keras.Input((size, size, 3), name="image")
    thumbnail = connect(kind, image, ratio, width, bits, residual, filters, synchronized=synchronized)
    return keras.Model(image, thumbnail, name=f"{kind}_downscaler")


def connect(
    kind: str,
    image: keras.KerasTensor,
    ratio: int,
    width: int = 16,
    bits: int = 8,
    residual: float = 0.3,
    filters: str = "band",
    *,
    synchronized: bool = False,
) -> keras.KerasTensor:
    """Lays a downscaler's layers upon an image tensor and returns the thumbnail's tensor (arguments as in `build`)."""
    if kind == "bicubic":
        x = Bicubic(ratio, dtype="float32", name="downscaler_bicubic")(image)
    elif kind == "area":
        x = layers.AveragePooling2D(ratio, dtype="float32", name="downscaler_area")(image)
    else:
        x = _learned(image, ratio, width, residual, filters, synchronized)
    return ToThumbnail(bits, name="thumbnail")(x)


def _learned(
    image: keras.KerasTensor, ratio: int, width: int, residual: float, filters: str, synchronized: bool
) -> keras.KerasTensor:
    """E: the r x r average plus a residual of a strided convolution, a second one and a mixing one.

    The stride stands in the first convolution, so that hardly any work is done at full size. Its filters start on
    the band that the average loses, batch normalisation lifts weak texture to unit variance, and the second
    convolution pools the rectified responses: so the thumbnail shows from the start where there is which texture.
    """
    x = layers.Rescaling(1 / 128, offset=-1.0, dtype="float32", name="downscaler_rescaling")(image)
    area = layers.AveragePooling2D(ratio, dtype="float32", name="downscaler_area")(x)
    first = LostBand(ratio) if filters == "band" else "he_normal"
    convolutions = ((_KERNEL[ratio], ratio, first), (3, 1, "he_normal"))
    for index, (kernel, stride, initializer) in enumerate(convolutions, 1):
        x = layers.Conv2D(
            width,
            kernel,
            stride,
            padding="same",
            use_bias=False,
            kernel_initializer=initializer,
            name=f"downscaler_{index}_conv",
        )(x)
        x = layers.BatchNormalization(synchronized=synchronized, name=f"downscaler_{index}_bn", **BATCH_NORM)(x)
        x = layers.ReLU(name=f"downscaler_{index}_relu")(x)
    mixing = keras.initializers.RandomNormal(stddev=residual / width**0.5)
    x = layers.Conv2D(3, 1, kernel_initializer=mixing, dtype="float32", name="downscaler_residual")(x)
    x = layers.Add(dtype="float32", name="downscaler_add")([area, x])
    return layers.Rescaling(128.0, offset=128.0, dtype="float32", name="downscaler_pixels")(x)


def takers_of_pixels(model: keras.Model) -> set[str]:
    """Returns the names of the operations that take pixels in [0, 255] and can't take them normalised instead.

    Args:
        model: flat functional model of images in [0, 255].
    """
    tensors, names = {id(model.inputs[0])}, set()
    for operation in model.operations:
        if isinstance(operation, layers.InputLayer):
            continue
        kind, takes = type(operation), any(id(tensor) in tensors for tensor in tf.nest.flatten(operation.input))
        rescaling = (operation.scale, operation.offset) if kind is layers.Rescaling else None
        pooled = kind in (layers.AveragePooling2D, layers.MaxPooling2D) and operation.name.startswith("downscaler_")
        kept = takes and (kind in (Bicubic, ToThumbnail) or pooled)
        if kept or (rescaling == TO_PIXELS and not takes):
            tensors.add(id(operation.output))
        elif takes and rescaling != FROM_PIXELS:
            names.add(operation.name)
    return names
