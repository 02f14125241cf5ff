"""The TFLite files of an export: which models in which variants, and what they are made from."""

import logging
import pathlib
from collections.abc import Iterator, Sequence

import keras
import numpy as np

from thumbnet_tf import qat, tflite, tflite_metadata, twin
from thumbnet_tf.config import Config, UserError
from thumbnet_tf.data import pipeline
from thumbnet_tf.data.sources import Split
from thumbnet_tf.runs import saving, write_atomically
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


def possible(chosen: Sequence[str], shipped: keras.Model) -> tuple[str, ...]:
    """Returns which of the variants can be made of a network; with all chosen, those that can't are left out.

    Args:
        chosen: some of `VARIANTS`.
        shipped: E + S.

    Raises:
        UserError: when one that was chosen among fewer can't be made.
    """
    try:
        twin.check(shipped)
    except UserError as error:
        rest = tuple(name for name in chosen if name not in qat.VARIANTS)
        if set(chosen) == set(VARIANTS):
            _log.info("%s are left out: %s", ", ".join(qat.VARIANTS), error)
        elif rest != tuple(chosen):
            raise UserError(f"give --variants={','.join(rest)}; {error}") from None
        return rest
    return tuple(chosen)


def check(chosen: Sequence[str], cfg: Config, kind: str) -> None:
    """Checks, before anything is made, that variants can be made of a method.

    Args:
        chosen: some of `VARIANTS`.
        cfg: the run's configuration.
        kind: the method's downscaler.

    Raises:
        UserError: when one can't.
    """
    tuned = [name for name in chosen if name in qat.VARIANTS]
    if tuned and kind != "learned":
        rest = ",".join(name for name in chosen if name not in tuned)
        raise UserError(f"{', '.join(tuned)} need the learned downscaler; give --variants={rest}. Received: {kind}")
    integer = [name for name in ("int8", "int8_qat") if name in chosen]
    if integer and cfg.thumbnail_bits != 8:
        rest = ",".join(name for name in chosen if name not in integer)
        raise UserError(
            f"{', '.join(integer)} need thumbnails of 8 bits; give --variants={rest}. "
            f"Received: a run of --thumbnail_bits={cfg.thumbnail_bits}"
        )


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

    Raises:
        UserError: when a model can't be converted to a variant.
    """
    if not chosen:
        return
    with saving(folder):
        folder.mkdir()
    ids = np.linspace(0, train.num_examples - 1, min(calibration_images, train.num_examples)).astype(np.int64)
    calibration = pipeline.eval_images(train, cfg, ids.tolist())
    for artifact, variant, content in _files(chosen, cfg, models, train, cache, epochs, calibration):
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
) -> Iterator[tuple[str, str, bytes]]:
    yield TEACHER, "float32", tflite.convert(models.teacher, TEACHER, "float32")
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
            tuned = qat.finetuned(variant, cfg, models.shipped, batches, calibration, cache)
            yield from ((artifact, variant, content) for artifact, content in tuned.items())
            continue
        for artifact, (model, images) in parts.items():
            yield artifact, variant, tflite.convert(model, artifact, variant, calibration=images)
