"""Measures what oneDNN gives the training step on this machine, and writes the table into experiments/README.md.

  python -m experiments.onednn

Runs `thumbnet_tf.benchmark --what=training` twice, with oneDNN and without, for a process computes by one of them. The
gain is then only as exact as two runs agree; what stands beside `step_uncached` is of one run. Made for CPUs where
TensorFlow wouldn't take oneDNN by itself, those without AVX512_VNNI and AMX.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

from experiments.summary import RESULTS, ROOT, replace_table
from thumbnet_tf import benchmark_training
from thumbnet_tf.config import UserError
from thumbnet_tf.csv_files import read_rows, write_rows

COLUMNS = ("onednn", *benchmark_training.COLUMNS)
CASES = ("step_uncached", "step_cached", "part_teacher", "part_student", "keras_distiller", "pipeline")


def measure(onednn: str) -> list[dict[str, str]]:
    """Runs the benchmark in a process of its own.

    Args:
        onednn: `1` with it or `0` without, as TF_ENABLE_ONEDNN_OPTS takes it.

    Returns:
        Rows by `COLUMNS`.

    Raises:
        UserError: when the process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "thumbnet_tf.benchmark", "--what=training", f"--out={folder}"]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, "TF_ENABLE_ONEDNN_OPTS": onednn})
        if done.returncode:
            raise UserError(f"the benchmark failed; see above. Received: code {done.returncode}")
        return [{"onednn": onednn, **row} for row in read_rows(pathlib.Path(folder) / "benchmark_training.csv")]


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Returns the rows of `CASES` as a table: with oneDNN, and how many times more than without.

    Args:
        rows: by `COLUMNS`.
    """
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


def main() -> int:
    """Measures and writes; returns the exit code."""
    try:
        rows = [row for onednn in ("1", "0") for row in measure(onednn)]
        write_rows(RESULTS / "benchmark_onednn.csv", COLUMNS, rows)
        replace_table(ROOT / "experiments" / "README.md", "benchmark_onednn", markdown(rows))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
