"""Foretells on a CPU what the system doesn't: where memory runs out there, it kills the training without a word."""

import logging
import math
import pathlib
from collections.abc import Sequence

import keras
import tensorflow as tf

from thumbnet_tf.config import Config

_SYSTEM, _CONTAINER = pathlib.Path("/proc/meminfo"), pathlib.Path("/sys/fs/cgroup")

_log = logging.getLogger(__name__)


def step_bytes(models: Sequence[keras.Model], batch_size: int) -> int:
    """Estimates what a training step keeps: all layers' outputs, which wait for the gradients.

    At its peak a step of ResNet-18 takes between half and one and a half times as much (`tests/test_memory.py`).

    Args:
        models: the flat functional models that are trained, with fixed spatial sizes.
        batch_size: images in a step.
    """
    return sum(
        batch_size * math.prod(output.shape[1:]) * tf.as_dtype(output.dtype).size
        for model in models
        for operation in model.operations
        if not isinstance(operation, keras.layers.InputLayer)
        for output in tf.nest.flatten(operation.output)
    )


def free_bytes() -> int | None:
    """Returns the memory that this system, or the container this is run in, has left; None where it doesn't tell."""
    left = []
    try:
        left.append(1024 * _numbers(_SYSTEM)["MemAvailable:"])
        limit, used = ((_CONTAINER / name).read_text().strip() for name in ("memory.max", "memory.current"))
        if limit != "max":  # files that were read count as used, and give way
            left.append(int(limit) - int(used) + _numbers(_CONTAINER / "memory.stat")["inactive_file"])
    except (OSError, LookupError, ValueError):
        pass
    return min(left, default=None)


def warn_of_large_batch(cfg: Config, models: Sequence[keras.Model], machines: int = 1) -> None:
    """Says so where a step on this machine's share of the batch may take more memory than there is."""
    if tf.config.list_physical_devices("GPU"):  # has memory of its own, whose end is an error that can be told
        return
    needed, free = step_bytes(models, math.ceil(cfg.batch_size / machines)), free_bytes()
    if free is not None and needed > free:
        _log.warning(
            "a training step keeps about %.3g GB of maps, and %.3g GB of memory are free. If the system kills this "
            "training, lower --batch_size (and --learning_rate with it), --image_size or --width, in a new --run_dir. "
            "Received: --batch_size=%d --image_size=%d --width=%g",
            needed / 1e9,
            free / 1e9,
            cfg.batch_size,
            cfg.image_size,
            cfg.width,
        )


def _numbers(path: pathlib.Path) -> dict[str, int]:
    """Returns the numbers in a file of lines `name number ...`, by name."""
    return {words[0]: int(words[1]) for words in map(str.split, path.read_text().splitlines())}
