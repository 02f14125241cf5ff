"""What a report is made of: everything that a finished run, and an export of it, hold."""

import dataclasses
import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from thumbnet_tf import benchmark_report, parity, plots, publish, teachers
from thumbnet_tf.config import Config, UserError
from thumbnet_tf.csv_files import read_rows
from thumbnet_tf.data import sources
from thumbnet_tf.evaluate import results_of
from thumbnet_tf.predict import choose_method
from thumbnet_tf.runs import RunDir
from thumbnet_tf.stages import METHODS, ORIGINAL, students
from thumbnet_tf.stats import softmax

BENCHMARK_COLUMNS = ("case", "backbone", "model", "image_size", "ratio", "median", "unit", "teacher_over_it")

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Export:
    """An exported version.

    Attributes:
        folder: where it lies.
        manifest: what its manifest says.
        parity: rows of its `parity.csv`.
    """

    folder: pathlib.Path
    manifest: Mapping[str, Any]
    parity: list[dict[str, str]]


@dataclasses.dataclass(frozen=True, eq=False)
class Study:
    """A finished run.

    Attributes:
        run: its directory.
        cfg: its resolved configuration.
        facts: what its `data.json` says.
        method: the one that the report is about, S below.
        network: what T is, as words.
        student: what S is; equal to `network` unless S is a variant of T.
        rows: the test rows of `results.csv` by method.
        versions: of Python and packages, at the end of the method's training.
        dataset: its test split; None where the images or the answers can't be read.
        missing: why not; empty where they can.
        scores: of each method for the test images, float64 (n, C) in [0, 1]; empty without the dataset.
        metrics: see `plots.read_metrics`.
        benchmark: rows of `benchmark_inference.csv`; empty where no benchmark was run.
        export: the latest export of the method, if one was found.
    """

    run: RunDir
    cfg: Config
    facts: Mapping[str, Any]
    method: str
    network: str
    student: str
    rows: Mapping[str, Mapping[str, str]]
    versions: Mapping[str, str]
    dataset: sources.Dataset | None
    missing: str
    scores: Mapping[str, np.ndarray]
    metrics: Mapping[str, Mapping[str, np.ndarray]]
    benchmark: list[dict[str, str]]
    export: Export | None

    @property
    def labels(self) -> np.ndarray:
        """Labels of the test images, int64 (n,); only with the dataset."""
        return self.dataset.splits["test"].labels

    def said(self, method: str) -> np.ndarray:
        """Returns a method's answers to the test images, int64 (n,); only with the dataset."""
        return self.scores[method].argmax(-1)

    def right(self, method: str) -> np.ndarray:
        """Returns which of them are right, bool (n,)."""
        return self.said(method) == self.labels


def gather(run: RunDir, method: str = "", export_dir: str = "", data_dir: str = "") -> Study:
    """Reads all of a run that a report shows.

    Args:
        run: the run directory.
        method: the method that the report is about; empty for thumbnet, or the last one.
        export_dir: a version's folder, such as saved_models/thumbnet/1, or the one above for its latest; empty for the
            latest one in saved_models whose manifest names the run and the method.
        data_dir: where the data lie now, as `sources.moved` takes it.

    Raises:
        UserError: when the run isn't finished, its files are broken, or the export is another run's.
    """
    cfg = sources.moved(run.config(), data_dir).resolved()
    unfinished = [name for name in (ORIGINAL, *students(cfg)) if not run.is_done(name)]
    if unfinished:
        raise UserError(
            f"--run_dir must hold a finished run; the command that began it goes on with {', '.join(unfinished)}. "
            f"Received: {run.path}"
        )
    method = choose_method(run, method, of_thumbnails=True)
    found = results_of(run, method)
    rows = {name: row for name in METHODS for row in found if row["method"] == name}  # in the order of METHODS
    facts = run.data_facts()
    if not {"classes", "examples", "fingerprint"} <= facts.keys():
        raise UserError(f"a run's data.json must be as training wrote it; restore it. Received: {run.path}/data.json")
    dataset, scores, missing = None, {}, ""
    try:
        dataset = sources.load(cfg, ("test",))
        run.check_data(dataset.facts())
        scores = {name: _scores(run, name, dataset) for name in rows}
    except UserError as error:
        dataset, missing = None, str(error)
        _log.warning("the report will be without images and what needs labels: %s", missing)
    network = teachers.network_name(run, cfg)
    return Study(
        run=run,
        cfg=cfg,
        facts=facts,
        method=method,
        network=network,
        student=teachers.student_name(method, cfg, network),
        rows=rows,
        versions=_versions(run.method(method) / "done.json"),
        dataset=dataset,
        missing=missing,
        scores=scores,
        metrics=plots.read_metrics(run),
        benchmark=_benchmark(run, method),
        export=_named_export(run, method, export_dir) if export_dir else find_export(run, method),
    )


def find_export(run: RunDir, method: str, root: str = "saved_models") -> Export | None:
    """Returns the latest version below `root` whose manifest names the run and the method, or None."""
    found = []
    for path in pathlib.Path(root).glob(f"*/*/{publish.MANIFEST}"):
        try:
            manifest = publish.read_manifest(path.parent)
        except UserError:
            continue
        whole = path.parent.name.isdecimal() and (path.parent / "parity.csv").is_file()
        if whole and manifest.get("method") == method and _is_of(manifest, run, method):
            found.append((str(manifest.get("created", "")), int(path.parent.name), path.parent))
    return _read_export(max(found)[-1]) if found else None


def _named_export(run: RunDir, method: str, export_dir: str) -> Export:
    export = _read_export(publish.version_folder(pathlib.Path(export_dir)))
    origin = (export.manifest["run"], export.manifest["method"])
    if origin[1] != method or not _is_of(export.manifest, run, method):
        raise UserError(
            f"--export_dir must be an export of {method} of {run.path} as it is now; its manifest names {origin[1]} of "
            f"{origin[0]}. Received: {export_dir}"
        )
    return export


def _read_export(folder: pathlib.Path) -> Export:
    manifest = publish.read_manifest(folder)
    shown = [name for name in parity.COLUMNS if name != "median_score_diff"]  # which older exports haven't
    rows = read_rows(folder / "parity.csv", shown, ("artifact", "variant"))
    if not rows or not {"run", "method", "version", "created"} <= manifest.keys():
        raise UserError(f"an export must hold a parity.csv and name its run; export anew. Received: {folder}")
    return Export(folder, manifest, rows)


def _is_of(manifest: Mapping[str, Any], run: RunDir, method: str) -> bool:
    """Returns whether an export was made of a run's method as it is now, not of one trained there before."""
    named, trained = manifest.get("run", ""), publish.digest_of(run.method(method) / "shipped.keras")
    same = bool(named) and pathlib.Path(named).resolve() == run.path.resolve()
    return same and manifest.get("trained_sha256", trained) == trained  # older exports haven't noted it


def _benchmark(run: RunDir, method: str) -> list[dict[str, str]]:
    path = run.method(method) / "benchmark" / "benchmark_inference.csv"
    rows = read_rows(path, BENCHMARK_COLUMNS, ("case", "backbone", "model", "unit"))
    measured = {(row["backbone"], row["case"]) for row in rows if row["model"] == "teacher"}
    if any((row["backbone"], case) not in measured for row in rows for case in benchmark_report.CASES):
        raise UserError(f"a benchmark must hold T in every case; measure anew or delete it. Received: {path}")
    return rows


def _scores(run: RunDir, method: str, dataset: sources.Dataset) -> np.ndarray:
    """Returns the scores that evaluation kept.

    Raises:
        UserError: when they aren't there, or aren't those of this data.
    """
    logits, needed = run.logits(method, "test"), (dataset.splits["test"].num_examples, len(dataset.class_names))
    if logits.shape != needed:
        raise UserError(
            f"the answers to the test images must be of the shape {needed}; delete them, then `python -m "
            f"thumbnet_tf.evaluate --run_dir={run.path}` makes them. Received: {logits.shape} of {method}"
        )
    return softmax(logits)


def _versions(path: pathlib.Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}
