"""Collects the results of several runs (seeds) in one CSV and writes their table into README.md.

  python -m experiments.summary quickstart runs/quickstart runs/quickstart_seed1 runs/quickstart_seed2
  python -m experiments.summary quickstart        # the table anew from experiments/results/quickstart.csv

The table stands in README.md between `<!-- table quickstart -->` and `<!-- end of table -->`.
"""

import pathlib
import re
import statistics
import sys
from collections.abc import Callable

from thumbnet_tf.config import UserError
from thumbnet_tf.csv_files import read_rows, write_rows
from thumbnet_tf.evaluate import COLUMNS
from thumbnet_tf.files import write_atomically
from thumbnet_tf.stages import METHODS, ORIGINAL

ROOT = pathlib.Path(__file__).parent.parent
RESULTS = ROOT / "experiments" / "results"


def collect(name: str, runs: list[str]) -> None:
    """Writes the rows of the runs' results.csv to `experiments/results/<name>.csv`, by method and seed.

    Raises:
        UserError: when a run has no results, two hold the same method and seed, or a method lacks a seed of others.
    """
    rows = []
    for run in runs:
        found = read_rows(pathlib.Path(run) / "results.csv")
        if not found:
            raise UserError(f"a finished run is expected; train first. Received: {run}, which has no results.csv")
        rows += found
    order = {method: index for index, method in enumerate(METHODS)}
    rows.sort(key=lambda row: (row["split"], order[row["method"]], int(row["seed"])))
    keys = [(row["split"], row["method"], row["seed"]) for row in rows]
    if len(set(keys)) < len(keys):
        raise UserError(f"each seed is counted once; give runs of different --seed. Received: {' '.join(runs)}")
    seeds = {method: sorted({row["seed"] for row in rows if row["method"] == method}) for _, method, _ in keys}
    if len(set(map(tuple, seeds.values()))) > 1:  # shares would compare means over different teachers
        found = "; ".join(f"{method} of {', '.join(each)}" for method, each in seeds.items())
        raise UserError(f"every method must have the same seeds; add the runs that are missing. Received: {found}")
    write_rows(RESULTS / f"{name}.csv", COLUMNS, rows)


def markdown(rows: list[dict[str, str]]) -> str:
    """Returns the table of the test rows: mean and standard deviation over seeds, and the recovered share.

    The recovered share is (method - bicubic) / (original - bicubic), of the mean accuracies: what the method wins
    back of what training on bicubic thumbnails loses.
    """
    by_method: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        if row["split"] == "test":
            by_method.setdefault(row["method"], []).append(row)
    mean = {method: statistics.mean(float(row["top1"]) for row in found) for method, found in by_method.items()}
    lines = [
        "| method | what it is | top-1, % | agrees with T, % | recovered share | M multiply-adds (+ E) | seeds |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for method, found in by_method.items():
        compared = method not in (ORIGINAL, "bicubic", "direct")
        share = recovered(mean[method], mean.get("bicubic"), mean[ORIGINAL]) if compared else "-"
        lines.append(
            f"| `{method}` | {METHODS[method].about} | {spread(found, 'top1')} "
            f"| {spread(found, 'teacher_agreement')} | {share} | {cost(found[0])} | {len(found)} |"
        )
    return "\n".join(lines)


def recovered(value: float, base: float | None, top: float | None) -> str:
    """Returns the recovered share (value - base) / (top - base) as text; a dash where T has no lead to win back."""
    return "-" if base is None or top is None or top <= base else f"{(value - base) / (top - base):.2f}"


def cost(row: dict[str, str]) -> str:
    """Returns a row's millions of multiply-adds, those of the downscaler in brackets."""
    small = int(row["macs_downscaler"]) / 1e6
    return f"{int(row['macs']) / 1e6:.1f}" + (f" (+ {small:.1f})" if small else "")


def spread(rows: list[dict[str, str]], column: str) -> str:
    """Returns the mean of a column of shares in percent, and the standard deviation where there are several rows."""
    values = [100 * float(row[column]) for row in rows]
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def block(name: str) -> re.Pattern:
    """Returns the pattern of a table's place in a Markdown file; group 2 is the table."""
    return re.compile(rf"(<!-- table {name} -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)


def replace_table(path: pathlib.Path, name: str, table: str) -> None:
    """Writes a table in its place in a Markdown file.

    Raises:
        UserError: when the file has no such place.
    """
    text, count = block(name).subn(lambda match: f"{match[1]}{table}\n{match[3]}", path.read_text())
    if not count:
        raise UserError(f"{path} must have a line `<!-- table {name} -->` and one `<!-- end of table -->` behind it")
    write_atomically(path, text)


def main(arguments: list[str]) -> int:
    """Collects where runs are given, and writes the table."""
    return write(arguments, __doc__, collect, markdown, ROOT / "README.md", "")


def write(
    arguments: list[str],
    usage: str,
    collect: Callable[[str, list[str]], None],
    markdown: Callable[[list[dict[str, str]]], str],
    page: pathlib.Path,
    suffix: str,
) -> int:
    """Does what the commands do that collect runs into a table; returns the exit code.

    Args:
        arguments: a name, and runs.
        usage: printed where the name is missing.
        collect: writes `<name><suffix>.csv` from the runs.
        markdown: makes the table of its rows.
        page: the Markdown file with a place for it.
        suffix: of the table's name behind the given one.
    """
    if not arguments or arguments[0].startswith("-"):
        print(usage)
        return 2
    name, *runs = arguments
    try:
        if runs:
            collect(name, runs)
        table = markdown(read_rows(RESULTS / f"{name}{suffix}.csv"))
        replace_table(page, f"{name}{suffix}", table)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
