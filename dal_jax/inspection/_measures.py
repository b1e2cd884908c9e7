"""Metrics of a tested folder whose truth is known, image by image."""

from typing import Any

import numpy as np

from dal_jax.images import NORMAL, UNKNOWN, PixelMetrics, image_metrics, region_counts
from dal_jax.inspection._inspect import Inspected
from dal_jax.inspection._rows import COLUMNS, adjusted_p


class Measures:
    """Collects what the metrics need; of a pixel no more than `PixelMetrics` keeps.

    Example:
        >>> from pathlib import Path
        >>> from dal_jax.images import Sample
        >>> measures = Measures()
        >>> for label, score in (("normal", 0.2), ("crack", 0.9)):
        ...     sample = Sample(label, Path(f"{label}.png"), "test", label, None, label)
        ...     measures.add(Inspected(sample, [], None, None, np.full((2, 2), score), *[None] * 3))
        >>> measures.result(alpha=0.05)["image"]["auroc"]
        1.0
    """

    def __init__(self) -> None:
        self._pixels = PixelMetrics()
        self._any_pixels = False
        self._labels: list[bool] = []
        self._scores: list[float] = []
        self._rows: list[dict[str, Any]] = []

    def add(self, one: Inspected) -> None:
        """Counts an image; one that could not be tested, or of unknown kind, is left out.

        Args:
            one: tested.
        """
        if one.score is None or one.sample.label == UNKNOWN:
            return
        inside = np.isfinite(one.score)
        if not inside.any():
            return
        self._labels.append(one.sample.label != NORMAL)
        self._scores.append(float(one.score[inside].max()))
        self._rows += [row for row in one.rows if row["num_tested"]]
        if one.mask is not None:
            self._pixels.add(one.score, one.mask, inside)
            self._any_pixels = True

    def result(self, alpha: float) -> dict[str, Any]:
        """The metrics so far.

        Args:
            alpha: level at which regions are called significant.

        Returns:
            JSON values: image (AUROC, AP, F1-max), pixel (the same and AUPRO), and for each
            p-value the share of tested regions that it calls significant, adjusted like decisions,
            on normal and on anomalous images; empty without images of known kind.
        """
        if not self._labels:
            return {}
        found: dict[str, Any] = {
            "alpha": alpha,
            "image": image_metrics(np.array(self._labels), np.array(self._scores))._asdict(),
        }
        if self._any_pixels:
            pixel = self._pixels.result()
            found["pixel"] = {**pixel._asdict(), "max_error": pixel.max_error._asdict()}
        kinds = ["normal" if row["label"] == NORMAL else "anomalous" for row in self._rows]
        groups = [row["group"] for row in self._rows]
        touches = [row["touches_mask"] for row in self._rows]
        if self._rows:
            found["significant"] = {
                method: _plain(self._adjusted(method), kinds, groups, touches, alpha)
                for method in COLUMNS
            }
        return found

    def _adjusted(self, method: str) -> np.ndarray:
        """Upper bounds on the adjusted p: at most alpha where it is decided so."""
        upper = [p.high for p in adjusted_p(self._rows, method)]
        return np.minimum(1.0, np.array(upper) * [row["views"] for row in self._rows])


def _plain(
    p: np.ndarray, kinds: list[str], groups: list[str], touches: list[bool | None], alpha: float
) -> dict[str, Any]:
    counts = region_counts(p, kinds, groups, touches, alpha)
    return {
        name: getattr(counts, name)._asdict()
        for name in ("normal", "anomalous", "touching", "elsewhere")
    }
