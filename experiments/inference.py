"""Measures what thumbnails save at 224 px, and writes the table into experiments/README.md.

  python -m experiments.inference           # measures anew
  python -m experiments.inference --table   # the table anew from experiments/results/benchmark_inference.csv

Random ResNet-18 and -50, ratio 2 and 4: `python -m thumbnet_tf.benchmark` with its defaults. The CSV and the figure lie
in experiments/results. Run it on a machine that does nothing else: E + S need more memory bandwidth for their
arithmetic than T, so that neighbours slow them more.
"""

import sys

from experiments.summary import RESULTS, ROOT, replace_table
from thumbnet_tf import benchmark
from thumbnet_tf.benchmark_report import markdown
from thumbnet_tf.config import UserError
from thumbnet_tf.runs import read_rows

NAME = "benchmark_inference"


def main(arguments: list[str]) -> int:
    """Measures unless the table alone is asked for; returns the exit code."""
    if arguments not in ([], ["--table"]):
        print(__doc__)
        return 2
    try:
        if not arguments:
            benchmark.main(benchmark.Options(out=str(RESULTS)))
        replace_table(ROOT / "experiments" / "README.md", NAME, markdown(read_rows(RESULTS / f"{NAME}.csv")))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
