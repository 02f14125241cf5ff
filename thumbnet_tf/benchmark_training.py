"""Training speed: our step with and without the cache of T's outputs, beside its parts, plain loops and the pipeline.

All cases use the same models (E, S, D and T, random weights), one batch of made-up photographs of pixels in memory and
take turns. What each case does is told in `ABOUT`.
"""

import dataclasses
import functools
import logging
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from matplotlib.figure import Figure

from thumbnet_tf import backbones, benchmark_rivals, foreign, graph, losses, teacher_cache, timing
from thumbnet_tf.assembly import build_trainer
from thumbnet_tf.benchmark_report import publish
from thumbnet_tf.config import Config
from thumbnet_tf.data import pipeline
from thumbnet_tf.data.sources import Split
from thumbnet_tf.data.store import MemoryStore
from thumbnet_tf.optimizers import build_optimizer
from thumbnet_tf.runs import RunDir
from thumbnet_tf.stages import ORIGINAL
from thumbnet_tf.trainer import Trainer

COLUMNS = ("case", "image_size", "ratio", "batch", "median", "p10", "p90", "unit")
ABOUT = {
    "step_uncached": "our step: CL + KD + FM + MM, T run in it",
    "step_cached": "our step, T's outputs given",
    "floor": "the next three one by one: what an uncached step can't do without",
    "part_teacher": "T forward, folded",
    "part_student": "E + S + D forward and backward under the same losses",
    "part_optimizer": "clipping and AdamW",
    "plain_kd_loop": "a hand-written loop: CL + KD, Keras' own AdamW",
    "keras_distiller": "keras.distillation.Distiller, CL + KD, E + S as its student",
    "pipeline": "batches from decoded images in memory and T's outputs from the disk, no step",
    "step_uncached_bfloat16": "`step_uncached`, all models computing in bfloat16",
    "step_cached_bfloat16": "`step_cached`, the same",
    "keras_distiller_bfloat16": "`keras_distiller`, the same",
    "training_uncached": "steps and pipeline together, T run",
    "training_cached": "steps and pipeline together, T's outputs from the disk",
}
DEFAULTS = (
    Config(image_size=128, ratio=4, width=0.5, batch_size=64),  # flowers_quick
    Config(image_size=224, ratio=4, width=1.0, batch_size=32),
)
CLASSES = 10
_STEPS = 5  # of a case in a turn: a training takes the same step again and again, with its weights in the caches
_BATCHES, _EPOCHS = 6, 8  # of made-up data: an epoch's batches, and epochs that the pipeline goes through

_log = logging.getLogger(__name__)

Cases = dict[str, tuple[Callable[[], object], int]]  # name -> a function and the images it takes


def run(options: Any) -> None:
    """Measures, writes `benchmark_training.csv` and `.png`, and prints the table.

    Args:
        options: of the main (`run_dir`, `folder`, `rounds`, `quick`).

    Raises:
        UserError: when the run can't be read or the results can't be written.
    """
    if options.run_dir:
        measured = RunDir.existing(options.run_dir)
        rows = measure(measured.config(), options.rounds, teacher=measured.load_model(ORIGINAL, "teacher"))
    else:
        rows = [row for cfg in DEFAULTS[: 1 if options.quick else None] for row in measure(cfg, options.rounds)]
    publish(options.folder, "benchmark_training", COLUMNS, rows, figure(rows), markdown(rows))


def measure(cfg: Config, rounds: int, teacher: keras.Model | None = None) -> list[dict]:
    """Measures one configuration.

    Args:
        cfg: sizes, models, losses and batch.
        rounds: turns of each case.
        teacher: T; None for the configuration's backbone with random weights.

    Returns:
        Rows by `COLUMNS`, in images a second, in the order of `ABOUT`.
    """
    with tempfile.TemporaryDirectory() as folder, graph.precision(cfg.mixed_precision):
        cfg = dataclasses.replace(
            cfg,
            augment="crop_flip",
            teacher_cache="all",
            cached_views=1,
            epochs=1,
            mapping_epochs=0,
            cache_dir=folder,
            cache_limit_gb=64.0,
            thumbnail_jpeg=0,
            # all losses and clipping, whatever the run used: the cases name them
            **{name: getattr(cfg, name) or 1.0 for name in ("w_cl", "w_kd", "w_fm", "w_mm", "clip_norm")},
        ).resolved()
        made = _cases(cfg, teacher)
        functions = {name: function for name, (function, _) in made.items()}
        found = timing.measure(functions, rounds=rounds, warm_up=0, what=f"training at {cfg.image_size} px")
    per_image = {name: found[name] / count for name, (_, count) in made.items()}
    per_image["floor"] = np.sum([per_image[name] for name in ABOUT if name.startswith("part_")], axis=0)
    return [
        {
            "case": name,
            "image_size": cfg.image_size,
            "ratio": cfg.ratio,
            "batch": cfg.batch_size,
            **{
                column: f"{1000 / np.percentile(per_image[name], 100 - percent):.2f}"
                for column, percent in (("median", 50), ("p10", 10), ("p90", 90))
            },
            "unit": "images/s",
        }
        for name in ABOUT
        if name in per_image
    ]


def _cases(cfg: Config, teacher: keras.Model | None) -> Cases:
    keras.utils.set_random_seed(0)
    if teacher is None:
        teacher = backbones.build(cfg.backbone, cfg.image_size, CLASSES, cfg.width)
    split = _made_up(cfg, _BATCHES * cfg.batch_size, teacher.output["logits"].shape[-1])
    trainer = _compiled(cfg, teacher)
    caches = teacher_cache.open_caches(cfg, teacher, {"train": split}, "made up", ["logits", trainer.fm_tap])
    teacher_cache.prepare(cfg, teacher, caches)

    # made once, for a training traces its graph once, too; several epochs, so that the start counts for little
    uncached = pipeline.train_batches(split, cfg, epochs=_EPOCHS, views=1)
    cached = caches["train"].attach(uncached)
    half = {False: uncached.take(_EPOCHS * _BATCHES // 2), True: cached.take(_EPOCHS * _BATCHES // 2)}
    batch = next(iter(cached))
    images, labels = batch["image"], batch["label"]
    given = {name: batch[name] for name in ("logits", trainer.fm_tap)}
    step = tf.function(trainer.train_step)

    def train(batches: tf.data.Dataset) -> None:
        for batch in batches:
            inputs = {name: batch[name] for name in ("image", *given) if name in batch}
            step((inputs, batch["label"], batch["mask"]))

    def drain() -> None:
        for _ in cached:
            pass

    steps = {
        **{f"step_{name}": call for name, call in _steps(step, images, labels, given).items()},
        **_parts(cfg, trainer, images, labels, given),
        "plain_kd_loop": benchmark_rivals.plain_kd_loop(cfg, teacher, images, labels),
        "keras_distiller": benchmark_rivals.keras_distiller(cfg, teacher, images, labels),
    }
    if teacher.name != foreign.NAME and _has_bfloat16():  # S of a T of the user's own computes in float32
        half_precise = _in_bfloat16(cfg, teacher, images, labels, given)
        steps |= {f"{name}_bfloat16": call for name, call in half_precise.items()}
    size = cfg.batch_size
    return {
        **{name: (functools.partial(_repeat, call), _STEPS * size) for name, call in steps.items()},
        "pipeline": (drain, _EPOCHS * _BATCHES * size),
        "training_uncached": (lambda: train(half[False]), _EPOCHS * _BATCHES * size // 2),
        "training_cached": (lambda: train(half[True]), _EPOCHS * _BATCHES * size // 2),
    }


def _repeat(call: Callable[[], object]) -> None:
    for _ in range(_STEPS):
        call()


def _steps(
    step: Callable, images: tf.Tensor, labels: tf.Tensor, given: Mapping[str, tf.Tensor]
) -> dict[str, Callable[[], object]]:
    mask = tf.ones_like(labels)
    return {
        "uncached": lambda: step(({"image": images}, labels, mask)),
        "cached": lambda: step(({"image": images, **given}, labels, mask)),
    }


def _in_bfloat16(
    cfg: Config, teacher: keras.Model, images: tf.Tensor, labels: tf.Tensor, given: Mapping[str, tf.Tensor]
) -> dict[str, Callable[[], object]]:
    """Returns the steps and Keras' distiller with all models in mixed precision, which some CPUs compute faster."""
    cfg = dataclasses.replace(cfg, mixed_precision="mixed_bfloat16")
    with graph.precision(cfg.mixed_precision):
        teacher = backbones.build(cfg.backbone, cfg.image_size, teacher.output["logits"].shape[-1], cfg.width)
        trainer = _compiled(cfg, teacher)
        distiller = benchmark_rivals.keras_distiller(cfg, teacher, images, labels)
    steps = _steps(tf.function(trainer.train_step), images, labels, given)
    return {**{f"step_{name}": call for name, call in steps.items()}, "keras_distiller": distiller}


def _has_bfloat16() -> bool:
    slowdown = timing.slowdown("bfloat16")
    if slowdown > timing.SLOW:
        found = "can't be computed" if math.isinf(slowdown) else f"is {slowdown:.0f} times slower than float32"
        _log.warning("bfloat16 %s on this machine; its cases are left out", found)
    return slowdown <= timing.SLOW


def _compiled(cfg: Config, teacher: keras.Model) -> Trainer:
    trainer = build_trainer("thumbnet", cfg, teacher.output["logits"].shape[-1], teacher)
    trainer.compile(optimizer=build_optimizer(cfg, 1e-6, 10**6, trainer.trainable_variables))
    trainer.optimizer.build(trainer.trainable_variables)
    return trainer


def _parts(
    cfg: Config, trainer: Trainer, images: tf.Tensor, labels: tf.Tensor, given: Mapping[str, tf.Tensor]
) -> dict[str, Callable[[], object]]:
    """Returns what a step consists of, each alone."""
    weights = trainer.term_weights
    variables = trainer.trainable_variables

    @tf.function
    def teach() -> dict[str, tf.Tensor]:
        outputs = trainer.teacher(tf.cast(images, tf.float32), training=False)
        return {name: outputs[name] for name in given}

    @tf.function
    def learn() -> list[tf.Tensor]:
        pixels = tf.cast(images, tf.float32)
        with tf.GradientTape() as tape:
            thumbnails = trainer.downscaler(pixels, training=True)
            outputs = trainer.student(thumbnails, training=True)
            loss = weights["cl"] * losses.classification(labels, outputs["logits"], cfg.label_smoothing)
            loss += weights["kd"] * losses.distillation(given["logits"], outputs["logits"], cfg.temperature)
            decoded = trainer.decoder(outputs[trainer.fm_tap])
            loss += weights["fm"] * losses.feature_mapping(given[trainer.fm_tap], decoded)
            loss += weights["mm"] * losses.moment_matching(pixels, thumbnails, cfg.mm_std_weight)
            loss = tf.reduce_mean(loss)
        return tape.gradient(loss, variables)

    gradients = learn()
    optimizer = build_optimizer(cfg, 1e-6, 10**6, variables)
    optimizer.build(variables)

    @tf.function
    def update() -> None:
        clipped, _ = tf.clip_by_global_norm(gradients, cfg.clip_norm)
        optimizer.apply_gradients(zip(clipped, variables, strict=True))

    return {"part_teacher": teach, "part_student": learn, "part_optimizer": update}


def _made_up(cfg: Config, count: int, classes: int) -> Split:
    """Returns noise in the shape of decoded photographs, whose short side is a quarter longer than the network's."""
    height, width = cfg.image_size * 5 // 4, cfg.image_size * 5 // 3
    size = height * width * 3
    pixels = tf.cast(tf.random.stateless_uniform((count * size,), (0, 0), 0, 256, tf.int32), tf.uint8)
    offset = np.arange(count, dtype=np.int64) * size
    shape = np.tile(np.array([[height, width]], np.int32), (count, 1))
    store = MemoryStore([pixels], np.zeros(count, np.int32), offset, shape)
    labels = np.arange(count, dtype=np.int64) % classes
    return Split("train", labels, tuple(map(str, range(count))), (), "made up", store)


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the rows as a table, a column of images a second and one of the ratio for each configuration."""
    settings = list(dict.fromkeys((row["image_size"], row["ratio"], row["batch"]) for row in rows))
    lines = [["case", "what it is"], ["---", "---"]]
    for size, ratio, batch in settings:
        lines[0] += [
            f"images/s, {size} to {int(size) // int(ratio)} px, batch {batch}",
            "p10 to p90",
            "/ step_uncached",
        ]
        lines[1] += ["---:"] * 3
    found = {(row["case"], row["image_size"], row["ratio"], row["batch"]): row for row in rows}
    for case in dict.fromkeys(row["case"] for row in rows):
        line = [f"`{case}`", ABOUT[case]]
        for setting in settings:
            row, base = found[case, *setting], found["step_uncached", *setting]
            share = float(row["median"]) / float(base["median"])
            line += [
                f"{float(row['median']):.0f}",
                f"{float(row['p10']):.0f} to {float(row['p90']):.0f}",
                f"{share:.2f}",
            ]
        lines.append(line)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def figure(rows: Sequence[Mapping[str, str]]) -> Figure:
    """Draws images a second, a panel for each configuration; without the optimizer, whose bar would dwarf the others.

    Args:
        rows: by `COLUMNS`.
    """
    settings = list(dict.fromkeys((row["image_size"], row["ratio"], row["batch"]) for row in rows))
    drawing = Figure(figsize=(6.5 * len(settings), 5), dpi=120, layout="constrained")
    for axes, setting in zip(drawing.subplots(1, len(settings), squeeze=False)[0], settings, strict=True):
        of_setting = [row for row in rows if (row["image_size"], row["ratio"], row["batch"]) == setting]
        own = [row for row in of_setting if row["case"] != "part_optimizer"][::-1]
        median, low, high = (np.array([float(row[name]) for row in own]) for name in ("median", "p10", "p90"))
        colours = ["tab:red" if row["case"].startswith(("step", "training")) else "tab:gray" for row in own]
        axes.barh([row["case"] for row in own], median, xerr=[median - low, high - median], color=colours, alpha=0.7)
        for place, value in enumerate(high):
            axes.annotate(f"{median[place]:.0f}", (value, place), (4, 0), textcoords="offset points", va="center")
        axes.set_xlim(0, high.max() * 1.15)
        axes.set_xlabel("images a second (median, 10th to 90th percentile)")
        size, ratio, batch = setting
        axes.set_title(f"{size} px to {int(size) // int(ratio)} px, batches of {batch}")
        axes.grid(axis="x", alpha=0.3)
    return drawing
