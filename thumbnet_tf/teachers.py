"""A teacher T that a run is given: taken from a run or a file, and checked against the data before all else."""

import hashlib
import logging
import pathlib
import re
import zipfile
from collections.abc import Mapping

import keras
import numpy as np

from thumbnet_tf import backbones, foreign, thumbnet
from thumbnet_tf.config import APPLICATIONS, AUTO, Config, FlagError, UserError
from thumbnet_tf.csv_files import read_rows
from thumbnet_tf.data import pipeline, sources
from thumbnet_tf.runs import RunDir, load_keras
from thumbnet_tf.stages import ORIGINAL

_IMAGES = 512  # of validation that a T of the user's own is tried on
_DEFAULT_INPUT = "0..255"

_log = logging.getLogger(__name__)


def given(cfg: Config) -> keras.Model:
    """Loads the T that the configuration names, in the form that T has here.

    Raises:
        UserError: when it can't be loaded or used, or isn't of this run's backbone.
    """
    path = file_of(cfg)
    if cfg.teacher.endswith(".keras"):
        model = _load(path)
    else:
        if not (pathlib.Path(cfg.teacher) / "config.json").is_file():
            what = "is a file of another kind" if pathlib.Path(cfg.teacher).is_file() else "holds no run"
            raise UserError(
                f"--teacher must be train, a run directory, a .keras file (model.save('mine.keras')) or "
                f"{APPLICATIONS}NAME. Received: {cfg.teacher}, which {what}"
            )
        model = load_keras(path)
    outputs = model.output if isinstance(model, keras.Function) else None
    names = set(outputs) if isinstance(outputs, dict) else set()
    if model.name == foreign.NAME and "logits" in names:  # another run took it
        if model.input.shape[1] != cfg.image_size:
            raise UserError(
                f"--teacher must have this run's --image_size={cfg.image_size}. Received: {path}, with "
                f"{model.input.shape[1]}"
            )
        _check_precision(cfg)
        return model if cfg.fm_tap == AUTO else foreign.with_tap(model, cfg.fm_tap)
    if {"logits", "stage1"} <= names:
        return _ours(model, cfg, path)
    _check_precision(cfg)
    mode = _DEFAULT_INPUT if cfg.teacher_input == AUTO else cfg.teacher_input
    return foreign.standardise(model, cfg.image_size, mode, cfg.fm_tap)


def file_of(cfg: Config) -> pathlib.Path:
    """Returns the file that T, or what it starts from, is read from; for imagenet or none, a path that isn't there."""
    if cfg.teacher.startswith(APPLICATIONS):
        return pathlib.Path(cfg.teacher_weights)
    path = pathlib.Path(cfg.teacher)
    return path if cfg.teacher.endswith(".keras") else path / ORIGINAL / "teacher.keras"


def facts(cfg: Config, run: RunDir) -> dict[str, str]:
    """Returns what identifies the file that T is read from, for the run's `data.json`.

    Raises:
        UserError: when the file isn't the one that the run started with.
    """
    path = file_of(cfg)
    if cfg.teacher == "train" or not path.is_file():
        return {}  # T is in the run, or its absence was told
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if (run.path / "data.json").exists():
        before = run.data_facts().get("teacher_file", digest)
        if before != digest:
            raise UserError(
                f"the teacher's file changed since this run started (sha256 was {before[:12]}, now {digest[:12]}); "
                f"restore it, or start a new --run_dir. Received: {path}"
            )
    return {"teacher_file": digest}


def network_name(run: RunDir, cfg: Config) -> str:
    """Returns what T and S are, as words; of a T that is none of our backbones with the map that FM uses."""
    own = f"{cfg.backbone}, width {cfg.width:g}"
    if cfg.teacher == "train":
        return own
    teacher = run.load_model(ORIGINAL, "teacher")
    if teacher.name != foreign.NAME:
        return own
    source = cfg
    while (pathlib.Path(source.teacher) / "config.json").is_file():  # where the other run, such as ratio2, has it from
        source = RunDir(source.teacher).config()
    name = source.teacher if source.trains_teacher else f"the network of {source.teacher}"
    return f"{name} (map for FM: {thumbnet.fm_tap(cfg, teacher)})"


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
        used = _DEFAULT_INPUT if cfg.teacher_input == AUTO else cfg.teacher_input
        judge(_answers(teacher, images, used), np.asarray(split.labels)[ids], names, used)
    if teacher.name == foreign.NAME:  # said when it was loaded too, before the run had a log
        _log.info("FM's map is that of T's layer %s", thumbnet.fm_tap(cfg, teacher))


def judge(answers: Mapping[str, np.ndarray], labels: np.ndarray, names: tuple[str, ...], used: str) -> None:
    """Judges by a teacher's answers whether it is fed as it expects.

    Args:
        answers: predicted classes `(n,)` by what the input is turned into, one of `foreign.INPUTS`.
        labels: the true ones `(n,)`.
        names: of the classes.
        used: the key of `answers` that is going to be used.

    Raises:
        UserError: when another input does clearly better, when another order of the classes does, or when the answers
            are hardly better than always the same.
    """
    count = len(labels)
    margin = max(0.05, 3 * (0.5 / count) ** 0.5)  # three standard errors of a difference, at most
    right = {mode: float(np.mean(found == labels)) for mode, found in answers.items()}
    orders = {mode: _order(found, labels, len(names)) for mode, found in answers.items()}
    reordered = {mode: float(np.mean(orders[mode][found] == labels)) for mode, found in answers.items()}
    best = max(right, key=right.get)
    said = f"{100 * right[used]:.1f} % of {count} validation images right with --teacher_input={used}"
    likeliest = max(reordered, key=reordered.get)
    if right[best] - right[used] > margin and right[best] >= reordered[likeliest] - margin:
        raise UserError(
            f"--teacher_input={best} seems to be what T expects: with it T answers {100 * right[best]:.1f} % right. "
            f"Received: a T that answers {said}"
        )
    if reordered[likeliest] - right[used] > margin and reordered[likeliest] > 0.5 and count >= 3 * len(names):
        order = ", ".join(names[index] for index in orders[likeliest][:8]) + (", ..." if len(names) > 8 else "")
        besides = "" if likeliest == used else f" and --teacher_input={likeliest}"
        raise UserError(
            f"T's classes seem to be in another order than the dataset's: as {order}{besides} it answers "
            f"{100 * reordered[likeliest]:.1f} % right; reorder T's outputs as {', '.join(names[:8])}. "
            f"Received: a T that answers {said}"
        )
    if _is_blind(answers[used], labels):
        raise UserError(
            "T must know the dataset's classes; its answers don't depend on the images' classes, and no other "
            f"--teacher_input or order of the classes does clearly better. Received: a T that answers {said}"
        )
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
    """Returns T's answers to images, as `used`, and with each other known input in front of it instead."""
    models = {used: keras.Model(teacher.input, teacher.output["logits"])}
    bare = foreign.without_input(teacher)
    for mode in foreign.INPUTS:
        image = keras.Input(teacher.input.shape[1:])
        models.setdefault(mode, keras.Model(image, bare(foreign.preprocess(image, mode))))
    batches = [images[i : i + 64].astype(np.float32) for i in range(0, len(images), 64)]
    return {
        mode: np.concatenate([np.asarray(model(batch, training=False)).argmax(-1) for batch in batches])
        for mode, model in models.items()
    }


def _ours(model: keras.Model, cfg: Config, path: pathlib.Path) -> keras.Model:
    """Returns one of our backbones, with the weights of a model that a run has trained."""
    classes = model.output["logits"].shape[-1]
    teacher = backbones.build(cfg.backbone, cfg.image_size, classes, cfg.width)
    if model.input_shape != teacher.input_shape or thumbnet.copy_weights(model, teacher):
        raise UserError(
            f"--teacher must have this run's --backbone={cfg.backbone} --width={cfg.width:g} and "
            f"--image_size={cfg.image_size}. Received: {path}, which differs"
        )
    return teacher


def _check_precision(cfg: Config) -> None:
    if cfg.mixed_precision != "float32":
        raise FlagError(
            f"--mixed_precision must be float32 with a teacher of your own. Received: {cfg.mixed_precision}"
        )


def _load(path: pathlib.Path) -> keras.Model:
    """Loads a `.keras` file of the user's (safe mode on).

    Raises:
        UserError: when it isn't there, is broken, or holds code or classes of its own.
    """
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "doesn't exist"
        raise UserError(f"--teacher must be a .keras file that is there. Received: {path}, which {kind}")
    if not zipfile.is_zipfile(path):
        raise UserError(
            "--teacher can't be loaded: it is no .keras file, or is cut off; save the model anew by "
            f"model.save('mine.keras'). Received: {path}"
        )
    try:
        return keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises many kinds
        text = " ".join(str(error).split())
        foreign_class = re.search(r"Could not locate (class|function) '[^']*'", text)
        if foreign_class:
            reason = (
                "it holds code that isn't Keras' own; build T from Keras' own layers "
                f"({foreign_class[0].replace('Could not locate ', '')})"
            )
        elif "`Lambda`" in text or "Python lambda" in text:
            reason = "it holds a Lambda, which is code that isn't run; build T from Keras' own layers"
        else:
            reason = f"it is no readable Keras model ({text[:140]})"
        raise UserError(f"--teacher can't be loaded: {reason}. Received: {path}") from None
