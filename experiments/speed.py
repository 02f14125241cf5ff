"""Measures what thumbnails save and how fast they are learned, and writes the tables into experiments/README.md.

  python -m experiments.speed inference            # T against E + S at 224 px: ResNet-18 and -50, ratio 2 and 4
  python -m experiments.speed training             # the training step, at 128 and at 224 px

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
    """Measures and writes; returns the exit code."""
    if len(arguments) != 1 or arguments[0] not in REPORTS:
        print(__doc__)
        return 2
    (what,) = arguments
    name = f"benchmark_{what}"
    try:
        benchmark.main(benchmark.Options(what=what, out=str(RESULTS)))
        markdown = REPORTS[what][-1]
        replace_table(ROOT / "experiments" / "README.md", name, markdown(read_rows(RESULTS / f"{name}.csv")))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
