"""Whether a teacher T that a run is given knows the data: its classes, their order, and the values of its input."""

import logging
import math
import pathlib
from collections.abc import Mapping

import keras
import numpy as np

from thumbnet_tf import costs, foreign, thumbnet
from thumbnet_tf.config import AUTO, Config, UserError
from thumbnet_tf.csv_files import read_rows
from thumbnet_tf.data import pipeline, sources
from thumbnet_tf.runs import RunDir
from thumbnet_tf.stages import ORIGINAL
from thumbnet_tf.stats import Paired, logsumexp
from thumbnet_tf.teachers import file_of, input_of

_IMAGES = 512  # of validation that a T of the user's own is tried on
_LEVEL = 1e-4  # of a paired test; several inputs and orders are tried
_ENOUGH = 30  # validation images; fewer don't refuse a T by how it answers them, where a good one might by chance

_log = logging.getLogger(__name__)


def check_classes(teacher: keras.Model, cfg: Config, dataset: sources.Dataset) -> None:
    """Checks that T knows the dataset's classes in their order, and sees its images in the values that it expects.

    Of another run's T the classes' names are known; any other answers validation images for that.

    Raises:
        UserError: when it doesn't, with the likely cause.
    """
    names = dataset.class_names
    path = file_of(cfg)
    home = path.parent.parent
    is_of_run = path == home / ORIGINAL / "teacher.keras" and (home / "config.json").is_file()
    if is_of_run:
        classes = RunDir.existing(str(home)).data_facts()["classes"]
        if classes != list(names):
            raise UserError(
                f"--teacher must know this dataset's classes in this order: {', '.join(names[:5])}, ... "
                f"Received: {cfg.teacher}, which knows {', '.join(classes[:5])}, ..."
            )
    count = teacher.output["logits"].shape[-1]
    if count != len(names):
        raise UserError(
            f"--teacher must give a score for each of the {len(names)} classes of {cfg.dataset}. Received: "
            f"{cfg.teacher}, which gives {count}"
        )
    if not is_of_run:
        split = dataset.splits["validation"]
        ids = np.unique(np.linspace(0, split.num_examples - 1, min(_IMAGES, split.num_examples)).astype(np.int64))
        images = pipeline.eval_images(split, cfg, ids.tolist())
        used = input_of(cfg)
        asked = cfg.teacher_input != AUTO
        judge(_answers(teacher, images, used), np.asarray(split.labels)[ids], names, used, asked=asked)
    left_out = costs.uncounted(teacher)
    if left_out:
        _log.warning("multiply-adds, here and in all tables, leave out T's layers %s", ", ".join(left_out))
    if teacher.name == foreign.NAME:  # said when it was loaded too, before the run had a log
        _log.info("FM's map is that of T's layer %s", thumbnet.fm_tap(cfg, teacher))


def judge(
    answers: Mapping[str, np.ndarray], labels: np.ndarray, names: tuple[str, ...], used: str, *, asked: bool = False
) -> None:
    """Judges by a teacher's answers whether it is fed as it expects.

    Args:
        answers: logits `(n, C)` by what the input is turned into, one of `foreign.INPUTS`.
        labels: the true classes `(n,)`.
        names: of the classes.
        used: the key of `answers` that is going to be used.
        asked: whether the user chose it: then a worse loss at the same accuracy is only warned of.

    Raises:
        UserError: when another input does clearly better, when another order of the classes does, or when the answers
            are hardly better than always the same.
    """
    count = len(labels)
    found = {mode: logits.argmax(-1) for mode, logits in answers.items()}
    right = {mode: found[mode] == labels for mode in answers}
    orders = {mode: _order(found[mode], labels, len(names)) for mode in answers}
    reordered = {mode: orders[mode][found[mode]] == labels for mode in answers}
    best = max(answers, key=lambda mode: (right[mode].sum(), mode == used))
    likeliest = max(answers, key=lambda mode: (reordered[mode].sum(), mode == used))
    percent = {mode: f"{100 * right[mode].mean():.1f} %" for mode in answers}
    said = f"{percent[used]} of {count} validation images right with --teacher_input={used}"
    if _clearly_better(right[best], right[used]) and not _clearly_better(reordered[likeliest], right[best]):
        raise UserError(
            f"--teacher_input={best} seems to be what T expects: with it T answers {percent[best]} right. "
            f"Received: a T that answers {said}"
        )
    enough = reordered[likeliest].mean() > 0.5 and count >= 3 * len(names)
    if enough and _clearly_better(reordered[likeliest], right[used]):
        order = ", ".join(names[index] for index in orders[likeliest][:8]) + (", ..." if len(names) > 8 else "")
        besides = "" if likeliest == used else f" and --teacher_input={likeliest}"
        raise UserError(
            f"T's classes seem to be in another order than the dataset's: as {order}{besides} it answers "
            f"{100 * reordered[likeliest].mean():.1f} % right; reorder T's outputs as {', '.join(names[:8])}. "
            f"Received: a T that answers {said}"
        )
    if _is_blind(found[used], labels):
        message = (
            "T must know the dataset's classes; its answers don't depend on the images' classes, and no other "
            f"--teacher_input or order of the classes does clearly better. Received: a T that answers {said}"
        )
        if count >= _ENOUGH:
            raise UserError(message)
        _log.warning("%s; but so few images say little", message)
    surer = _surer_input(answers, labels, used)
    if surer:
        message = (
            f"--teacher_input={surer} seems to be what T expects: with it T answers {percent[surer]} right, with less "
            f"than half the cross-entropy (the flag --teacher_input={used} insists). Received: a T that answers {said}"
        )
        if not asked and count >= _ENOUGH:
            raise UserError(message)
        _log.warning("%s", message)
    _log.info("T answers %s", said)


def warn_at_chance(folder: pathlib.Path, labels: np.ndarray) -> None:
    """Warns when a T that the run has trained is hardly better than the same answer always: nothing is to be had of it.

    Args:
        folder: of T in the run, with its `metrics.csv`.
        labels: of the validation images `(n,)`.
    """
    rows = read_rows(folder / "metrics.csv")
    if not rows:  # deleted between two starts
        return
    right = float(rows[-1]["val_accuracy"])
    share = np.bincount(labels).max() / len(labels)
    if right <= share + 2 * (share * (1 - share) / len(labels)) ** 0.5:  # two standard errors
        _log.warning(
            "T is hardly better than always the same answer: %.1f %% of %d validation images right. Neither will S be; "
            "look at the labels, at --teacher_input where T is one of keras.applications, and at --teacher_epochs",
            100 * right,
            len(labels),
        )


def _clearly_better(first: np.ndarray, second: np.ndarray) -> bool:
    """Returns whether one way to answer the same images is better than another, beyond what chance does."""
    paired = Paired.of(second, first)
    return paired.difference > 0 and paired.p_value() < _LEVEL


def _surer_input(answers: Mapping[str, np.ndarray], labels: np.ndarray, used: str) -> str | None:
    """Returns another input that T seems to expect, of about the used one's accuracy, if there is one.

    A network without normalisation often answers the same class for an image in another range, but for scores
    that are far too large, and these are what a student would learn. That shows where it is sometimes wrong: then its
    mean cross-entropy is above that of a guess, log C, for all its accuracy, and the other input's is less than half.
    """
    losses, right = {}, {}
    for mode, logits in answers.items():
        exact = logits.astype(np.float64)
        losses[mode] = np.mean(logsumexp(exact) - exact[np.arange(len(labels)), labels])
        right[mode] = np.mean(logits.argmax(-1) == labels)
    best = min((mode for mode in answers if right[mode] >= right[used] - 0.02), key=losses.get)
    worse_than_a_guess = losses[used] > math.log(answers[used].shape[-1])
    return best if worse_than_a_guess and losses[best] < losses[used] / 2 else None


def _is_blind(found: np.ndarray, labels: np.ndarray) -> bool:
    """Returns whether answers `(n,)` could be given without seeing the images, by their own frequencies.

    Then a class is recognised as often as it is answered at all; the sum over classes is judged, within two standard
    errors, for with one common class even a good T is right little more often than that class is.
    """
    classes, counts = np.unique(labels, return_counts=True)
    recall = np.array([np.mean(found[labels == label] == label) for label in classes])
    answered = np.array([np.mean(found == label) for label in classes])
    error = np.sqrt(np.sum(answered * (1 - answered) / counts))
    return len(classes) > 1 and np.sum(recall - answered) <= 2 * error


def _order(found: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Returns the class that each of T's outputs seems to stand for, `(count,)`: largest overlap first."""
    overlap = np.zeros((count, count))
    np.add.at(overlap, (found, labels), 1)
    order = np.full(count, -1)
    for _ in range(count):
        output, label = np.unravel_index(overlap.argmax(), overlap.shape)
        order[output] = label
        overlap[output], overlap[:, label] = -1, -1
    return order


def _answers(teacher: keras.Model, images: np.ndarray, used: str) -> dict[str, np.ndarray]:
    """Returns T's logits for images, as `used`, and with each other known input in front of it instead."""
    models = {used: keras.Model(teacher.input, teacher.output["logits"])}
    bare = foreign.without_input(teacher)
    for mode in foreign.INPUTS:
        image = keras.Input(teacher.input.shape[1:])
        models.setdefault(mode, keras.Model(image, bare(foreign.preprocess(image, mode))))
    batches = [images[i : i + 64].astype(np.float32) for i in range(0, len(images), 64)]
    return {
        mode: np.concatenate([np.asarray(model(batch, training=False)) for batch in batches])
        for mode, model in models.items()
    }
