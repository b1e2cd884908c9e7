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
    """A line searched on a grid, in standardized z."""

    points: int
    truncation: Intervals  # (k, 2): half a spacing around the points with the observed region
    p_value: float


def grid_of(z_obs: float, spacing: float) -> np.ndarray:
    """The points at which a grid search looks, of the range that other searches have.

    Args:
        z_obs: observed statistic in units of its standard deviation; a point of the grid.
        spacing: of the points, standard deviations.

    Returns:
        (k,) points, |z| <= 10 + |z_obs|.
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
    """Tests an image by a grid search in float32, full batches one after the other.

    Args:
        localizer: to be tested.
        evaluator: of the localizer.
        images: (H, W, C) the image and its reference.
        region: (H, W) that the localizer flags, not empty.
        spacing: of the grid, standard deviations.

    Returns:
        What it found; noise is standard normal, independent.
    """
    line = region_line(*images, region, covariance_of(NOISE, localizer))
    z = grid_of(line.z_obs, spacing)
    scores = _scores(evaluator, (line.base, line.direction), z)
    same = [((s > localizer.threshold) == region).all(axis=(1, 2)) for s in scores]
    kept = z[np.concatenate(same)]
    inside = merge(as_intervals(np.stack([kept - spacing / 2, kept + spacing / 2], 1)), 1e-9)
    searched = as_intervals([[z[0] - spacing / 2, z[-1] + spacing / 2]])
    return Grid(len(z), inside, selective_p(line.z_obs, inside, searched, "two-sided").p)


def _scores(evaluator: Evaluator, line: tuple[Any, Any], z: np.ndarray) -> Iterator[np.ndarray]:
    """(k, H, W) of each batch, as many calls under way as in the adaptive search."""
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


def measured_grid(prepared: Prepared, spacing: float, images: int) -> Iterator[Row]:
    """Times grid searches, and tells how long they should take by the bare forward pass.

    Args:
        prepared: localizer and images.
        spacing: of the grid, standard deviations.
        images: how many, the first ones.

    Yields:
        A record for each image: points, seconds, what was predicted; intervals and p-value beside
        those of the adaptive engine.
    """
    inputs = load_inputs(prepared.inputs)
    localizer = open_subject(prepared.subject)[0].with_threshold(inputs.threshold)
    evaluator = evaluator_of(localizer, devices=jax.local_devices())
    for number in range(min(images, len(inputs.images))):
        pair = inputs.images[number], inputs.references[number]
        precision = prepared.plan.precision
        own = dal_test(localizer, *pair, NOISE, precision=precision, randomization=0.0)
        forward = bare_seconds(evaluator, "float32", inputs.images)
        started = time.perf_counter()
        found = grid_search(localizer, evaluator, pair, own.region, spacing)
        seconds = time.perf_counter() - started
        calls = math.ceil(found.points / evaluator.capacity("float32"))
        yield {
            "kind": "grid",
            "size": prepared.subject.size,
            "spacing": spacing,
            "image": number,
            "points": found.points,
            "seconds_predicted": calls * forward,
            "seconds": seconds,
            "ratio": seconds / (calls * forward),
            "intervals": len(found.truncation),
            "intervals_adaptive": len(own.truncation),
            "p_value": found.p_value,
            "p_value_adaptive": own.p_value,
        }
