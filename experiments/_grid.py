"""Exhaustive grid search of a line: the localizer at every point of a fine grid."""

import math
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from dal_jax import Localizer, covariance_of, dal_test, evaluator_of
from dal_jax.bench import NOISE, Prepared, bare_seconds, load_inputs, open_subject
from dal_jax.inference import Intervals, as_intervals, merge, region_line, selective_p
from dal_jax.search import CALLS, Evaluator, reach_limit
from experiments._output import Row


class Grid(NamedTuple):
    """Result of a search on a grid, in standardized z."""

    points: int
    truncation: Intervals  # (k, 2): half a spacing around the points with the observed region
    p_value: float


def grid_points(z_obs: float, spacing: float) -> np.ndarray:
    """Return the points of a grid search, in the range that other searches have.

    Args:
        z_obs: Observed statistic in units of its standard deviation; a point of the grid.
        spacing: Spacing of the points, standard deviations.

    Returns:
        Points (k,), |z| <= 10 + |z_obs|.
    """
    reach = reach_limit(z_obs, None)
    low, high = ((side * reach - z_obs) / spacing for side in (-1, 1))
    return z_obs + spacing * np.arange(math.ceil(low - 1e-9), math.floor(high + 1e-9) + 1)


def grid_search(
    localizer: Localizer,
    evaluator: Evaluator,
    images: tuple[np.ndarray, np.ndarray],
    region: np.ndarray,
    spacing: float,
) -> Grid:
    """Test an image by a grid search in float32, with full batches one after the other.

    Args:
        localizer: The localizer; the noise of its images is standard normal, independent.
        evaluator: Evaluator of the localizer.
        images: The image and its reference, (H, W, C) each.
        region: The flagged region, bool (H, W), not empty.
        spacing: Spacing of the grid, standard deviations.

    Returns:
        The result.
    """
    line = region_line(*images, region, covariance_of(NOISE, localizer))
    z = grid_points(line.z_obs, spacing)
    scores = _scores(evaluator, (line.base, line.direction), z)
    same = [((s > localizer.threshold) == region).all(axis=(1, 2)) for s in scores]
    kept = z[np.concatenate(same)]
    inside = merge(as_intervals(np.stack([kept - spacing / 2, kept + spacing / 2], 1)), 1e-9)
    searched = as_intervals([[z[0] - spacing / 2, z[-1] + spacing / 2]])
    return Grid(len(z), inside, selective_p(line.z_obs, inside, searched, "two-sided").p)


def _scores(evaluator: Evaluator, line: tuple[Any, Any], z: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the scores (k, H, W) of each batch, with `CALLS` batches under way."""
    base, direction = line
    room = evaluator.capacity("float32")
    under_way: deque[Any] = deque()
    for first in range(0, len(z), room):
        batch = z[first : first + room]
        images = base + direction * batch[:, None, None, None]
        under_way.append((len(batch), evaluator(images, (), "float32").score))
        if len(under_way) >= CALLS:
            count, score = under_way.popleft()
            yield np.asarray(score)[:count]
    for count, score in under_way:
        yield np.asarray(score)[:count]


def measure_grid(prepared: Prepared, spacing: float, images: int) -> Iterator[Row]:
    """Time grid searches, and predict their time from the bare forward pass.

    Args:
        prepared: Localizer and images.
        spacing: Spacing of the grid, standard deviations.
        images: Number of images to search, the first ones.

    Yields:
        A record for each image: points, seconds and their prediction; intervals and p-value beside
        those of the adaptive engine.
    """
    inputs = load_inputs(prepared.inputs)
    localizer = open_subject(prepared.subject)[0].with_threshold(inputs.threshold)
    evaluator = evaluator_of(localizer, devices=jax.local_devices())
    for number in range(min(images, len(inputs.images))):
        pair = inputs.images[number], inputs.references[number]
        precision = prepared.settings.precision
        own = dal_test(localizer, *pair, NOISE, precision=precision, randomization=0.0)
        forward = bare_seconds(evaluator, "float32", inputs.images)
        started = time.perf_counter()
        grid = grid_search(localizer, evaluator, pair, own.region, spacing)
        seconds = time.perf_counter() - started
        calls = math.ceil(grid.points / evaluator.capacity("float32"))
        yield {
            "kind": "grid",
            "size": prepared.subject.size,
            "spacing": spacing,
            "image": number,
            "points": grid.points,
            "seconds_predicted": calls * forward,
            "seconds": seconds,
            "ratio": seconds / (calls * forward),
            "intervals": len(grid.truncation),
            "intervals_adaptive": len(own.truncation),
            "p_value": grid.p_value,
            "p_value_adaptive": own.p_value,
        }
