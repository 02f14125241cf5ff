"""Measures how long functions take, side by side."""

import functools
import math
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

import numpy as np
import tensorflow as tf

from thumbnet_tf.progress import track

Key = TypeVar("Key", bound=Hashable)

SLOW = 1.5  # times as long as float32 that no disturbance explains


def measure(
    cases: Mapping[Key, Callable[[], object]],
    *,
    rounds: int,
    calls: int = 1,
    warm_up: int = 1,
    what: str = "measuring",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Key, np.ndarray]:
    """Measures cases that take turns in one process, so that a disturbance of the machine hits all alike.

    Each turn starts with calls that are not measured: they bring a case's weights back into the caches, as in a
    process that does nothing else. A first round is not measured at all, for what is done once.

    Args:
        cases: functions without arguments that return when the work is done.
        rounds: measured turns of each case.
        calls: measured calls in a turn.
        warm_up: calls before them in each turn.
        what: the progress line's first words.
        clock: returns seconds.

    Returns:
        Milliseconds of each call by case, `(rounds * calls,)`.

    Raises:
        ValueError: when nothing would be measured.
    """
    if rounds < 1 or calls < 1:
        raise ValueError(f"rounds and calls must be at least 1. Received: {rounds} and {calls}")
    seconds: dict[Key, list[float]] = {key: [] for key in cases}
    with track(None, (rounds + 1) * len(cases), what) as bar:
        for number in range(rounds + 1):
            for key, call in cases.items():
                for _ in range(warm_up):
                    call()
                for _ in range(calls if number else 1):
                    before = clock()
                    call()
                    if number:
                        seconds[key].append(clock() - before)
                bar.update()
    return {key: 1000 * np.array(values) for key, values in seconds.items()}


@functools.cache
def slowdown(dtype: str) -> float:
    """Returns how many times as long as in float32 a convolution and its gradients take in another type here.

    CPUs without instructions for it still compute in bfloat16, the gradients some ten times more slowly. Measured once
    in a process.

    Args:
        dtype: `bfloat16` or `float16`.

    Returns:
        The factor; infinite where it can't be computed, as in bfloat16 where oneDNN is held to fewer instructions
        (`ONEDNN_MAX_CPU_ISA`) than the CPU has.
    """
    best = {}
    for each in ("float32", dtype):
        images = tf.cast(tf.random.stateless_uniform((8, 32, 32, 32), (1, 2)), each)
        kernel = tf.cast(tf.random.stateless_uniform((3, 3, 32, 32), (3, 4)), each)
        step = tf.function(_convolution_step)
        seconds = []
        for _ in range(4):  # the first traces; the fastest of the others is the least disturbed
            before = time.perf_counter()
            try:
                step(images, kernel).numpy()
            except (tf.errors.AbortedError, tf.errors.UnimplementedError):
                return math.inf
            seconds.append(time.perf_counter() - before)
        best[each] = min(seconds[1:])
    return best[dtype] / best["float32"]


def _convolution_step(images: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    maps = tf.nn.conv2d(images, kernel, 1, "SAME")
    how = {"out_backprop": maps, "strides": [1, 1, 1, 1], "padding": "SAME"}
    of_images = tf.raw_ops.Conv2DBackpropInput(input_sizes=images.shape, filter=kernel, **how)
    of_kernel = tf.raw_ops.Conv2DBackpropFilter(input=images, filter_sizes=kernel.shape, **how)
    return tf.reduce_mean(of_images) + tf.reduce_mean(of_kernel)
