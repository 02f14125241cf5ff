"""TFLite on one thread: what rows of a table take for one image, beside their T, with random weights.

  python -m experiments.row_latency flowers_32 thumbnet narrow_thumbnet slim slim_as_fast

All models take turns in one process, so what counts is the ratio to T in float32. Writes
experiments/results/<set>_latency.csv and its table in experiments/README.md.
"""

import sys

import keras

from experiments.recount import models
from experiments.run import config_of, method_of, names, teacher_row
from experiments.tflite_latency import measured, published, show_all
from thumbnet_tf import thumbnet
from thumbnet_tf.config import UserError
from thumbnet_tf.stages import METHODS, ORIGINAL

CLASSES = 5  # a few more or less take no time


def network(row: str) -> tuple[str, keras.Model]:
    """Returns what classifies a row's full images: the kind of artifact that it is, and the model."""
    cfg, method = config_of(row).resolved(), method_of(row)
    small, classifier = models(cfg, method, CLASSES)
    show_all(classifier)
    if small is not None:
        return "thumbnet", thumbnet.build_shipped(cfg, METHODS[method].downscaler, small, classifier)
    return "teacher", keras.Model(classifier.input, {"logits": classifier.output["logits"]})


def main(arguments: list[str]) -> int:
    """Builds, converts, measures and prints; returns the exit code."""
    if len(arguments) < 2:
        print(__doc__)
        return 2
    of_set, rows = arguments[0], [f"{arguments[0]}_{row}" for row in arguments[1:]]
    unknown = sorted(set(rows) - set(names()))
    if unknown:
        print(f"error: rows must be ones that experiments.run --list shows. Received: {unknown}", file=sys.stderr)
        return 1
    keras.utils.set_random_seed(0)
    try:
        networks = [(ORIGINAL, *network(teacher_row(rows[0])))]
        networks += [(name, *network(row)) for name, row in zip(arguments[1:], rows, strict=True)]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    found = measured(
        [(name, artifact, variant, model) for name, artifact, model in networks for variant in ("float32", "int8")]
    )
    return published(f"{of_set}_latency", found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
