"""What `timing.measure` measures, with a clock that only the cases move."""

import numpy as np
import pytest

from thumbnet_tf import timing


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
