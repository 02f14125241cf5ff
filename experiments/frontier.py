"""Draws accuracy beside T's against multiply-adds for each size of thumbnail, and slimmer networks on full images.

  python -m experiments.frontier flowers   # from results/flowers_{32,56,64}.csv to results/flowers_frontier.png

Accuracies are points above T of the same seed, for rows have different seeds, and their T differ. A bubble's area is
the memory of activations: the largest sum of what one layer reads and writes, for one image. The legend names the seeds
of each point; bars are the standard deviation over them.
"""

import math
import statistics
import sys
from collections.abc import Mapping, Sequence

import keras
import tensorflow as tf
from matplotlib.figure import Figure

from experiments import run
from experiments.recount import models
from experiments.row_tables import about
from experiments.summary import RESULTS
from thumbnet_tf.csv_files import read_rows
from thumbnet_tf.files import write_figure
from thumbnet_tf.plots import STYLES
from thumbnet_tf.stages import ORIGINAL

SIZES = ("32", "56", "64")
# rows of a set, and the colours of those that aren't called after a method
OTHERS = {
    "narrow_bicubic": "navy",
    "narrow_bicubic_kd": "tab:brown",
    "narrow_thumbnet": "tab:purple",
    "slim_as_fast": "tab:green",
    "bicubic_72": "slateblue",
    "thumbnet_72": "tab:pink",
    "thumbnet_72_cl": "limegreen",
    "narrow_thumbnet_72": "mediumorchid",
    "bicubic_100": "tab:olive",
    "thumbnet_100": "deeppink",
    "narrow_thumbnet_100": "indigo",
    "narrow_thumbnet_200": "slategray",
    "narrow_thumbnet_200_cl": "maroon",
    "bicubic_160": "goldenrod",
    "narrow_bicubic_160": "cornflowerblue",
    "narrow_bicubic_kd_160": "saddlebrown",
    "narrow_thumbnet_160": "darkred",
    "narrow_thumbnet_160_cl": "magenta",
    "thin_thumbnet": "rosybrown",
}
SHOWN = (ORIGINAL, "bicubic", "bicubic_kd", "thumbnet", "slim", *OTHERS)
COLOURS = {name: colour for name, (colour, _) in STYLES.items()} | OTHERS


def activation_bytes(model: keras.Model) -> int:
    """Returns the largest sum of one layer's inputs and outputs in bytes of float32, for one image."""
    return max(
        sum(4 * math.prod(tensor.shape[1:]) for tensor in tf.nest.flatten([layer.input, layer.output]))
        for layer in model.layers
    )


def row_bytes(row: str) -> int:
    """Returns the activations' memory of what a row trains, its downscaler included."""
    small, network = models(run.config_of(row), run.method_of(row), classes=2)
    return max(activation_bytes(model) for model in (small, network) if model is not None)


def figure(name: str, rows: Sequence[Mapping[str, str]], memory: Mapping[str, int]) -> Figure:
    """Draws the test rows, a point for each kind of row and each size, over the seeds that T has too.

    Args:
        name: of the data, for the title.
        rows: of the sets' CSVs, T's included.
        memory: rows that are shown, and the bytes of their activations.
    """
    drawing = Figure(figsize=(8, 7.5), dpi=120, layout="constrained")
    axes = drawing.subplots()
    tests = {(row["row"], row["seed"]): float(row["top1"]) for row in rows if row["split"] == "test"}
    for kind in SHOWN:
        points, seeds = [], []
        of_kind = [row for row in memory if run.name_in_set(row) == kind]
        for row in of_kind:
            teacher = run.teacher_row(row)
            found = [each for each in rows if each["row"] == row and each["split"] == "test"]
            found = [each for each in found if (teacher, each["seed"]) in tests]
            if not found:
                continue
            tops = [100 * (tests[row, each["seed"]] - tests[teacher, each["seed"]]) for each in found]
            macs = (int(found[0]["macs"]) + int(found[0]["macs_downscaler"])) / 1e6
            mean = statistics.mean(tops)
            text = f"{mean:+.1f}"
            if kind == ORIGINAL:
                text = f"T: {100 * statistics.mean(tests[row, each['seed']] for each in found):.1f} %"
            spread = statistics.stdev(tops) if len(tops) > 1 else math.nan  # one seed: no bar, not one of no length
            seeds.append(f"{run.set_of(row)} {', '.join(each['seed'] for each in found)}")
            points.append((macs, mean, spread, memory[row], text))
        if not points:
            continue
        x, y, error, size, texts = zip(*sorted(points), strict=True)
        colour = COLOURS[kind]
        label = f"{kind}: {about(of_kind[0])} (seeds: {'; '.join(seeds)})"
        axes.errorbar(x, y, error, fmt="o", markersize=3, color=colour, capsize=3, label=label)
        axes.scatter(x, y, [each / 1000 for each in size], color=colour, alpha=0.3, linewidths=0)
        for text, *place in zip(texts, x, y, strict=True):
            axes.annotate(text, place, (5, 5), textcoords="offset points", color=colour, fontsize=8)
    axes.set_xscale("log")
    axes.set_xlabel("millions of multiply-adds for one image, E included")
    axes.set_ylabel("top-1 on test, points above T of the same seeds")
    axes.set_title(f"{name}: bubbles are the memory of activations")
    axes.margins(0.1)
    axes.grid(alpha=0.3)
    drawing.legend(fontsize=8, loc="outside lower left")
    return drawing


def main(arguments: list[str]) -> int:
    """Draws one data set's figure; returns the exit code."""
    if len(arguments) != 1:
        print(__doc__)
        return 2
    paths = [RESULTS / f"{arguments[0]}_{size}.csv" for size in SIZES]
    rows = [row for path in paths for row in read_rows(path)]
    if not rows:
        print(f"error: results are expected in {' or '.join(map(str, paths))}; run experiments.run", file=sys.stderr)
        return 1
    shown = sorted({row["row"] for row in rows if run.name_in_set(row["row"]) in SHOWN})
    path = RESULTS / f"{arguments[0]}_frontier.png"
    write_figure(path, figure(arguments[0], rows, {row: row_bytes(row) for row in shown}))
    print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
