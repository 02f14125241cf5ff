"""TFLite on one thread at 224 px, ratio 4: the teacher T as float32 against E + S, ResNet-18, random weights.

  python -m experiments.tflite_latency

All models take turns in one process, so what counts is the ratio. Writes experiments/results/tflite_latency.csv and its
table in experiments/README.md.
"""

import pathlib
import sys
import tempfile

import keras
import numpy as np

from experiments.summary import RESULTS, ROOT, replace_table
from thumbnet_tf import parity, tflite, thumbnet, warmup
from thumbnet_tf.config import Config
from thumbnet_tf.csv_files import write_rows

IMAGES = 320
COLUMNS = ("model", "variant", "bytes", "latency_ms_p10", "latency_ms_p50", "latency_ms_p95", "teacher_over_it_p50")
MODELS = (("teacher", "float32"), ("thumbnet", "float32"), ("thumbnet", "int8"), ("classifier", "int8"))


def main() -> int:
    """Builds, converts, measures and prints."""
    cfg = Config(image_size=224, ratio=4, backbone="resnet18", width=1.0)
    keras.utils.set_random_seed(0)
    teacher = thumbnet.build_teacher(cfg, 1000)
    for layer in teacher.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.gamma.assign(keras.ops.ones_like(layer.gamma))  # a converter drops what a 0 hides
    student, _ = thumbnet.build_student(cfg, teacher)
    small = thumbnet.build_downscaler(cfg, "learned")
    models = thumbnet.deployed(thumbnet.build_shipped(cfg, "learned", small, student), teacher)
    of = {"teacher": models.teacher, "thumbnet": models.shipped, "classifier": models.student}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        subjects = []
        for model, variant in MODELS:
            size = of[model].input.shape[1]
            path = folder / f"{model}_{variant}.tflite"
            path.write_bytes(tflite.convert(of[model], model, variant, calibration=warmup.image(size)[None]))
            subjects.append(parity.Subject(model, variant, path))
        for inputs, size in (("images", cfg.image_size), ("thumbnails", cfg.thumbnail_size)):
            np.save(folder / f"{inputs}.npy", np.stack([warmup.image(size)] * IMAGES))
        times = [times for _, times in parity.run(folder, "tflite", subjects, 1, IMAGES)]
        rows = [
            {
                "model": subject.artifact,
                "variant": subject.variant,
                "bytes": subject.num_bytes,
                **{f"latency_ms_p{p}": f"{np.percentile(values, p):.3f}" for p in (10, 50, 95)},
                "teacher_over_it_p50": f"{np.median(times[0]) / np.median(values):.2f}",
            }
            for subject, values in zip(subjects, times, strict=True)
        ]
    write_rows(RESULTS / "tflite_latency.csv", COLUMNS, rows)
    table = markdown(rows)
    replace_table(ROOT / "experiments" / "README.md", "tflite_latency", table)
    print(table)
    return 0


def markdown(rows: list[dict]) -> str:
    """Returns the rows as a table."""
    lines = (COLUMNS, ["---"] * 2 + ["---:"] * (len(COLUMNS) - 2), *([str(row[c]) for c in COLUMNS] for row in rows))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
