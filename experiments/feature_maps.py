"""Asks what FM can add: how much of T's map a new decoder finds in that of an S trained with FM, or without it.

  python -m experiments.feature_maps ablation_32 runs/ablation_32_thumbnet_seed0 runs/ablation_32_supervised_kd_seed0
  python -m experiments.feature_maps ablation_32  # the table anew from experiments/results/ablation_32_feature_maps.csv

E and S of each finished student are frozen, and a D is trained from random weights on their maps alone. Then the
gradients of FM, through that D, and of KD are compared on the validation images, with respect to the weights of E and S
that both reach. All runs must have the same T. Writes `experiments/results/<name>_feature_maps.csv` and its table in
experiments/README.md.
"""

import dataclasses
import sys
from collections.abc import Iterable, Iterator

import keras
import numpy as np
import tensorflow as tf

from experiments.summary import RESULTS, ROOT, write
from thumbnet_tf import losses, thumbnet
from thumbnet_tf.config import Config, UserError
from thumbnet_tf.csv_files import write_rows
from thumbnet_tf.data import pipeline, sources
from thumbnet_tf.optimizers import build_optimizer
from thumbnet_tf.progress import track
from thumbnet_tf.runs import RunDir
from thumbnet_tf.stages import METHODS, ORIGINAL

COLUMNS = ("run", "method", "seed", "examples", "fm", "gradient_ratio", "cosine")
VIEWS, EPOCHS = 4, 40  # of the training images; of D
BATCH = 64


def collect(name: str, runs: list[str]) -> None:
    """Writes a row for each student of each run.

    Raises:
        UserError: when a run isn't finished, has another T or other data than the first, or no student.
    """
    found = [RunDir.existing(run) for run in runs]
    cfg = found[0].config().resolved()
    dataset = sources.load(cfg, ("train", "validation"))
    teacher = _load(found[0], ORIGINAL, "teacher")
    tap = thumbnet.fm_tap(cfg, teacher)
    for run in found:
        run.check_data(dataset.facts())
        if any(map(np.any, map(np.not_equal, teacher.get_weights(), _load(run, ORIGINAL, "teacher").get_weights()))):
            raise UserError(f"all runs must have the T of {found[0].path}; use its --seed. Received: {run.path}")
    images = {split: np.concatenate(list(_images(dataset.splits[split], cfg))) for split in ("train", "validation")}
    of_teacher = tf.function(lambda batch: teacher(batch, training=False)[tap])
    targets = {split: _through(of_teacher, images[split], f"T on {split}") for split in images}
    rows = []
    for run in found:
        for method in run.finished_methods():
            if METHODS[method].downscaler != "none":
                rows.append({"run": run.path.name, "method": method, "seed": run.config().seed})
                rows[-1] |= _measured(run, method, teacher, tap, images, targets)
    if not rows:
        raise UserError(f"runs with a finished student of thumbnails are expected. Received: {' '.join(runs)}")
    write_rows(RESULTS / f"{name}_feature_maps.csv", COLUMNS, rows)


def trained_decoder(decoder: keras.Model, maps: np.ndarray, targets: np.ndarray, cfg: Config) -> keras.Model:
    """Trains D alone under FM, and returns it.

    Args:
        decoder: D, from S's map to T's; changed.
        maps: S's maps `(n, h, w, c)` float32.
        targets: T's maps of the same images `(n, H, W, C)`.
        cfg: gives optimiser and learning rate.
    """
    steps = EPOCHS * -(-len(maps) // BATCH)
    decoder.compile(
        optimizer=build_optimizer(cfg, cfg.learning_rate, steps, decoder.trainable_variables),
        loss=losses.feature_mapping,
    )
    decoder.fit(maps, targets, batch_size=BATCH, epochs=EPOCHS, verbose=0)
    return decoder


def compared(fm: Iterable[tf.Tensor | None], kd: Iterable[tf.Tensor | None]) -> tuple[float, float]:
    """Returns how much longer FM's gradient is than KD's, and their cosine, over the weights that both reach."""
    pairs = [(a, b) for a, b in zip(fm, kd, strict=True) if a is not None and b is not None]
    a, b = (tf.concat([tf.reshape(each, [-1]) for each in side], 0) for side in zip(*pairs, strict=True))
    return float(tf.norm(a) / tf.norm(b)), float(tf.tensordot(a, b, 1) / (tf.norm(a) * tf.norm(b)))


def markdown(rows: list[dict[str, str]]) -> str:
    """Returns the table, the lowest FM first."""
    lines = [
        "| run | FM of a new D, on validation | FM's gradient / KD's | cosine of the two |",
        "| --- | ---: | ---: | ---: |",
    ]
    for row in sorted(rows, key=lambda row: float(row["fm"])):
        cells = [f"`{row['run']}`", f"{float(row['fm']):.3f}", f"{float(row['gradient_ratio']):.3f}"]
        lines.append(f"| {' | '.join(cells)} | {float(row['cosine']):.3f} |")
    return "\n".join(lines)


def _load(run: RunDir, method: str, name: str) -> keras.Model:
    if not run.is_done(method):
        raise UserError(f"a finished run is expected; train first. Received: {run.path}, whose {method} isn't finished")
    return run.load_model(method, name)


def _images(split: sources.Split, cfg: Config) -> Iterator[np.ndarray]:
    """Yields some views of the training images, the only one of others, uint8 `(B, S, S, 3)`; none is mixed."""
    plain = dataclasses.replace(cfg, mixup_alpha=0.0)
    for view in range(VIEWS) if split.name == "train" else (None,):
        yield from pipeline.view_batches(split, plain, view, 0, BATCH).as_numpy_iterator()


def _through(function, images: np.ndarray, what: str) -> np.ndarray:
    """Returns what a function makes of all images, batch by batch, float32."""
    parts = range(0, len(images), BATCH)
    made = [function(tf.cast(images[k : k + BATCH], tf.float32)).numpy() for k in track(parts, len(parts), what)]
    return np.concatenate(made).astype(np.float32)


def _measured(
    run: RunDir,
    method: str,
    teacher: keras.Model,
    tap: str,
    images: dict[str, np.ndarray],
    targets: dict[str, np.ndarray],
) -> dict[str, str | int]:
    """Trains a D on the maps of a student; returns FM on validation, and how its gradients compare with KD's."""
    cfg = run.config()
    small, student = run.load_model(method, "downscaler"), run.load_model(method, "student")
    of_student = tf.function(lambda batch: student(small(batch, training=False), training=False)[tap])
    maps = {split: _through(of_student, images[split], f"{run.path.name} on {split}") for split in images}
    keras.utils.set_random_seed(0)
    decoder = trained_decoder(thumbnet.build_decoder(student, teacher, tap), maps["train"], targets["train"], cfg)
    found = decoder.predict(maps["validation"], BATCH, verbose=0)
    fm = losses.feature_mapping(targets["validation"], found).numpy()
    weights = [weight.value for weight in (*small.trainable_variables, *student.trainable_variables)]

    @tf.function(reduce_retracing=True)
    def gradients(batch: tf.Tensor, target: tf.Tensor) -> tuple[list[tf.Tensor | None], list[tf.Tensor | None]]:
        answers = teacher(batch, training=False)["logits"]
        with tf.GradientTape(persistent=True) as tape:
            outputs = student(small(batch, training=False), training=False)
            fm = cfg.w_fm * tf.reduce_mean(losses.feature_mapping(target, decoder(outputs[tap])))
            kd = cfg.w_kd * tf.reduce_mean(losses.distillation(answers, outputs["logits"], cfg.temperature))
        return tape.gradient(fm, weights), tape.gradient(kd, weights)

    parts = [slice(k, k + BATCH) for k in range(0, len(fm), BATCH)]
    pairs = [
        compared(*gradients(tf.cast(images["validation"][part], tf.float32), targets["validation"][part]))
        for part in track(parts, len(parts), f"gradients of {run.path.name}")
    ]
    ratio, cosine = np.median(pairs, axis=0)
    return {
        "examples": len(fm),
        "fm": f"{fm.mean():.6f}",
        "gradient_ratio": f"{ratio:.6f}",
        "cosine": f"{cosine:.6f}",
    }


if __name__ == "__main__":
    page = ROOT / "experiments" / "README.md"
    sys.exit(write(sys.argv[1:], __doc__, collect, markdown, page, "_feature_maps"))
