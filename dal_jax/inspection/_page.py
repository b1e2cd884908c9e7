"""Self-contained HTML page of a tested folder: decisions, calibration, pictures, table."""

import base64
import hashlib
import importlib.resources
import io
import math
import platform
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dal_jax._errors import InputError
from dal_jax._version import __version__
from dal_jax.images import write_text
from dal_jax.inspection._inspect import PICTURES
from dal_jax.inspection._page_read import (
    NAMES,
    Model,
    Tested,
    Trust,
    of_this_calibration,
    read_model,
    read_results,
)
from dal_jax.inspection._page_sections import (
    by_p,
    difference_of,
    full_table,
    metrics,
    recalibrated,
    summary,
)
from dal_jax.inspection._results import TABLE, ViewResult, picture_name, region_number
from dal_jax.inspection._stream import drift_warning, read_stream
from dal_jax.report import (
    NO_REGION,
    NOT_SIGNIFICANT,
    SIGNIFICANT,
    UNDECIDED,
    calibration_figure,
    format_p,
)

NUM_PICTURES = 60
_LINES = 2000  # largest number of lines of the full table
_TEMPLATES = "templates"
SIDE = 320  # largest longer side of an embedded picture, pixels
_LISTED = 8  # largest number of components of an image that are described
# Methods whose p-values are shown beside the raw one, where available.
_BESIDE = ("inflated", "heavy_tails", "conformal", "naive")


class Pictures(NamedTuple):
    """Cards of the images that the page shows."""

    cards: list[dict[str, Any]]
    num_images: int  # number of all images, with and without a card
    num_missing: int  # number of cards without a picture


class Page(NamedTuple):
    """Description of a written page.

    Example:
        >>> counts = {"significant": 3}, "80 views of 70 images: 3 significant"
        >>> made = Page(Path("report.html"), 90_000, 80, 70, 60, 10, False, *counts)
        >>> made.decisions["significant"], made.num_left_out
        (3, 10)
    """

    path: Path
    num_bytes: int  # size of the file, bytes
    num_views: int  # number of tested views
    num_images: int  # number of images that the views belong to
    num_pictures: int  # number of embedded pictures
    num_left_out: int  # number of images without a card
    calibrated: bool  # whether the page shows a calibration
    decisions: dict[str, int]  # number of regions by decision, and of views without a region
    counts: str  # numbers of images, views, regions and decisions, in words


def page(
    directory: str | Path,
    path: str | Path | None = None,
    *,
    model: str | Path | None = None,
    num_pictures: int = NUM_PICTURES,
) -> Page:
    """Write the results of `dal-jax test` as one HTML file, whole or not at all.

    The file needs no other file and no network: it contains its pictures and figures, and its
    content security policy forbids the browser to load anything. Every text is escaped.

    Args:
        directory: Folder given as `--out` to `dal-jax test`.
        path: Path of the file; None for report.html in the directory.
        model: Folder of the model, for its settings and calibration; None to leave them out, which
            the page states.
        num_pictures: Number of images to show, those with the smallest p-values; not negative.

    Returns:
        Path, size and counts of the page.

    Raises:
        InputError: A file is missing or damaged, the page cannot be written, a library is missing,
            or the number of pictures is negative.
        CheckpointError: The model has no profile, or its calibration is damaged.

    Example:
        >>> made = page("results", model="model")  # doctest: +SKIP
        >>> made.path.name, made.num_images <= made.num_views  # doctest: +SKIP
        ('report.html', True)
    """
    if num_pictures < 0:
        raise InputError(f"pictures: got {num_pictures}, expected 0 or more")
    template = _template()
    tested = read_results(Path(directory))
    known = None if model is None else read_model(Path(model))
    shown = _pictures(tested.directory, tested.views, num_pictures)
    counted = summary(tested)
    trust = None if known is None else known.trust
    text = template.render(
        title=f"Tests of {counted['images']} images",
        summary=counted,
        tested=tested,
        trust=trust,
        stream=_stream(Path(directory)),
        notices=_notices(tested, known),
        figures=[] if trust is None else _figures(trust),
        pictures=shown,
        side=SIDE,
        table=full_table(tested.views, _LINES),
        csv=TABLE if (tested.directory / TABLE).is_file() else None,
        metrics=metrics(tested),
        profile=[] if known is None else known.profile,
        versions=_versions(),
        digests=tested.digests | ({} if known is None else known.digests),
    )
    # Lone surrogates cannot be encoded in UTF-8.
    text = text.encode("utf-8", "backslashreplace").decode()
    target = tested.directory / "report.html" if path is None else Path(path)
    write_text(target, text)
    return _page(target, text, counted, shown, trust)


def _page(
    path: Path, text: str, counted: dict[str, Any], shown: Pictures, trust: Trust | None
) -> Page:
    return Page(
        path,
        len(text.encode()),
        counted["views"],
        shown.num_images,
        len(shown.cards) - shown.num_missing,
        shown.num_images - len(shown.cards),
        trust is not None,
        dict(counted["decisions"]),
        counted["words"],
    )


def _stream(directory: Path) -> dict[str, Any] | None:
    """Return what the page says of a stream of images; None if the images were no stream."""
    rows = read_stream(directory)
    if not rows:
        return None
    return {
        "images": len(rows),
        "discoveries": sum(row.discovery for row in rows),
        "drift": f"{max(row.drift for row in rows):.3g}",
        "warning": drift_warning(rows),
    }


def _template() -> Any:
    try:
        import jinja2
        import markupsafe
    except ImportError as error:
        raise InputError('report: the page needs jinja2: pip install "dal-jax[report]"') from error
    folder = importlib.resources.files("dal_jax.inspection") / _TEMPLATES
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = (folder / "sort.js").read_text(encoding="utf-8")
    # The content security policy admits this script alone, by its hash.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    environment.globals.update(script=markupsafe.Markup(script), script_hash=digest)
    return environment.get_template("report.html")


def _notices(tested: Tested, known: Model | None) -> list[str]:
    """Return the warnings that a reader needs before relying on the p-values."""
    told = [] if known is None else [f"The model: {warning}." for warning in known.warnings]
    warned = {one.name: one.warning for one in tested.views if one.warning}
    if warned:
        name, warning = next(iter(warned.items()))
        told.append(f"{len(warned)} images have a warning (see the table), as {name}: {warning}.")
    return told + _of_calibration(tested, known)


def _of_calibration(tested: Tested, known: Model | None) -> list[str]:
    """Return the warnings that a reader needs before relying on the recalibrated p-values."""
    inside = recalibrated(tested.views)
    if known is None and inside:
        return [
            "The calibration is not shown: the page was made without the model's folder (--model)."
        ]
    if known is None or known.trust is None:
        told = ["Not calibrated: p-values were not checked on normal images."]
        if inside:
            told.append("The recalibrated p-values below are from a calibration that is not here.")
        return told
    if not inside:
        return ["The images were tested before this calibration: test again for recalibrated p."]
    if not of_this_calibration(tested.views, known.trust.calibration):
        return ["The recalibrated p-values below are of another calibration than the one shown."]
    return []


def _figures(trust: Trust) -> list[tuple[str, str]]:
    """Return the address and the description of each figure."""
    held = trust.calibration
    texts = ("All p-values of normal views", "The small p-values of normal views, powers of ten")
    return [
        (
            _data_uri(
                calibration_figure(
                    held.selective.p, held.naive, held.num_groups, logarithmic=small
                ).encode(),
                "image/svg+xml",
            ),
            f"{text}: observed against expected, raw selective and naive",
        )
        for small, text in zip((False, True), texts, strict=True)
    ]


def _versions() -> list[tuple[str, str]]:
    return [
        ("dal_jax", __version__),
        ("jax", jax.__version__),
        ("numpy", np.__version__),
        ("python", platform.python_version()),
    ]


def _pictures(directory: Path, results: Sequence[ViewResult], limit: int) -> Pictures:
    """Return the cards of images, in ascending order of the raw p; images without a p are last."""
    images: dict[str, list[ViewResult]] = {}
    for one in results:
        images.setdefault(one.name, []).append(one)
    firsts = [(min(views, key=by_p), views) for views in images.values()]
    firsts.sort(key=lambda pair: by_p(pair[0]))
    cards = []
    for first, views in firsts[:limit]:
        picture, why = _picture(directory / PICTURES, picture_name(first.name, images))
        cards.append({**_card(first, views), "picture": picture, "why": why})
    return Pictures(cards, len(images), sum(card["picture"] is None for card in cards))


def _data_uri(data: bytes, kind: str) -> str:
    """Encode data of a media type as a data URI."""
    return f"data:{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _card(first: ViewResult, views: Sequence[ViewResult]) -> dict[str, Any]:
    beside = [
        (NAMES[method], format_p(first.p[method].high))
        for method in _BESIDE
        if not math.isnan(first.p[method].high)
    ]
    # Once there are components, views without a region are not listed.
    own = [one for one in views if one.component] or views
    decisions = {one.decision for one in own}
    # The card shows the first of these decisions that occurs, and its number of views or regions.
    order = (SIGNIFICANT, UNDECIDED, NOT_SIGNIFICANT, NO_REGION)
    decision = next((word for word in order if word in decisions), own[0].decision)
    count = sum(one.decision == decision for one in own)
    what = "regions" if own[0].component else "views"
    several = f"smallest of {len(own)} {what}, not corrected for their number; the decision is"
    return {
        "name": first.name,
        "label": first.label,
        "decision": decision,
        "views": f"{count} of {len(own)} {what}" if len(own) > 1 else "",
        "p": format_p(first.p["selective"].p),
        "difference": difference_of(first),
        "regions": [_region(one) for one in sorted(own, key=by_p)[:_LISTED]]
        if len(own) > 1 and first.component
        else [],
        "of": several if len(own) > 1 else "",
        "beside": beside,
        "message": ": ".join(filter(None, (first.message, first.warning))),
    }


def _region(one: ViewResult) -> str:
    """Describe a component, with the number that it has in the picture."""
    return (
        f"{region_number(one)}: p {format_p(one.p['selective'].p)}, adjusted "
        f"{format_p(one.p_adjusted)}, difference {difference_of(one)}, {one.decision}"
    )


def _picture(folder: Path, name: str) -> tuple[str | None, str]:
    """Return the picture as a data URI and "", or None and the reason why there is no picture."""
    path = folder / name
    try:
        if not path.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"picture {str(path)!r} leads outside the folder {str(folder)!r}")
        if not path.is_file():
            return None, "no picture"
    except (OSError, RuntimeError) as error:  # name too long, or loop of links
        raise InputError(f"picture {str(path)!r}: {error}") from error
    try:
        return _data_uri(_small(path), "image/png"), ""
    except (OSError, ValueError, SyntaxError) as error:  # raised by pillow for damaged files
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
        # Large scans are expected as originals, and the embedded picture is small.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path, formats=["PNG"]) as image:
            shown = image.convert("RGB")
    shown.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    shown.save(file, "PNG", optimize=True)
    return file.getvalue()
