"""The rows of a tested folder as counts, table and metrics of the page."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from dal_jax import report as words
from dal_jax._errors import InputError
from dal_jax.inspection._page_model import NAMES, interval, percent
from dal_jax.inspection._page_pictures import by_p, difference_of
from dal_jax.inspection._page_rows import METRICS, Tested
from dal_jax.inspection._rows import COLUMNS, DECIDING, region_number, tally
from dal_jax.report import format_p

DECISIONS = (
    words.SIGNIFICANT,
    words.NOT_SIGNIFICANT,
    words.UNDECIDED,
    words.NO_REGION,
    words.NOT_VALID,
)
RECALIBRATED = DECIDING[1:]
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
    """Counts decisions.

    Args:
        tested: the folder.

    Returns:
        Counts by decision, by label and decision, and what decided.
    """
    rows = tested.rows
    by_label: dict[str, Counter[str]] = {}
    for row in rows:
        by_label.setdefault(row["label"], Counter())[row["decision"]] += 1
    counted = tally(rows)
    total = Counter(counted.decisions)
    listed = [d for d in (*DECISIONS, *sorted(set(total) - set(DECISIONS))) if total[d]]
    with_p = sum(not math.isnan(row["p_value"]) for row in rows)
    components = any(row["component"] for row in rows)
    several = components or any(row["views"] > 1 for row in rows)
    tried = counted.images if several else with_p  # what the level is the rate of
    q_values = [row["q_value"] for row in rows]
    rate = 0.05 if tested.alpha is None else tested.alpha
    failed = Counter(row["status"] for row in rows if row["status"] not in ("OK", "NO_REGION"))
    return {
        "views": counted.views,
        "images": counted.images,
        "words": counted.words,
        "components": components,
        "rate": f"{rate:.0%}",
        "discovered": sum(q <= rate for q in q_values),
        "discoveries": tested.discoveries,
        "called": len({row["name"] for row in rows if row["decision"] == words.SIGNIFICANT}),
        "several": several,
        "groups": len({row["group"] for row in rows}),
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


def recalibrated(rows: Sequence[dict[str, Any]]) -> bool:
    """Do rows hold recalibrated p-values?

    Args:
        rows: of views.

    Returns:
        Whether any is a number.
    """
    columns = [COLUMNS[method] for method in RECALIBRATED]
    return any(not math.isnan(row[column]) for row in rows for column in columns)


def full_table(rows: Sequence[dict[str, Any]], limit: int) -> dict[str, Any]:
    """Lays out the table of all views and components, the smallest raw p first.

    Args:
        rows: of views.
        limit: number of lines, at most.

    Returns:
        Titles and lines; a cell is (text, number to sort by, kind). Columns without content are
        left out and named.
    """
    columns = [(NAMES[method], column) for method, column in COLUMNS.items()]
    known = [(t, c) for t, c in columns if any(not math.isnan(row[c]) for row in rows)]
    several = any(row["views"] > 1 for row in rows)
    components = any(row["component"] for row in rows)
    grouped = any(row["group"] != row["name"] for row in rows)
    titles = [
        "image",
        *(["view"] if several else []),
        *(["region"] if components else []),
        "decision",
        *(["adjusted p"] if several or components else []),
        "label",
        *(["group"] if grouped else []),
        *(title for title, _ in known),
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
            _text(row["name"], "name"),
            *([_count(row["view"])] if several else []),
            *([_text(region_number(row))] if components else []),
            _text(row["decision"], "decision"),
            *([_p(row, "p_adjusted")] if several or components else []),
            _text(row["label"]),
            *([_text(row["group"], "group")] if grouped else []),
            *(_p(row, column) for _, column in known),
            _bounds(row),
            _p(row, "q_value"),
            _number(row["estimate"], difference_of(row)),
            _count(row["num_tested"]),
            _number(row["z"], _plain(row["z"], ".2f")),
            _number(row["max_score"], _plain(row["max_score"], ".3g")),
            _text(
                ": ".join(filter(None, (row["status"], row["message"], row["warning"]))), "status"
            ),
        ]
        for row in sorted(rows, key=by_p)[:limit]
    ]
    left_out = [title for title, column in columns if (title, column) not in known]
    return {"titles": titles, "lines": lines, "left_out": left_out, "total": len(rows)}


def metrics(tested: Tested) -> dict[str, Any] | None:
    """Lays out the metrics of a folder whose truth is known.

    Args:
        tested: the folder.

    Returns:
        Lists of (name, value) and the shares of significant regions; None without metrics.

    Raises:
        InputError: the file is damaged.
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
    # Every digit goes into the page: what is read may be rounded, what is sorted is not.
    return text, repr(value), "number"


def _p(row: dict[str, Any], column: str) -> tuple[str, str, str]:
    return _number(row[column], format_p(row[column]))


def _bounds(row: dict[str, Any]) -> tuple[str, str, str]:
    low, high = row["p_low"], row["p_high"]
    text = "-" if math.isnan(low) else f"{format_p(low)} to {format_p(high)}"
    return text, repr(low), "number"


def _plain(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)
