"""Counts multiply-adds and weights in experiments/results anew: they hang on how the models are built, not on training.

  python -m experiments.recount

For CSVs of older runs, where a later version leaves out weights that change nothing. Builds T, E and S of each row by
its flagfile, with random weights and as many classes as T's own row tells; accuracies stay as they were measured.
"""

import pathlib
import sys
from collections.abc import Mapping

import keras

from experiments import run
from experiments.summary import RESULTS
from thumbnet_tf import backbones, costs, thumbnet
from thumbnet_tf.config import Config, UserError
from thumbnet_tf.csv_files import read_rows, write_rows
from thumbnet_tf.stages import METHODS, ORIGINAL

SETS = ("flowers_32", "flowers_64", "hard_24", "plant_32", "plant_56", "plant_64", "ablation_32")
RUNS = ("quickstart", "flowers_quick")  # one flagfile, several methods


def models(cfg: Config, method: str, classes: int) -> tuple[keras.Model | None, keras.Model]:
    """Returns the downscaler, if any, and the network of a method, with random weights."""
    kind = METHODS[method].downscaler
    if method != ORIGINAL and kind == "none":
        return None, backbones.build(cfg.backbone, cfg.image_size, classes, cfg.slim_width)
    teacher = thumbnet.build_teacher(cfg, classes)
    if method == ORIGINAL:
        return None, teacher
    student, _ = thumbnet.build_student(cfg if METHODS[method].losses else thumbnet.as_teacher(cfg), teacher)
    return thumbnet.build_downscaler(cfg, kind), student


def counted(cfg: Config, method: str, classes: int) -> dict[str, int]:
    """Returns what a row of a CSV says of the models: multiply-adds of the network and of E, and trainable weights."""
    small, network = models(cfg, method, classes)
    return {
        "macs": costs.macs(network),
        "macs_downscaler": 0 if small is None else costs.macs(small),
        "params": sum(costs.parameters(model) for model in (small, network) if model is not None),
    }


def classes_of(cfg: Config, macs: int) -> int:
    """Returns the number of classes with which T has so many multiply-adds."""
    two, three = (costs.macs(thumbnet.build_teacher(cfg, classes)) for classes in (2, 3))
    classes, rest = divmod(macs - two, three - two)
    if rest or classes < 0:
        raise UserError(f"T's own row must be of the T that its flagfile describes. Received: {macs} multiply-adds")
    return 2 + classes


def recount(path: pathlib.Path) -> None:
    """Writes a CSV anew, of rows or of runs by one flagfile, with what its models count now.

    Raises:
        UserError: when there is no such CSV, or no row of T in it or in that of T's set.
    """

    def key(row: Mapping[str, str]) -> tuple[str, str]:
        return row.get("row", path.stem), row["method"]

    columns = ("method", *run.COUNTS)
    if not (rows := read_rows(path, columns, words=("method",))):
        raise UserError(f"results are expected. Received: {path}, which has none")
    found = {}
    for name, method in dict.fromkeys(map(key, rows)):
        is_row = "row" in rows[0]
        cfg = (run.config_of(name) if is_row else run.configured(f"experiments/{name}.flags")).resolved()
        teacher = run.teacher_row(name) if is_row else name
        source = RESULTS / f"{run.set_of(teacher)}.csv" if is_row else path
        of_teacher = read_rows(source, columns, words=("method",))
        own = [row for row in of_teacher if (row.get("row", name), row["method"]) == (teacher, ORIGINAL)]
        if not own:
            raise UserError(f"T's own row is expected in {source}: its multiply-adds tell the classes. Received: none")
        found[name, method] = counted(cfg, method, classes_of(cfg, int(own[0]["macs"])))
    with run.writing():  # what was noted since the first look stays
        rows = read_rows(path)
        for each in rows:
            now = {name: str(value) for name, value in found.get(key(each), {}).items()}
            if any(each[name] != value for name, value in now.items()):
                changes = {name: (each[name], value) for name, value in now.items()}
                print(key(each)[0], each["seed"], each["split"], changes, flush=True)
            each |= now
        write_rows(path, list(rows[0]), rows)


def main(arguments: list[str]) -> int:
    """Counts and writes; returns the exit code."""
    if arguments:
        print(__doc__)
        return 2
    try:
        for name in (*SETS, *RUNS):
            recount(RESULTS / f"{name}.csv")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
