"""Proof that exported models equal the trained one: every artifact over a whole split, beside Keras.

The artifacts run one image at a time in processes of their own (`parity_worker.py`), with 1 and with 2 threads, taking
turns so that a disturbance of the machine hits all alike.
"""

import dataclasses
import json
import logging
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence

import keras
import numpy as np
import tensorflow as tf

from thumbnet_tf import intake, parity_worker
from thumbnet_tf.config import Config, UserError
from thumbnet_tf.data import pipeline, sources
from thumbnet_tf.files import saving, without_nodes
from thumbnet_tf.progress import track
from thumbnet_tf.thumbnet import Deployed

COLUMNS = (
    "artifact",
    "variant",
    "bytes",
    "examples",
    "top1",
    "keras_top1",
    "agreement",
    "median_score_diff",
    "max_score_diff",
    "threads",
    "latency_ms_p50",
    "latency_ms_p95",
)
THREADS = (1, 2)
SAVED_MODEL = "saved_model"

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Subject:
    """One thing to compare with Keras.

    Attributes:
        artifact: `thumbnet`, `downscaler`, `classifier` or `teacher`.
        variant: what it is called in the table.
        path: a TFLite file or a SavedModel's folder.
        signature: of a SavedModel; empty for TFLite.
    """

    artifact: str
    variant: str
    path: pathlib.Path
    signature: str = ""

    @property
    def runtime(self) -> str:
        """What runs it."""
        return SAVED_MODEL if self.signature else "tflite"

    @property
    def input(self) -> str:
        """Which of the inputs it takes."""
        kind = "thumbnails" if self.artifact == "classifier" else "images"
        if not self.signature or self.signature == "pixels":
            return f"{kind}.npy"
        return "originals.files" if kind == "images" else "thumbnails.files"

    @property
    def result(self) -> str:
        """The output that is compared."""
        return "thumbnail" if self.artifact == "downscaler" else "probabilities"

    @property
    def num_bytes(self) -> int:
        """Size on disk."""
        parts = ("saved_model.pb", "variables/*", "assets/*")  # not what else lies in an export's folder
        files = [file for part in parts for file in self.path.glob(part)] if self.signature else [self.path]
        return sum(file.stat().st_size for file in files)


def compare(
    subjects: Sequence[Subject],
    models: Deployed,
    split: sources.Split,
    cfg: Config,
    threads: Sequence[int] = THREADS,
) -> list[dict]:
    """Runs all artifacts over a split.

    Args:
        subjects: what to run.
        models: the trained models.
        split: the examples.
        cfg: the run's configuration.
        threads: numbers of threads to run with.

    Returns:
        A row by `COLUMNS` for each subject and number of threads: `top1` of the artifact (a downscaler's with Keras' S
        behind it, a classifier's on Keras' thumbnails), Keras' own, the share of equal answers, an image's largest
        difference of a probability (median over the images, and the largest), and milliseconds for one image. What
        takes files isn't shown images that are larger than a server takes; `examples` counts the others.

    Raises:
        UserError: when an artifact can't be run, or there is no room for temporary files.
    """
    with tempfile.TemporaryDirectory(prefix="thumbnet-parity-") as name:
        folder = pathlib.Path(name)
        scores = _scorer(models.student, cfg.batch_size)
        expected, shown = _prepare(folder, subjects, models, split, cfg, len(threads))
        rows = []
        for count in threads:
            for runtime in sorted({subject.runtime for subject in subjects}):
                chosen = [subject for subject in subjects if subject.runtime == runtime]
                answers = run(folder, runtime, chosen, count, split.num_examples)
                for subject, (values, times) in zip(chosen, answers, strict=True):
                    if subject.artifact == "downscaler":
                        values = scores(values)
                    truth = expected["classifier" if subject.artifact == "downscaler" else subject.artifact]
                    of_input = (each[shown[subject.input]] for each in (values, truth, split.labels, times))
                    rows.append(_row(subject, *of_input, count))
    place = {(subject.artifact, subject.variant): index for index, subject in enumerate(subjects)}
    return sorted(rows, key=lambda row: (place[row["artifact"], row["variant"]], row["threads"]))


def _prepare(
    folder: pathlib.Path, subjects: Sequence[Subject], models: Deployed, split: sources.Split, cfg: Config, turns: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Writes what the subjects take in each of some turns.

    Returns:
        Keras' probabilities (n, C) by artifact, those of `classifier` on thumbnails as files hold them: whole numbers,
        whatever the run's thumbnails are. And by input whether it shows an image, bool (n,).
    """
    count, needed = split.num_examples, {subject.input for subject in subjects}
    shown = {name: np.ones(count, bool) for name in needed}
    if "originals.files" in needed:
        shown["originals.files"] = _write_originals(folder / "originals.files", split)
    shapes = {
        "images": (count, cfg.image_size, cfg.image_size, 3),
        "thumbnails": (count, *models.student.input_shape[1:]),
    }
    classes = models.shipped.output["logits"].shape[-1]
    of_thumbnails, of_scores = math.prod(shapes["thumbnails"]), 4 * count * classes  # bytes
    answers = turns * sum(of_thumbnails if subject.artifact == "downscaler" else of_scores for subject in subjects)
    as_files = of_thumbnails if "thumbnails.files" in needed else 0
    size, free = sum(map(math.prod, shapes.values())) + as_files + answers, shutil.disk_usage(folder).free
    if size > free:  # mapped into memory: writing beyond the disk would kill the process
        raise UserError(
            f"temporary files need {size / 2**20:.0f} MB in {folder.parent}; make room there, or name another folder "
            f"in TMPDIR. Received: {free / 2**20:.0f} MB free"
        )
    arrays = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.uint8, shape) for name, shape in shapes.items()
    }
    expected = {name: np.zeros((count, classes), np.float32) for name in ("thumbnet", "classifier", "teacher")}

    @tf.function(autograph=False)
    def predict(images: tf.Tensor) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        images = tf.cast(images, tf.float32)
        shipped = models.shipped(images, training=False)
        thumbnails = tf.round(shipped["thumbnail"])
        answers = {
            "thumbnet": shipped,
            "classifier": models.student(thumbnails, training=False),
            "teacher": models.teacher(images, training=False),
        }
        return thumbnails, {name: tf.nn.softmax(answer["logits"]) for name, answer in answers.items()}

    with track(None, count, "Keras' own answers") as bar:
        for batch in pipeline.eval_batches(split, cfg):
            real = batch["mask"].numpy() > 0
            ids = batch["id"].numpy()[real]
            thumbnails, scores = predict(batch["image"])
            arrays["images"][ids] = batch["image"].numpy()[real]
            arrays["thumbnails"][ids] = thumbnails.numpy()[real]
            for name, values in scores.items():
                expected[name][ids] = values.numpy()[real]
            bar.update(len(ids))
    if "thumbnails.files" in needed:
        _write_files(folder / "thumbnails.files", (tf.io.encode_png(image).numpy() for image in arrays["thumbnails"]))
    return expected, shown


def _write_originals(path: pathlib.Path, split: sources.Split) -> np.ndarray:
    """Writes a split's whole images, nothing in place of those that a server refuses, and returns which are there."""
    takes = tf.function(intake.is_small_enough, input_signature=[tf.TensorSpec((), tf.string)], autograph=False)
    shown = np.zeros(split.num_examples, bool)

    def files() -> Iterator[bytes]:
        for index, data in enumerate(pipeline.encoded_images(split)):
            shown[index] = takes(data)
            yield data if shown[index] else b""

    _write_files(path, files())
    limits = f"{intake.MAX_PIXELS // 10**6} million pixels or {intake.MAX_SCANS} scans"
    if not shown.any():
        raise UserError(f"at least one test image must have no more than {limits}, as a server takes them")
    if not shown.all():
        left_out = [split.names[index] for index in np.flatnonzero(~shown)]
        _log.warning(
            "%d test images have more than %s, which a server refuses: what takes files is compared without them, "
            "such as %s",
            *(len(left_out), limits, left_out[0]),
        )
    return shown


def _write_files(path: pathlib.Path, files: Iterator[bytes]) -> None:
    offsets = [0]
    with saving(path), open(path, "wb") as out:
        for data in files:
            out.write(data)
            offsets.append(offsets[-1] + len(data))
    with saving(path), open(f"{path}.offsets", "wb") as out:
        np.save(out, np.array(offsets, np.int64))


def run(
    folder: pathlib.Path, runtime: str, subjects: Sequence[Subject], threads: int, examples: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Runs artifacts one image at a time, in a process of their own.

    Args:
        folder: holds the inputs that the subjects take (see `Subject.input`), and takes what is written.
        runtime: `tflite` or `saved_model`, that of all subjects.
        subjects: what to run, in turns of some images each.
        threads: how many may be used.
        examples: number of inputs.

    Returns:
        The outputs (n, ...) and the milliseconds (n,) of each subject.

    Raises:
        UserError: when one can't be run.
    """
    models = [
        {
            "path": str(subject.path),
            "signature": subject.signature,
            "input": str(folder / subject.input),
            "result": subject.result,
            "threads": threads,
            "output": str(folder / f"{runtime}-{threads}-{index}"),
        }
        for index, subject in enumerate(subjects)
    ]
    job = folder / f"{runtime}-{threads}.json"
    job.write_text(json.dumps({"runtime": runtime, "models": models}))
    # -P: the package's folder, where the script lies, is not to be imported from
    command = [sys.executable, "-P", parity_worker.__file__, str(job)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}  # an accelerator's memory may be taken by this process
    with (
        open(folder / "errors.txt", "w+") as errors,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as process,
        track(None, examples * len(subjects), f"{runtime} with {threads} threads") as bar,
    ):
        for line in process.stdout:
            bar.update(int(line))
        if process.wait() in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGBUS):
            raise UserError(
                f"the process that runs every exported {runtime} was ended from outside, as happens when memory is "
                f"short, or the disk; free some, or export fewer --variants. Received: signal {-process.returncode}"
            )
        if process.returncode:
            errors.seek(0)
            said = [line.strip() for line in without_nodes(errors.read()).splitlines() if line.strip()]
            last = said[-1] if said else f"exit code {process.returncode}"
            instead = "" if runtime == SAVED_MODEL else " or leave it out"
            raise UserError(f"an exported {runtime} can't be run ({last[:300]}); export it again{instead}")
    return [
        (np.load(f"{model['output']}.npy", mmap_mode="r"), np.load(f"{model['output']}.ms.npy")) for model in models
    ]


def _scorer(student: keras.Model, batch_size: int) -> Callable[[np.ndarray], np.ndarray]:
    """Returns what maps thumbnails uint8 (n, s, s, 3) to S's probabilities (n, C)."""

    @tf.function(input_signature=[tf.TensorSpec((None, *student.input_shape[1:]), tf.uint8)], autograph=False)
    def predict(thumbnails: tf.Tensor) -> tf.Tensor:
        return tf.nn.softmax(student(tf.cast(thumbnails, tf.float32), training=False)["logits"])

    def scores(thumbnails: np.ndarray) -> np.ndarray:
        starts = range(0, len(thumbnails), batch_size)
        return np.concatenate([predict(thumbnails[start : start + batch_size]).numpy() for start in starts])

    return scores


def _row(
    subject: Subject, scores: np.ndarray, expected: np.ndarray, labels: np.ndarray, times: np.ndarray, threads: int
) -> Mapping[str, object]:
    best, differences = scores.argmax(-1), np.abs(scores - expected).max(-1)
    return {
        "artifact": subject.artifact,
        "variant": subject.variant,
        "bytes": subject.num_bytes,
        "examples": len(labels),
        "top1": f"{np.mean(best == labels):.6f}",
        "keras_top1": f"{np.mean(expected.argmax(-1) == labels):.6f}",
        "agreement": f"{np.mean(best == expected.argmax(-1)):.6f}",
        "median_score_diff": f"{np.median(differences):.3g}",
        "max_score_diff": f"{differences.max():.3g}",
        "threads": threads,
        "latency_ms_p50": f"{np.median(times):.3f}",
        "latency_ms_p95": f"{np.percentile(times, 95):.3f}",
    }
