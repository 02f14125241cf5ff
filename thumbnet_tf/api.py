"""`thumbnet_tf.load`: a trained run or an export as an object that downscales and classifies images in memory."""

import dataclasses
import os
import pathlib
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from thumbnet_tf import preprocess, publish
from thumbnet_tf.config import Config, UserError
from thumbnet_tf.evaluate import classify, load_parts
from thumbnet_tf.predict import choose_method
from thumbnet_tf.runs import RunDir

BATCH_SIZE = 32

# from images uint8 (B, S, S, 3) to thumbnails (B, s, s, 3), or to scores (B, C)
Compute = Callable[[tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a method says about one image; the names are those of `predict --json`.

    Attributes:
        label: the best label.
        score: its score (softmax, in [0, 1]).
        top: labels and their scores, best first.
    """

    label: str
    score: float
    top: tuple[tuple[str, float], ...]


class Loaded:
    """A method of a run, or an export of one, made by `load`.

    Images are RGB in [0, 255], `(B, H, W, 3)` or one `(H, W, 3)`, uint8 or float (rounded to 8 bits). Images of
    `image_size` x `image_size` are taken as they are; of others the central square is cut and resized as evaluation
    does it (`preprocess.eval_crop`).

    Attributes:
        labels: the classes' names, in the order of their numbers.
        image_size: side of the full-size input, pixels.
        crop_fraction: side of the square that is cut, over the image's short side.
        config: the run's configuration; None for an export.
        downscaler: E, a Keras model from images `(B, image_size, image_size, 3)` to thumbnails, both in [0, 255]; None
            for an export, and for the teacher.
        network: S (or T), a Keras model from thumbnails (or images) to a dict with `logits`; None for an export.
    """

    def __init__(
        self,
        labels: Sequence[str],
        image_size: int,
        crop_fraction: float,
        *,
        score: Compute,
        shrink: Compute | None,
        config: Config | None = None,
        downscaler: keras.Model | None = None,
        network: keras.Model | None = None,
    ) -> None:
        self.labels = tuple(labels)
        self.image_size, self.crop_fraction = image_size, crop_fraction
        self.config, self.downscaler, self.network = config, downscaler, network
        self._score, self._shrink = score, shrink

    def downscale(self, images: np.ndarray | tf.Tensor) -> np.ndarray:
        """Makes thumbnails.

        Args:
            images: see the class.

        Returns:
            uint8 `(B, s, s, 3)`, or `(s, s, 3)` of one image, in [0, 255].

        Raises:
            UserError: when the images are none, or the method makes no thumbnails.
        """
        if self._shrink is None:
            raise UserError("downscale needs a method that makes thumbnails; load another. Received: one that has no E")
        thumbnails = self._in_batches(self._shrink, images)
        return np.rint(thumbnails).astype(np.uint8)

    def predict(self, images: np.ndarray | tf.Tensor, top: int = 3) -> Answer | list[Answer]:
        """Classifies images.

        Args:
            images: see the class.
            top: labels to give, best first; all of them if there are fewer.

        Returns:
            An answer an image, or one answer where one image was given.

        Raises:
            UserError: when the images are none, or `top` is no positive number.
        """
        if not isinstance(top, int) or top < 1:
            raise UserError(f"top must be a whole number of at least 1. Received: {top}")
        scores = self._in_batches(self._score, images)
        return self._answer(scores, top) if scores.ndim == 1 else [self._answer(row, top) for row in scores]

    def _answer(self, scores: np.ndarray, top: int) -> Answer:
        best = np.argsort(-scores, kind="stable")[:top]
        named = tuple((self.labels[index], float(scores[index])) for index in best)
        return Answer(*named[0], named)

    def _in_batches(self, compute: Compute, images: np.ndarray | tf.Tensor) -> np.ndarray:
        """Returns what `compute` makes of the images, `(B, ...)`, or `(...)` of one image."""
        pixels = as_pixels(images)
        single = pixels.ndim == 3
        pixels = pixels[None] if single else pixels
        if not len(pixels):  # networks take no empty batch: the answer to a black image tells the shape
            return compute(tf.zeros((1, self.image_size, self.image_size, 3), tf.uint8)).numpy()[:0]
        starts = range(0, len(pixels), BATCH_SIZE)
        result = np.concatenate([compute(self._cropped(pixels[at : at + BATCH_SIZE])).numpy() for at in starts])
        return result[0] if single else result

    def _cropped(self, pixels: np.ndarray) -> tf.Tensor:
        size = self.image_size
        if pixels.shape[1:3] == (size, size):
            return tf.constant(pixels)
        return tf.stack([preprocess.eval_crop(image, size, self.crop_fraction) for image in pixels])


def as_pixels(images: np.ndarray | tf.Tensor) -> np.ndarray:
    """Returns images as uint8 of the same shape, rounding floats.

    Args:
        images: RGB in [0, 255], uint8 or float, `(B, H, W, 3)` or `(H, W, 3)`.

    Raises:
        UserError: on another shape, type or range, such as floats in [0, 1].
    """
    try:
        given = np.asarray(images)
    except ValueError:  # arrays of several shapes
        raise UserError(
            "images must be one array (B, H, W, 3); give images of several sizes one at a time. Received: a list"
        ) from None
    shape = given.shape
    if given.ndim not in (3, 4) or shape[-1] != 3 or 0 in shape[-3:]:
        raise UserError(f"images must be RGB, of shape (B, H, W, 3) or (H, W, 3). Received: the shape {shape}")
    if given.dtype == np.uint8:
        return given
    if not np.issubdtype(given.dtype, np.floating):
        raise UserError(f"images must be uint8 or float, in [0, 255]. Received: the type {given.dtype}")
    if given.size == 0:
        return given.astype(np.uint8)
    low, high = given.min(), given.max()
    if not (low >= 0 and high <= 255):  # NaN compares false
        raise UserError(f"images must be in [0, 255]. Received: values from {low:g} to {high:g}")
    if high <= 1 and np.any(given != np.rint(given)):
        raise UserError(f"images must be in [0, 255], so multiply by 255. Received: fractions from {low:g} to {high:g}")
    return np.rint(given).astype(np.uint8)


def load(path: str | os.PathLike, method: str = "") -> Loaded:
    """Loads what `thumbnet_tf.train` or `thumbnet_tf.export` made.

    Args:
        path: a run directory; a version's folder of an export, such as `saved_models/thumbnet/1`; or the folder above
            it, for the latest version.
        method: of a run: a finished method; empty for `thumbnet`, or a finished run's last. `original` is the teacher.

    Raises:
        UserError: when the path is neither, or what it holds can't be used.
    """
    folder = pathlib.Path(path)
    if os.path.isfile(folder / "config.json"):
        return _load_run(RunDir(folder), method)
    if not os.path.isfile(folder / publish.MANIFEST) and not publish.versions(folder):
        raise UserError(
            f"load takes a run directory or an export's folder, such as saved_models/thumbnet/1. Received: {path}"
        )
    if method:
        raise UserError(f"an export holds one method; give method with a run directory only. Received: {method!r}")
    return _load_export(publish.version_folder(folder))


def _load_run(run: RunDir, method: str) -> Loaded:
    config = run.config().resolved()
    small, network = load_parts(run, choose_method(run, method))
    signature = [tf.TensorSpec((None, config.image_size, config.image_size, 3), tf.uint8)]

    @tf.function(input_signature=signature, autograph=False)
    def shrink(images: tf.Tensor) -> tf.Tensor:
        return small(tf.cast(images, tf.float32), training=False)

    @tf.function(input_signature=signature, autograph=False)
    def score(images: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(classify(small, network, images))

    return Loaded(
        run.data_facts()["classes"],
        config.image_size,
        config.crop_fraction,
        score=score,
        shrink=None if small is None else shrink,
        config=config,
        downscaler=small,
        network=network,
    )


def _load_export(folder: pathlib.Path) -> Loaded:
    facts = publish.read_manifest(folder)
    try:
        size, fraction = facts["preprocessing"]["image_size"], facts["preprocessing"]["crop_fraction"]
        labels = facts["labels"]
        signatures = tf.saved_model.load(str(folder)).signatures
        pixels = signatures["pixels"]
    except (KeyError, TypeError, OSError, ValueError, tf.errors.OpError) as error:  # by what is broken
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"an export that takes full images is expected; export it again, or choose another. Received: {folder} "
            f"({reason})"
        ) from None
    framed = frame(size, fraction)

    def score(images: tf.Tensor) -> tf.Tensor:
        return pixels(images)["probabilities"]

    def shrink(images: tf.Tensor) -> tf.Tensor:
        files = [tf.io.encode_png(framed(image)) for image in images]
        return signatures["downscale"](tf.stack(files))["thumbnail"]

    return Loaded(labels, size, fraction, score=score, shrink=shrink if "downscale" in signatures else None)


def frame(size: int, crop_fraction: float) -> Callable[[tf.Tensor], tf.Tensor]:
    """Returns what puts a black frame around an image that `eval_crop` takes off again.

    The signature `downscale` crops whatever it is given; this makes it take a cropped image as it is.
    """
    side = next(
        side for side in range(size, 200 * size) if round(float(np.float32(side) * np.float32(crop_fraction))) == size
    )
    before = (side - size) // 2
    after = side - size - before
    return lambda image: tf.pad(image, [[before, after], [before, after], [0, 0]])
