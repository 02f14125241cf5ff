"""How sure measured accuracies are: intervals, the paired comparison of two classifiers, calibration."""

import dataclasses
import math

import numpy as np

Z95 = 1.959963984540054  # 97.5 % of a standard normal lie below


def logsumexp(logits: np.ndarray) -> np.ndarray:
    """Returns log sum_k exp(z_k), float64 (n,), of logits (n, C)."""
    top = logits.max(-1, keepdims=True).astype(np.float64)
    return top[:, 0] + np.log(np.exp(logits - top).sum(-1))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns the probabilities of logits, float64 (n, C) in [0, 1]."""
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def wilson(right: int, total: int, z: float = Z95) -> tuple[float, float]:
    """Returns the Wilson score interval of a share.

    Args:
        right: how many of `total`.
        total: at least 1.
        z: quantile of the standard normal; the default makes it a 95 % interval.

    Returns:
        Lower and upper end in [0, 1].

    Raises:
        ValueError: when `right` isn't in 0 to `total`, or `total` is 0.
    """
    if total < 1 or not 0 <= right <= total:
        raise ValueError(f"a share needs 0 <= right <= total and total >= 1. Received: {right} of {total}")
    share, square = right / total, z * z
    centre = (share + square / (2 * total)) / (1 + square / total)
    half = z / (1 + square / total) * math.sqrt(share * (1 - share) / total + square / (4 * total * total))
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclasses.dataclass(frozen=True)
class Paired:
    """Two classifiers' answers to the same examples.

    Attributes:
        both: examples that both get right.
        first: that only the first gets right.
        second: that only the second gets right.
        neither: that none gets right.
    """

    both: int
    first: int
    second: int
    neither: int

    @classmethod
    def of(cls, first: np.ndarray, second: np.ndarray) -> "Paired":
        """Counts, from whether each example was answered right, bool (n,) each."""
        first, second = first.astype(bool), second.astype(bool)
        pairs = (first & second, first & ~second, ~first & second, ~first & ~second)
        return cls(*(int(pair.sum()) for pair in pairs))

    @property
    def total(self) -> int:
        """All examples."""
        return self.both + self.first + self.second + self.neither

    @property
    def difference(self) -> float:
        """Accuracy of the second minus that of the first, in [-1, 1]."""
        return (self.second - self.first) / self.total

    def estimate(self) -> tuple[float, float]:
        """Returns Agresti and Min's (2005) estimate of the difference and its standard error, in [-1, 1].

        Half an example more in each count, so that the error isn't 0 where both agree on all examples.
        """
        gained, lost, total = self.second + 0.5, self.first + 0.5, self.total + 2
        return (gained - lost) / total, math.sqrt(gained + lost - (gained - lost) ** 2 / total) / total

    def interval(self, z: float = Z95) -> tuple[float, float]:
        """Returns the interval of the difference that follows from `estimate`; by default of 95 %."""
        centre, error = self.estimate()
        return max(-1.0, centre - z * error), min(1.0, centre + z * error)

    def p_value(self) -> float:
        """Returns the two-sided p-value of the exact McNemar test, in [0, 1]; 1 where no answers differ in rightness.

        Were both equally good, an example that only one gets right would be the first's or the second's by the toss
        of a coin.
        """
        differing, ways, tail = self.first + self.second, 1, 1
        for count in range(min(self.first, self.second)):
            ways = ways * (differing - count) // (count + 1)  # differing choose count + 1
            tail += ways
        return min(1.0, 2 * tail / 2**differing)


@dataclasses.dataclass(frozen=True, eq=False)
class Calibration:
    """How often answers of a given score are right.

    Attributes:
        counts: answers in each bin of the score, int64 (bins,).
        score: their mean score, float64 (bins,) in [0, 1]; NaN in an empty bin.
        accuracy: the share that is right, float64 (bins,) in [0, 1]; NaN in an empty bin.
    """

    counts: np.ndarray
    score: np.ndarray
    accuracy: np.ndarray

    @classmethod
    def of(cls, probabilities: np.ndarray, labels: np.ndarray, bins: int = 10) -> "Calibration":
        """Sorts answers into bins of equal width by the score of the class that is answered.

        Args:
            probabilities: float (n, C) in [0, 1].
            labels: int (n,).
            bins: how many.
        """
        top = probabilities.max(-1)
        place = np.minimum((top * bins).astype(np.int64), bins - 1)
        counts = np.bincount(place, minlength=bins)
        right = probabilities.argmax(-1) == labels
        sums = (np.bincount(place, weights, minlength=bins) for weights in (top, right))
        with np.errstate(invalid="ignore"):
            return cls(counts, *(total / counts for total in sums))

    @property
    def error(self) -> float:
        """The expected calibration error: the gap between score and accuracy, weighted by the bins' counts."""
        used = self.counts > 0
        gaps = np.abs(self.score[used] - self.accuracy[used])
        return float((gaps * self.counts[used]).sum() / self.counts.sum())
