"""Measures both benchmarks on this machine, and what oneDNN gives them; writes the tables into experiments/README.md.

  python -m experiments.onednn             # or one of them: training, inference

TensorFlow takes oneDNN by itself on x86 CPUs with AVX512_VNNI or AMX; this package has it taken on others, too. What
that gives can be measured on any: each benchmark is run as it is, and by AVX2 alone with oneDNN and without it. What
stands beside T or `step_uncached` is of one process; what compares settings is as exact as two processes agree.
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
# what is added to the environment; the first is what this CPU does by itself
SETTINGS = {
    "as it is": {},
    "AVX2": {"ONEDNN_MAX_CPU_ISA": "AVX2"},
    "AVX2, no oneDNN": {"ONEDNN_MAX_CPU_ISA": "AVX2", "TF_ENABLE_ONEDNN_OPTS": "0"},
}
AS_IT_IS, AVX2, PLAIN = SETTINGS
# fewer cases, or turns, for there are three settings
SHORTENED = {"training": "--rounds=3", "inference": "--quick"}


def measure(what: str, setting: str) -> list[dict[str, str]]:
    """Runs a benchmark in a process of its own.

    Args:
        what: `training`, or `inference` of ResNet-18 at ratio 4.
        setting: one of `SETTINGS`.

    Returns:
        The benchmark's rows, with `setting`.

    Raises:
        UserError: when the process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "thumbnet_tf.benchmark", f"--what={what}", f"--out={folder}", SHORTENED[what]]
        done = subprocess.run(command, cwd=ROOT, env={**os.environ, **SETTINGS[setting]})
        if done.returncode:
            raise UserError(f"the benchmark failed; see above. Received: code {done.returncode}")
        return [{"setting": setting, **row} for row in read_rows(pathlib.Path(folder) / f"benchmark_{what}.csv")]


def training_markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Returns the rows of `CASES` as a table: as it is, by AVX2, and that over what it is without oneDNN."""
    found = {(row["setting"], row["case"], row["image_size"]): float(row["median"]) for row in rows}
    sizes = {row["image_size"]: int(row["image_size"]) // int(row["ratio"]) for row in rows}
    lines = [["case"], ["---"], *([f"`{case}`"] for case in CASES)]
    for size, small in sizes.items():
        lines[0] += [f"images/s, {size} to {small} px", "/ step_uncached"]
        lines[0] += ["by AVX2", "/ step_uncached", "times without oneDNN"]
        lines[1] += ["---:"] * 5
        for line, case in zip(lines[2:], CASES, strict=True):
            for setting in (AS_IT_IS, AVX2):
                here = found[setting, case, size]
                line += [f"{here:.0f}", f"{here / found[setting, 'step_uncached', size]:.2f}"]
            line.append(f"{found[AVX2, case, size] / found[PLAIN, case, size]:.2f}")
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def inference_markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Returns what each model costs as it is, and beside it T and E + S by AVX2, with oneDNN and without."""
    tables = [benchmark_report.cells([row for row in rows if row["setting"] == setting]) for setting in SETTINGS]
    titles = tables[0][0] + [f"{model}, {name}" for name in SETTINGS if name != AS_IT_IS for model in ("T", "E + S")]
    found = [titles, ["---", "---", *["---:"] * (len(titles) - 2)]]
    for line, *others in zip(*(lines for _, lines in tables), strict=True):
        found.append([*line, *(cell for other in others for cell in other[2:4])])
    return "\n".join(f"| {' | '.join(line)} |" for line in found)


# columns and table of each
REPORTS = {
    "training": (("setting", *benchmark_training.COLUMNS), training_markdown),
    "inference": (("setting", *benchmark_inference.COLUMNS), inference_markdown),
}


def main(arguments: Sequence[str]) -> int:
    """Measures and writes; returns the exit code."""
    if not set(arguments) <= set(REPORTS):
        print(__doc__)
        return 2
    try:
        for what in arguments or REPORTS:
            columns, markdown = REPORTS[what]
            rows = [row for setting in SETTINGS for row in measure(what, setting)]
            write_rows(RESULTS / f"onednn_{what}.csv", columns, rows)
            replace_table(ROOT / "experiments" / "README.md", f"onednn_{what}", markdown(rows))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
