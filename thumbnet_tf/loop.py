"""The training loop: steps over `strategy.run`, epochs, validation, logs, checkpoints and exact resume.

Every training resumes as if nothing had been, at the step of a signal or else of the last checkpoint: the batch is a
function of the global step (`data/pipeline.py`), and a checkpoint holds all variables, the optimizer's and the running
means' included.
"""

import functools
import logging
import math
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import keras
import tensorflow as tf

from thumbnet_tf.checkpoints import Checkpoints
from thumbnet_tf.config import Config, UserError
from thumbnet_tf.csv_files import read_rows, write_rows
from thumbnet_tf.distribution import Job
from thumbnet_tf.files import reason, saving
from thumbnet_tf.progress import track
from thumbnet_tf.teacher_cache import UNREADABLE
from thumbnet_tf.trainer import Trainer

TERMS = ("loss", "cl", "kd", "fm", "mm", "accuracy", "agreement")
COLUMNS = ("epoch", "step", "learning_rate", *TERMS, *(f"val_{name}" for name in TERMS), "images_per_second")

_LOG_STEPS = 25
# what TensorFlow says of a file that was an image when the run began
_NO_IMAGE = ("Unknown image file format", "Invalid JPEG", "Invalid PNG", "Input is empty", "Permission denied")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)

_log = logging.getLogger(__name__)


class Interrupted(Exception):
    """SIGINT or SIGTERM arrived; the state is saved."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


def train(
    trainer: Trainer,
    cfg: Config,
    folder: pathlib.Path,
    *,
    name: str,
    epochs: int,
    steps_per_epoch: int,
    train_batches: Callable[[int, tf.distribute.InputContext], tf.data.Dataset],
    validation_batches: Callable[[tf.distribute.InputContext], tf.data.Dataset],
    job: Job,
) -> None:
    """Trains to the end, from the last checkpoint in `folder` where there is one.

    Args:
        trainer: compiled with an optimizer, built under the strategy's scope.
        cfg: the run's configuration.
        folder: gets `checkpoints/`, `metrics.csv` and `tensorboard/`, from the chief of several machines.
        name: for the progress line.
        epochs: number of epochs.
        steps_per_epoch: steps in each.
        train_batches: maps a global step and a machine's share to the batches from there to the end.
        validation_batches: maps a machine's share to the batches of the validation split.
        job: the strategy, and the machines that train together.

    Raises:
        Interrupted: after SIGINT or SIGTERM on any machine, with the state saved.
        UserError: when the loss is not finite, the state can't be written, or another machine is gone.
    """
    strategy = job.strategy
    if job.is_chief:
        with saving(folder):
            folder.mkdir(parents=True, exist_ok=True)
    step_variable = tf.Variable(0, dtype=tf.int64, trainable=False)
    with strategy.scope():
        trainer.optimizer.build(trainer.trainable_variables)
    # everything that changes while training; the teacher doesn't
    parts = {"student": trainer.student, "downscaler": trainer.downscaler, "decoder": trainer.decoder}
    state = {key: part.variables for key, part in parts.items() if part is not None and part.variables}
    state |= {f"mean_{tracker.name}": tracker.variables for tracker in trainer.metrics}
    state |= {"optimizer": trainer.optimizer.variables, "step": step_variable}
    checkpoints = Checkpoints(folder / "checkpoints", state, job)
    if checkpoints.restore():
        _log.info("%s: resuming at step %d", name, int(step_variable))
    step, total = int(step_variable), epochs * steps_per_epoch
    rows = _rows_until(folder / "metrics.csv", step) if job.is_chief else []
    run_step, run_test = _compiled(trainer, strategy)
    writer = (
        tf.summary.create_file_writer(str(folder / "tensorboard"))
        if cfg.tensorboard and job.is_chief
        else tf.summary.create_noop_writer()
    )
    batches = strategy.distribute_datasets_from_function(functools.partial(train_batches, step))
    validation = strategy.distribute_datasets_from_function(validation_batches)

    with (
        _signals() as received,
        track(None, total, name, done=step) as bar,
        explained(cfg, lambda: f"{name}, step {step}"),
        job.watched(lambda: f"{name}, step {step}"),
    ):
        last_save = time.monotonic()
        epoch_start, epoch_first_step = time.monotonic(), step
        for batch in batches if step < total else ():
            run_step(batch)
            step += 1
            at_epoch_end = step % steps_per_epoch == 0
            if at_epoch_end or step % _LOG_STEPS == 0:
                _check_finite(trainer, name, step)
                bar.set_postfix_str(_summary(trainer, step, steps_per_epoch, epochs), refresh=False)
            bar.update()
            if at_epoch_end:
                seconds = time.monotonic() - epoch_start
                row = {
                    "epoch": step // steps_per_epoch,
                    "step": step,
                    "learning_rate": f"{_learning_rate(trainer, step):.8g}",
                    **_means(trainer, "", trainer.is_taught),
                    **_validate(trainer, run_test, validation, name, step),
                    "images_per_second": f"{(step - epoch_first_step) * cfg.batch_size / seconds:.1f}",
                }
                rows.append(row)
                if job.is_chief:
                    write_rows(folder / "metrics.csv", COLUMNS, rows)
                    with saving(folder / "tensorboard"):
                        _log_tensorboard(writer, row)
                trainer.reset_metrics()
                epoch_start, epoch_first_step = time.monotonic(), step
            # clocks differ and a signal reaches one machine: all do what the chief's clock or any signal asks for
            is_due = step == total or (job.is_chief and time.monotonic() - last_save >= cfg.checkpoint_seconds)
            due, *signals = job.sum([is_due, *(number in received for number in _SIGNALS)])
            stop = next((number for number, count in zip(_SIGNALS, signals, strict=True) if count), None)
            if due or stop:
                step_variable.assign(step)
                checkpoints.save(step)
                last_save = time.monotonic()
            if stop:
                raise Interrupted(stop)
        signals = job.sum([number in received for number in _SIGNALS])  # such as came during the last save
        if any(signals):
            raise Interrupted(next(number for number, count in zip(_SIGNALS, signals, strict=True) if count))
    if received:  # while this machine waited for the others' answers; they will find it gone
        raise Interrupted(received[0])
    if cfg.ema_momentum > 0:
        trainer.optimizer.finalize_variable_values(trainer.trainable_variables)


@contextmanager
def explained(cfg: Config, doing: Callable[[], str]) -> Iterator[None]:
    """Turns what TensorFlow raises where the user can help into one line."""
    try:
        yield
    except (tf.errors.ResourceExhaustedError, MemoryError) as error:
        if "open files" in str(error):
            raise UserError(
                f"{doing()}: the system allows no more open files; raise its limit (ulimit -n), then give the same "
                "command again"
            ) from error
        raise UserError(
            f"{doing()}: a batch doesn't fit into memory; lower --batch_size (and --learning_rate with it), "
            "--image_size, --width or --memory_limit_gb, which keeps images there, in a new --run_dir. "
            f"Received: --batch_size={cfg.batch_size} --image_size={cfg.image_size} --width={cfg.width:g}"
        ) from error
    except tf.errors.NotFoundError as error:
        raise UserError(
            f"{doing()}: a file of the data is gone ({reason(error)[:200]}); restore it and give the same command again"
        ) from error
    except tf.errors.OpError as error:
        if UNREADABLE in error.message:
            line = next(line for line in error.message.splitlines() if UNREADABLE in line)
            raise UserError(
                f"{doing()}: {line.strip()}; the last checkpoint is intact. Give the same command again: what is "
                "damaged is made anew"
            ) from error
        if any(text in error.message for text in _NO_IMAGE):
            raise UserError(
                f"{doing()}: an image can't be read any more ({reason(error)[:200]}); restore it and give the same "
                "command again"
            ) from error
        raise


def _rows_until(path: pathlib.Path, step: int) -> list[dict[str, str]]:
    """Returns the rows of a metrics file up to a step: what was logged after the restored state is done again."""
    try:
        rows = [row for row in read_rows(path) if int(row["step"]) <= step]
        unknown = {column for row in rows for column in row} - set(COLUMNS)
        if unknown:  # None, where a row has too many cells
            raise ValueError(f"columns {unknown}")
        return rows
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no metrics.csv any more ({error!r}); restore it, or delete it to go on") from None


def _compiled(trainer: Trainer, strategy: tf.distribute.Strategy) -> tuple[Callable, Callable]:
    """Returns the train and the test step over all replicas as graphs; results are read from the trackers.

    Each replica makes its own triple, for a batch of several replicas can't be indexed or multiplied. No step has
    control flow that AutoGraph would have to convert, which takes seconds.
    """
    classes = trainer.student.output["logits"].shape[-1]

    @tf.function(reduce_retracing=True, autograph=False)
    def run_step(batch: dict) -> None:
        strategy.run(lambda part: trainer.train_step(_triple(part, classes)), args=(batch,))

    @tf.function(reduce_retracing=True, autograph=False)
    def run_test(batch: dict) -> None:
        strategy.run(lambda part: trainer.test_step(_triple(part, classes)), args=(batch,))

    return run_step, run_test


def _triple(batch: dict, classes: int) -> tuple:
    """Returns a batch of `data/pipeline.py` as images (and what is given of T), labels and weights."""
    about = ("label", "other_label", "share", "id", "view", "mask")
    inputs = {name: value for name, value in batch.items() if name not in about}
    labels = batch["label"]
    if "share" in batch:
        share = batch["share"][:, None]
        labels = share * tf.one_hot(labels, classes) + (1 - share) * tf.one_hot(batch["other_label"], classes)
    return inputs, labels, batch["mask"]


def _validate(trainer: Trainer, run_test: Callable, batches, name: str, step: int) -> dict[str, str]:
    trainer.reset_metrics()
    with _averaged_weights(trainer):
        for batch in batches:
            run_test(batch)
    _check_finite(trainer, name, step)
    return _means(trainer, "val_", agreement=True)


@contextmanager
def _averaged_weights(trainer: Trainer) -> Iterator[None]:
    """Puts the optimizer's moving averages in the weights' place for a while, where it keeps any."""
    optimizer = getattr(trainer.optimizer, "inner_optimizer", trainer.optimizer)
    if not optimizer.use_ema:
        yield
        return
    variables = trainer.trainable_variables
    raw = [keras.ops.copy(variable.value) for variable in variables]
    optimizer.finalize_variable_values(variables)
    yield
    for variable, value in zip(variables, raw, strict=True):
        variable.assign(value)


def _means(trainer: Trainer, prefix: str, agreement: bool) -> dict[str, str]:
    """Returns the running means by column; a term that was not measured stays empty."""
    means = {tracker.name: float(tracker.result()) for tracker in trainer.metrics}
    if not agreement:
        means.pop("agreement", None)
    return {f"{prefix}{name}": f"{means[name]:.8g}" if name in means else "" for name in TERMS}


def _check_finite(trainer: Trainer, name: str, step: int) -> None:
    bad = [tracker.name for tracker in trainer.metrics if not math.isfinite(float(tracker.result()))]
    if bad:
        raise UserError(
            f"{name}: {' and '.join(bad)} became NaN or infinite in the {_LOG_STEPS} steps before step {step}; "
            "lower --learning_rate (--teacher_learning_rate for the teacher), set --clip_norm, or use "
            "--mixed_precision=float32, in a new --run_dir"
        )


def _summary(trainer: Trainer, step: int, steps_per_epoch: int, epochs: int) -> str:
    means = " ".join(
        f"{tracker.name} {float(tracker.result()):.3f}"
        for tracker in trainer.metrics
        if tracker.name != "agreement" or trainer.is_taught
    )
    return f"epoch {(step - 1) // steps_per_epoch + 1}/{epochs} {means}"


def _learning_rate(trainer: Trainer, step: int) -> float:
    schedule = getattr(trainer.optimizer, "inner_optimizer", trainer.optimizer)._learning_rate
    return float(schedule(step)) if callable(schedule) else float(schedule)


def _log_tensorboard(writer: tf.summary.SummaryWriter, row: dict) -> None:
    # what tf.summary.scalar writes; that function needs the TensorBoard package, which only the reader of the log needs
    metadata = tf.compat.v1.SummaryMetadata(plugin_data={"plugin_name": "scalars"})
    with writer.as_default():
        for column, value in row.items():
            if column not in ("epoch", "step") and value != "":
                tf.summary.write(column, tf.constant(float(value)), step=row["step"], metadata=metadata)
    writer.flush()


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM in a list instead of dying at once, so that the loop can save; a second one kills."""
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():  # handlers can't be set there
        yield received
        return

    def note(number: int, frame) -> None:
        received.append(number)
        print("finishing this step and saving; a second signal kills", file=sys.stderr)
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
