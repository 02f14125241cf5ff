"""The SavedModel that is served: files in, labels out, with decoding, evaluation crop, E and S in one graph.

Each signature takes one input and returns a dict of named outputs, and every tensor has the batch's dimension first,
as TensorFlow Serving's batching asks for. Bad bytes fail their request with InvalidArgument; the message names their
positions, but for files that are damaged in their middle only (`intake.py` says why).
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence

import keras
import tensorflow as tf

from thumbnet_tf import preprocess
from thumbnet_tf.config import Config
from thumbnet_tf.intake import MAX_IMAGES, map_images, read_images
from thumbnet_tf.thumbnet import Deployed

TOP = 5  # labels an answer names, or all of them if there are fewer

Endpoint = tuple[Callable[..., dict[str, tf.Tensor]], tf.TensorSpec]


def thumbnet_endpoints(cfg: Config, classes: Sequence[str], models: Deployed) -> dict[str, Endpoint]:
    """Returns the signatures of E + S by name: `serving_default`, `pixels`, `downscale` and `thumbnail`.

    Args:
        cfg: the run's resolved configuration.
        classes: C names in the order of the labels.
        models: the models to serve.
    """

    def classify(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return _answer(models.shipped(tf.cast(images, tf.float32), training=False)["logits"], classes)

    def downscale(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        images = read_images(image_bytes, "image_bytes", _crop(cfg), cfg.image_size)
        thumbnails = tf.cast(tf.round(models.downscaler(tf.cast(images, tf.float32), training=False)), tf.uint8)
        encoded = map_images(tf.io.encode_png, thumbnails, tf.TensorSpec((), tf.string))
        return {"thumbnail_png": encoded, "thumbnail": thumbnails}

    return {
        **_from_images(cfg, classify),
        "downscale": (downscale, _strings("image_bytes")),
        "thumbnail": (_from_thumbnails(cfg, classes, models.student), _strings("thumbnail_bytes")),
    }


def teacher_endpoints(cfg: Config, classes: Sequence[str], models: Deployed) -> dict[str, Endpoint]:
    """Returns the signatures of T alone: `serving_default` and `pixels` (arguments as in `thumbnet_endpoints`)."""

    def classify(images: tf.Tensor) -> dict[str, tf.Tensor]:
        return _answer(models.teacher(tf.cast(images, tf.float32), training=False)["logits"], classes)

    return _from_images(cfg, classify)


def classifier_endpoints(cfg: Config, classes: Sequence[str], models: Deployed) -> dict[str, Endpoint]:
    """Returns the signature of S alone, on saved thumbnails, by E + S's name `thumbnail` and as `serving_default`."""
    endpoint = (_from_thumbnails(cfg, classes, models.student), _strings("thumbnail_bytes"))
    return {"serving_default": endpoint, "thumbnail": endpoint}


def save(folder: pathlib.Path, model: keras.Model, endpoints: Mapping[str, Endpoint]) -> None:
    """Writes a SavedModel.

    Args:
        folder: where to; must not hold one.
        model: whose weights are saved; the endpoints may use no others.
        endpoints: functions of one input and the input's signature, by name.
    """
    module = tf.Module()  # `keras.export.ExportArchive` would store each weight twice
    module.weights = [weight.value for weight in model.weights]
    # each function is traced once, whatever signatures it has
    traced = {id(function): tf.function(function, [spec], autograph=False) for function, spec in endpoints.values()}
    signatures = {name: traced[id(function)] for name, (function, _) in endpoints.items()}
    tf.saved_model.save(module, str(folder), signatures)


def _strings(name: str) -> tf.TensorSpec:
    return tf.TensorSpec((None,), tf.string, name)


def _crop(cfg: Config) -> Callable[[tf.Tensor], tf.Tensor]:
    return lambda image: preprocess.eval_crop(image, cfg.image_size, cfg.crop_fraction)


def _answer(logits: tf.Tensor, classes: Sequence[str]) -> dict[str, tf.Tensor]:
    """Returns the best labels `classes` (N, k) with their `scores`, best first, and all `probabilities` (N, C)."""
    probabilities = tf.nn.softmax(logits)
    scores, best = tf.math.top_k(probabilities, min(TOP, len(classes)))
    return {"classes": tf.gather(tf.constant(list(classes)), best), "scores": scores, "probabilities": probabilities}


def _from_images(cfg: Config, classify: Callable[[tf.Tensor], dict[str, tf.Tensor]]) -> dict[str, Endpoint]:
    """Returns the signatures `serving_default` and `pixels` of what classifies images (N, S, S, 3)."""
    size = cfg.image_size

    def serving_default(image_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        return classify(read_images(image_bytes, "image_bytes", _crop(cfg), size))

    def pixels(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        shape = tf.shape(pixels)
        message = f"pixels must hold images, at most {MAX_IMAGES}. Received the shape"
        full = tf.debugging.Assert(tf.reduce_all(shape > 0) & (shape[0] <= MAX_IMAGES), [message, shape], 4)
        with tf.control_dependencies([full]):
            # an image of the network's own size was cropped by the sender, as for TFLite; any other is cropped here
            ready = tf.reduce_all(shape[1:3] == size)
        images = tf.cond(
            ready,
            lambda: tf.ensure_shape(pixels, (None, size, size, 3)),
            lambda: map_images(_crop(cfg), pixels, tf.TensorSpec((size, size, 3), tf.uint8)),
        )
        return classify(images)

    return {
        "serving_default": (serving_default, _strings("image_bytes")),
        "pixels": (pixels, tf.TensorSpec((None, None, None, 3), tf.uint8, "pixels")),
    }


def _from_thumbnails(
    cfg: Config, classes: Sequence[str], student: keras.Model
) -> Callable[[tf.Tensor], dict[str, tf.Tensor]]:
    """Returns the function from the bytes of saved thumbnails to an answer."""
    size = cfg.thumbnail_size

    def thumbnail(thumbnail_bytes: tf.Tensor) -> dict[str, tf.Tensor]:
        images = read_images(thumbnail_bytes, "thumbnail_bytes", lambda image: image, size, exact=True)
        return _answer(student(tf.cast(images, tf.float32), training=False)["logits"], classes)

    return thumbnail
