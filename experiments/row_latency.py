"""TFLite on one thread: what rows of a table take for one image, beside their T, with random weights.

  python -m experiments.row_latency flowers_32 original thumbnet narrow_thumbnet slim slim_as_fast

All models take turns in one process, so what counts is the ratio: how many times faster each is than the first row in
float32. Writes experiments/results/<set>_latency.csv and its table in experiments/README.md.
"""

import sys

import keras

from experiments.run import config_of, names
from experiments.summary import RESULTS, ROOT, replace_table
from experiments.tflite_latency import COLUMNS, markdown, measured, show_all
from thumbnet_tf import backbones, thumbnet
from thumbnet_tf.csv_files import write_rows
from thumbnet_tf.stages import METHODS, ORIGINAL

CLASSES = 5


def network(row: str) -> tuple[str, keras.Model]:
    """Returns what a row classifies full images with, random weights in it, and what kind of artifact it is."""
    cfg = config_of(row)
    (method,) = cfg.methods or (ORIGINAL,)
    kind = METHODS[method].downscaler
    teacher = thumbnet.build_teacher(cfg, CLASSES)
    if kind != "none":
        student = show_all(thumbnet.build_student(cfg, teacher)[0])
        return "thumbnet", thumbnet.build_shipped(cfg, kind, thumbnet.build_downscaler(cfg, kind), student)
    if method != ORIGINAL:
        teacher = backbones.build(cfg.backbone, cfg.image_size, CLASSES, cfg.slim_width)
    return "teacher", keras.Model(teacher.input, {"logits": show_all(teacher).output["logits"]})


def main(arguments: list[str]) -> int:
    """Builds, converts, measures and prints; returns the exit code."""
    if len(arguments) < 2:
        print(__doc__)
        return 2
    of_set, *rows = arguments
    unknown = [row for row in rows if f"{of_set}_{row}" not in names()]
    if unknown:
        print(f"error: rows must be ones that experiments.run --list shows. Received: {unknown}", file=sys.stderr)
        return 1
    keras.utils.set_random_seed(0)
    networks = [(row, *network(f"{of_set}_{row}")) for row in rows]
    cases = [(row, kind, variant, model) for row, kind, model in networks for variant in ("float32", "int8")]
    found = measured(cases)
    write_rows(RESULTS / f"{of_set}_latency.csv", COLUMNS, found)
    table = markdown(found)
    print(table)
    replace_table(ROOT / "experiments" / "README.md", f"{of_set}_latency", table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
