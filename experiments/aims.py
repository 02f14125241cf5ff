"""What was aimed at on each set beside what is measured; experiments.tables writes the table."""

import dataclasses

from experiments.row_tables import means, rows_of
from experiments.run import teacher_row
from thumbnet_tf.stages import ORIGINAL


@dataclasses.dataclass(frozen=True)
class Aim:
    """One comparison of two rows, of accuracies over the seeds that both have.

    Attributes:
        of_set: the set of rows.
        row: what is judged, without the set's name.
        over: the row that it is compared with; `original` is T.
        least: what is aimed at: points of accuracy above it, or a share.
        share: whether the share of what `over` loses against T counts, in place of points.
    """

    of_set: str
    row: str
    over: str
    least: float
    share: bool = False


AIMS = (
    Aim("flowers_64", "thumbnet", "bicubic", 0.95, share=True),
    Aim("flowers_64", "narrow_thumbnet", "bicubic", 0.95, share=True),
    Aim("flowers_64", "narrow_thumbnet", "narrow_bicubic", 0.95, share=True),
    Aim("flowers_32", "thumbnet", "bicubic", 0.75, share=True),
    Aim("flowers_32", "narrow_thumbnet", "bicubic", 0.75, share=True),
    Aim("flowers_32", "narrow_thumbnet", "narrow_bicubic", 0.75, share=True),
    Aim("flowers_32", "narrow_thumbnet_160", "bicubic_160", 0.75, share=True),
    Aim("flowers_32", "narrow_thumbnet_160", "narrow_bicubic_160", 0.75, share=True),
    Aim("hard_24", "thumbnet", "bicubic", 0.80, share=True),
    Aim("plant_64", "thumbnet", ORIGINAL, 0.0),
    Aim("plant_64", "thumbnet_72", ORIGINAL, 0.0),
    Aim("plant_64", "thumbnet_72_cl", ORIGINAL, 0.0),
    Aim("plant_64", "narrow_thumbnet_72", ORIGINAL, 0.0),
    Aim("plant_32", "thumbnet", ORIGINAL, -0.5),
    Aim("plant_32", "narrow_thumbnet", ORIGINAL, -0.5),
    Aim("plant_32", "thumbnet_100", ORIGINAL, -0.5),
    Aim("plant_32", "narrow_thumbnet_100", ORIGINAL, -0.5),
    Aim("plant_32", "narrow_thumbnet_200", ORIGINAL, -0.5),
    Aim("plant_32", "narrow_thumbnet_200_cl", ORIGINAL, -0.5),
    Aim("flowers_32", "thumbnet", "slim", 2.0),
    Aim("flowers_32", "narrow_thumbnet", "slim", 2.0),
    Aim("flowers_32", "narrow_thumbnet_160", "slim", 2.0),
    Aim("plant_32", "thumbnet", "slim", 2.0),
    Aim("plant_32", "narrow_thumbnet", "slim", 2.0),
)


def measured(aim: Aim, rows: list[dict[str, str]], split: str = "test") -> tuple[float | None, int]:
    """Returns what an aim came to, None where that isn't defined, and over how many seeds: those of all rows it needs.

    Args:
        aim: the aim.
        rows: of its set's CSV, T's included.
        split: on which images.
    """
    teacher = teacher_row(f"{aim.of_set}_{ORIGINAL}")
    needed = [teacher if name == ORIGINAL else f"{aim.of_set}_{name}" for name in (aim.row, aim.over)]
    needed += [teacher] if aim.share else []
    found, seeds = means(rows, needed, split)
    if not seeds:
        return None, 0
    value, over, *top = found
    if aim.share:
        return (None if top[0] <= over else (value - over) / (top[0] - over)), seeds
    return 100 * (value - over), seeds


def markdown() -> str:
    """Returns the table of all aims."""
    lines = [
        "| set | compared | aim, at least | on test | on validation | seeds | met on test |",
        "| --- | --- | ---: | ---: | ---: | ---: | --- |",
    ]
    for aim in AIMS:
        rows = rows_of(aim.of_set)
        value, seeds = measured(aim, rows)
        over = "T" if aim.over == ORIGINAL else f"`{aim.over}`"
        what = f"points of `{aim.row}` above {over}"
        if aim.share:
            what = f"share of T's lead over {over} that `{aim.row}` wins back"
        digits = 2 if aim.share else 1
        cells = [f"`{aim.of_set}`", what, f"{aim.least:.{digits}f}"]
        for each in (value, measured(aim, rows, "validation")[0]):
            cells.append("-" if each is None else f"{each:.{digits}f}")
        met = "-" if value is None else "yes" if value >= aim.least - 1e-9 else "no"
        cells += [str(seeds) if seeds else "not measured", met]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
