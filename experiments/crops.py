"""Asks a run's T by other evaluation crops: how it answers the validation images by `--crop_fraction`.

  python -m experiments.crops plant_56 runs/plant_56_original_seed1
  python -m experiments.crops plant_56        # the table anew from experiments/results/plant_56_crops.csv

T's training hangs on no evaluation crop. Writes `experiments/results/<name>_crops.csv` and its table in
experiments/README.md.
"""

import dataclasses
import sys

import numpy as np

from experiments.summary import RESULTS, ROOT, write
from thumbnet_tf.config import UserError
from thumbnet_tf.csv_files import write_rows
from thumbnet_tf.data import pipeline, sources
from thumbnet_tf.runs import RunDir
from thumbnet_tf.stages import ORIGINAL

COLUMNS = ("crop_fraction", "short_side", "crop", "image_size", "examples", "validation_top1")
CROPS = (0.75, 0.85, 0.87, 0.875, 0.88, 0.9, 1.0)
BATCH = 64


def collect(name: str, runs: list[str]) -> None:
    """Writes a row for each crop.

    Raises:
        UserError: when not one run is named, or it isn't finished.
    """
    if len(runs) != 1:
        raise UserError(f"one run is expected. Received: {' '.join(runs)}")
    run = RunDir.existing(runs[0])
    cfg = run.config().resolved()
    split = sources.load(cfg, ("validation",)).splits["validation"]
    teacher, labels = run.load_model(ORIGINAL, "teacher"), np.asarray(split.labels)
    short = pipeline.short_sides(split, range(split.num_examples))
    rows = []
    for crop in CROPS:
        images = pipeline.eval_images(split, dataclasses.replace(cfg, crop_fraction=crop), range(split.num_examples))
        parts = [images[i : i + BATCH].astype(np.float32) for i in range(0, len(images), BATCH)]
        answers = np.concatenate([np.asarray(teacher(part, training=False)["logits"]).argmax(-1) for part in parts])
        values = (crop, np.median(short), np.median(short * crop), cfg.image_size, len(labels))
        rows.append(
            dict(zip(COLUMNS, (*(f"{each:g}" for each in values), f"{(answers == labels).mean():.6f}"), strict=True))
        )
    write_rows(RESULTS / f"{name}_crops.csv", COLUMNS, rows)


def markdown(rows: list[dict[str, str]]) -> str:
    """Returns the table of the rows."""
    lines = [
        "| `--crop_fraction` | pixels cut | pixels shown | T's top-1 on validation, % |",
        "| ---: | ---: | ---: | ---: |",
    ]
    for row in rows:
        top = 100 * float(row["validation_top1"])
        lines.append(f"| {row['crop_fraction']} | {float(row['crop']):.0f} | {row['image_size']} | {top:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    page = ROOT / "experiments" / "README.md"
    sys.exit(write(sys.argv[1:], __doc__, collect, markdown, page, "_crops"))
