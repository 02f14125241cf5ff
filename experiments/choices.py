"""Compares runs that differ in an option: their validation accuracy, and what differs from the first run named.

  python -m experiments.choices hard runs/hard runs/hard_*
  python -m experiments.choices hard        # the table anew from experiments/results/hard_choices.csv

Writes `experiments/results/<name>_choices.csv` and the table in experiments/README.md.
"""

import dataclasses
import sys

from experiments.summary import RESULTS, ROOT, write
from thumbnet_tf.config import Config, UserError
from thumbnet_tf.csv_files import read_rows, write_rows
from thumbnet_tf.publish import digest_of
from thumbnet_tf.runs import RunDir
from thumbnet_tf.stages import ORIGINAL

COLUMNS = ("difference", "method", "seed", "examples", "validation_top1", "validation_teacher_agreement")


def collect(name: str, runs: list[str]) -> None:
    """Writes a row for each student of each run; the first run is what the others are compared with.

    Raises:
        UserError: when a run isn't finished, or has another T or other data than the first.
    """
    base = RunDir.existing(runs[0]).config()
    rows, teachers = [], _teachers(RunDir(runs[0]))
    for run in map(RunDir.existing, dict.fromkeys(runs)):
        found = read_rows(run.path / "results.csv")
        if not found:
            raise UserError(f"a finished run is expected; train first. Received: {run.path}, which has no results.csv")
        if run.config().seed == base.seed and not _teachers(run) & teachers:
            raise UserError(f"all runs of one seed must have the T and the images of {runs[0]}. Received: {run.path}")
        for row in found:
            if row["split"] == "validation" and (row["method"] != ORIGINAL or run.path == RunDir(runs[0]).path):
                rows.append(
                    {
                        "difference": difference(base, run.config()),
                        "method": row["method"],
                        "seed": row["seed"],
                        "examples": row["examples"],
                        "validation_top1": row["top1"],
                        "validation_teacher_agreement": row["teacher_agreement"],
                    }
                )
    write_rows(RESULTS / f"{name}_choices.csv", COLUMNS, rows)


def _teachers(run: RunDir) -> set[tuple[str, str]]:
    """Returns the digests of a run's images beside those of its T's file: as it was given, and as the run keeps it."""
    facts = run.data_facts()
    kept = digest_of(run.method(ORIGINAL) / "teacher.keras")
    return {(facts["fingerprint"], digest) for digest in (kept, facts.get("teacher_file", kept))}


def difference(base: Config, other: Config) -> str:
    """Returns the flags that make another run's identity of the first one's, but for where T came from."""
    flags = [
        f"--{field.name}={getattr(other, field.name)}"
        for field in dataclasses.fields(Config)
        if field.metadata["identity"] and field.name != "teacher"
        if getattr(base, field.name) != getattr(other, field.name)
    ]
    return " ".join(flags)


def markdown(rows: list[dict[str, str]]) -> str:
    """Returns the table of the rows, best first among the students."""
    lines = ["| method | flag added | top-1 on validation, % | agrees with T, % |", "| --- | --- | ---: | ---: |"]
    order = sorted(rows, key=lambda row: (row["method"] != ORIGINAL, -float(row["validation_top1"])))
    for row in order:
        flags = f"`{row['difference']}`" if row["difference"] else "-"
        shares = [100 * float(row[name]) for name in ("validation_top1", "validation_teacher_agreement")]
        lines.append(f"| `{row['method']}` | {flags} | {shares[0]:.1f} | {shares[1]:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    page = ROOT / "experiments" / "README.md"
    sys.exit(write(sys.argv[1:], __doc__, collect, markdown, page, "_choices"))
