"""The tested parts of an image: its region or, where each is tested, the region's components."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri

from dal_jax import parts_of_record, region_of
from dal_jax.inference import SelectiveP, holm, naive_p

PART_METHODS = ("selective", "thinned")


class Part(NamedTuple):
    """What a method says of one tested part; in units of the image."""

    region: np.ndarray  # bool (H, W)
    p: float  # two-sided; of components adjusted by Holm's method
    sd: float  # of the difference of means in the image itself, whatever the method
    estimate: float  # of the mean difference
    low: float  # of its confidence interval
    high: float


def parts_of(
    record: dict[str, Any], method: str = "selective", confidence: float = 0.95
) -> list[Part]:
    """Reads the tested parts of an image from its record.

    With "thinned" each part is tested in the half of the image that its localizer did not see:
    `T' = nu . (x - omega / gamma^2 - mean_k x_ref_k)`, of which the record tells all there is to
    know, `nu . omega = c added`, `c = K / (K + 1) = (gamma sd / added_sd)^2`.

    Args:
        record: of a tested image.
        method: one of `PART_METHODS`.
        confidence: of thinning's intervals; those of "selective" are the record's.

    Returns:
        The region alone, or its components; with "thinned" none where nothing was added.

    Source: thinning: Neufeld, Dharamshi, Gao and Witten, arXiv 2301.07276.
    """
    own = parts_of_record(record)
    p_name = "p_holm" if record.get("components") else "p_value"
    shape, gamma = record["region_shape"], record["randomization"]
    if method == "thinned":
        if not gamma:
            return []
        parts = [_thinned(one, shape, gamma, confidence) for one in own]
        adjusted = holm([SelectiveP(part.p, part.p, part.p) for part in parts])
        return [part._replace(p=p.p) for part, p in zip(parts, adjusted, strict=True)]
    return [
        Part(
            region_of(one["region"], shape),
            one[p_name],
            one["sd"],
            one["estimate"],
            one["ci_low"],
            one["ci_high"],
        )
        for one in own
    ]


def _thinned(one: dict[str, Any], shape: Sequence[int], gamma: float, confidence: float) -> Part:
    """The test of a part by what its localizer did not see."""
    share = (gamma * one["sd"] / one["added_sd"]) ** 2  # c
    statistic = one["statistic"] - share * one["added"] / gamma**2
    sd = one["sd"] * math.sqrt(1 + share / gamma**2)
    half = float(-ndtri((1 - confidence) / 2)) * sd
    p = naive_p(statistic / sd)
    region = region_of(one["region"], shape)
    return Part(region, p, one["sd"], statistic, statistic - half, statistic + half)
