"""The TFLite files of an export: which models in which variants, and what they are made from."""

import contextlib
import logging
import pathlib
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf

from thumbnet_tf import qat, tflite, tflite_metadata, twin
from thumbnet_tf.config import Config, UserError
from thumbnet_tf.data import pipeline
from thumbnet_tf.data.sources import Split
from thumbnet_tf.files import saving, write_atomically
from thumbnet_tf.thumbnet import Deployed

TEACHER = "teacher"
# what each file says of itself
ARTIFACTS = {
    "thumbnet": "Classifies an image by a thumbnail that it makes of it.",
    "downscaler": "Makes the thumbnail of an image.",
    "classifier": "Classifies a thumbnail.",
    TEACHER: "Classifies an image at full size.",
}
VARIANTS = (*tflite.VARIANTS, *qat.VARIANTS)

_log = logging.getLogger(__name__)


def file_name(artifact: str, variant: str) -> str:
    """Returns the name of a TFLite file."""
    return f"{artifact}_{variant}.tflite"


def possible(chosen: Sequence[str], cfg: Config, kind: str, shipped: keras.Model) -> tuple[str, ...]:
    """Returns which of the variants can be made of a network; with all chosen, those that can't are left out.

    Args:
        chosen: some of `VARIANTS`.
        cfg: the run's configuration.
        kind: the method's downscaler.
        shipped: E + S.

    Raises:
        UserError: when one that was chosen among fewer can't be made.
    """
    reasons = {}
    if cfg.thumbnail_bits != 8:
        text = f"int8 and int8_qat need thumbnails of 8 bits. Received: a run of --thumbnail_bits={cfg.thumbnail_bits}"
        reasons |= dict.fromkeys(("int8", "int8_qat"), text)
    try:
        twin.check(shipped)
    except UserError as error:
        reasons |= dict.fromkeys(qat.VARIANTS, str(error))
    if kind != "learned":
        reasons |= dict.fromkeys(
            qat.VARIANTS,
            f"{', '.join(qat.VARIANTS)} need the learned downscaler. Received: a method that has the {kind} one",
        )
    left = tuple(name for name in chosen if name not in reasons)
    for text in dict.fromkeys(reasons[name] for name in chosen if name in reasons):
        if set(chosen) != set(VARIANTS):
            raise UserError(f"give --variants={','.join(left)}; {text}")
        _log.info("left out: %s", text)
    return left


def write(
    folder: pathlib.Path,
    chosen: Sequence[str],
    *,
    cfg: Config,
    classes: Sequence[str],
    models: Deployed,
    train: Split,
    cache: pathlib.Path,
    epochs: int,
    calibration_images: int,
    lenient: bool,
) -> None:
    """Writes E + S, E and S in each variant, and T as float32.

    Args:
        folder: where to; made.
        chosen: some of `VARIANTS`; none writes nothing.
        cfg: the run's resolved configuration.
        classes: names in the order of the labels.
        models: what to convert.
        train: training images, to calibrate and to fine-tune on.
        cache: keeps fine-tuned weights, so that an export that was killed needn't make them again.
        epochs: of fine-tuning; 0 for `qat.EPOCHS`.
        calibration_images: how many images int8's ranges are taken from.
        lenient: whether a file that can't be made is told and left out.

    Raises:
        UserError: when a model can't be converted to a variant, unless lenient.
    """
    if not chosen:
        return
    with saving(folder):
        folder.mkdir()
    ids = np.linspace(0, train.num_examples - 1, min(calibration_images, train.num_examples)).astype(np.int64)
    calibration = pipeline.eval_images(train, cfg, ids.tolist())
    for artifact, variant, content in _files(chosen, cfg, models, train, cache, epochs, calibration, lenient):
        labels = () if artifact == "downscaler" else classes
        described = tflite_metadata.add(content, f"{artifact} {variant}", ARTIFACTS[artifact], labels)
        write_atomically(folder / file_name(artifact, variant), described)


def _files(
    chosen: Sequence[str],
    cfg: Config,
    models: Deployed,
    train: Split,
    cache: pathlib.Path,
    epochs: int,
    calibration: np.ndarray,
    lenient: bool,
) -> Iterator[tuple[str, str, bytes]]:
    yield from _converted(models.teacher, TEACHER, "float32", None, True)  # for comparison only
    thumbnails = np.concatenate(
        [np.rint(models.downscaler(image[None].astype(np.float32), training=False)) for image in calibration]
    ).astype(np.uint8)
    parts = {
        "thumbnet": (models.shipped, calibration),
        "downscaler": (models.downscaler, calibration),
        "classifier": (models.student, thumbnails),
    }
    for variant in [name for name in VARIANTS if name in chosen]:
        _log.info("converting to %s", variant)
        if variant in qat.VARIANTS:
            batches = pipeline.train_batches(train, cfg, epochs=epochs or qat.EPOCHS[variant])
            with _leaving_out("thumbnet", variant, lenient):
                tuned = qat.finetuned(variant, cfg, models.shipped, batches, calibration, cache)
                yield from ((artifact, variant, content) for artifact, content in tuned.items())
            continue
        for artifact, (model, images) in parts.items():
            yield from _converted(model, artifact, variant, images, lenient)


def _converted(
    model: keras.Model, artifact: str, variant: str, images: np.ndarray | None, lenient: bool
) -> Iterator[tuple[str, str, bytes]]:
    """Converts a model; one that the converter can't take gives nothing, or an error."""
    with _leaving_out(artifact, variant, lenient):
        yield artifact, variant, tflite.convert(model, artifact, variant, calibration=images)


@contextlib.contextmanager
def _leaving_out(artifact: str, variant: str, lenient: bool) -> Iterator[None]:
    """Turns what the block raises into one line: a warning where lenient; else, or if the machine failed, an error."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # converters raise many kinds
        text = f"{artifact} can't be made as {variant}. Received: {' '.join(str(error).split())[:200]}"
        if isinstance(error, OSError | MemoryError | tf.errors.OpError):
            raise UserError(f"make room in memory and in the folder of temporary files, TMPDIR; {text}") from error
        if not lenient:
            raise UserError(f"leave {variant} out of --variants; {text}") from error
        _log.warning("left out: %s", text)
