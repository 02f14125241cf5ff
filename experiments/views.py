"""Compares runs that show S a number of repeating views of each image with runs that show it new views each epoch.

  python -m experiments.views flowers runs/views_*       # runs of any number of views and seeds, one method
  python -m experiments.views flowers                    # the table anew from experiments/results/flowers_views.csv

Writes `experiments/results/<name>_views.csv` and the table in experiments/README.md.
"""

import sys

from experiments.summary import RESULTS, ROOT, spread, write
from thumbnet_tf.config import UserError
from thumbnet_tf.csv_files import read_rows, write_rows
from thumbnet_tf.runs import RunDir
from thumbnet_tf.stages import ORIGINAL
from thumbnet_tf.teacher_cache import number_of_views

COLUMNS = ("views", "epochs", "method", "seed", "split", "examples", "top1", "teacher_agreement")


def collect(name: str, runs: list[str]) -> None:
    """Writes a row for each student, split and run; 0 views stand for a new one each epoch.

    Raises:
        UserError: when a run isn't finished.
    """
    rows = []
    for run in map(RunDir.existing, runs):
        cfg = run.config()
        found = [row for row in read_rows(run.path / "results.csv") if row["method"] != ORIGINAL]
        if not found:
            raise UserError(f"a finished run is expected; train first. Received: {run.path}, which has no results.csv")
        of_run = {"views": number_of_views(cfg), "epochs": cfg.epochs}
        rows += [of_run | {column: row[column] for column in COLUMNS[2:]} for row in found]
    rows.sort(key=lambda row: (row["split"], row["views"], int(row["seed"])))
    write_rows(RESULTS / f"{name}_views.csv", COLUMNS, rows)


def markdown(rows: list[dict[str, str]]) -> str:
    """Returns the table: mean and standard deviation over the seeds, by number of views."""
    lines = [
        "| views | what T must answer | top-1 on validation, % | top-1 on test, % | agrees with T on test, % | seeds |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for views in sorted({int(row["views"]) for row in rows}, key=lambda views: views or 10**9):
        own = [row for row in rows if int(row["views"]) == views]
        of = {split: [row for row in own if row["split"] == split] for split in ("validation", "test")}
        epochs = own[0]["epochs"]
        what, name = (f"every image {views or epochs} times", str(views) if views else f"new each epoch ({epochs})")
        lines.append(
            f"| {name} | {what} | {spread(of['validation'], 'top1')} | {spread(of['test'], 'top1')} "
            f"| {spread(of['test'], 'teacher_agreement')} | {len(of['test'])} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    page = ROOT / "experiments" / "README.md"
    sys.exit(write(sys.argv[1:], __doc__, collect, markdown, page, "_views"))
