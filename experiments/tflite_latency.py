"""TFLite on one thread at 224 px, ratio 4: the teacher T as float32 against E + S, ResNet-18, random weights.

  python -m experiments.tflite_latency

All models take turns in one process, so what counts is the ratio. Writes experiments/results/tflite_latency.csv and its
table in experiments/README.md.
"""

import pathlib
import sys
import tempfile
from collections.abc import Sequence

import keras
import numpy as np

from experiments.summary import RESULTS, ROOT, replace_table
from thumbnet_tf import parity, tflite, thumbnet, warmup
from thumbnet_tf.config import Config, UserError
from thumbnet_tf.csv_files import write_rows

IMAGES = 320
COLUMNS = ("model", "variant", "bytes", "latency_ms_p10", "latency_ms_p50", "latency_ms_p95", "teacher_over_it_p50")
MODELS = (("teacher", "float32"), ("thumbnet", "float32"), ("thumbnet", "int8"), ("classifier", "int8"))


def show_all(model: keras.Model) -> keras.Model:
    """Returns a model whose residual branches don't start at 0, for a converter drops what a 0 hides."""
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.gamma.assign(keras.ops.ones_like(layer.gamma))
    return model


def measured(cases: Sequence[tuple[str, str, str, keras.Model]]) -> list[dict]:
    """Converts models and measures calls of one image on one thread, all in turns in one process.

    Args:
        cases: a name for the row, what the model is (see `parity.Subject`), its variant, and the model; first comes
            what the others are compared with. All that take images, or thumbnails, take one size of them.

    Returns:
        Rows of `COLUMNS`.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        subjects, sizes = [], {}
        for index, (_, artifact, variant, model) in enumerate(cases):
            path = folder / f"{index}.tflite"
            size = model.input.shape[1]
            path.write_bytes(tflite.convert(model, artifact, variant, calibration=warmup.image(size)[None]))
            subjects.append(parity.Subject(artifact, variant, path))
            sizes[subjects[-1].input] = size
        for file, size in sizes.items():
            np.save(folder / file, np.stack([warmup.image(size)] * IMAGES))
        times = [times for _, times in parity.run(folder, "tflite", subjects, 1, IMAGES)]
        return [
            {
                "model": case[0],
                "variant": subject.variant,
                "bytes": subject.num_bytes,
                **{f"latency_ms_p{p}": f"{np.percentile(values, p):.3f}" for p in (10, 50, 95)},
                "teacher_over_it_p50": f"{np.median(times[0]) / np.median(values):.2f}",
            }
            for case, subject, values in zip(cases, subjects, times, strict=True)
        ]


def main() -> int:
    """Builds, converts, measures and prints."""
    cfg = Config(image_size=224, ratio=4, backbone="resnet18", width=1.0)
    keras.utils.set_random_seed(0)
    teacher = show_all(thumbnet.build_teacher(cfg, 1000))
    student, _ = thumbnet.build_student(cfg, teacher)
    small = thumbnet.build_downscaler(cfg, "learned")
    models = thumbnet.deployed(thumbnet.build_shipped(cfg, "learned", small, student), teacher)
    of = {"teacher": models.teacher, "thumbnet": models.shipped, "classifier": models.student}
    rows = measured([(model, model, variant, of[model]) for model, variant in MODELS])
    return published("tflite_latency", rows)


def published(name: str, rows: list[dict]) -> int:
    """Writes rows as `results/<name>.csv` and as the table of that name, and prints it; returns the exit code."""
    write_rows(RESULTS / f"{name}.csv", COLUMNS, rows)
    table = markdown(rows)
    print(table)
    try:
        replace_table(ROOT / "experiments" / "README.md", name, table)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def markdown(rows: list[dict]) -> str:
    """Returns the rows as a table."""
    lines = (COLUMNS, ["---"] * 2 + ["---:"] * (len(COLUMNS) - 2), *([str(row[c]) for c in COLUMNS] for row in rows))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
