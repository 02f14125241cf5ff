"""What inference costs: T on the full image against E + S, and S alone on its thumbnail.

Measured are a batch of one (latency) and of 32 (throughput) in TensorFlow on the CPU, as a plain Keras call on float32
images and frozen (`frozen.py`) on uint8, TFLite in float32 on one thread, and the activations' peak memory; beside them
stand the multiply-adds.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

from thumbnet_tf import costs, foreign, peak_memory, tflite, thumbnet, timing
from thumbnet_tf.benchmark_report import figure, markdown, publish
from thumbnet_tf.config import Config
from thumbnet_tf.frozen import freeze
from thumbnet_tf.predict import choose_method
from thumbnet_tf.progress import track
from thumbnet_tf.runs import RunDir
from thumbnet_tf.stages import ORIGINAL

COLUMNS = (
    "case",
    "backbone",
    "model",
    "image_size",
    "ratio",
    "batch",
    "median",
    "p10",
    "p90",
    "p95",
    "unit",
    "macs",
    "teacher_over_it",
)
BATCH = 32  # images of the large batch
MODELS = {"teacher": "teacher", "thumbnet": "thumbnet", "student": "classifier"}  # -> its name as a TFLite file
_SINGLE = {"calls": 20, "warm_up": 5}  # in a turn, of one image: the weights are in the caches as far as they fit
_MANY = {"calls": 1, "warm_up": 0}  # of a large batch, which comes through the caches anew each time
_UNITS = {"macs": "multiply-adds", "peak_memory": "bytes", "peak_memory_uint8": "bytes"}

Key = tuple[str, str, int]  # case, model, ratio


@dataclasses.dataclass(frozen=True)
class Subject:
    """Models to compare.

    Attributes:
        cfg: their configuration.
        models: T, E + S and S.
    """

    cfg: Config
    models: thumbnet.Deployed

    @property
    def backbone(self) -> str:
        """What T and S are called: `own_teacher` where T is the user's own."""
        name = self.models.teacher.name
        return name if name == foreign.NAME else self.cfg.backbone

    @property
    def by_name(self) -> dict[str, keras.Model]:
        """The compared models; T without its taps, which nobody asks for in use."""
        teacher = self.models.teacher
        teacher = keras.Model(teacher.input, {"logits": teacher.output["logits"]}, name="teacher")
        return {"teacher": teacher, "thumbnet": self.models.shipped, "student": self.models.student}


def run(options: Any) -> None:
    """Measures, writes `benchmark_inference.csv` and `.png`, and prints the table.

    Args:
        options: of the main (`run_dir`, `method`, `folder`, `rounds`, `quick`).

    Raises:
        UserError: when the run can't be read, memory can't be measured, or the results can't be written.
    """
    tf.config.set_visible_devices([], "GPU")  # what is measured is a CPU
    subjects, folder = [], options.folder
    if options.run_dir:
        found = RunDir.existing(options.run_dir)
        method = choose_method(found, options.method, of_thumbnails=True)
        subjects, folder = [of_run(found, method)], options.out or str(found.method(method) / "benchmark")
    rows = measure(subjects or list(random_subjects(options.quick)), options.rounds)
    publish(folder, "benchmark_inference", COLUMNS, rows, figure(rows), markdown(rows))


def random_subjects(quick: bool) -> Iterable[Subject]:
    """Makes models of random weights and statistics: ResNet-18 and -50 at 224 px, ratio 2 and 4, 1000 classes."""
    for backbone in ("resnet18",) if quick else ("resnet18", "resnet50"):
        for ratio in (4,) if quick else (2, 4):
            yield random_subject(Config(image_size=224, ratio=ratio, backbone=backbone), 1000)


def random_subject(cfg: Config, classes: int) -> Subject:
    """Makes random models; the statistics are random too, for what a 0 hides is left out by the graph optimisers."""
    random = np.random.default_rng(0)
    teacher, small = thumbnet.build_teacher(cfg, classes), thumbnet.build_downscaler(cfg, "learned")
    for layer in (*teacher.layers, *small.layers):
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.gamma.assign(random.uniform(0.5, 1.0, layer.gamma.shape))
            layer.beta.assign(random.normal(0, 0.1, layer.beta.shape))
            layer.moving_mean.assign(random.normal(0, 0.1, layer.beta.shape))
    student, _ = thumbnet.build_student(cfg, teacher)
    return Subject(cfg, thumbnet.deployed(thumbnet.build_shipped(cfg, "learned", small, student), teacher))


def of_run(run: RunDir, method: str) -> Subject:
    """Loads the models of a run's finished method of thumbnails.

    Raises:
        UserError: when its files can't be read.
    """
    models = thumbnet.deployed(run.load_model(method, "shipped"), run.load_model(ORIGINAL, "teacher"))
    return Subject(run.config(), models)


def measure(subjects: Sequence[Subject], rounds: int) -> list[dict[str, object]]:
    """Measures all cases.

    Args:
        subjects: what to compare; those of one backbone and size must share their teacher's shape.
        rounds: turns of each case.

    Returns:
        A row by `COLUMNS` for each case and model. `teacher_over_it` is how many times T's cost it is (time, bytes or
        multiply-adds).

    Raises:
        UserError: when memory can't be measured.
    """
    rows = []
    for backbone in dict.fromkeys(subject.backbone for subject in subjects):
        chosen = [subject for subject in subjects if subject.backbone == backbone]
        models = {("teacher", 1): chosen[0].by_name["teacher"]}  # one T for all ratios
        for subject in chosen:
            models |= {(name, subject.cfg.ratio): subject.by_name[name] for name in MODELS if name != "teacher"}
        values = {("macs", *key): np.array([costs.macs(model)]) for key, model in models.items()}
        for case, dtype in (("peak_memory", "float32"), ("peak_memory_uint8", "uint8")):
            memory = peak_memory.measure(list(models.values()), BATCH, dtype)
            values |= {(case, *key): np.array([size]) for key, size in zip(models, memory, strict=True)}
        values |= _times(backbone, models, rounds)
        rows += [_row(key, found, values, chosen[0]) for key, found in values.items()]
    return rows


def _times(backbone: str, models: Mapping[tuple[str, int], keras.Model], rounds: int) -> dict[Key, np.ndarray]:
    """Returns the milliseconds of all calls by case, model and ratio."""
    single: dict[Key, Callable] = {}
    many: dict[Key, Callable] = {}
    lite: dict[Key, Callable] = {}
    for key, model in track(list(models.items()), len(models), f"{backbone}: freezing and converting"):
        frozen = freeze(model)
        function = tf.function(lambda images, model=model: model(images, training=False), autograph=False)
        for cases, count, suffix in ((single, 1, "latency"), (many, BATCH, "throughput")):
            images = np.random.default_rng(0).integers(0, 256, (count, *model.input.shape[1:]), np.uint8)
            pixels, images = tf.constant(images), tf.constant(images.astype(np.float32))
            cases[f"keras_{suffix}", *key] = lambda model=model, images=images: model(images, training=False)
            cases[f"frozen_{suffix}", *key] = lambda frozen=frozen, pixels=pixels: frozen(pixels)
            if count == 1:
                single["function_latency", *key] = lambda function=function, images=images: function(images)
        lite["tflite_latency", *key] = _interpreter(tflite.convert(model, MODELS[key[0]], "float32"))
    found = {}
    for cases, turn, what in ((single, _SINGLE, "batch 1"), (lite, _SINGLE, "TFLite"), (many, _MANY, f"batch {BATCH}")):
        found |= timing.measure(cases, rounds=rounds, **turn, what=f"{backbone}: {what}")
    return found


def _interpreter(content: bytes) -> Callable[[], None]:
    interpreter = Interpreter(model_content=content, num_threads=1)
    interpreter.allocate_tensors()
    (given,) = interpreter.get_input_details()
    interpreter.set_tensor(given["index"], np.random.default_rng(0).integers(0, 256, given["shape"], np.uint8))
    return interpreter.invoke


def _row(key: Key, found: np.ndarray, values: Mapping[Key, np.ndarray], subject: Subject) -> dict[str, object]:
    case, model, ratio = key
    row = {
        "case": case,
        "backbone": subject.backbone,
        "model": model,
        "image_size": subject.cfg.image_size,
        "ratio": ratio,
        "batch": BATCH if "memory" in case or case.endswith("throughput") else 1,
        "macs": values["macs", model, ratio][0],
        "teacher_over_it": f"{np.median(values[case, 'teacher', 1]) / max(1e-9, np.median(found)):.2f}",
        "unit": _UNITS.get(case, "ms"),
    }
    if case.endswith("throughput"):
        row["unit"], found = "images/s", 1000 * BATCH / found
    digits = 0 if case in _UNITS else 3
    row["median"] = f"{np.median(found):.{digits}f}"
    return row | {f"p{percent}": f"{np.percentile(found, percent):.{digits}f}" for percent in (10, 90, 95)}
