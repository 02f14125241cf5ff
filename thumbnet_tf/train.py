"""Trains the teacher T, then the downscaler E and the inference network S by each method, and compares them.

  python -m thumbnet_tf.train --flagfile=experiments/quickstart.flags
  python -m thumbnet_tf.train --dataset=folder:photos --image_size=128 --run_dir=runs/photos
  python -m thumbnet_tf.train --dataset=folder:photos --teacher=mine.keras --image_size=224 --ratios=2,4

The same command goes on after an interruption, and trains nothing when the run is finished.
"""

import contextlib
import dataclasses
import logging
import math
import pathlib
import secrets
import shutil
import signal
import sys
import types
import zlib
from collections.abc import Collection, Sequence

import keras
import tensorflow as tf

from thumbnet_tf import (
    compare,
    distribution,
    flags,
    graph,
    loop,
    memory,
    stages,
    teacher_cache,
    teacher_check,
    teachers,
    thumbnet,
    timing,
)
from thumbnet_tf.assembly import build_trainer
from thumbnet_tf.config import Config, UserError
from thumbnet_tf.data import pipeline, sources
from thumbnet_tf.evaluate import evaluate, table
from thumbnet_tf.files import logging_to, write_atomically
from thumbnet_tf.optimizers import build_optimizer
from thumbnet_tf.runs import RunDir, finish
from thumbnet_tf.stages import METHODS, ORIGINAL
from thumbnet_tf.trainer import Trainer

_log = logging.getLogger(__name__)


class _CallableModule(types.ModuleType):
    """Makes `thumbnet_tf.train(config)` a call of `train`.

    The package's attribute `train` becomes this module as soon as anything imports it, so the module itself is called.
    """

    def __call__(self, cfg: Config) -> RunDir:
        return train(cfg)


sys.modules[__name__].__class__ = _CallableModule


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
    if cfg.ratios:
        raise UserError(
            "train takes one ratio; give several to thumbnet_tf.train.train_ratios. "
            f"Received: ratios={','.join(cfg.ratios)}"
        )
    return _train(cfg, (cfg.ratio,))


def _train(cfg: Config, ratios: Sequence[int]) -> RunDir:
    """Does what `train` says; first checks that T goes with some ratios, those of later runs included."""
    cfg = cfg.resolved()
    students = stages.students(cfg)
    run = RunDir(cfg.run_dir)
    job = distribution.start(cfg)
    lock = run.lock() if job.is_chief else contextlib.nullcontext()
    with lock, graph.precision(cfg.mixed_precision), job.watched(lambda: "between two methods"):
        if job.is_chief and not all(map(run.is_done, (ORIGINAL, *students))):
            _check_precision(cfg)  # before anything is computed in it
        makes_teacher = job.is_chief and not run.is_done(ORIGINAL)  # trains it, or takes the one given
        given = teachers.load(cfg) if makes_teacher and not cfg.trains_teacher else None
        if given is not None or cfg.trains_teacher:
            missing = tuple(name for name in students if not run.is_done(name))
            for ratio in ratios:
                thumbnet.check(dataclasses.replace(cfg, ratio=ratio, methods=missing), given, initial=makes_teacher)
        _claim(run, cfg, job)
        with logging_to(run.path / "log.txt") if job.is_chief else contextlib.nullcontext():
            if job.machines > 1:
                with job.chief_first():  # they may share the directory that it is prepared in
                    sources.prepare(cfg)
            dataset = sources.load(cfg)
            pipeline.steps_per_epoch(dataset.splits["train"], cfg)
            if makes_teacher:
                pipeline.warn_of_unresized(dataset.splits["validation"], cfg)
            facts = dataset.facts()
            if job.is_chief:
                facts |= teachers.facts(cfg, run)
                if given is not None:
                    teacher_check.check_classes(given, cfg, dataset)
                if not (run.path / "data.json").exists():
                    _check_room(cfg, dataset, students, given)
                run.bind_data(facts)  # all that can be checked was; from here on the directory is this run's
                run.record(cfg)
            job.barrier()
            if not job.is_chief:
                distribution.await_shared(run.path / "data.json", job)
                run.check_data(dataset.facts())
            if job.is_chief and not all(map(run.is_done, (ORIGINAL, *students))):
                _warn_of_slow_precision(cfg)
            for method in (ORIGINAL, *students):
                if job.from_chief(run.is_done(method)):
                    if job.is_chief:  # left there by a start that was killed just before it deleted them
                        shutil.rmtree(run.method(method) / "checkpoints", ignore_errors=True)
                    continue
                if method != ORIGINAL or cfg.trains_teacher:
                    models = _train_method(method, cfg, run, dataset, job)
                elif job.is_chief:
                    models = {"teacher": given}
                if job.is_chief:
                    finish(run.method(method), models)
            if job.is_chief:
                evaluate(run, dataset)
            job.barrier()  # who leaves earlier looks lost to the others
    return run


def train_ratios(cfg: Config) -> str:
    """Trains at each of `--ratios` with one T, and returns which network to take, as text.

    Raises:
        UserError, loop.Interrupted: as `train`.
    """
    configs = compare.configs(cfg)
    runs = [_train(each, [later.ratio for later in configs[index:]]) for index, each in enumerate(configs)]
    labels = sources.load(configs[0].resolved(), ("validation",)).splits["validation"].labels
    rows = compare.compare(cfg.run_dir, runs, labels, cfg.max_drop)
    return compare.recommendation(rows, cfg.max_drop)


def _claim(run: RunDir, cfg: Config, job: distribution.Job) -> None:
    """Makes the directory this configuration's, and checks that all machines see it and have the same flags."""
    if job.is_chief:
        run.claim(cfg)
    if job.machines == 1:
        return
    token, path = secrets.randbits(48), run.path / "start"
    if job.is_chief:
        write_atomically(path, f"{token}\n")
    distribution.await_shared(path, job, f"{job.from_chief(token)}\n")
    if not job.is_chief:
        run.join(cfg)
    methods = ",".join(cfg.methods)
    if job.from_chief(digest := zlib.crc32(methods.encode())) != digest:
        raise UserError(f"--methods must be the same on all machines, and the first has others. Received: {methods}")


def _check_precision(cfg: Config) -> None:
    mixed = cfg.mixed_precision.removeprefix("mixed_")
    if mixed != "float32" and math.isinf(timing.slowdown(mixed)):
        raise UserError(
            "--mixed_precision must be what TensorFlow can compute convolutions in on this machine; unset "
            f"ONEDNN_MAX_CPU_ISA if it is set, or give float32. Received: {cfg.mixed_precision}"
        )


def _warn_of_slow_precision(cfg: Config) -> None:
    """Says so where the machine computes in `--mixed_precision` more slowly than in float32."""
    if cfg.mixed_precision == "float32":
        return
    slowdown = timing.slowdown(cfg.mixed_precision.removeprefix("mixed_"))
    if slowdown > timing.SLOW:
        _log.warning(
            "--mixed_precision=%s: a convolution and its gradients take %.0f times as long as in float32 on this "
            "machine; --mixed_precision=float32, in a new --run_dir, trains faster",
            cfg.mixed_precision,
            slowdown,
        )


def _train_method(
    method: str, cfg: Config, run: RunDir, dataset: sources.Dataset, job: distribution.Job
) -> dict[str, keras.Model]:
    """Trains one method to its end and returns its models by the name they are saved under."""
    folder, is_teacher = run.method(method), method == ORIGINAL
    if is_teacher:
        cfg = dataclasses.replace(cfg, mixup_alpha=0.0)  # as its option says
    split = dataset.splits["train"]
    epochs = cfg.teacher_epochs if is_teacher else cfg.epochs
    steps = pipeline.steps_per_epoch(split, cfg)
    if not is_teacher:
        distribution.await_shared(run.method(ORIGINAL) / "teacher.keras", job)
    with job.strategy.scope():
        teacher = None if is_teacher else run.load_model(ORIGINAL, "teacher")
        trainer = build_trainer(
            method,
            cfg,
            len(dataset.class_names),
            teacher,
            mapping_steps=cfg.mapping_epochs * steps,
            synchronized=job.strategy.num_replicas_in_sync > 1,
        )
        peak_rate = cfg.teacher_learning_rate if is_teacher else cfg.learning_rate
        learned = trainer.trainable_variables, trainer.late_variables(), trainer.mapping_steps
        trainer.compile(optimizer=build_optimizer(cfg, peak_rate, epochs * steps, *learned))
    if METHODS[method].losses:
        trained = [part for part in (trainer.student, trainer.downscaler, trainer.decoder) if part is not None]
        memory.warn_of_large_batch(cfg, trained, job.machines)
        caches = _caches(trainer, cfg, dataset, teacher)
        views = 0 if is_teacher else teacher_cache.number_of_views(cfg)  # T or not, all methods see the same images

        def train_batches(step: int, context: tf.distribute.InputContext) -> tf.data.Dataset:
            batches = pipeline.train_batches(split, cfg, step, epochs, views=views, context=context)
            return caches["train"].attach(batches) if "train" in caches else batches

        def validation_batches(context: tf.distribute.InputContext) -> tf.data.Dataset:
            batches = pipeline.eval_batches(dataset.splits["validation"], cfg, context=context)
            return caches["validation"].attach(batches) if caches else batches

        loop.train(
            trainer,
            cfg,
            folder,
            name=method,
            epochs=epochs,
            steps_per_epoch=steps,
            train_batches=train_batches,
            validation_batches=validation_batches,
            job=job,
        )
    if is_teacher and job.is_chief:
        teacher_check.warn_at_chance(folder, dataset.splits["validation"].labels)
    kind, (small, student) = METHODS[method].downscaler, trainer.trained()
    if kind == "none":
        return {"teacher" if is_teacher else "student": student}
    return {"downscaler": small, "student": student, "shipped": thumbnet.build_shipped(cfg, kind, small, student)}


def _caches(
    trainer: Trainer, cfg: Config, dataset: sources.Dataset, teacher: keras.Model | None
) -> dict[str, teacher_cache.TeacherCache]:
    """Returns the caches of what a method uses of T, by split; none where T isn't cached."""
    if teacher is None or cfg.teacher_cache == "off":
        return {}
    caches = _open_caches(cfg, dataset, teacher, trainer.term_weights)
    with loop.explained(cfg, lambda: "T's outputs"):
        teacher_cache.prepare(cfg, teacher, caches)
    return caches


def _open_caches(
    cfg: Config, dataset: sources.Dataset, teacher: keras.Model, losses: Collection[str]
) -> dict[str, teacher_cache.TeacherCache]:
    """Returns the caches, complete or not, of what some losses use of T."""
    decoded = cfg.teacher_cache == "all" and set(stages.DECODED) & set(losses)
    maps = [thumbnet.fm_tap(cfg, teacher)] if decoded else []
    used = ("train", "validation") if set(stages.TAUGHT) & set(losses) else ("validation",)
    splits = {name: dataset.splits[name] for name in used}
    return teacher_cache.open_caches(cfg, teacher, splits, dataset.fingerprint, ["logits", *maps])


def _check_room(cfg: Config, dataset: sources.Dataset, students: Sequence[str], given: keras.Model | None) -> None:
    """Checks, before T is trained and the directory is this run's, that the caches of all methods will have room."""
    losses = {term for method in students for term in stages.loss_weights(method, cfg)}
    if cfg.teacher_cache == "off" or not losses:
        return
    teacher = given or thumbnet.build_teacher(cfg, len(dataset.class_names))  # a new T has no cache yet, as this one
    caches = _open_caches(cfg, dataset, teacher, losses)
    absent = {c: [file for file in c.files() if not c.path(*file).is_file()] for c in caches.values()}
    if any(absent.values()):
        teacher_cache.check_room(cfg, absent)


def main(cfg: Config) -> int:
    """Runs `train` and says where everything lies."""
    flagfile = flags.flagfile_name(sys.argv[1:])
    if flagfile and cfg.run_dir == Config.run_dir and not flags.is_given("run_dir"):
        cfg = dataclasses.replace(cfg, run_dir=f"runs/{pathlib.Path(flagfile).stem}")
    try:
        if cfg.ratios:
            recommended = train_ratios(cfg)
            print(f"{recommended}\n\na run directory each: {', '.join(each.run_dir for each in compare.configs(cfg))}")
            return 0
        run = train(cfg)
    except loop.Interrupted as stop:
        print(f"interrupted by {stop}; the state is saved. The same command goes on.", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:  # between trainings
        print("interrupted; what was finished is kept. The same command goes on.", file=sys.stderr)
        return 128 + signal.SIGINT
    if not distribution.task_of(cfg).is_chief:
        print(f"done; the first machine has written models, logs and results to {run.path}")
        return 0
    print(
        f"{table(run)}\n\nmodels, logs and results: {run.path}\n"
        f"  python -m thumbnet_tf.predict --run_dir={run.path} FILE...\n"
        f"  python -m thumbnet_tf.plots   --run_dir={run.path}"
    )
    return 0


if __name__ == "__main__":
    flags.run(main, Config)
