"""The models: the teacher T, the student S from it, the feature-mapping decoder D, and the one that ships (E + S)."""

import dataclasses
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from thumbnet_tf import applications, backbones, downscaler, foreign, graph, stages
from thumbnet_tf.config import APPLICATIONS, AUTO, Config, FlagError, UserError
from thumbnet_tf.graph import precision
from thumbnet_tf.trimming import trim


def build_teacher(cfg: Config, num_classes: int, *, synchronized: bool = False, initial: bool = False) -> keras.Model:
    """Builds a T that is yet to be trained, on the full image.

    Args:
        cfg: the configuration; one that trains T.
        num_classes: C.
        synchronized: whether batch statistics are taken over all replicas.
        initial: whether T gets the weights of `--teacher_weights`; else they are random.

    Raises:
        UserError: when the network can't be built, or its weights can't be had.
    """
    if cfg.teacher.startswith(APPLICATIONS):
        return applications.build(
            cfg.teacher.removeprefix(APPLICATIONS),
            cfg.image_size,
            num_classes,
            cfg.teacher_input,
            cfg.teacher_weights if initial else "none",
            cfg.fm_tap,
            synchronized=synchronized,
        )
    return backbones.build(cfg.backbone, cfg.image_size, num_classes, cfg.width, synchronized=synchronized)


def build_student(cfg: Config, teacher: keras.Model, *, synchronized: bool = False) -> tuple[keras.Model, list[str]]:
    """Builds S: T's own graph on the thumbnail, started from T's weights, or a variant of T that the options ask for.

    Weights of its convolutions that meet nothing but padding at the thumbnail's size are left out (see `trimming`).

    Args:
        cfg: the configuration; a variant of T is built by its backbone and width, which T must have been built by.
        teacher: T.
        synchronized: whether batch statistics are taken over all replicas.

    Returns:
        S, and the names of the layers that start anew: their shape depends on the input's size, or isn't T's.

    Raises:
        UserError: when the thumbnail is too small for T, or T has no variants.
    """
    if cfg.varies_student:
        if teacher.name not in backbones.NAMES:
            raise FlagError(
                "--student_width and --student_stem_stride go with a T of --backbone only; leave them out, and S is "
                f"T's own network. Received: {cfg.student_width:g} and {cfg.student_stem_stride} with another T"
            )
        student = backbones.build(
            teacher.name,
            cfg.thumbnail_size,
            teacher.output["logits"].shape[-1],
            cfg.student_width or cfg.width,
            stem_stride=cfg.student_stem_stride,
            synchronized=synchronized,
        )
    else:
        thumbnail = keras.Input((cfg.thumbnail_size, cfg.thumbnail_size, 3), name="image")
        student = keras.Model(thumbnail, graph.lay(teacher, thumbnail, synchronized=synchronized), name=teacher.name)
    anew = copy_weights(teacher, student)
    return trim(student), anew


def fm_tap(cfg: Config, teacher: keras.Model) -> str:
    """Returns the name of the map that FM uses: of a T of the user's own, the only one that it gives."""
    if teacher.name == foreign.NAME:
        return next(name for name in teacher.output if name != "logits")
    return "stage2" if cfg.fm_tap == AUTO else cfg.fm_tap


def build_downscaler(cfg: Config, kind: str, *, synchronized: bool = False) -> keras.Model:
    """Builds the downscaler of one kind (learned, bicubic, area) for this configuration."""
    return downscaler.build(
        kind,
        cfg.image_size,
        cfg.ratio,
        cfg.downscaler_width,
        cfg.thumbnail_bits,
        cfg.downscaler_residual,
        cfg.downscaler_filters,
        synchronized=synchronized,
    )


def check(cfg: Config, teacher: keras.Model | None = None, *, initial: bool = False) -> None:
    """Builds T, and S and D where methods need them, and throws them away: what can't be built is known at once.

    Args:
        cfg: the configuration.
        teacher: T, where it is not this run that trains it.
        initial: whether the weights that T starts from are needed.

    Raises:
        UserError: when the backbone, the sizes, the tap or the methods don't go together.
    """
    teacher = teacher or build_teacher(cfg, 2, initial=initial)
    methods = [name for name in stages.students(cfg) if stages.METHODS[name].downscaler != "none"]
    if not methods:
        return
    for name in methods:
        if not stages.METHODS[name].losses:
            check_untrained(name, build_student(as_teacher(cfg), teacher)[1])
    (student, _), tap = build_student(cfg, teacher), fm_tap(cfg, teacher)
    if any(set(stages.DECODED) & set(stages.METHODS[name].losses) for name in methods):
        build_decoder(student, teacher, tap)
    images = np.zeros((2, *student.input.shape[1:]), np.float32)
    try:
        fits = student(images, training=False)["logits"].shape[0] == len(images)
    except (ValueError, tf.errors.OpError):
        fits = False
    if not fits:  # a reshape with -1 in it makes other examples of thumbnails
        raise UserError(
            "T must take images of a thumbnail's size too; flatten its map by keras.layers.Flatten, or pool it by "
            f"GlobalAveragePooling2D. Received: a T that can't tell two images of {cfg.thumbnail_size} pixels apart: "
            "it reshapes maps to sizes of its own"
        )


def as_teacher(cfg: Config) -> Config:
    """Returns a configuration in which S is T's own network."""
    return dataclasses.replace(cfg, student_width=0.0, student_stem_stride=4)


def check_untrained(method: str, anew: Sequence[str]) -> None:
    """Sees to it that a method that doesn't train has an S of T's weights alone.

    Args:
        method: a row of `stages.METHODS`.
        anew: layers of its S that start from random weights.

    Raises:
        UserError: when it doesn't train, and some layers do.
    """
    if anew and not stages.METHODS[method].losses:
        some = ", ".join(anew[:3]) + (", ..." if len(anew) > 3 else "")
        raise UserError(
            f"{method} can't be had of this T: layers whose shapes hang on the image's size would stay random on "
            f"thumbnails; leave it out of --methods. Received: a T of {len(anew)} such layers: {some}"
        )


def build_shipped(cfg: Config, kind: str, small: keras.Model, student: keras.Model) -> keras.Model:
    """Builds what ships: one flat float32 model of a downscaler and S, with their trained weights and nothing else.

    Args:
        cfg: the run's configuration.
        kind: the downscaler's kind.
        small: the trained downscaler.
        student: the trained S.

    Returns:
        A model from images `(B, size, size, 3)` in [0, 255] to `{"thumbnail": ..., "logits": (B, C)}`.
    """
    with precision("float32"):
        image = keras.Input((cfg.image_size, cfg.image_size, 3), name="image")
        thumbnail = downscaler.connect(kind, image, cfg.ratio, cfg.downscaler_width, cfg.thumbnail_bits)
        outputs = graph.lay(student, thumbnail, dtype="float32")
    shipped = keras.Model(image, {"thumbnail": thumbnail, "logits": outputs["logits"]}, name="thumbnet")
    weights = {layer.name: layer.get_weights() for part in (small, student) for layer in part.layers}
    for layer in shipped.layers:
        layer.set_weights(weights[layer.name])
    return shipped


@dataclasses.dataclass(frozen=True)
class Deployed:
    """The float32 models behind an export.

    Attributes:
        shipped: E + S, from images `(B, size, size, 3)` in [0, 255] to `thumbnail` and `logits`.
        downscaler: its first part, from images to thumbnails `(B, s, s, 3)`, sharing its weights.
        student: its second part, from thumbnails to `{"logits": (B, C)}`.
        teacher: T, for comparison, from images to its taps and `logits`.
    """

    shipped: keras.Model
    downscaler: keras.Model
    student: keras.Model
    teacher: keras.Model


def deployed(shipped: keras.Model, teacher: keras.Model) -> Deployed:
    """Cuts what ships in two, and makes T compute in float32 whatever it was trained in.

    Args:
        shipped: see `build_shipped`.
        teacher: T.
    """
    thumbnail = shipped.output["thumbnail"]
    downscaler_part = keras.Model(shipped.input, thumbnail, name="downscaler")
    # thumbnails of 8 bits are read as they are; of fewer, a file holds the nearest bytes, and S the levels it knows
    rounding = shipped.get_layer("thumbnail")
    read = thumbnail if rounding.bits in (0, 8) else rounding.input
    student = keras.Model(read, {"logits": shipped.output["logits"]}, name="student")
    return Deployed(shipped, downscaler_part, student, graph.in_float32(teacher))


def copy_weights(source: keras.Model, target: keras.Model) -> list[str]:
    """Copies the weights of equally named layers; returns the names of those whose shapes differ, left as they are.

    Raises:
        UserError: when the two models don't hold the same layers.
    """
    sources = {layer.name: layer for layer in source.layers if layer.weights}
    targets = {layer.name: layer for layer in target.layers if layer.weights}
    if set(sources) != set(targets):
        odd = sorted(set(sources) ^ set(targets))
        raise UserError(f"the teacher's layers don't match the configured backbone; they differ in {odd[:4]}")
    anew = []
    for name, layer in targets.items():
        given = sources[name].get_weights()
        if [value.shape for value in given] == [tuple(weight.shape) for weight in layer.weights]:
            layer.set_weights(given)
        else:
            anew.append(name)
    return anew


def build_decoder(student: keras.Model, teacher: keras.Model, tap: str) -> keras.Model:
    """Builds D, which decodes a map of T from the same map of S: conv 3 x 3, ReLU, conv 1 x 1, depth to space.

    The second convolution makes as many values as T's map has. At 1 x 1, and behind a quarter of the map's channels, D
    doesn't dominate a training step.

    Args:
        student: S, with taps as outputs.
        teacher: T, with taps as outputs.
        tap: name of the tap.

    Returns:
        A model from S's map `(B, h, w, c)` to T's `(B, H, W, C)`.

    Raises:
        FlagError: when the models have no such tap.
    """
    taps = [name for name in teacher.output if name != "logits"]
    if tap not in taps:
        raise FlagError(f"--fm_tap must be one of {', '.join(taps)} for this backbone. Received: {tap!r}")
    small, large = student.output[tap].shape[1:], teacher.output[tap].shape[1:]
    height, width, channels = small
    factor = -(-large[0] // height)
    x = feature = keras.Input(small, name="student_map")
    x = layers.Conv2D(-(-channels // 4), 3, padding="same", kernel_initializer="he_normal", name="decoder_1_conv")(x)
    x = layers.ReLU(name="decoder_1_relu")(x)
    x = layers.Conv2D(large[-1] * factor**2, 1, name="decoder_2_conv")(x)
    # depth to space in plain layers: (h, w, f f C) -> (h, w, f, f, C) -> (h, f, w, f, C) -> (h f, w f, C)
    x = layers.Reshape((height, width, factor, factor, large[-1]), name="decoder_split")(x)
    x = layers.Permute((1, 3, 2, 4, 5), name="decoder_permute")(x)
    x = layers.Reshape((height * factor, width * factor, large[-1]), name="decoder_merge")(x)
    if x.shape[1:3] != large[:2]:  # odd sizes round up under S's strides, and a stem of stride 1 can make S's map finer
        x = layers.Resizing(*large[:2], dtype="float32", name="decoder_resize")(x)
    return keras.Model(feature, x, name="decoder")
