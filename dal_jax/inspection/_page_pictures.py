"""The pictures of the page: overlays made small, those of the smallest p-values first."""

import base64
import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dal_jax import report as words
from dal_jax._errors import InputError
from dal_jax.inspection._page_model import NAMES
from dal_jax.inspection._page_rows import PICTURES
from dal_jax.inspection._rows import COLUMNS, picture_name, region_number
from dal_jax.report import format_difference, format_p

SIDE = 320  # pixels, longer side of an embedded picture at most
_LISTED = 8  # components of an image in words, at most
# Shown beside the raw p-value, where known.
_BESIDE = ("inflated", "heavy_tails", "conformal", "naive")


class Pictures(NamedTuple):
    """What the page shows of the images."""

    cards: list[dict[str, Any]]
    num_images: int
    num_missing: int  # cards without a picture


def pictures(directory: Path, rows: Sequence[dict[str, Any]], limit: int) -> Pictures:
    """Makes a card for each of the images with the smallest raw p-values.

    Args:
        directory: of the results, with its folder of overlays.
        rows: of all views.
        limit: number of cards, at most.

    Returns:
        The cards, the smallest p first, images without a p last.

    Raises:
        InputError: a picture leads outside the folder, or pillow is missing.
    """
    images: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        images.setdefault(row["name"], []).append(row)
    firsts = [(min(views, key=by_p), views) for views in images.values()]
    firsts.sort(key=lambda pair: by_p(pair[0]))
    cards = []
    for first, views in firsts[:limit]:
        picture, why = _picture(directory / PICTURES, picture_name(first["name"], images))
        cards.append({**_card(first, views), "picture": picture, "why": why})
    return Pictures(cards, len(images), sum(card["picture"] is None for card in cards))


def by_p(row: dict[str, Any]) -> tuple[bool, float, bool, str, int, int]:
    """Sorts rows by raw p; those without one last, of them those that failed first.

    Args:
        row: of a view.

    Returns:
        A key.
    """
    unknown = math.isnan(row["p_value"])
    quiet = row["status"] == "NO_REGION"
    return (
        unknown,
        0.0 if unknown else row["p_value"],
        quiet,
        row["name"],
        row["view"],
        row["component"],
    )


def data_uri(data: bytes, kind: str) -> str:
    """Writes a file as an address that holds it.

    Args:
        data: its bytes.
        kind: its media type.

    Returns:
        `data:KIND;base64,...`
    """
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _card(first: dict[str, Any], views: Sequence[dict[str, Any]]) -> dict[str, Any]:
    beside = [
        (NAMES[method], format_p(first[COLUMNS[method]]))
        for method in _BESIDE
        if not math.isnan(first[COLUMNS[method]])
    ]
    # Views without a region are no regions.
    own = [row for row in views if row["component"]] or views
    decisions = {row["decision"] for row in own}
    # Of several views the strongest word is the picture's; how many share it is said beside.
    order = (words.SIGNIFICANT, words.UNDECIDED, words.NOT_SIGNIFICANT, words.NO_REGION)
    decision = next((word for word in order if word in decisions), own[0]["decision"])
    count = sum(row["decision"] == decision for row in own)
    what = "regions" if own[0]["component"] else "views"
    several = f"smallest of {len(own)} {what}, not corrected for their number; the decision is"
    return {
        "name": first["name"],
        "label": first["label"],
        "decision": decision,
        "views": f"{count} of {len(own)} {what}" if len(own) > 1 else "",
        "p": format_p(first["p_value"]),
        "difference": difference_of(first),
        "regions": [_region(row) for row in sorted(own, key=by_p)[:_LISTED]]
        if len(own) > 1 and first["component"]
        else [],
        "of": several if len(own) > 1 else "",
        "beside": beside,
        "message": ": ".join(filter(None, (first["message"], first.get("warning")))),
    }


def difference_of(row: dict[str, Any]) -> str:
    """The mean difference of a row in words.

    Args:
        row: of a view or component.

    Returns:
        See `format_difference`.
    """
    return format_difference(row["estimate"], row["ci_low"], row["ci_high"])


def _region(row: dict[str, Any]) -> str:
    """A component in words, under the number that it has in the picture."""
    number = region_number(row)
    difference = difference_of(row)
    return (
        f"{number}: p {format_p(row['p_value'])}, adjusted {format_p(row['p_adjusted'])}, "
        f"difference {difference}, {row['decision']}"
    )


def _picture(folder: Path, name: str) -> tuple[str | None, str]:
    """The picture's address, or why there is none."""
    path = folder / name
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"picture {str(path)!r} leads outside the folder {str(folder)!r}")
        if not path.is_file():
            return None, "no picture"
    except (OSError, RuntimeError) as error:  # a name too long, a loop of links
        raise InputError(f"picture {str(path)!r}: {error}") from error
    try:
        return data_uri(_small(path), "image/png"), ""
    except (OSError, ValueError, SyntaxError) as error:  # what pillow raises for spoilt files
        if isinstance(error, InputError):
            raise
        return None, "picture cannot be read"


def _small(path: Path) -> bytes:
    try:
        from PIL import Image
    except ImportError as error:
        raise InputError('report: pictures need pillow: pip install "dal-jax[images]"') from error
    file = io.BytesIO()
    with warnings.catch_warnings():
        # Large scans are what the pictures are made of; what is shown is small.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path, formats=["PNG"]) as image:
            shown = image.convert("RGB")
    shown.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    shown.save(file, "PNG", optimize=True)
    return file.getvalue()
