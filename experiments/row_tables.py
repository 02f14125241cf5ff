"""Tables of the rows that experiments.run has measured, and the headers of their flagfiles."""

import pathlib
import re
import statistics
from collections.abc import Iterator, Sequence

from experiments import origins
from experiments.run import (
    ALONE,
    LOSSES,
    ROWS,
    TEACHER_SETS,
    config_of,
    has_teacher,
    name_in_set,
    names,
    set_of,
    teacher_row,
)
from experiments.summary import RESULTS, cost, recovered, spread
from thumbnet_tf.csv_files import read_rows
from thumbnet_tf.stages import METHODS, ORIGINAL, loss_weights

KINDS = ("narrow_", "thin_")  # rows with another S than T's network begin like one of these in their set
OVERVIEW = (ORIGINAL, "bicubic", "bicubic_kd", "thumbnet", "narrow_thumbnet", "slim")


def markdown(of_set: str, rows: list[dict[str, str]]) -> str:
    """Returns a set's table: mean and standard deviation over the seeds of each row, on test if nothing else is said.

    The recovered share is (row - bicubic) / (original - bicubic), of the mean accuracies over the row's own seeds, and
    with bicubic thumbnails for the row's kind of S and as many epochs; it is left out where that or T isn't measured
    for all of them.

    Args:
        of_set: its name.
        rows: of its CSV, and those of its T from another set's.
    """
    tests = [row for row in rows if row["split"] == "test"]
    by_row = {name: [row for row in tests if row["row"] == name] for name in sorted({row["row"] for row in tests})}

    def mean(name: str, seeds: set[str]) -> float | None:
        tops = [float(row["top1"]) for row in by_row.get(name, []) if row["seed"] in seeds]
        return statistics.mean(tops) if len(tops) == len(seeds) else None

    lines = [
        "| row | what it is | top-1, % | on validation | agrees with T, % | recovered share | M MACs (+ E) | M weights "
        "| seeds |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, found in by_row.items():
        agreement = "-" if name.startswith(ALONE) else spread(found, "teacher_agreement")
        others = [row for row in rows if row["row"] == name and row["split"] == "validation"]
        seeds = {row["seed"] for row in found}
        base, top = mean(_bicubic(of_set, name), seeds), mean(teacher_row(f"{of_set}_{ORIGINAL}"), seeds)
        share = recovered(statistics.mean(float(row["top1"]) for row in found), base, top)
        share = "-" if name == teacher_row(f"{of_set}_{ORIGINAL}") else share
        lines.append(
            f"| `{name_in_set(name)}` | {about(name)} | {spread(found, 'top1')} | {spread(others, 'top1')} "
            f"| {agreement} | {share} | {cost(found[0])} | {int(found[0]['params']) / 1e6:.2f} | {len(found)} |"
        )
    return "\n".join(lines)


def _bicubic(of_set: str, row: str) -> str:
    """Returns the row of bicubic thumbnails, measured or not, whose S and epochs are those of a row of the set."""
    kind = next((kind for kind in KINDS if name_in_set(row).startswith(kind)), "")
    name = f"{of_set}_{kind}bicubic"
    epochs = config_of(row).epochs
    return name if row == teacher_row(row) or config_of(name).epochs == epochs else f"{name}_{epochs}"


def losses_markdown(rows: list[dict[str, str]]) -> str:
    """Returns a set's table of KD and FM at the end of training, in training and on validation."""
    tests = [row for row in rows if row["split"] == "test"]
    lines = [
        "| row | KD in training | KD on validation | FM in training | FM on validation | seeds |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in sorted({row["row"] for row in tests if any(row[term] for term in LOSSES)}):
        found = [row for row in tests if row["row"] == name]
        values = [[float(row[term]) for row in found if row[term]] for term in LOSSES]
        means = [f"{statistics.mean(each):.3f}" if each else "-" for each in values]
        lines.append(f"| `{name_in_set(name)}` | {' | '.join(means)} | {len(found)} |")
    return "\n".join(lines)


def differences_markdown(of_set: str, rows: list[dict[str, str]]) -> str:
    """Returns the table of what each row has more than its set's `thumbnet`: means over the seeds that both have.

    Seeds differ by more than rows do, and not all rows have the same ones.

    Args:
        of_set: its name.
        rows: of its CSV.
    """
    lines = [
        "| row | what it is | top-1, points | on validation | agrees with T, points | KD on validation | seeds |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    validation = {(row["row"], row["seed"]): float(row["top1"]) for row in rows if row["split"] == "validation"}
    by_row: dict[str, dict[str, dict[str, str]]] = {}
    for row in rows:
        if row["split"] == "test":
            by_row.setdefault(row["row"], {})[row["seed"]] = row
    base = f"{of_set}_thumbnet"
    theirs = by_row.pop(base, {})
    for name in sorted(by_row.keys() - {teacher_row(base)}):
        pairs = [(row, theirs[seed]) for seed, row in by_row[name].items() if seed in theirs]
        if not pairs:
            continue
        cells = [
            f"{statistics.mean(100 * (float(row[column]) - float(other[column])) for row, other in pairs):+.1f}"
            for column in ("top1", "teacher_agreement")
        ]
        seeds = [row["seed"] for row, _ in pairs]
        held = statistics.mean(100 * (validation[name, seed] - validation[base, seed]) for seed in seeds)
        cells.insert(1, f"{held:+.1f}")
        # KD at another temperature is another measure
        comparable = config_of(name).temperature == config_of(base).temperature and all(
            row["val_kd"] for row, _ in pairs
        )
        kd = [float(row["val_kd"]) - float(other["val_kd"]) for row, other in pairs] if comparable else []
        cells.append(f"{statistics.mean(kd):+.3f}" if kd else "-")
        lines.append(f"| `{name_in_set(name)}` | {about(name)} | {' | '.join(cells)} | {len(pairs)} |")
    return "\n".join(lines)


def overview_markdown(sets: dict[str, list[dict[str, str]]]) -> str:
    """Returns the table of what matters most of some sets: test accuracies, each with its seeds and those seeds' T.

    Args:
        sets: rows of each set's CSV, T's included, by the set's name.
    """
    lines = [
        f"| data | px | {' | '.join(f'`{name}`' for name in OVERVIEW)} |",
        f"| --- | --- |{' ---: |' * len(OVERVIEW)}",
    ]
    for of_set, rows in sets.items():
        cfg = config_of(f"{of_set}_thumbnet")
        cells = [pathlib.Path(cfg.dataset).name, f"{cfg.image_size} to {cfg.thumbnail_size}"]
        for name in OVERVIEW:
            row = teacher_row(f"{of_set}_{name}") if name == ORIGINAL else f"{of_set}_{name}"
            found = [each for each in rows if each["row"] == row and each["split"] == "test"]
            of_teacher, seeds = means(rows, [teacher_row(f"{of_set}_{ORIGINAL}"), row])
            beside = "" if name == ORIGINAL or not seeds or seeds < len(found) else f"; T {100 * of_teacher[0]:.1f}"
            cells.append(
                f"{spread(found, 'top1')} ({_numbers([each['seed'] for each in found])}{beside})" if found else "-"
            )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _numbers(seeds: Sequence[str]) -> str:
    """Returns seeds as text: `seed 3`, `seeds 0-2`, or `seeds 1, 3, 4` where some between are missing."""
    values = sorted(map(int, seeds))
    if len(values) == 1:
        return f"seed {values[0]}"
    if values == list(range(values[0], values[-1] + 1)):
        return f"seeds {values[0]}-{values[-1]}"
    return f"seeds {', '.join(map(str, values))}"


def means(rows: list[dict[str, str]], names: Sequence[str], split: str = "test") -> tuple[list[float], int]:
    """Returns the mean accuracies of some rows over the seeds that all have, and how many those are.

    Args:
        rows: of a set's CSV, T's included.
        names: which rows; a name may stand twice.
        split: on which images.

    Returns:
        A mean for each name, or none where no seed has all.
    """
    tops = {name: {} for name in names}
    for row in rows:
        if row["split"] == split and row["row"] in tops:
            tops[row["row"]][row["seed"]] = float(row["top1"])
    seeds = set.intersection(*map(set, tops.values()))
    return [statistics.mean(tops[name][seed] for seed in seeds) for name in names if seeds], len(seeds)


def about(row: str) -> str:
    """Returns what a row is: a method and the losses that its flags leave it, or the first line of its flagfile."""
    method = name_in_set(row)
    if method not in METHODS or row.startswith(ALONE):
        return (ROWS / f"{row}.flags").read_text().splitlines()[0].removeprefix("# ")
    if method == ORIGINAL or not METHODS[method].losses:
        return METHODS[method].about
    what = METHODS[method].about.partition(", CL")[0]
    return f"{what}, {' + '.join(loss_weights(method, config_of(row))).upper()}"


def rows_of(of_set: str) -> list[dict[str, str]]:
    """Returns the rows of a set's CSV, and where T stands in another set's, T of their seeds; empty if not measured."""
    rows = read_rows(RESULTS / f"{of_set}.csv")
    if rows and of_set in TEACHER_SETS:
        seeds = {row["seed"] for row in rows}
        teachers = read_rows(RESULTS / f"{TEACHER_SETS[of_set]}.csv")
        rows += [row for row in teachers if row["row"] == teacher_row(row["row"]) and row["seed"] in seeds]
    origins.check(of_set, rows, taught=not of_set.startswith(ALONE))
    return rows


def with_header(text: str, rows: list[dict[str, str]]) -> str:
    """Returns a flagfile's text whose first comment names the command that makes its row again, its cost and result.

    Args:
        text: of the flagfile; lines of an earlier measurement are replaced.
        rows: of this row in its set's CSV.
    """
    tests = [row for row in rows if row["split"] == "test"]
    minutes = sorted({float(row["minutes"]) for row in tests})
    cores = "/".join(sorted({row["cores"] for row in tests}))
    seeds = ", ".join(sorted({row["seed"] for row in tests}))
    apart = ", T's not counted" if has_teacher(tests[0]["row"]) else ""
    cost = " to ".join(f"{each:g}" for each in minutes[:: max(1, len(minutes) - 1)])
    header = [
        f"# Cost:     {cost} minutes a seed{apart}, CPU cores: {cores}",
        f"# Expected: {spread(tests, 'top1')} % of test right (seeds {seeds}; {max(row['date'] for row in tests)})",
    ]
    again = f"python -m experiments.run --rows={tests[0]['row']} --seeds={seeds.replace(' ', '')} --again"
    lines = [
        re.sub(r"(?<=# ).*?python -m experiments\.run .*", lambda line: line[0].partition("python")[0] + again, line)
        for line in text.splitlines()
        if not line.startswith(("# Cost:", "# Expected:"))
    ]
    first = next(index for index, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join([*lines[:first], *header, *lines[first:]]) + "\n"


def headers() -> Iterator[tuple[pathlib.Path, str]]:
    """Yields the flagfiles of measured rows, and their text with what each cost and reached."""
    for of_set in sorted({set_of(row) for row in names()}):
        rows = read_rows(RESULTS / f"{of_set}.csv")
        for name in sorted({row["row"] for row in rows}):
            path = ROWS / f"{name}.flags"
            yield path, with_header(path.read_text(), [row for row in rows if row["row"] == name])
