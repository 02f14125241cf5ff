"""Golden numbers of the intervals, the paired test and the calibration, with the arithmetic beside them."""

import math

import numpy as np
import pytest

from thumbnet_tf.stats import Calibration, Paired, logsumexp, softmax, wilson


def test_softmax():
    # e^0 : e^(ln 3) = 1 : 3
    np.testing.assert_allclose(softmax(np.array([[0, math.log(3)], [1000.0, 1000.0]])), [[0.25, 0.75], [0.5, 0.5]])


def test_wilson():
    # z = 2, 8 of 10: centre (0.8 + 4/20) / (1 + 4/10) = 1 / 1.4; half 2 / 1.4 * sqrt(0.8 * 0.2 / 10 + 4/400)
    half = 2 / 1.4 * math.sqrt(0.016 + 0.01)
    assert wilson(8, 10, z=2) == pytest.approx((1 / 1.4 - half, 1 / 1.4 + half))
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=5e-5)
    # none of 10: from 0 to z^2 / (n + z^2) = 3.8415 / 13.8415; all of 10 is its mirror image
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=5e-5)
    assert wilson(10, 10) == pytest.approx((0.7225, 1), abs=5e-5)


@pytest.mark.parametrize(("right", "total"), [(0, 0), (-1, 5), (6, 5)])
def test_wilson_refuses_what_is_no_share(right, total):
    with pytest.raises(ValueError, match=f"Received: {right} of {total}"):
        wilson(right, total)


def test_pairs_are_counted():
    first = np.array([1, 1, 1, 1, 1, 1, 1, 1, 0, 0])
    second = np.array([1, 1, 1, 1, 1, 0, 0, 0, 1, 0])
    pair = Paired.of(first, second)
    assert pair == Paired(both=5, first=3, second=1, neither=1)
    assert pair.total == 10
    assert pair.difference == pytest.approx(0.6 - 0.8)


def test_interval_of_a_paired_difference():
    # 1.5 gained, 3.5 lost, 12 in all: centre -2/12; half 2 * sqrt(5 - 4/12) / 12
    half = 2 * math.sqrt(5 - 4 / 12) / 12
    assert Paired(5, 3, 1, 1).interval(z=2) == pytest.approx((-2 / 12 - half, -2 / 12 + half))
    low, high = Paired(10, 0, 0, 0).interval()
    assert low == -high < 0  # equal answers to ten images prove no equality


def test_estimate_of_a_paired_difference():
    # 30 lost, 10 gained of 1000: (10.5 - 30.5) / 1002, and sqrt(41 - 20^2 / 1002) / 1002
    centre, error = Paired(870, 30, 10, 90).estimate()
    assert centre == pytest.approx(-20 / 1002)
    assert error == pytest.approx(math.sqrt(41 - 400 / 1002) / 1002)


def test_exact_mcnemar():
    # of 4 that differ, at most 1: (1 + 4) / 16, twice
    assert Paired(5, 3, 1, 1).p_value() == pytest.approx(10 / 16)
    assert Paired(5, 1, 3, 1).p_value() == pytest.approx(10 / 16)
    assert Paired(0, 2, 2, 0).p_value() == 1  # (1 + 4 + 6) / 16, twice, is more than 1
    assert Paired(9, 0, 0, 3).p_value() == 1
    assert Paired(0, 10, 0, 0).p_value() == 2 / 1024
    assert 0 <= Paired(0, 9000, 3000, 0).p_value() < 1e-300


def test_calibration():
    probabilities = np.array([[0.95, 0.05], [0.85, 0.15], [0.55, 0.45], [0.3, 0.7], [1.0, 0.0]])
    found = Calibration.of(probabilities, np.array([0, 1, 0, 1, 1]))
    assert found.counts.tolist() == [0, 0, 0, 0, 0, 1, 0, 1, 1, 2]
    np.testing.assert_allclose(found.score[[5, 7, 8, 9]], [0.55, 0.7, 0.85, (0.95 + 1) / 2])
    np.testing.assert_array_equal(found.accuracy[[5, 7, 8, 9]], [1, 1, 0, 0.5])
    assert np.isnan(found.score[0]) and np.isnan(found.accuracy[0])
    # gaps 0.45, 0.3, 0.85 and, twice, 0.975 - 0.5
    assert found.error == pytest.approx((0.45 + 0.3 + 0.85 + 2 * 0.475) / 5)


def test_logsumexp_is_exact_for_large_logits():
    # log(e^0 + e^0) = log 2; of 1000 and 0 the second adds nothing; of equal ones log 3 more
    found = logsumexp(np.array([[0.0, 0.0, -np.inf], [1000.0, 0.0, 0.0], [5.0, 5.0, 5.0]]))
    np.testing.assert_allclose(found, [math.log(2), 1000.0, 5 + math.log(3)], rtol=1e-12)
