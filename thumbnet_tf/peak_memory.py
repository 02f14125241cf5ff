"""Measures the memory that a model's activations take at their peak.

It is done in a process of its own, which loads a model's frozen function (weights and all), runs it once, then resets
Linux' record of the largest resident memory, runs it again and reads the record: peak minus what was resident before.
So weights, the images and the runtime are not counted, and nothing is estimated from shapes. The process'
allocators are told to give freed blocks back, else the run before would leave room that the second needn't ask for.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import keras

from thumbnet_tf.config import UserError

_GIVE_BACK = {
    "MALLOC_MMAP_THRESHOLD_": "65536",  # bytes, of glibc
    "MALLOC_TRIM_THRESHOLD_": "65536",
    "TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1",  # oneDNN's operators have a pool of their own, which only grows
}
_RUNS = 4  # operators that wait for nothing may run in another order each time


def measure(models: Sequence[keras.Model], batch_size: int, dtype: str = "float32") -> list[int]:
    """Measures models one after the other in another process.

    Args:
        models: flat functional models from images `(B, H, W, 3)` in [0, 255].
        batch_size: B.
        dtype: of the images, `float32` or `uint8`; the latter are cast first, which counts.

    Returns:
        Bytes of each, the smallest of some runs.

    Raises:
        UserError: where the system keeps no such record (it is not Linux), or the process failed.
    """
    if not os.access("/proc/self/clear_refs", os.W_OK):
        raise UserError("peak memory can be measured on Linux only. Received: a system without /proc/self/clear_refs")
    with tempfile.TemporaryDirectory(prefix="thumbnet-memory-") as name:
        paths = [pathlib.Path(name) / f"{index}.keras" for index in range(len(models))]
        for model, path in zip(models, paths, strict=True):
            model.save(path)
        command = [sys.executable, "-m", "thumbnet_tf.peak_memory", str(batch_size), dtype, *map(str, paths)]
        environment = {**os.environ, **_GIVE_BACK, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        last = [line.strip() for line in done.stderr.splitlines() if line.strip()][-1:] or ["no message"]
        raise UserError(f"the process that measures memory failed. Received: {last[0][:200]}")
    return json.loads(done.stdout.splitlines()[-1])


def _main(batch_size: int, dtype: str, paths: Sequence[str]) -> None:
    import numpy as np
    import tensorflow as tf

    from thumbnet_tf.frozen import freeze
    from thumbnet_tf.runs import load_keras

    found = []
    for path in paths:
        model = load_keras(path)
        function = freeze(model, batch_size, tf.as_dtype(dtype))
        random = np.random.default_rng(0)
        images = tf.constant(random.integers(0, 256, (batch_size, *model.input.shape[1:])).astype(dtype))
        function(images)
        found.append(min(_peak(function, images) for _ in range(_RUNS)))
        keras.backend.clear_session()
    print(json.dumps(found))


def _peak(function, images) -> int:
    """Returns by how many bytes the resident memory rose during a call."""
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the largest resident size starts anew at the present one
    before = _status("VmRSS")
    function(images)
    return max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(f"{key}:"))


if __name__ == "__main__":
    _main(int(sys.argv[1]), sys.argv[2], sys.argv[3:])
