"""Measures what thumbnails save and how fast they are learned, and writes the tables into experiments/README.md.

  python -m experiments.speed inference            # T against E + S at 224 px: ResNet-18 and -50, ratio 2 and 4
  python -m experiments.speed training             # the training step, at 128 and at 224 px
  python -m experiments.speed training --table     # table and figure anew from results/benchmark_training.csv

What `python -m thumbnet_tf.benchmark --what=...` does with its defaults; CSV and figure lie in experiments/results. Run
it on a machine that does nothing else: cases wait for memory to a different degree, so that neighbours slow some more
than others.
"""

import sys

from experiments.summary import RESULTS, ROOT, replace_table
from thumbnet_tf import benchmark, benchmark_inference, benchmark_report, benchmark_training
from thumbnet_tf.config import UserError
from thumbnet_tf.csv_files import read_rows

# columns, figure and table of each
REPORTS = {
    "inference": (benchmark_inference.COLUMNS, benchmark_report.figure, benchmark_report.markdown),
    "training": (benchmark_training.COLUMNS, benchmark_training.figure, benchmark_training.markdown),
}


def main(arguments: list[str]) -> int:
    """Measures unless the table alone is asked for; returns the exit code."""
    what, *rest = arguments or [""]
    if what not in REPORTS or rest not in ([], ["--table"]):
        print(__doc__)
        return 2
    name = f"benchmark_{what}"
    try:
        if not rest:
            benchmark.main(benchmark.Options(what=what, out=str(RESULTS)))
        columns, figure, markdown = REPORTS[what]
        rows = read_rows(RESULTS / f"{name}.csv")
        if rest:
            benchmark_report.publish(RESULTS, name, columns, rows, figure(rows), markdown(rows))
        replace_table(ROOT / "experiments" / "README.md", name, markdown(rows))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
