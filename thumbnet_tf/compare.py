"""Runs at several ratios with one T, and which of their networks is the cheapest that is nearly as good as T."""

import dataclasses
import pathlib
import statistics
from collections.abc import Sequence

import numpy as np

from thumbnet_tf import distribution
from thumbnet_tf.config import AUTO, Config, FlagError
from thumbnet_tf.csv_files import read_rows, write_rows
from thumbnet_tf.runs import RunDir
from thumbnet_tf.stages import ORIGINAL, students
from thumbnet_tf.stats import Paired

COLUMNS = (
    *("ratio", "method", "macs", "teacher_macs", "examples", "top1", "teacher_top1"),
    *("drop", "drop_low", "drop_high", "confidence"),
)


def configs(cfg: Config) -> list[Config]:
    """Returns a configuration for each of `--ratios`, in `run_dir/ratioN`; all but the first take the first one's T.

    Raises:
        FlagError: when a ratio doesn't go with the other options, or there is nothing to compare.
    """
    if not students(cfg):
        raise FlagError("--ratios needs a method to compare at them, as in --methods=thumbnet. Received: none")
    if distribution.task_of(cfg).machines > 1:
        raise FlagError("--ratios works on one machine; on several, train each --ratio by itself. Received: several")
    root = pathlib.Path(cfg.run_dir)
    found: list[Config] = []
    for ratio in cfg.ratios:
        own = {"ratio": int(ratio), "ratios": (), "run_dir": str(root / f"ratio{ratio}")}
        if found:
            own |= {"teacher": found[0].run_dir, "teacher_input": AUTO, "teacher_weights": "none"}
        found.append(dataclasses.replace(cfg, **own))
    return found


def compare(root: str, runs: Sequence[RunDir], labels: np.ndarray, max_drop: float) -> list[dict]:
    """Compares every network of some runs with T on validation, image by image, and writes `ratios.csv`.

    Args:
        root: folder that the table is written to.
        runs: finished runs with the same T and data.
        labels: of the validation images `(n,)`.
        max_drop: share of right answers that may be lost against T.

    Returns:
        The rows by `COLUMNS`, the cheapest first: multiply-adds with the downscaler's, accuracies as shares, and what
        is lost against T with its 95 % interval. `confidence` is that of losing no more than `max_drop`.
    """
    normal, rows = statistics.NormalDist(), []
    for run in runs:
        costs = {row["method"]: row for row in read_rows(run.path / "results.csv") if row["split"] == "validation"}
        teacher = _right(run, ORIGINAL, labels)
        for method in [name for name in run.finished_methods() if name != ORIGINAL]:
            student = _right(run, method, labels)
            pairs = Paired.of(student, teacher)
            centre, error = pairs.estimate()
            low, high = pairs.interval()
            rows.append(
                {
                    "ratio": int(costs[method]["ratio"]),
                    "method": method,
                    "macs": int(costs[method]["macs"]) + int(costs[method]["macs_downscaler"]),
                    "teacher_macs": int(costs[ORIGINAL]["macs"]),
                    "examples": len(labels),
                    "top1": f"{student.mean():.6f}",
                    "teacher_top1": f"{teacher.mean():.6f}",
                    "drop": f"{teacher.mean() - student.mean():.6f}",
                    "drop_low": f"{low:.6f}",
                    "drop_high": f"{high:.6f}",
                    "confidence": f"{normal.cdf((max_drop - centre) / error):.4f}",
                }
            )
    rows.sort(key=lambda row: row["macs"])
    write_rows(pathlib.Path(root) / "ratios.csv", COLUMNS, rows)
    return rows


def recommendation(rows: Sequence[dict], max_drop: float) -> str:
    """Returns the table of `compare` and which network it speaks for, and how surely, as text."""
    lines = [f"{'ratio':>5} {'method':<18}{'M multiply-adds':>16}{'top-1':>9}{'lost against T (95 % interval)':>36}"]
    teacher_macs, teacher_top1 = int(rows[0]["teacher_macs"]), f"{100 * float(rows[0]['teacher_top1']):.2f}%"
    lines.append(f"{1:>5} {ORIGINAL:<18}{teacher_macs / 1e6:>16.2f}{teacher_top1:>9}{'-':>36}")
    for row in rows:
        drop, low, high = (100 * float(row[key]) for key in ("drop", "drop_low", "drop_high"))
        interval = f"{drop:.2f} ({low:.2f} to {high:.2f}) points"
        top1 = f"{100 * float(row['top1']):.2f}%"
        lines.append(f"{row['ratio']:>5} {row['method']:<18}{row['macs'] / 1e6:>16.2f}{top1:>9}{interval:>36}")
    allowed = f"{100 * max_drop:g} points of T's {100 * float(rows[0]['teacher_top1']):.2f} % on validation"
    within = [row for row in rows if float(row["drop"]) <= max_drop]
    if not within:
        best = min(rows, key=lambda row: float(row["drop"]))
        lines.append(f"none is within {allowed} (--max_drop); ratio {best['ratio']}, {best['method']}, comes nearest")
        return "\n".join(lines)
    row = within[0]
    confidence, high = float(row["confidence"]), 100 * float(row["drop_high"])
    sure = (
        "surely (the whole 95 % interval is)"
        if high <= 100 * max_drop
        else f"not surely: {row['examples']} images leave a loss of up to {high:.2f} points possible"
    )
    saves = teacher_macs / int(row["macs"])
    cost = (
        f"{saves:.1f} times fewer multiply-adds than T" if saves > 1 else "which saves no multiply-adds: T costs less"
    )
    lines.append(
        f"recommended: ratio {row['ratio']}, {row['method']}, the cheapest within {allowed} (--max_drop), {sure}; "
        f"confidence {100 * confidence:.0f} %; {cost}"
    )
    return "\n".join(lines)


def _right(run: RunDir, method: str, labels: np.ndarray) -> np.ndarray:
    """Returns which validation images a method classifies right."""
    return run.logits(method, "validation").argmax(-1) == labels
