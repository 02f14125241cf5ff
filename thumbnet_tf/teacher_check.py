"""Whether a teacher T that a run is given knows the data: its classes, their order, and the values of its input."""

import dataclasses
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
from thumbnet_tf.progress import track
from thumbnet_tf.runs import RunDir
from thumbnet_tf.stages import ORIGINAL
from thumbnet_tf.stats import Paired, logsumexp
from thumbnet_tf.teachers import file_of, input_of

_IMAGES, _MOST = 512, 2048  # of validation that a T of the user's own is tried on: few classes, and many
_OF_A_CLASS = 5  # as many images are wanted; of fewer on average, no other order of the classes is looked for
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
        facts = RunDir.existing(str(home)).data_facts()
        classes = facts["classes"]
        if classes != list(names):
            raise UserError(
                f"--teacher must know this dataset's classes in this order: {', '.join(names[:5])}, ... "
                f"Received: {cfg.teacher}, which knows {', '.join(classes[:5])}, ..."
            )
        if facts.get("fingerprint") != dataset.fingerprint:
            _log.warning(
                "T's run %s had other data than this one: images that T was trained on may be among those to validate "
                "or test on here, and then its accuracies flatter",
                home,
            )
    count = teacher.output["logits"].shape[-1]
    if count != len(names):
        raise UserError(
            f"--teacher must give a score for each of the {len(names)} classes of {cfg.dataset}. Received: "
            f"{cfg.teacher}, which gives {count}"
        )
    if not is_of_run:
        _try(teacher, cfg, dataset)
        if dataset.cut:
            _log.warning(
                "T must not have been trained on the %s images, which this run itself has cut from the training "
                "images: else accuracies on them flatter; --dataset=folder:PATH with PATH/{train,validation,test} says "
                "which images T hasn't seen",
                " and ".join(dataset.cut),
            )
    left_out = costs.uncounted(teacher)
    if left_out:
        _log.warning("multiply-adds, here and in all tables, leave out T's layers %s", ", ".join(left_out))
    if teacher.name == foreign.NAME:  # said when it was loaded too, before the run had a log
        _log.info("FM's map is that of T's layer %s", thumbnet.fm_tap(cfg, teacher))


def _try(teacher: keras.Model, cfg: Config, dataset: sources.Dataset) -> None:
    """Lets T answer some validation images, in each input that it might expect, and judges that."""
    split, names, used = dataset.splits["validation"], dataset.class_names, input_of(cfg)
    wanted = min(split.num_examples, max(_IMAGES, min(_MOST, _OF_A_CLASS * len(names))))
    ids = np.unique(np.linspace(0, split.num_examples - 1, wanted).astype(np.int64))
    labels = np.asarray(split.labels)[ids]
    answers = _answers(teacher, pipeline.eval_images(split, cfg, ids.tolist()), used)
    judge(answers, labels, names, used, asked=cfg.teacher_input != AUTO)
    if cfg.crop_fraction < 1:  # T may have been trained on whole images
        wider = pipeline.eval_images(split, dataclasses.replace(cfg, crop_fraction=1.0), ids.tolist())
        right, now = (
            logits.argmax(-1) == labels
            for logits in (_ask(keras.Model(teacher.input, teacher.output["logits"]), wider), answers[used])
        )
        if _clearly_better(right, now):
            _log.warning(
                "--crop_fraction=1 does better: T answers %.1f %% of the images right by the largest central square, "
                "and %.1f %% by the %g of it that this run takes",
                *(100 * right.mean(), 100 * now.mean(), cfg.crop_fraction),
            )


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
    tried = count >= _OF_A_CLASS * len(names)  # else almost any answers are right in some order
    reordered = {mode: _right_reordered(found[mode], labels, len(names)) if tried else right[mode] for mode in answers}
    best = max(answers, key=lambda mode: (right[mode].sum(), mode == used))
    likeliest = max(answers, key=lambda mode: (reordered[mode].sum(), mode == used))
    percent = {mode: f"{100 * right[mode].mean():.1f} %" for mode in answers}
    said = f"{percent[used]} of {count} validation images right with --teacher_input={used}"
    enough = tried and reordered[likeliest].mean() > 0.5
    in_order = not enough or not _clearly_better(reordered[likeliest], right[best])
    if _clearly_better(right[best], right[used]) and in_order:
        raise UserError(
            f"--teacher_input={best} seems to be what T expects: with it T answers {percent[best]} right. "
            f"Received: a T that answers {said}"
        )
    if enough and _clearly_better(reordered[likeliest], right[used]):
        indices = _order(found[likeliest], labels, len(names))[:8]
        order = ", ".join(names[index] for index in indices) + (", ..." if len(names) > 8 else "")
        besides = "" if likeliest == used else f" and --teacher_input={likeliest}"
        raise UserError(
            f"T's classes seem to be in another order than the dataset's: as {order}{besides} it answers "
            f"{100 * reordered[likeliest].mean():.1f} % right; reorder T's outputs as {', '.join(names[:8])}. "
            f"Received: a T that answers {said}"
        )
    if _is_blind(found[used], labels):
        message = (
            "T must know the dataset's classes; its answers don't depend on the images' classes, and no other "
            f"--teacher_input {'or order of the classes ' if tried else ''}does clearly better"
            f"{'' if tried else ' (for other orders of the classes there are too few images)'}. "
            f"Received: a T that answers {said}"
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


def _right_reordered(found: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Returns which answers are right, `(n,)`, in the order of the classes that the other half of the images suggests.

    In the order that they suggest themselves, many would be right by chance where there are few images of a class.
    """
    half = np.empty(len(labels), int)
    half[np.argsort(labels, kind="stable")] = np.arange(len(labels)) % 2  # of each class
    right = np.empty(len(labels), bool)
    for part in (half == 0, half == 1):
        right[part] = _order(found[~part], labels[~part], count)[found[part]] == labels[part]
    return right


def _order(found: np.ndarray, labels: np.ndarray, count: int) -> np.ndarray:
    """Returns the class that each of T's outputs seems to stand for, `(count,)`: largest overlap first."""
    overlap = np.zeros((count, count))
    np.add.at(overlap, (found, labels), 1)
    order = np.full(count, -1)
    for _ in range(count):
        output, label = np.unravel_index(overlap.argmax(), overlap.shape)
        if overlap[output, label] <= 0:  # nothing speaks for what is left
            break
        order[output] = label
        overlap[output], overlap[:, label] = -1, -1
    order[order < 0] = np.setdiff1d(np.arange(count), order)
    return order


def _answers(teacher: keras.Model, images: np.ndarray, used: str) -> dict[str, np.ndarray]:
    """Returns T's logits for images, as `used`, and with each other known input in front of it instead."""
    models = {used: keras.Model(teacher.input, teacher.output["logits"])}
    bare = foreign.without_input(teacher)
    for mode in foreign.INPUTS:
        image = keras.Input(teacher.input.shape[1:])
        models.setdefault(mode, keras.Model(image, bare(foreign.preprocess(image, mode))))
    return {mode: _ask(model, images) for mode, model in models.items()}


def _ask(model: keras.Model, images: np.ndarray) -> np.ndarray:
    """Returns a model's answers to images `(n, size, size, 3)` uint8, a few at a time."""
    parts = [images[i : i + 64].astype(np.float32) for i in range(0, len(images), 64)]
    answers = (model(part, training=False) for part in track(parts, len(parts), "T's answers, to check it"))
    return np.concatenate([np.asarray(answer) for answer in answers])
