"""Trains the teacher T, then the downscaler E and the inference network S by each method, and compares them.

  python -m thumbnet_tf.train --flagfile=experiments/quickstart.flags
  python -m thumbnet_tf.train --dataset=folder:photos --image_size=128 --run_dir=runs/photos

The same command goes on after an interruption, and trains nothing when the run is finished.
"""

import dataclasses
import json
import logging
import pathlib
import shutil
import sys

import keras
import tensorflow as tf

from thumbnet_tf import flags, loop, stages, teacher_cache, thumbnet
from thumbnet_tf.config import Config, UserError
from thumbnet_tf.data import pipeline, sources
from thumbnet_tf.evaluate import evaluate, table
from thumbnet_tf.folding import fold
from thumbnet_tf.fused_norm import fused, plain
from thumbnet_tf.optimizers import AdamW
from thumbnet_tf.runs import RunDir, environment, load_keras, save_keras, saving, write_atomically
from thumbnet_tf.stages import METHODS, ORIGINAL
from thumbnet_tf.trainer import Trainer

_log = logging.getLogger(__name__)


def train(cfg: Config) -> RunDir:
    """Trains and evaluates everything that the configuration asks for.

    Args:
        cfg: the configuration.

    Returns:
        The run directory.

    Raises:
        UserError: on a mistake that the user can mend.
        loop.Interrupted: after SIGINT or SIGTERM, with the state saved.
    """
    cfg = cfg.resolved()
    students = stages.students(cfg)
    run = RunDir(cfg.run_dir)
    with run.lock(), thumbnet.precision(cfg.mixed_precision):
        strategy = make_strategy(cfg)
        thumbnet.check(cfg)
        run.claim(cfg)
        with run.log_to_file():
            dataset = sources.load(cfg)
            pipeline.steps_per_epoch(dataset.splits["train"], cfg)
            if cfg.teacher != "train" and not run.is_done(ORIGINAL):
                given = _given_teacher(cfg, dataset)
            run.bind_data(dataset.facts())  # all that can be checked was; from here on the directory is this run's
            for method in (ORIGINAL, *students):
                if run.is_done(method):
                    continue
                if method == ORIGINAL and cfg.teacher != "train":
                    _finish(run.method(method), {"teacher": given})
                else:
                    _finish(run.method(method), _train_method(method, cfg, run, dataset, strategy))
            evaluate(run, dataset)
    return run


def make_strategy(cfg: Config) -> tf.distribute.Strategy:
    """Returns the distribution strategy; must run before TensorFlow has touched its devices.

    Raises:
        UserError: when the batch can't be divided among the replicas, or the CPU can't be split any more.
    """
    if cfg.cpu_devices > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        try:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * cfg.cpu_devices)
        except RuntimeError:
            if len(tf.config.list_logical_devices("CPU")) != cfg.cpu_devices:
                raise UserError(
                    "--cpu_devices can't change once TensorFlow runs in this process; start a new one"
                ) from None
    kind = "GPU" if cfg.cpu_devices == 1 and tf.config.list_physical_devices("GPU") else "CPU"
    devices = [device.name for device in tf.config.list_logical_devices(kind)]
    if cfg.strategy == "none" or (cfg.strategy == "auto" and len(devices) == 1):
        return tf.distribute.get_strategy()
    if cfg.batch_size % len(devices):
        raise UserError(f"--batch_size must be a multiple of the {len(devices)} replicas. Received: {cfg.batch_size}")
    return mirrored(devices)


def mirrored(devices: list[str]) -> tf.distribute.MirroredStrategy:
    """Returns a MirroredStrategy; on CPU devices one that adds up on one device.

    TensorFlow's default there, collective operations, numbers them anew in each strategy, so that two trainings in
    one process get in each other's way.
    """
    on_cpu = all("CPU" in device for device in devices)
    return tf.distribute.MirroredStrategy(devices, tf.distribute.ReductionToOneDevice() if on_cpu else None)


def build_trainer(
    method: str, cfg: Config, num_classes: int, teacher: keras.Model | None, *, synchronized: bool = False
) -> Trainer:
    """Builds the models of a method and what trains them, without an optimizer.

    Args:
        method: a row of `stages.METHODS`.
        cfg: the configuration.
        num_classes: C.
        teacher: T; None when T itself is to be trained.
        synchronized: whether batch statistics are taken over all replicas.
    """
    keras.utils.set_random_seed(cfg.seed)  # every method starts E, S and D alike
    row = METHODS[method]
    weights = stages.loss_weights(method, cfg)
    small = (
        None if row.downscaler == "none" else thumbnet.build_downscaler(cfg, row.downscaler, synchronized=synchronized)
    )
    if row.from_teacher:
        student, anew = thumbnet.build_student(cfg, teacher, synchronized=synchronized)
        if anew:
            _log.info("%s: layers whose shape depends on the input's size start anew: %s", method, ", ".join(anew))
    else:
        student = thumbnet.build_teacher(cfg, num_classes, synchronized=synchronized)
    decoder = thumbnet.build_decoder(student, teacher, cfg.fm_tap) if "fm" in weights else None
    if not synchronized:  # over several replicas, Keras' own layer adds their statistics up
        student, small = fused(student), small and fused(small)
    if teacher is not None and cfg.mixed_precision == "float32":
        teacher = fold(teacher)  # the same function, a tenth faster; folded models compute in float32
    return Trainer(
        student,
        downscaler=small,
        teacher=teacher,
        decoder=decoder,
        loss_weights=weights,
        temperature=cfg.temperature,
        fm_tap=cfg.fm_tap,
        mm_std_weight=cfg.mm_std_weight,
        label_smoothing=cfg.label_smoothing,
        clip_norm=cfg.clip_norm,
        thumbnail_jpeg=cfg.thumbnail_jpeg,
    )


def build_optimizer(
    cfg: Config, peak_rate: float, total_steps: int, variables: list[keras.Variable]
) -> keras.Optimizer:
    """Builds the optimizer with its warm-up and cosine decay to 0.

    Args:
        cfg: the configuration.
        peak_rate: highest learning rate.
        total_steps: steps until the rate is 0.
        variables: all variables to train; weight decay leaves out biases and batch normalisation.
    """
    warmup = round(cfg.warmup_fraction * total_steps)
    rate = keras.optimizers.schedules.CosineDecay(
        peak_rate / max(warmup, 1) if warmup else peak_rate,
        max(total_steps - warmup, 1),
        warmup_target=peak_rate if warmup else None,
        warmup_steps=warmup,
    )
    common = {
        "weight_decay": cfg.weight_decay or None,
        "use_ema": cfg.ema_momentum > 0,
        "ema_momentum": cfg.ema_momentum or 0.99,
    }
    if cfg.optimizer == "sgd":
        optimizer = keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, **common)
    else:
        optimizer = AdamW(rate, **{**common, "weight_decay": cfg.weight_decay})
    optimizer.exclude_from_weight_decay(var_list=[v for v in variables if not v.path.endswith("kernel")])
    if cfg.mixed_precision == "mixed_float16":
        return keras.optimizers.LossScaleOptimizer(optimizer)
    return optimizer


def _train_method(
    method: str, cfg: Config, run: RunDir, dataset: sources.Dataset, strategy: tf.distribute.Strategy
) -> dict[str, keras.Model]:
    """Trains one method to its end and returns its models by the name they are saved under."""
    folder = run.method(method)
    is_teacher = method == ORIGINAL
    split = dataset.splits["train"]
    epochs = cfg.teacher_epochs if is_teacher else cfg.epochs
    steps = pipeline.steps_per_epoch(split, cfg)
    with strategy.scope():
        teacher = None if is_teacher else run.load_model(ORIGINAL, "teacher")
        trainer = build_trainer(
            method, cfg, len(dataset.class_names), teacher, synchronized=strategy.num_replicas_in_sync > 1
        )
        peak_rate = cfg.teacher_learning_rate if is_teacher else cfg.learning_rate
        trainer.compile(optimizer=build_optimizer(cfg, peak_rate, epochs * steps, trainer.trainable_variables))
    if METHODS[method].losses:
        caches = _caches(trainer, cfg, dataset, teacher)
        views = 0 if is_teacher else teacher_cache.number_of_views(cfg)  # T or not, all methods see the same images

        def train_batches(step: int) -> tf.data.Dataset:
            batches = pipeline.train_batches(split, cfg, start_step=step, epochs=epochs, views=views)
            return caches["train"].attach(batches) if "train" in caches else batches

        validation = pipeline.eval_batches(dataset.splits["validation"], cfg)
        loop.train(
            trainer,
            cfg,
            folder,
            name=method,
            epochs=epochs,
            steps_per_epoch=steps,
            train_batches=train_batches,
            validation_batches=caches["validation"].attach(validation) if caches else validation,
            strategy=strategy,
        )
    if is_teacher:
        return {"teacher": plain(trainer.student)}
    kind = METHODS[method].downscaler
    downscaler, student = plain(trainer.downscaler), plain(trainer.student)
    shipped = thumbnet.build_shipped(cfg, kind, downscaler, student)
    return {"downscaler": downscaler, "student": student, "shipped": shipped}


def _caches(
    trainer: Trainer, cfg: Config, dataset: sources.Dataset, teacher: keras.Model | None
) -> dict[str, teacher_cache.TeacherCache]:
    """Returns the caches of what a method uses of T, by split; none where T isn't cached."""
    if teacher is None or cfg.teacher_cache == "off":
        return {}
    maps = [cfg.fm_tap] if cfg.teacher_cache == "all" and trainer.decoder is not None else []
    used = ("train", "validation") if trainer.is_taught else ("validation",)
    splits = {name: dataset.splits[name] for name in used}
    return teacher_cache.prepare(cfg, teacher, splits, dataset.fingerprint, ["logits", *maps])


def _finish(folder: pathlib.Path, models: dict[str, keras.Model]) -> None:
    """Saves a method's models; `done.json` is written last."""
    with saving(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("logits_*.npy"):  # of a training before this one
            path.unlink()
    for name, model in models.items():
        save_keras(model, folder / f"{name}.keras")
    write_atomically(folder / "done.json", json.dumps(environment(), indent=2) + "\n")
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)


def _given_teacher(cfg: Config, dataset: sources.Dataset) -> keras.Model:
    """Loads T from a run directory or its `teacher.keras`, as this run's backbone."""
    path = pathlib.Path(cfg.teacher)
    if path.is_dir():
        classes = RunDir.existing(path).data_facts()["classes"]
        if classes != list(dataset.class_names):
            raise UserError(
                f"--teacher must know this dataset's classes in this order: {', '.join(dataset.class_names[:5])}, ... "
                f"Received: {path}, which knows {', '.join(classes[:5])}, ..."
            )
        path = path / ORIGINAL / "teacher.keras"
    given = load_keras(path)
    teacher = thumbnet.build_teacher(cfg, len(dataset.class_names))
    if given.input_shape != teacher.input_shape or thumbnet.copy_weights(given, teacher):
        raise UserError(
            f"--teacher must have this run's --backbone={cfg.backbone} --width={cfg.width:g} "
            f"--image_size={cfg.image_size} and {len(dataset.class_names)} classes. Received: {path}, which differs"
        )
    return teacher


def main(cfg: Config) -> int:
    """Runs `train` and says where everything lies."""
    flagfile = flags.flagfile_name(sys.argv[1:])
    if flagfile and cfg.run_dir == Config.run_dir:
        cfg = dataclasses.replace(cfg, run_dir=f"runs/{pathlib.Path(flagfile).stem}")
    try:
        run = train(cfg)
    except loop.Interrupted as stop:
        print(f"interrupted by {stop}; the state is saved. The same command goes on.", file=sys.stderr)
        return stop.exit_code
    print(table(run))
    print(
        f"\nmodels, logs and results: {run.path}\n"
        f"  python -m thumbnet_tf.predict --run_dir={run.path} FILE...\n"
        f"  python -m thumbnet_tf.plots   --run_dir={run.path}"
    )
    return 0


if __name__ == "__main__":
    flags.run(main, Config)
