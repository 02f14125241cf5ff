"""A teacher T that a run is given: taken from a run or a file, or handed over in Python."""

import hashlib
import os
import pathlib
import re
import zipfile

import keras

from thumbnet_tf import backbones, foreign, thumbnet
from thumbnet_tf.config import APPLICATIONS, AUTO, Config, FlagError, UserError
from thumbnet_tf.files import check_archive
from thumbnet_tf.runs import RunDir, load_keras
from thumbnet_tf.stages import METHODS, ORIGINAL


def load(cfg: Config) -> keras.Model:
    """Loads the T that the configuration names, in the form that T has here.

    Raises:
        UserError: when it can't be loaded or used, or isn't of this run's backbone.
    """
    path = file_of(cfg)
    if cfg.teacher.endswith(".keras"):
        model = _load_file(path)
    else:
        if not os.path.isfile(pathlib.Path(cfg.teacher) / "config.json"):
            what = "is a file of another kind" if os.path.isfile(cfg.teacher) else "holds no run"
            raise UserError(
                f"--teacher must be train, a run directory, a .keras file (model.save('mine.keras')) or "
                f"{APPLICATIONS}NAME. Received: {cfg.teacher}, which {what}"
            )
        model = load_keras(path)
    outputs = model.output if isinstance(model, keras.Function) else None
    names = set(outputs) if isinstance(outputs, dict) else set()
    taken_by_a_run = model.name == foreign.NAME and "logits" in names
    is_ours = {"logits", "stage1"} <= names
    if (taken_by_a_run or is_ours) and cfg.teacher_input != AUTO:
        raise FlagError(
            f"--teacher_input must be {AUTO} for a T that a run has saved, which scales its input itself. "
            f"Received: {cfg.teacher_input} with --teacher={cfg.teacher}"
        )
    if taken_by_a_run:
        if model.input.shape[1] != cfg.image_size:
            raise UserError(
                f"--teacher must have this run's --image_size={cfg.image_size}. Received: {path}, with "
                f"{model.input.shape[1]}"
            )
        _check_precision(cfg)
        return model if cfg.fm_tap == AUTO else foreign.with_tap(model, cfg.fm_tap)
    if is_ours:
        return _ours(model, cfg, path)
    _check_precision(cfg)
    return foreign.standardise(model, cfg.image_size, input_of(cfg), cfg.fm_tap)


def input_of(cfg: Config) -> str:
    """Returns which of `foreign.INPUTS` a T of the user's own is given."""
    return "0..255" if cfg.teacher_input == AUTO else cfg.teacher_input


def accepted(teacher: keras.Model | None, cfg: Config, method: str) -> keras.Model | None:
    """Returns a T that is handed over in Python, in the form that T has here; it may be any that `foreign` takes.

    Args:
        teacher: T, or None.
        cfg: the configuration.
        method: what is to be trained, a row of `stages.METHODS`.

    Raises:
        UserError: when there is no such method, it needs a T and there is none, or T can't be used.
    """
    if method not in METHODS:
        raise UserError(f"a method must be one of {', '.join(METHODS)}. Received: {method!r}")
    if teacher is None:
        if method != ORIGINAL:
            raise UserError(f"the method {method} needs a teacher, a Keras model. Received: None")
        return None
    outputs = teacher.output if isinstance(teacher, keras.Function) else None
    if isinstance(outputs, dict) and "logits" in outputs and len(outputs) > 1:  # maps beside it, as T has here
        return teacher
    # the configuration of a run that trained its T has a tap of --backbone
    tap_of_backbone = cfg.teacher == "train" and re.fullmatch("stage[1-5]", cfg.fm_tap)
    found = foreign.standardise(teacher, cfg.image_size, input_of(cfg), AUTO if tap_of_backbone else cfg.fm_tap)
    if tap_of_backbone and any(layer.name == cfg.fm_tap for layer in found.layers):
        return foreign.with_tap(found, cfg.fm_tap)
    return found


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
    path, begun = file_of(cfg), (run.path / "data.json").exists()
    if cfg.teacher == "train" or not os.path.isfile(path):
        if begun and cfg.teacher != run.config().teacher:
            raise UserError(f"--teacher must be where T lies now, or what it was before. Received: {cfg.teacher}")
        return {}  # T is in the run, or its absence was told
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if begun:
        before = run.data_facts().get("teacher_file", digest)
        if before != digest:
            raise UserError(
                f"the teacher's file changed since this run started (sha256 was {before[:12]}, now {digest[:12]}); "
                f"restore it, or start a new --run_dir. Received: {path}"
            )
    return {"teacher_file": digest}


def network_name(run: RunDir, cfg: Config) -> str:
    """Returns what T is, as words; of a T that is none of our backbones with the map that FM uses."""
    own = f"{cfg.backbone}, width {cfg.width:g}"
    if cfg.teacher == "train":
        return own
    teacher = run.load_model(ORIGINAL, "teacher")
    if teacher.name != foreign.NAME:
        return own
    source = cfg  # T may be another run's, such as ratio2's, which has it from elsewhere in turn
    while os.path.isfile(pathlib.Path(source.teacher) / "config.json"):
        source = RunDir(source.teacher).config()
    name = source.teacher if source.trains_teacher else f"the network of {source.teacher}"
    return f"{name} (map for FM: {thumbnet.fm_tap(cfg, teacher)})"


def student_name(method: str, cfg: Config, network: str) -> str:
    """Returns what S of a method is, as words: T's own network, named as by `network_name`, or a variant of it."""
    if not cfg.varies_student or not METHODS[method].losses:
        return network
    stem = "" if cfg.student_stem_stride == backbones.STEM_STRIDE else f", stem of stride {cfg.student_stem_stride}"
    return f"{cfg.backbone}, width {cfg.student_width or cfg.width:g}{stem}"


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


def _load_file(path: pathlib.Path) -> keras.Model:
    """Loads a `.keras` file of the user's (safe mode on).

    Raises:
        UserError: when it isn't there, is broken, or holds code or classes of its own.
    """
    if not os.path.isfile(path):
        kind = "is a folder" if os.path.isdir(path) else "doesn't exist, or lies in a folder that can't be entered"
        raise UserError(f"--teacher must be a .keras file that is there. Received: {path}, which {kind}")
    if not zipfile.is_zipfile(path):
        raise UserError(
            "--teacher can't be loaded: it is no .keras file, or is cut off; save the model anew by "
            f"model.save('mine.keras'). Received: {path}"
        )
    try:
        check_archive(path)
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
