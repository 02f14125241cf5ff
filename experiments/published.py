"""The paper's figures beside what was measured here; experiments.tables writes the table.

`results/published.csv` is digitised from the paper's results figure: top-5 in a data set that isn't named, with an
error of about 0.02 points; the costs there are those of 224 to 112 px.
"""

import pathlib

from experiments.row_tables import means, rows_of
from experiments.run import config_of, names, set_of, teacher_row
from experiments.summary import recovered
from thumbnet_tf.stages import ORIGINAL

SHORT = "ablation"  # sets on a shorter schedule than their data's main one begin like this
TITLES = ("network", "data", "px", "top-k", "original, %", "bicubic, %", "ThumbNet, %", "published share", "share here")


def markdown(published: list[dict[str, str]]) -> str:
    """Returns the published rows, and under them those of each set whose T, bicubic and thumbnet share seeds.

    Args:
        published: rows of published.csv.
    """
    lines = [f"| {' | '.join(TITLES)} |", "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for row in published:
        values = [float(row[name]) for name in (ORIGINAL, "bicubic", "thumbnet")]
        cells = (
            f"{row['network']} (paper)",
            "not named",
            row["pixels"],
            "5",
            *_percents(values, 2),
            _share(values),
            "-",
        )
        lines.append(f"| {' | '.join(cells)} |")
    for of_set in sorted({set_of(row) for row in names()}):
        if not of_set.startswith(SHORT) and (values := _means(of_set)):
            cfg = config_of(f"{of_set}_thumbnet")
            network = f"{cfg.backbone}, width {cfg.width:g}"
            pixels = f"{cfg.image_size} to {cfg.thumbnail_size}"
            folder = cfg.dataset.startswith("folder:")
            data = pathlib.Path(cfg.dataset.removeprefix("folder:")).name if folder else cfg.dataset
            cells = (network, data, pixels, "1", *_percents(values, 1), "-", _share(values))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _means(of_set: str) -> list[float]:
    """Returns the mean test accuracies of T, bicubic and thumbnet over the seeds that all have; empty without any."""
    return means(rows_of(of_set), [teacher_row(f"{of_set}_{ORIGINAL}"), f"{of_set}_bicubic", f"{of_set}_thumbnet"])[0]


def _percents(values: list[float], digits: int) -> list[str]:
    return [f"{100 * value:.{digits}f}" for value in values]


def _share(values: list[float]) -> str:
    top, base, value = values
    return recovered(value, base, top)
