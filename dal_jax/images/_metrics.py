"""Agreement of scores with masks: AUROC, AP, greatest F1 and AUPRO of images and of pixels."""

from typing import NamedTuple

import numpy as np

from dal_jax._errors import InputError
from dal_jax.images import _metrics_curves as curves
from dal_jax.images._metrics_curves import Histogram


class ImageMetrics(NamedTuple):
    """Metrics of one score per image; NaN without both normal and anomalous images.

    Example:
        >>> found = image_metrics(np.array([0, 1, 1]), np.array([0.2, 0.5, 0.9]))
        >>> found.auroc, found.num_anomalous
        (1.0, 2)
    """

    auroc: float  # in [0, 1], as the next two
    ap: float  # average precision
    f1_max: float  # over all thresholds
    num_normal: int  # number of normal images
    num_anomalous: int  # number of anomalous images


class PixelError(NamedTuple):
    """Largest possible error of each pixel metric due to binned scores; 0 if exact.

    Example:
        >>> metrics = PixelMetrics(exact_pixels=0, bin_bits=10)  # 0.8 and 0.81 share a bin
        >>> metrics.add(np.array([[0.8, 0.81]]), np.array([[False, True]]))
        >>> metrics.result().max_error.pixel_auroc
        0.5
    """

    pixel_auroc: float  # in the unit of the metric, as all of them
    pixel_ap: float
    pixel_f1_max: float
    aupro: float


class PixelResult(NamedTuple):
    """Result of `PixelMetrics`; metrics are NaN without both normal and anomalous pixels.

    Example:
        >>> metrics = PixelMetrics()
        >>> metrics.add(np.eye(3), np.eye(3, dtype=bool))
        >>> found = metrics.result()
        >>> found.aupro, found.num_anomalous, found.num_regions
        (1.0, 3, 1)
    """

    pixel_auroc: float  # in [0, 1], as the next three
    pixel_ap: float  # average precision
    pixel_f1_max: float  # over all thresholds
    aupro: float  # area under per-region overlap, up to the limit
    num_images: int
    num_pixels: int  # counted pixels: those of the foreground
    resolution: int  # number of bins of the score; 0: all scores kept, nothing is approximate
    num_anomalous: int  # among the counted pixels
    num_regions: int  # connected components of the masks
    max_error: PixelError  # 0 where nothing was binned


def image_auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Return the probability that an anomalous image scores above a normal one, ties as half.

    Args:
        labels: True or 1 for an anomalous image, (m,) bool, or 0 and 1.
        scores: Scores (m,), finite; a higher score is more anomalous.

    Returns:
        The area in [0, 1]; NaN without both normal and anomalous images.

    Raises:
        InputError: Shapes differ, labels have other values, or a score is not finite.

    Example:
        >>> image_auroc(np.array([0, 0, 1, 1]), np.array([0.1, 0.4, 0.35, 0.8]))
        0.75

    Source: Hanley and McNeil, Radiology 143 (1982).
    """
    return image_metrics(labels, scores).auroc


def image_metrics(labels: np.ndarray, scores: np.ndarray) -> ImageMetrics:
    """Return AUROC, average precision and greatest F1 of one score per image.

    Args:
        labels: True or 1 for an anomalous image, (m,) bool, or 0 and 1.
        scores: Scores (m,), finite; a higher score is more anomalous.

    Returns:
        The metrics, as defined in scikit-learn; NaN without both kinds of images.

    Raises:
        InputError: Shapes differ, labels have other values, or a score is not finite.

    Example:
        >>> image_metrics(np.array([0, 0, 1]), np.array([0.1, 0.4, 0.8])).f1_max
        1.0
    """
    labels, scores = np.asarray(labels), _numbers("scores", scores)
    if labels.ndim != 1 or labels.shape != scores.shape:
        raise InputError(f"labels {labels.shape} and scores {scores.shape}, expected one (m,) each")
    if not np.isin(labels, [0, 1]).all():
        raise InputError(f"labels {np.unique(labels)[:5].tolist()!r}, expected only 0 and 1")
    _need_finite("scores", scores)
    truth = labels.astype(bool)
    levels = curves.exact_levels(scores[~truth], scores[truth], np.ones(int(truth.sum())))
    return ImageMetrics(
        curves.auroc(levels).value,
        curves.average_precision(levels).value,
        curves.f1_max(levels).value,
        num_normal=int((~truth).sum()),
        num_anomalous=int(truth.sum()),
    )


class PixelMetrics:
    """Collector of score maps and masks, image by image, with the pixel metrics of them all.

    Up to `exact_pixels` all scores are kept (8 bytes for a normal pixel, 16 for an anomalous one,
    three times that while `result` sorts them) and the metrics are exact. Beyond, scores are
    counted in `2^bin_bits` fixed bins (24 bytes each), and `max_error` bounds the effect by the
    best and the worst order within the bins. Neither depends on the order of the images, except by
    rounding in the sums behind AUPRO.

    AUPRO is MVTec's: regions are the connected components of each mask, neighbours across a corner
    joined; at each threshold the overlap is the mean over all regions of the share above it, and
    the false-positive rate counts the normal pixels of all images. The area up to the limit, with
    the curve interpolated there, is divided by the limit. With a foreground, a region is the part
    of one component inside it.

    Args:
        exact_pixels: Number of pixels up to which every score is kept, 0 or more.
        bin_bits: Base-2 logarithm of the number of bins used beyond that, 10 to 26; the relative
            width of a bin is `2^-(bin_bits - 9)`.
        limit: False-positive rate in (0, 1] up to which AUPRO integrates.

    Raises:
        InputError: An option is out of its range.

    Example:
        >>> metrics = PixelMetrics()
        >>> metrics.add(np.array([[0.1, 0.9]]), np.array([[False, True]]))
        >>> metrics.result().pixel_auroc
        1.0

    Source: Bergmann, Batzner, Fauser, Sattlegger, Steger, IJCV 129 (2021), section 5, and its
    published evaluation code for the connectivity.
    """

    def __init__(self, exact_pixels: int = 2**24, bin_bits: int = 22, limit: float = 0.3):
        if not exact_pixels >= 0:
            raise InputError(f"exact_pixels {exact_pixels!r}, expected 0 or more")
        if bin_bits not in range(10, 27):
            raise InputError(f"bin_bits {bin_bits!r}, expected a whole number from 10 to 26")
        if not 0 < limit <= 1:
            raise InputError(f"limit {limit!r}, expected a false-positive rate in (0, 1]")
        self._exact_pixels, self._bin_bits, self._limit = exact_pixels, bin_bits, limit
        self._kept: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._histogram: Histogram | None = None
        self._num_images = self._num_pixels = self._num_anomalous = self._num_regions = 0

    def add(
        self, score: np.ndarray, mask: np.ndarray, foreground: np.ndarray | None = None
    ) -> None:
        """Count one image; a refused one changes nothing.

        Args:
            score: Score map (H, W), finite in the foreground; a higher score is more anomalous.
            mask: Anomalous pixels, (H, W) bool; all false for a normal image.
            foreground: Pixels to count, (H, W) bool; None stands for all.

        Raises:
            InputError: Shapes differ, a mask is not bool, or a score is not finite.
        """
        score, mask = _numbers("score", score), _mask("mask", mask)
        inside = (
            np.ones(mask.shape, bool) if foreground is None else _mask("foreground", foreground)
        )
        if score.ndim != 2 or not score.shape == mask.shape == inside.shape:
            shapes = f"{score.shape}, mask {mask.shape} and foreground {inside.shape}"
            raise InputError(f"score {shapes}, expected one shape (H, W)")
        _need_finite("score", score[inside])
        overlap, regions = curves.overlap_shares(mask, inside)
        anomalous = mask & inside
        pixels = (score[inside & ~mask], score[anomalous], overlap[anomalous])
        self._num_images += 1
        self._num_pixels += int(inside.sum())
        self._num_anomalous += len(pixels[1])
        self._num_regions += regions
        self._keep(pixels)

    def result(self) -> PixelResult:
        """Return the metrics of the images counted so far; more images may be added later.

        Returns:
            The metrics, the counts of pixels and regions, and the largest error of each metric.
        """
        levels = self._levels()
        found = (
            curves.auroc(levels),
            curves.average_precision(levels),
            curves.f1_max(levels),
            curves.aupro(levels, self._limit),
        )
        binned = self._histogram is not None
        off = [max(m.high - m.value, m.value - m.low) if binned else 0 * m.value for m in found]
        return PixelResult(
            *(metric.value for metric in found),
            num_images=self._num_images,
            num_pixels=self._num_pixels,
            resolution=2**self._bin_bits if binned else 0,
            num_anomalous=self._num_anomalous,
            num_regions=self._num_regions,
            max_error=PixelError(*off),
        )

    def _keep(self, pixels: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        if len(pixels[0]) or len(pixels[1]):
            self._kept.append(pixels)
        if self._num_pixels > self._exact_pixels:
            self._histogram = self._histogram or Histogram(self._bin_bits)
            for kept in self._kept:
                self._histogram.add(*kept)
            self._kept.clear()

    def _levels(self) -> curves.Levels:
        if self._histogram is not None:
            return self._histogram.levels()
        empty = (np.zeros(0), np.zeros(0), np.zeros(0))
        negative, positive, overlap = zip(*(self._kept or [empty]), strict=True)
        return curves.exact_levels(*map(np.concatenate, (negative, positive, overlap)))


def _numbers(name: str, values: np.ndarray) -> np.ndarray:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{name} of type {type(values).__name__}, expected real numbers"
        ) from error


def _need_finite(name: str, values: np.ndarray) -> None:
    if bad := int((~np.isfinite(values)).sum()):
        raise InputError(f"{name}: {bad} of {values.size} are NaN or infinite, expected finite")


def _mask(name: str, values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if values.dtype != bool:
        raise InputError(f"{name} of dtype {values.dtype}, expected bool, as `values > 0` gives it")
    return values
