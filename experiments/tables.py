"""Writes every table of README.md and experiments/README.md, the rows' headers and the figures, from results/*.csv.

python -m experiments.tables
"""

import pathlib
import sys
from collections.abc import Iterator

from experiments import (
    aims,
    choices,
    crops,
    deployment,
    feature_maps,
    frontier,
    glance,
    onednn,
    published,
    recovery,
    speed,
    summary,
    tflite_latency,
    views,
)
from experiments.row_tables import differences_markdown, headers, losses_markdown, markdown, overview_markdown, rows_of
from experiments.run import ALONE, names, set_of
from experiments.summary import RESULTS, ROOT, replace_table
from thumbnet_tf import benchmark_report
from thumbnet_tf.config import UserError
from thumbnet_tf.csv_files import read_rows
from thumbnet_tf.files import write_atomically


def blocks() -> Iterator[tuple[pathlib.Path, str, str]]:
    """Yields all tables that have results: the page that each is on, its name there and its text."""
    top, page = ROOT / "README.md", ROOT / "experiments" / "README.md"
    for where, name, text in (
        (top, "quickstart", summary.markdown),
        (top, "flowers_quick", summary.markdown),
        (top, "own_teacher", summary.markdown),
        (top, "own_teacher_recovery", recovery.markdown),
        (top, "flowers_quick_parity", deployment.parity_markdown),
        (page, "published", published.markdown),
        (page, "flowers_quick_wire", deployment.wire_markdown),
        (page, "flowers_choices", choices.markdown),
        (page, "flowers_32_choices", choices.markdown),
        (page, "plant_64_choices", choices.markdown),
        (page, "own_teacher_choices", choices.markdown),
        (page, "plant_56_crops", crops.markdown),
        (page, "hard_choices", choices.markdown),
        (page, "flowers_views", views.markdown),
        (page, "ablation_32_feature_maps", feature_maps.markdown),
        (page, "tflite_latency", tflite_latency.markdown),
        *((page, f"onednn_{what}", report[-1]) for what, report in onednn.REPORTS.items()),
        *((page, f"benchmark_{what}", report[-1]) for what, report in speed.REPORTS.items()),
    ):
        if rows := read_rows(RESULTS / f"{name}.csv"):
            yield where, name, text(rows)
    yield page, "aims", aims.markdown()
    yield top, "glance", glance.markdown()
    photographs = {name: rows_of(name) for name in ("flowers_64", "flowers_32", "plant_64", "plant_32", "plant_56")}
    yield top, "photographs", overview_markdown({name: rows for name, rows in photographs.items() if rows})
    for of_set in sorted({set_of(row) for row in names()}):
        if rows := rows_of(of_set):
            yield page, of_set, markdown(of_set, rows)
            if not of_set.startswith(ALONE):
                yield page, f"{of_set}_losses", losses_markdown(rows)
                yield page, f"{of_set}_differences", differences_markdown(of_set, rows)
        if rows := read_rows(RESULTS / f"{of_set}_latency.csv"):
            yield page, f"{of_set}_latency", tflite_latency.markdown(rows)


def main() -> int:
    """Writes tables, headers and figures; returns the exit code.

    It is 1 where rows can't stand in one table, and nothing is written then, or where a page has no place for a table.
    """
    try:
        found = list(blocks())
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for path, text in headers():
        write_atomically(path, text)
    missing = []
    for path, name, table in found:
        try:
            replace_table(path, name, table)
        except UserError as error:
            missing.append(error)
            print(f"error: {error}", file=sys.stderr)
    for what, (columns, figure, text) in speed.REPORTS.items():
        name = f"benchmark_{what}"
        if rows := read_rows(RESULTS / f"{name}.csv"):
            benchmark_report.publish(RESULTS, name, columns, rows, figure(rows), text(rows))
    failed = [
        frontier.main([data])
        for data in ("flowers", "plant")
        if any((RESULTS / f"{data}_{size}.csv").exists() for size in frontier.SIZES)
    ]
    return 1 if missing or any(failed) else 0


if __name__ == "__main__":
    sys.exit(main())
