"""How sure it is what bicubic thumbnails lose and students win back, for the seeds at hand: intervals over the images.

  python -m experiments.recovery own_teacher runs/own_teacher_seed0 runs/own_teacher_seed1 runs/own_teacher_seed2
  python -m experiments.recovery own_teacher     # the table anew from experiments/results/own_teacher_recovery.csv

The runs must be evaluated and have `bicubic`. Writes `experiments/results/<name>_recovery.csv` and its table in
README.md.
"""

import math
import sys

import numpy as np

from experiments.summary import RESULTS, ROOT, write
from thumbnet_tf.config import UserError
from thumbnet_tf.csv_files import write_rows
from thumbnet_tf.data import sources
from thumbnet_tf.evaluate import SPLITS
from thumbnet_tf.runs import RunDir
from thumbnet_tf.stages import ORIGINAL
from thumbnet_tf.stats import Z95

BASE = "bicubic"
COLUMNS = ("method", "split", "seeds", "examples", "lost", "lost_half", "won", "won_half", "over", "over_half")


def collect(name: str, runs: list[str]) -> None:
    """Writes a row for each split and student that all runs have, but for bicubic itself.

    Raises:
        UserError: when a run isn't evaluated or lacks bicubic, or the runs' images differ, or two have one seed.
    """
    found = [RunDir.existing(run) for run in runs]
    if len({run.config().seed for run in found}) < len(found):
        raise UserError(f"each seed is counted once; give runs of different --seed. Received: {' '.join(runs)}")
    dataset = sources.load(found[0].config().resolved(), SPLITS)
    for run in found:
        run.check_data(dataset.facts())
    finished = [run.finished_methods() for run in found]
    methods = [method for method in finished[0] if all(method in each for each in finished)]
    rows = []
    for split in SPLITS:
        labels = dataset.splits[split].labels
        right = {m: np.mean([_right(run, m, split, labels) for run in found], axis=0) for m in {BASE, *methods}}
        for method in methods:
            if method not in (ORIGINAL, BASE):
                counts = {"method": method, "split": split, "seeds": len(runs), "examples": len(labels)}
                rows.append(counts | compared(right[ORIGINAL], right[BASE], right[method]))
    write_rows(RESULTS / f"{name}_recovery.csv", COLUMNS, rows)


def compared(teacher: np.ndarray, base: np.ndarray, student: np.ndarray) -> dict[str, str]:
    """Compares three classifiers on the same images.

    Args:
        teacher: how often each image is answered right by T, over the seeds; float `(n,)` in [0, 1].
        base: the same of the student of bicubic thumbnails.
        student: the same of the student that is judged.

    Returns:
        `lost`, T's accuracy less the base's; `won`, the student's less the base's; `over`, what is won beyond half of
        what is lost; and half the width of each one's 95 % interval over the images, as text.
    """
    values = {"lost": teacher - base, "won": student - base, "over": student - base - (teacher - base) / 2}
    cells = {}
    for name, each in values.items():
        cells[name] = f"{each.mean():.6f}"
        cells[f"{name}_half"] = f"{Z95 * each.std(ddof=1) / math.sqrt(len(each)):.6f}"
    return cells


def markdown(rows: list[dict[str, str]]) -> str:
    """Returns the table: points with their 95 % intervals, validation first."""
    lines = [
        "| method | split | bicubic loses, points | won back | won beyond half of it | recovered share | seeds |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        pairs = [(100 * float(row[key]), 100 * float(row[f"{key}_half"])) for key in ("lost", "won", "over")]
        cells = [f"{value:.1f} ± {half:.1f}" for value, half in pairs]
        share = f"{float(row['won']) / float(row['lost']):.2f}" if float(row["lost"]) > 0 else "-"
        lines.append(f"| `{row['method']}` | {row['split']} | {' | '.join(cells)} | {share} | {row['seeds']} |")
    return "\n".join(lines)


def _right(run: RunDir, method: str, split: str, labels: np.ndarray) -> np.ndarray:
    """Returns which images a method of a run answers right, bool `(n,)`."""
    return run.logits(method, split).argmax(-1) == labels


if __name__ == "__main__":
    sys.exit(write(sys.argv[1:], __doc__, collect, markdown, ROOT / "README.md", "_recovery"))
