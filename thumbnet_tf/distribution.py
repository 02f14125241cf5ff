"""How the replicas and the machines of a job work together: the strategy, the chief, agreement, lost machines.

One process runs on each machine. All take the same path through the code, since they meet in collective operations;
only the chief, which is the first of them, writes to the run directory.
"""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import tensorflow as tf

from thumbnet_tf.config import Config, FlagError, UserError
from thumbnet_tf.files import MACHINE_LOST

SHARED_SECONDS = 60.0  # after which a network file system shows what another machine has written

_EXAMPLE = '{"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}, "task": {"type": "worker", "index": 0}}'
# what collective operations raise on the other machines when one is gone
_LOST = (*MACHINE_LOST, tf.errors.FailedPreconditionError, tf.errors.InternalError)

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Task:
    """This process' place among the machines that train together; by default it trains alone."""

    name: str = "worker 0"
    is_chief: bool = True
    addresses: tuple[str, ...] = ("localhost",)

    @property
    def machines(self) -> int:
        """How many processes the job has, one on each machine."""
        return len(self.addresses)


class Job:
    """A strategy and what the machines that share it need to agree. On one machine, all of it costs nothing."""

    def __init__(self, strategy: tf.distribute.Strategy, task: Task | None = None) -> None:
        task = task or Task()
        self.strategy = strategy
        self.is_chief = task.is_chief
        self.machines = task.machines

        @tf.function
        def total(numbers: tf.Tensor) -> tf.Tensor:
            return strategy.run(_sum_over_replicas, args=(numbers,))

        self._total = total

    def sum(self, numbers: Sequence[int]) -> list[int]:
        """Returns the sums of some numbers over all machines, all of which must call this."""
        numbers = [int(number) for number in numbers]
        if self.machines == 1:
            return numbers
        totals = self.strategy.experimental_local_results(self._total(tf.constant(numbers, tf.int64)))
        return [int(number) // len(totals) for number in totals[0].numpy()]  # each replica added this machine's numbers

    def from_chief(self, number: int) -> int:
        """Returns the chief's number on all machines, once all have come here."""
        return self.sum([number if self.is_chief else 0])[0]

    def barrier(self) -> None:
        """Returns when all machines have come here."""
        self.sum([0])

    @contextlib.contextmanager
    def chief_first(self) -> Iterator[None]:
        """Lets the chief do something to its end before the others do it."""
        if not self.is_chief:
            self.barrier()
        yield
        if self.is_chief:
            self.barrier()

    @contextlib.contextmanager
    def watched(self, doing: Callable[[], str]) -> Iterator[None]:
        """Turns what collective operations raise when another machine is gone into one line.

        Args:
            doing: returns what was being done, such as a method and its step.

        Raises:
            UserError: when another machine is gone.
        """
        try:
            yield
        except _LOST as error:
            if self.machines == 1:
                raise
            raise UserError(
                f"{doing()}: another machine was lost or has ended, so this one ends too; the last checkpoint is "
                f"intact. See that machine's last line, then start all of them again by the same command. "
                f"Received: {_reason(error)}"
            ) from error


def task_of(cfg: Config, environment: Mapping[str, str] = os.environ) -> Task:
    """Reads this process' place in the job out of `TF_CONFIG`.

    Args:
        cfg: `strategy` is used: none and mirrored stay on this machine, auto uses several machines where
            `TF_CONFIG` names them.
        environment: the environment variables.

    Raises:
        FlagError: when `TF_CONFIG` is missing or isn't what TensorFlow expects.
    """
    text = environment.get("TF_CONFIG", "")
    if cfg.strategy in ("none", "mirrored") or (cfg.strategy == "auto" and not text):
        return Task()
    try:
        value = json.loads(text)
        cluster, place = value.get("cluster", {}), value.get("task", {})
        if cfg.strategy == "auto" and not cluster:
            return Task()
        jobs = {name: tuple(cluster[name]) for name in ("chief", "worker") if name in cluster}
        addresses = tuple(address for job in jobs.values() for address in job)
        kind, index = place["type"], place["index"]
        well_formed = (
            set(cluster) == set(jobs)
            and all(isinstance(job, list) for job in cluster.values())
            and all(re.fullmatch(r"\S+:\d+", address) for address in addresses)
            and len(set(addresses)) == len(addresses)
            and len(jobs.get("chief", ())) <= 1
            and type(index) is int
            and 0 <= index < len(jobs[kind])
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        well_formed = False
    if not well_formed:
        raise FlagError(
            f"--strategy={cfg.strategy} needs the environment variable TF_CONFIG like {_EXAMPLE}: the same cluster "
            "of worker, or chief and worker, on every machine, and this machine's place in it. "
            f"Received: {text or 'nothing'}"
        )
    if cfg.strategy == "auto" and len(addresses) == 1:
        return Task()
    return Task(f"{kind} {index}", kind == "chief" or ("chief" not in jobs and index == 0), addresses)


def start(cfg: Config) -> Job:
    """Makes the strategy and waits for all machines; must run before TensorFlow has touched its devices.

    Raises:
        UserError: when the batch can't be divided among the replicas, the CPU can't be split any more, or the
            machines don't find each other.
    """
    task = task_of(cfg)
    set_threads(cfg.intra_op_threads, cfg.inter_op_threads)
    job = Job(_multi_worker(cfg, task) if task.machines > 1 or cfg.strategy == "multi_worker" else _local(cfg), task)
    replicas = job.strategy.num_replicas_in_sync
    if cfg.batch_size % replicas:
        raise UserError(f"--batch_size must be a multiple of the {replicas} replicas. Received: {cfg.batch_size}")
    with job.watched(lambda: "start"):
        job.barrier()
    return job


def set_threads(intra_op: int, inter_op: int) -> None:
    """Sets TensorFlow's threads; must run before TensorFlow has touched its devices.

    Args:
        intra_op: threads that share one operation; 0 leaves TensorFlow's choice.
        inter_op: operations that run side by side; 0 leaves TensorFlow's choice.

    Raises:
        UserError: when TensorFlow already runs with others in this process.
    """
    threading_config = tf.config.threading
    for name, wanted in (("intra_op", intra_op), ("inter_op", inter_op)):
        if wanted and wanted != getattr(threading_config, f"get_{name}_parallelism_threads")():
            try:
                getattr(threading_config, f"set_{name}_parallelism_threads")(wanted)
            except RuntimeError:
                raise UserError(
                    f"--{name}_threads can't change once TensorFlow runs in this process; start a new one. "
                    f"Received: {wanted}"
                ) from None


def mirrored(devices: list[str]) -> tf.distribute.MirroredStrategy:
    """Returns a MirroredStrategy; on CPU devices one that adds up on one device.

    TensorFlow's default there, collective operations, numbers them anew in each strategy, so that two trainings in
    one process get in each other's way.
    """
    on_cpu = all("CPU" in device for device in devices)
    return tf.distribute.MirroredStrategy(devices, tf.distribute.ReductionToOneDevice() if on_cpu else None)


def await_shared(path: pathlib.Path, job: Job, content: str | None = None) -> None:
    """Waits until a file that the chief has written is seen here too: network file systems show it late.

    Args:
        path: the file.
        job: on the chief nothing is waited for.
        content: what it must hold; None for anything.

    Raises:
        UserError: when it isn't seen after a minute.
    """
    end = time.monotonic() + SHARED_SECONDS
    while not job.is_chief:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            if path.is_file() and (content is None or path.read_text() == content):
                return
        if time.monotonic() > end:
            raise UserError(
                "--run_dir must be one directory that all machines share; what the first of them has just written "
                f"isn't seen here. Received: {path.parent}"
            )
        time.sleep(0.2)


def _local(cfg: Config) -> tf.distribute.Strategy:
    if cfg.strategy == "none" and cfg.cpu_devices > 1:
        raise FlagError(
            f"--cpu_devices needs --strategy=mirrored or auto: with none, one trains. Received: {cfg.cpu_devices}"
        )
    if cfg.cpu_devices > 1:
        cpu = tf.config.list_physical_devices("CPU")[0]
        try:
            tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * cfg.cpu_devices)
        except RuntimeError:
            if len(tf.config.list_logical_devices("CPU")) != cfg.cpu_devices:
                raise UserError(
                    "--cpu_devices can't change once TensorFlow runs in this process; start a new one. "
                    f"Received: {cfg.cpu_devices}"
                ) from None
    kind = "GPU" if cfg.cpu_devices == 1 and tf.config.list_physical_devices("GPU") else "CPU"
    devices = [device.name for device in tf.config.list_logical_devices(kind)]
    if cfg.strategy == "none" or (cfg.strategy == "auto" and len(devices) == 1):
        return tf.distribute.get_strategy()
    return mirrored(devices)


def _multi_worker(cfg: Config, task: Task) -> tf.distribute.Strategy:
    if cfg.cpu_devices > 1:
        raise FlagError(
            "--cpu_devices must be 1 with several machines: TensorFlow takes a machine's CPU as one replica. "
            f"Received: {cfg.cpu_devices}"
        )
    _log.info("%s of %d machines, waiting for the others: %s", task.name, task.machines, ", ".join(task.addresses))
    try:
        with _interruptible():
            strategy = tf.distribute.MultiWorkerMirroredStrategy()
        if threading.current_thread() is threading.main_thread():
            # TensorFlow's own handler of SIGTERM only notes it: till training begins, nobody would look
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM) or signal.SIG_DFL)
        return strategy
    except RuntimeError:
        raise UserError(
            "--strategy=multi_worker must be set up before anything else of TensorFlow runs in this process; "
            f"start a new one. Received: {cfg.strategy}"
        ) from None
    except tf.errors.OpError as error:
        raise UserError(
            "the machines in TF_CONFIG must reach each other, and their ports be free; start all of them by the same "
            f"command. Received: {_reason(error)}"
        ) from error


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Lets Ctrl-C end the process while TensorFlow waits for other machines, where Python doesn't get to see it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _sum_over_replicas(numbers: tf.Tensor) -> tf.Tensor:
    # a copy, because all_reduce needs to know the device, which a function's argument doesn't have
    return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, tf.identity(numbers))


def _reason(error: tf.errors.OpError) -> str:
    text = error.message.partition("aborted by: ")[2] or error.message
    text = re.sub(r"\[type\.googleapis.*|\{\{.*?\}\}", "", text.partition("Additional GRPC error")[0])
    return " ".join(text.split())[:200]
