"""Counts of scores in fixed bins of the floating-point line: bounded memory on any set."""

import numpy as np

from dal_jax.images._metrics_curves import Levels


class Histogram:
    """Pixels counted in bins that are the leading bits of the score as a 32-bit float.

    Those bits order numbers as the numbers themselves are ordered, so the bins are monotone; they
    are fixed in advance, so the counts do not depend on the order of the images. With B bits a
    bin is `2^-(B - 9)` of its score wide, relative to it, whatever the scale of the scores.

    Source: the order of the bits is a property of IEEE 754.
    """

    def __init__(self, bits: int):
        self.bits = bits
        self._negative = np.zeros(2**bits, np.int64)
        self._positive = np.zeros(2**bits, np.int64)
        self._overlap = np.zeros(2**bits)

    def add(self, negative: np.ndarray, positive: np.ndarray, overlap: np.ndarray) -> None:
        """Counts pixels, given as `exact_levels` takes them."""
        np.add.at(self._negative, self._bin(negative), 1)
        found = self._bin(positive)
        np.add.at(self._positive, found, 1)
        np.add.at(self._overlap, found, overlap)

    def levels(self) -> Levels:
        """The bins that hold anything, highest first."""
        some = np.flatnonzero(self._negative + self._positive)[::-1]
        negative, positive = self._negative[some], self._positive[some]
        return Levels(negative.astype(np.float64), positive.astype(np.float64), self._overlap[some])

    def _bin(self, score: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore", under="ignore"):
            number = score.astype(np.float32) + np.float32(0)  # -0 becomes 0: they are equal
        code = number.view(np.uint32)
        ordered = np.where(code >> np.uint32(31), ~code, code | np.uint32(1 << 31))
        return ordered >> np.uint32(32 - self.bits)
