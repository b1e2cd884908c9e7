"""Sections of the page: counts, table and metrics of a tested folder."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from dal_jax._errors import InputError
from dal_jax.inference import SelectiveP
from dal_jax.inspection._calibration import METHODS
from dal_jax.inspection._inspect import METRICS
from dal_jax.inspection._page_read import NAMES, Tested, interval, percent
from dal_jax.inspection._results import DECIDING, ViewResult, region_number, tally
from dal_jax.report import (
    NO_REGION,
    NOT_SIGNIFICANT,
    NOT_VALID,
    SIGNIFICANT,
    UNDECIDED,
    format_difference,
    format_p,
)

DECISIONS = (SIGNIFICANT, NOT_SIGNIFICANT, UNDECIDED, NO_REGION, NOT_VALID)
_PARTS = {
    "normal": "normal images (false calls)",
    "anomalous": "anomalous images",
    "touching": "anomalous, region touches the mask",
    "elsewhere": "anomalous, region elsewhere",
}
_METRICS = {
    "auroc": "AUROC",
    "ap": "average precision",
    "f1_max": "largest F1",
    "aupro": "AUPRO, to 30% false positives",
    "num_normal": "normal images",
    "num_anomalous": "anomalous images",
    "num_images": "images",
    "num_pixels": "pixels",
}


def summary(tested: Tested) -> dict[str, Any]:
    """Count the decisions of a tested folder.

    Args:
        tested: Results of the folder.

    Returns:
        Counts by decision, counts by label and decision, and the method that decided.
    """
    views = tested.views
    by_label: dict[str, Counter[str]] = {}
    for one in views:
        by_label.setdefault(one.label, Counter())[one.decision] += 1
    counted = tally(views)
    total = Counter(counted.decisions)
    listed = [d for d in (*DECISIONS, *sorted(set(total) - set(DECISIONS))) if total[d]]
    with_p = sum(not math.isnan(one.p["selective"].p) for one in views)
    components = any(one.component for one in views)
    several = components or any(one.views > 1 for one in views)
    tried = counted.images if several else with_p  # number of decisions that the level refers to
    rate = 0.05 if tested.alpha is None else tested.alpha
    failed = Counter(one.status for one in views if one.status not in ("OK", "NO_REGION"))
    return {
        "views": counted.views,
        "images": counted.images,
        "words": counted.words,
        "components": components,
        "rate": f"{rate:.0%}",
        "discovered": sum(one.q_value <= rate for one in views),
        "discoveries": tested.discoveries,
        "called": len({one.name for one in views if one.decision == SIGNIFICANT}),
        "several": several,
        "groups": len({one.group for one in views}),
        "decisions": [(decision, total[decision]) for decision in listed],
        "labels": [(label, [n[d] for d in listed]) for label, n in sorted(by_label.items())],
        "with_p": with_p,
        "expected": None if tested.alpha is None else f"{tested.alpha * tried:.1f}",
        "failed": sorted(failed.items()),
        "decider": None if tested.decide_by is None else NAMES[tested.decide_by],
        "agreeing": [NAMES[method] for method in tested.agreeing],
        "disagrees": tested.decide_by is not None
        and tested.alpha is not None
        and tested.decide_by not in tested.agreeing,
    }


def recalibrated(views: Sequence[ViewResult]) -> bool:
    """Return whether results hold recalibrated p-values.

    Args:
        views: Results of views and components.

    Returns:
        True if any recalibrated p-value is a number.
    """
    return any(not math.isnan(one.p[method].high) for one in views for method in DECIDING[1:])


def by_p(one: ViewResult) -> tuple[bool, float, bool, str, int, int]:
    """Return the key that sorts results by raw p.

    Results without a p-value are last, and among them those of failed tests come first.

    Args:
        one: Result of a view or component.

    Returns:
        Key of the sort.
    """
    p, quiet = one.p["selective"].p, one.status == "NO_REGION"
    unknown = math.isnan(p)
    return (unknown, 0.0 if unknown else p, quiet, one.name, one.view, one.component)


def difference_of(one: ViewResult) -> str:
    """Format the mean difference of a region and its confidence interval.

    Args:
        one: Result of a view or component.

    Returns:
        Text as of `format_difference`.
    """
    return format_difference(one.estimate, one.ci_low, one.ci_high)


def full_table(views: Sequence[ViewResult], limit: int) -> dict[str, Any]:
    """Return the table of all views and components, in ascending order of the raw p.

    Args:
        views: Results of views and components.
        limit: Largest number of lines.

    Returns:
        Titles, lines, names of the p-values that are left out because no result has them, and the
        total number of results. A cell is (text, number to sort by, kind).
    """
    known = [m for m in METHODS if any(not math.isnan(one.table_p(m)) for one in views)]
    several = any(one.views > 1 for one in views)
    components = any(one.component for one in views)
    grouped = any(one.group != one.name for one in views)
    titles = [
        "image",
        *(["view"] if several else []),
        *(["region"] if components else []),
        "decision",
        *(["adjusted p"] if several or components else []),
        "label",
        *(["group"] if grouped else []),
        *(NAMES[method] for method in known),
        "bounds on raw p",
        "q",
        "difference [interval]",
        "pixels",
        "z",
        "max. score",
        "status",
    ]
    lines = [
        [
            _text(one.name, "name"),
            *([_count(one.view)] if several else []),
            *([_text(region_number(one))] if components else []),
            _text(one.decision, "decision"),
            *([_p(one.p_adjusted)] if several or components else []),
            _text(one.label),
            *([_text(one.group, "group")] if grouped else []),
            *(_p(one.table_p(method)) for method in known),
            _bounds(one.p["selective"]),
            _p(one.q_value),
            _number(one.estimate, difference_of(one)),
            _count(one.num_tested),
            _number(one.z, _plain(one.z, ".2f")),
            _number(one.max_score, _plain(one.max_score, ".3g")),
            _text(": ".join(filter(None, (one.status, one.message, one.warning))), "status"),
        ]
        for one in sorted(views, key=by_p)[:limit]
    ]
    left_out = [NAMES[method] for method in METHODS if method not in known]
    return {"titles": titles, "lines": lines, "left_out": left_out, "total": len(views)}


def metrics(tested: Tested) -> dict[str, Any] | None:
    """Return the metrics of a folder of labelled images, formatted for the page.

    Args:
        tested: Results of the folder.

    Returns:
        Lists of (name, value), and the shares of significant regions; None if there are no metrics.

    Raises:
        InputError: The file of metrics is damaged.
    """
    found = tested.metrics
    if not found:
        return None
    try:
        pixel = found.get("pixel", {})
        errors = [value for value in pixel.get("max_error", {}).values() if value]
        return {
            "alpha": f"{found['alpha']:g}",
            "image": _named(found["image"]),
            "pixel": _named({k.removeprefix("pixel_"): v for k, v in pixel.items()}),
            "error": f"{max(errors):.2g}" if errors else None,
            "parts": list(_PARTS.values()),
            "significant": [
                (NAMES.get(method, method), [_share(parts[part]) for part in _PARTS])
                for method, parts in found.get("significant", {}).items()
            ],
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{tested.directory / METRICS}: damaged") from error


def _named(values: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (title, "-" if values[key] is None else f"{values[key]:,}")
        if key.startswith("num_")
        else (title, "-" if values[key] is None else f"{values[key]:.3f}")
        for key, title in _METRICS.items()
        if key in values
    ]


def _share(part: dict[str, Any]) -> dict[str, str]:
    decided, undecided = int(part["num_decided"]), int(part["num_undecided"])
    count = f"{int(part['num_significant'])} of {decided}"
    return {
        "rate": percent(part["share"]),
        "interval": interval(part["low"], part["high"]) if decided else "",
        "count": f"{count}, {undecided} without p" if undecided else count,
    }


def _text(text: str, kind: str = "") -> tuple[str, str, str]:
    return text, "", kind


def _count(value: int) -> tuple[str, str, str]:
    return str(value), str(value), "number"


def _number(value: float, text: str) -> tuple[str, str, str]:
    # The displayed text may be rounded; the key of the sort keeps every digit.
    return text, repr(value), "number"


def _p(p: float) -> tuple[str, str, str]:
    return _number(p, format_p(p))


def _bounds(p: SelectiveP) -> tuple[str, str, str]:
    text = "-" if math.isnan(p.low) else f"{format_p(p.low)} to {format_p(p.high)}"
    return text, repr(p.low), "number"


def _plain(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)
