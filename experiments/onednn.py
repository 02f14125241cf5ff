"""Measures both benchmarks with oneDNN and without on this machine; writes the tables into experiments/README.md.

  python -m experiments.onednn             # or one of them: training, inference

Made for CPUs where TensorFlow wouldn't take oneDNN by itself, those without AVX512_VNNI and AMX. A process computes
with it or without, so what it gains is as exact as two runs agree; what stands beside T, or `step_uncached`, is of one.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

from experiments.summary import RESULTS, ROOT, replace_table
from thumbnet_tf import benchmark_inference, benchmark_report, benchmark_training
from thumbnet_tf.config import UserError
from thumbnet_tf.csv_files import read_rows, write_rows

CASES = ("step_uncached", "step_cached", "part_teacher", "part_student", "keras_distiller", "pipeline")


def measure(what: str, onednn: str) -> list[dict[str, str]]:
    """Runs a benchmark in a process of its own.

    Args:
        what: `training`, or `inference` of ResNet-18 at ratio 4.
        onednn: `1` with it or `0` without, as TF_ENABLE_ONEDNN_OPTS takes it.

    Returns:
        The benchmark's rows, with `onednn`.

    Raises:
        UserError: when the process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "thumbnet_tf.benchmark", f"--what={what}", f"--out={folder}"]
        command += ["--quick"] if what == "inference" else []
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": onednn})
        if done.returncode:
            raise UserError(f"the benchmark failed; see above. Received: code {done.returncode}")
        return [{"onednn": onednn, **row} for row in read_rows(pathlib.Path(folder) / f"benchmark_{what}.csv")]


def training_markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Returns the rows of `CASES` as a table: with oneDNN, and how many times more than without."""
    found = {(row["onednn"], row["case"], row["image_size"]): float(row["median"]) for row in rows}
    sizes = {row["image_size"]: int(row["image_size"]) // int(row["ratio"]) for row in rows}
    lines = [["case"], ["---"], *([f"`{case}`"] for case in CASES)]
    for size, small in sizes.items():
        lines[0] += [f"images/s, {size} to {small} px", "/ step_uncached", "times without oneDNN"]
        lines[1] += ["---:"] * 3
        for line, case in zip(lines[2:], CASES, strict=True):
            here = found["1", case, size]
            line += [
                f"{here:.0f}",
                f"{here / found['1', 'step_uncached', size]:.2f}",
                f"{here / found['0', case, size]:.2f}",
            ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def inference_markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Returns what each model costs with oneDNN, and beside it T and E + S without."""
    tables = [benchmark_report.cells([row for row in rows if row["onednn"] == onednn]) for onednn in ("1", "0")]
    (titles, lines), (_, others) = tables
    found = [[*titles, "T, without oneDNN", "E + S, without"], ["---", "---", *["---:"] * len(titles)]]
    found += [[*line, *other[2:4]] for line, other in zip(lines, others, strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in found)


# columns and table of each
REPORTS = {
    "training": (("onednn", *benchmark_training.COLUMNS), training_markdown),
    "inference": (("onednn", *benchmark_inference.COLUMNS), inference_markdown),
}


def main(arguments: Sequence[str]) -> int:
    """Measures and writes; returns the exit code."""
    if not set(arguments) <= set(REPORTS):
        print(__doc__)
        return 2
    try:
        for what in arguments or REPORTS:
            columns, markdown = REPORTS[what]
            rows = [row for onednn in ("1", "0") for row in measure(what, onednn)]
            write_rows(RESULTS / f"onednn_{what}.csv", columns, rows)
            replace_table(ROOT / "experiments" / "README.md", f"onednn_{what}", markdown(rows))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
