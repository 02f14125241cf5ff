"""Evaluates T and every finished method of a run, every image exactly once, and writes `results.csv`.

python -m thumbnet_tf.evaluate --run_dir=runs/quickstart
"""

import contextlib
import dataclasses
import io
from collections.abc import Callable, Mapping

import keras
import numpy as np
import tensorflow as tf

from thumbnet_tf import costs, flags, graph
from thumbnet_tf.config import Config, UserError, check_options, option
from thumbnet_tf.csv_files import read_rows, write_rows
from thumbnet_tf.data import pipeline, sources
from thumbnet_tf.files import write_atomically
from thumbnet_tf.loop import explained
from thumbnet_tf.progress import track
from thumbnet_tf.runs import RunDir
from thumbnet_tf.stages import METHODS, ORIGINAL

COLUMNS = (
    "method",
    "ratio",
    "split",
    "seed",
    "examples",
    "top1",
    "top5",
    "teacher_agreement",
    "macs",
    "macs_downscaler",
    "params",
)
SPLITS = ("validation", "test")


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of the command."""

    run_dir: str = option("", "run directory made by thumbnet_tf.train")
    data_dir: str = option("", "where the data lie now, a folder of images or of TFDS; default as in training")

    def __post_init__(self) -> None:
        check_options(self)


def evaluate(run: RunDir, dataset: sources.Dataset) -> list[dict]:
    """Evaluates all finished methods on the validation and the test split and writes `results.csv`.

    Args:
        run: the run directory; its teacher must be finished.
        dataset: its data.

    Returns:
        The rows written, as dicts by `COLUMNS`.

    Raises:
        UserError: when the teacher isn't finished, or the data isn't the run's.
    """
    run.check_data(dataset.facts())
    cfg = run.config()
    methods = run.finished_methods()
    if ORIGINAL not in methods:
        raise UserError(f"--run_dir must hold a finished teacher; finish thumbnet_tf.train first. Received: {run.path}")
    splits = {name: dataset.splits[name] for name in SPLITS}
    costs_of, logits = {}, {}
    for method in methods:
        small, network = load_parts(run, method)
        costs_of[method] = _costs(small, network, cfg)
        logits[method] = _logits(run, method, (small, network), splits, cfg)
    rows = [
        {
            "method": method,
            "split": name,
            "seed": cfg.seed,
            "examples": split.num_examples,
            "top1": f"{top_k(logits[method][name], split.labels, 1):.6f}",
            "top5": f"{top_k(logits[method][name], split.labels, 5):.6f}",
            "teacher_agreement": f"{_agreement(logits[method][name], logits[ORIGINAL][name]):.6f}",
            **costs_of[method],
        }
        for name, split in splits.items()
        for method in methods
    ]
    write_rows(run.path / "results.csv", COLUMNS, rows)
    return rows


def load_parts(run: RunDir, method: str) -> tuple[keras.Model | None, keras.Model]:
    """Loads a method's downscaler (None where it reads full images) and its network, in float32 as they ship."""
    if METHODS[method].downscaler == "none":
        return None, graph.in_float32(run.load_model(method, "teacher" if method == ORIGINAL else "student"))
    small, network = (graph.in_float32(run.load_model(method, name)) for name in ("downscaler", "student"))
    return small, network


def classify(small: keras.Model | None, network: keras.Model, images: tf.Tensor) -> tf.Tensor:
    """Returns the logits `(B, C)` float32 of a network behind a downscaler, for images in [0, 255]."""
    thumbnails = tf.cast(images, tf.float32) if small is None else small(images, training=False)
    return network(thumbnails, training=False)["logits"]


def _logits(
    run: RunDir,
    method: str,
    parts: tuple[keras.Model | None, keras.Model],
    splits: Mapping[str, sources.Split],
    cfg: Config,
) -> dict[str, np.ndarray]:
    """Returns a method's logits `(n, C)` by split; kept in the method's folder once computed."""
    predict = tf.function(lambda images: classify(*parts, images), autograph=False)
    classes = parts[1].output["logits"].shape[-1]
    found = {}
    for name, split in splits.items():
        with contextlib.suppress(UserError):  # what is missing or broken is computed anew
            found[name] = run.logits(method, name)
            if found[name].shape == (split.num_examples, classes):
                continue
        found[name] = _evaluated(predict, classes, method, split, cfg)
        content = io.BytesIO()
        np.save(content, found[name])
        write_atomically(run.method(method) / f"logits_{name}.npy", content.getvalue())
    return found


def _evaluated(predict: Callable, classes: int, method: str, split: sources.Split, cfg: Config) -> np.ndarray:
    """Returns a method's logits `(n, C)` of a split in its order."""
    logits = np.full((split.num_examples, classes), np.nan, np.float32)
    done = 0
    what = f"evaluating {method} on {split.name}"
    with track(None, split.num_examples, what) as bar, explained(cfg, lambda: what):
        for batch in pipeline.eval_batches(split, cfg):
            real = batch["mask"].numpy() > 0
            logits[batch["id"].numpy()[real]] = predict(batch["image"]).numpy()[real]
            done += int(real.sum())
            bar.update(int(real.sum()))
    if done != split.num_examples:
        raise RuntimeError(f"{method}: {done} of {split.num_examples} {split.name} images were evaluated")
    if not np.isfinite(logits).all():
        raise UserError(f"{method} gives NaN or infinite logits on {split.name}; train it anew in a new --run_dir")
    return logits


def _costs(small: keras.Model | None, network: keras.Model, cfg: Config) -> dict[str, int]:
    return {
        "ratio": 1 if small is None else cfg.ratio,
        "macs": costs.macs(network),
        "macs_downscaler": 0 if small is None else costs.macs(small),
        "params": sum(costs.parameters(model) for model in (small, network) if model is not None),
    }


def _agreement(logits: np.ndarray, others: np.ndarray) -> float:
    """Returns the share of examples with the same highest logit."""
    return float(np.mean(logits.argmax(-1) == others.argmax(-1)))


def top_k(logits: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Returns the share of examples whose label is among the k highest logits (ties: the lower class index wins)."""
    best = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
    return float(np.mean((best == np.asarray(labels)[:, None]).any(axis=-1)))


def read_results(run: RunDir, split: str) -> list[dict[str, str]]:
    """Returns the rows of a split in `results.csv`, by `COLUMNS`; none before the first evaluation.

    Raises:
        UserError: when the file is damaged.
    """
    rows = read_rows(run.path / "results.csv", COLUMNS, words=("method", "split"))
    return [row for row in rows if row["split"] == split]


def results_of(run: RunDir, method: str) -> list[dict[str, str]]:
    """Returns the test rows of `results.csv`, among which must be those of T and of a method.

    Raises:
        UserError: when they aren't, or the file is damaged.
    """
    rows = read_results(run, "test")
    if not {ORIGINAL, method} <= {row["method"] for row in rows}:
        raise UserError(
            f"--run_dir must hold results of {ORIGINAL} and {method}; `python -m thumbnet_tf.evaluate "
            f"--run_dir={run.path}` makes them. Received: {run.path}"
        )
    return rows


def table(run: RunDir) -> str:
    """Returns the test rows of `results.csv` as a text table."""
    rows = read_results(run, "test")
    titles = ("top-1", "top-5", "agrees with T", "M multiply-adds", "+ downscaler", "params")
    lines = [f"{'method':<18}" + "".join(f"{title:>{max(len(title) + 2, 9)}}" for title in titles)]
    for row in rows:
        values = (
            f"{100 * float(row['top1']):.2f}%",
            f"{100 * float(row['top5']):.2f}%",
            f"{100 * float(row['teacher_agreement']):.2f}%",
            f"{int(row['macs']) / 1e6:.2f}",
            f"{int(row['macs_downscaler']) / 1e6:.2f}",
            f"{int(row['params']) / 1e6:.2f}M",
        )
        cells = (f"{value:>{max(len(title) + 2, 9)}}" for title, value in zip(titles, values, strict=True))
        lines.append(f"{row['method']:<18}" + "".join(cells))
    examples = rows[0]["examples"] if rows else 0
    return "\n".join([*lines, f"test split, {examples} images"])


def main(options: Options) -> None:
    """Evaluates every finished method of a run."""
    run = RunDir.existing(options.run_dir)
    with run.lock():
        evaluate(run, sources.load(sources.moved(run.config(), options.data_dir), SPLITS))
    print(table(run))


if __name__ == "__main__":
    flags.run(main, Options)
