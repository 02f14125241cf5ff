"""What `timing.measure` measures, with a clock that only the cases move."""

import math

import numpy as np
import pytest
import tensorflow as tf

from thumbnet_tf import benchmark_training, timing, train
from thumbnet_tf.config import Config, UserError


def test_cases_take_turns_and_warm_up_is_left_out():
    now, log = [0.0], []

    def case(name, seconds):
        def call():
            log.append(name)
            now[0] += seconds * (10 if log.count(name) <= 3 else 1)  # slow at first

        return call

    cases = {"a": case("a", 0.001), "b": case("b", 0.003)}
    times = timing.measure(cases, rounds=3, calls=2, warm_up=1, clock=lambda: now[0])
    assert "".join(log) == "aabb" + "aaabbb" * 3
    assert [round(value, 6) for value in times["a"][1:]] == [1.0] * 5
    assert np.median(times["b"]) == pytest.approx(3.0)
    assert len(times["b"]) == 6


def test_nothing_to_measure_is_refused():
    with pytest.raises(ValueError, match="at least 1. Received: 0 and 1"):
        timing.measure({}, rounds=0)


def test_a_type_is_compared_with_float32(monkeypatch):
    took = [9, 2, 1, 3, 9, 8, 6, 7]  # float32, then the other; the first of each traces
    clock = iter([time for start, seconds in enumerate(took) for time in (100 * start, 100 * start + seconds)])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(clock))
    assert timing.slowdown.__wrapped__("bfloat16") == 6.0


def test_a_type_that_can_not_be_computed_is_told(monkeypatch, caplog):
    def refused(images, kernel):
        raise tf.errors.AbortedError(None, None, "could not create a primitive descriptor")

    monkeypatch.setattr(timing.tf, "function", lambda function: refused)
    assert timing.slowdown.__wrapped__("bfloat16") == math.inf
    monkeypatch.setattr(timing, "slowdown", {"bfloat16": math.inf}.get)
    assert not benchmark_training._has_bfloat16()
    assert caplog.messages == ["bfloat16 can't be computed on this machine; its cases are left out"]
    with pytest.raises(UserError, match="give float32. Received: mixed_bfloat16$"):
        train._check_precision(Config(mixed_precision="mixed_bfloat16"))


def test_a_slow_precision_is_told(monkeypatch, caplog):
    for slowdown, told in ((14.6, 1), (1.2, 0)):
        caplog.clear()
        monkeypatch.setattr(timing, "slowdown", {"bfloat16": slowdown}.get)
        train._warn_of_slow_precision(Config(mixed_precision="mixed_bfloat16"))
        assert len(caplog.records) == told
    monkeypatch.setattr(timing, "slowdown", None)
    train._check_precision(Config())  # measures nothing, as does the next
    train._warn_of_slow_precision(Config())
    monkeypatch.setattr(timing, "slowdown", {"bfloat16": 14.6}.get)
    assert not benchmark_training._has_bfloat16()
    assert [record.getMessage() for record in caplog.records] == [
        "bfloat16 is 15 times slower than float32 on this machine; its cases are left out"
    ]
