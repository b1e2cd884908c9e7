"""The page of a tested folder: safe, self-contained, and true to the rows."""

import base64
import hashlib
import io
import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
pytest.importorskip("PIL")

from PIL import Image

from dal_jax import InputError
from dal_jax.inference import NullLaw, Ranks, SelectiveP, conformal_p
from dal_jax.inspection import METHODS, Calibration, ViewResult, page
from dal_jax.inspection._calibration import Rate, save_calibration
from dal_jax.inspection._page_read import _kind
from dal_jax.inspection._results import write_views
from dal_jax.noise import fit_report, iid
from dal_jax.report import calibration_figure, calibration_picture
from dal_jax.report._calibration_figure import uniform_band

NAN = math.nan
HOSTILE = 'a/<script>alert("1")</script> & \'q\' "é日".png'
SELECTIVE = (0.0123456789, 0.2, 0.4, 0.7, 0.9)
CALIBRATION = Calibration(
    NullLaw(1.2),
    NullLaw(1.1, 5.0),
    Ranks(SELECTIVE, SELECTIVE, SELECTIVE, (1.0,) * 5),
    (0.001, 0.01, 0.02, 0.1, 0.3),
    (-2.0, -1.0, -0.5),
    (1.0, 1.0, 1.0),
    6,
    3,
)


def row(name: str, p: float, decision: str, status: str = "OK", **changes: Any) -> ViewResult:
    p_of = dict.fromkeys(METHODS, p) | {"conformal": conformal_p(SELECTIVE, p)}
    bounds = {method: SelectiveP(p, p, p) for method, p in p_of.items()}
    one = ViewResult(name, 0, 1, 0, 0, "normal", "tile <1>", status, decision, p, p, bounds)
    numbers = {"statistic": 0.1, "sd": 0.05, "z": 2.0, "estimate": 0.08, "max_score": 1.25}
    numbers |= {"ci_low": -0.02, "ci_high": math.inf}
    return one._replace(num_tested=0 if math.isnan(p) else 7, **numbers)._replace(**changes)


def with_p(one: ViewResult, **p: float | tuple[float, float, float]) -> ViewResult:
    """A result with other p-values of some methods."""
    new = {m: SelectiveP(*(v if isinstance(v, tuple) else (v, v, v))) for m, v in p.items()}
    return one._replace(p={**one.p, **new})


ROWS = [
    row("plain.png", 0.3123456789012345, "not significant"),
    row(HOSTILE, 0.0012345678901234, "significant", label="<b>crack</b>"),
    with_p(row("no picture.png", 0.05, "undecided"), selective=(0.05, 0.04, 0.06)),
    row("quiet.png", NAN, "no region", "NO_REGION"),
    row("bad.png", NAN, "no valid result", "INVALID_INPUT", message='image "x" <i>broken</i>'),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    write_views(folder, ROWS)
    for one in ROWS:
        if one.name not in ("no picture.png", "bad.png"):
            path = folder / "overlays" / one.name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.zeros((400, 640, 3), np.uint8)).save(path)
    (folder / "test.json").write_text('{"alpha": 0.05, "decide_by": "selective"}')
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    rate = {"rejected": 1, "tested": 5, "rate": 0.2, "standard_error": 0.1, "low": 0.1, "high": 0.3}
    rates = [{"method": m, "alpha": a, **rate} for m in METHODS for a in (0.01, 0.05, 0.1)]
    alone = {**rate, "low": NAN, "high": NAN, "standard_error": NAN}
    facts = {
        "verdict": ["Raw selective p-values: too many <&>.", "More."],
        "rates": rates,
        "control_rates": [{"method": "selective", "alpha": 0.05, **alone}],
        "uniformity": {"selective": 0.456, "naive": 1e-9},
        "by_distance": [{"from": 3.0, "to": math.inf, "views": 0, "rejected": 0}],
        "sensitivity": [
            {
                "what": "sigma",
                "factor": 1.25,
                "tested": 5,
                "rejected": 2,
                "changed": 1,
                "alpha": 0.05,
            }
        ],
        "smallest": ["<u>odd</u>.png"],
    }
    save_calibration(model, CALIBRATION, facts)
    facts = {"threshold": 0.83, "roles": {"train": ["a", "b"]}, "source": {"groups": "<(.*)>"}}
    (model / "profile.json").write_text(json.dumps(facts))
    return model


class Parsed(HTMLParser):
    """Tags, attributes and text of a page; every tag is closed in turn."""

    EMPTY = ("meta", "img", "br")

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += data

    def values(self, name: str) -> list[str]:
        return [value for _, attrs in self.tags if (value := attrs.get(name)) is not None]


def parsed(folder: Path) -> Parsed:
    return Parsed((folder / "report.html").read_text(encoding="utf-8"))


def test_page_is_safe_and_self_contained(folder: Path, model: Path) -> None:
    made = page(folder, model=model)
    text = made.path.read_text(encoding="utf-8")
    seen = Parsed(text)
    assert made.num_bytes == len(text.encode()) == made.path.stat().st_size
    assert [tag for tag, _ in seen.tags].count("script") == 1
    assert not {"i", "u", "(.*)"} & {tag for tag, _ in seen.tags}
    for name in (HOSTILE, "<b>crack</b>", 'image "x" <i>broken</i>', "<u>odd</u>.png", "<(.*)>"):
        assert name in seen.text
    assert "too many <&>." in seen.text
    sources = seen.values("src") + [v for v in seen.values("href") if not v.startswith("#")]
    assert sources and all(source.startswith("data:image/") for source in sources)
    assert "http://" not in text and "https://" not in text and "url(" not in text
    assert not [tag for tag, _ in seen.tags if tag in ("link", "iframe", "object", "base", "form")]
    policy = next(v for v in seen.values("content") if "default-src" in v)
    script = text.split("<script>")[1].split("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy
    assert all(not key.startswith("on") for _, attrs in seen.tags for key in attrs)


def test_numbers_are_those_of_the_rows(folder: Path, model: Path) -> None:
    made = page(folder, model=model)
    assert made.decisions == {
        "significant": 1,
        "not significant": 1,
        "undecided": 1,
        "no region": 1,
        "no valid result": 1,
    }
    seen = parsed(folder)
    exact = [float(value) for value in seen.values("data-v")]
    for one in ROWS:
        for method in METHODS:
            assert math.isnan(one.table_p(method)) or one.table_p(method) in exact
    assert "5 views of 5 images from 1 physical object were tested" in seen.text
    assert "in 3 a region was flagged" in seen.text
    assert "at most 0.05" in seen.text and "about 0.2 of them" in seen.text
    assert "1 INVALID_INPUT" in seen.text
    # The smallest p first; what failed before what had no region.
    cards = [v.split(":")[0] for v in seen.values("alt") if "raw p" in v]
    assert cards == [HOSTILE, "plain.png", "quiet.png"]
    assert seen.text.index("bad.png") < seen.text.index("quiet.png")
    assert "Without a picture: 2." in seen.text
    assert (made.num_pictures, made.num_left_out, made.calibrated) == (3, 0, True)


def test_calibration_is_told(folder: Path, model: Path) -> None:
    page(folder, model=model)
    seen = parsed(folder)
    for told in (
        "20.0%",
        "10.0% to 30.0%",
        "1 of 5",
        "no interval: one group",
        "0.456",
        "3 and more",
        "40.0%",
        "6 normal views of 3 physical objects",
        "2 groups",
        METHODS["conformal_naive"],
        "can explain away whatever is far out",
    ):
        assert told in seen.text, told
    assert sum(value.startswith("data:image/svg") for value in seen.values("src")) == 2
    assert "Not calibrated" not in seen.text and "another calibration" not in seen.text
    for name in ("rows.jsonl", "test.json", "profile.json", "calibration.json"):
        assert name in seen.text
    assert len(re.findall(r"[0-9a-f]{64}", seen.text)) == 4


def test_page_is_the_same_again(folder: Path, model: Path) -> None:
    first = page(folder, model=model).path.read_bytes()
    assert page(folder, model=model).path.read_bytes() == first
    assert sorted(path.name for path in folder.iterdir()) == [
        "overlays",
        "report.html",
        "results.csv",
        "rows.jsonl",
        "test.json",
    ]


def test_what_lacks_is_said(folder: Path, model: Path) -> None:
    none = {method: NAN for method in METHODS if method not in ("selective", "naive")}
    plain = [with_p(one, **none) for one in ROWS]
    write_views(folder, plain)
    page(folder)
    told = parsed(folder).text
    assert "Not calibrated: p-values were not checked on normal images." in told
    assert "Without any number, and left out: inflated" in told
    page(folder, model=model)
    assert "tested before this calibration" in parsed(folder).text
    write_views(folder, ROWS)
    page(folder)
    assert "made without the model's folder" in parsed(folder).text
    (folder / "test.json").unlink()
    page(folder)
    assert "level of the decisions is not recorded" in parsed(folder).text
    (folder / "metrics.json").write_text('{"alpha": 0.05, "image": {"auroc": null}}')
    page(folder)
    assert "these would give the same decisions: raw selective" in parsed(folder).text


def test_other_calibration_and_other_decisions_are_noticed(folder: Path, model: Path) -> None:
    write_views(folder, [with_p(ROWS[0], conformal=0.123)])
    page(folder, model=model)
    assert "of another calibration than the one shown" in parsed(folder).text
    write_views(folder, [ROWS[0]._replace(decision="significant")])
    page(folder)
    assert "Do not rely on this page" in parsed(folder).text


def test_limits_are_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dal_jax.inspection._page._LINES", 2)
    made = page(folder, num_pictures=1)
    seen = parsed(folder)
    assert "Showing the 1 images with the smallest p of 5." in seen.text
    assert "The 2 rows with the smallest raw p of 5; results.csv has all" in seen.text
    assert (made.num_pictures, made.num_left_out) == (1, 4)
    assert page(folder, num_pictures=0).num_pictures == 0


def test_views_of_one_image_share_a_card(folder: Path) -> None:
    views = [
        row("plain.png", p, decision, view=k, views=3)
        for k, (p, decision) in enumerate(
            [(0.5, "not significant"), (0.01, "significant"), (0.02, "significant")]
        )
    ]
    write_views(folder, views)
    assert page(folder).num_images == 1
    told = parsed(folder).text
    assert "2 of 3 views" in told and "smallest of 3 views, not corrected" in told


def test_the_table_has_the_p_value_that_decides(folder: Path) -> None:
    page(folder)
    assert "adjusted p" not in parsed(folder).text
    several = {"view": 0, "views": 2, "p_adjusted": 0.0271828}
    part = {"component": 1, "components": 1, "p_adjusted": 0.0314159}
    for changes in (several, part):
        write_views(folder, [row("plain.png", 0.01, "significant", **changes)])
        page(folder)
        seen = parsed(folder)
        assert "adjusted p" in seen.text and str(changes["p_adjusted"]) in seen.values("data-v")


def test_pictures_are_small_and_spoilt_ones_are_told(folder: Path) -> None:
    (folder / "overlays" / "plain.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    page(folder)
    seen = parsed(folder)
    assert "picture cannot be read" in seen.text and "Without a picture: 3." in seen.text
    for source in seen.values("src"):
        data = base64.b64decode(source.removeprefix("data:image/png;base64,"))
        with Image.open(io.BytesIO(data)) as image:
            assert image.size == (320, 200)


def test_metrics_are_shown(folder: Path) -> None:
    part = {"share": 0.25, "low": None, "high": None}
    part |= {"num_significant": 1, "num_decided": 4, "num_undecided": 3}
    parts = dict.fromkeys(("normal", "anomalous", "touching", "elsewhere"), part)
    pixel = {"pixel_auroc": 0.987, "aupro": None, "num_pixels": 1234567}
    pixel["max_error"] = {"aupro": 0.004}
    facts = {"alpha": 0.05, "image": {"auroc": 0.8764}, "pixel": pixel}
    facts["significant"] = {"selective": parts}
    (folder / "metrics.json").write_text(json.dumps(facts))
    page(folder)
    told = parsed(folder).text
    for number in ("0.876", "0.987", "1,234,567", "off by at most 0.004", "25.0%"):
        assert number in told
    assert "1 of 4, 3 without p" in told


Spoil = Callable[[Path, Path], None]
LINE = json.dumps({"name": "a"})


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda f, m: (f / "rows.jsonl").unlink(), "no rows.jsonl"),
        (lambda f, m: (f / "rows.jsonl").write_text(""), "holds no rows"),
        (lambda f, m: add(f, '{"name": "a'), "rows.jsonl line 6': damaged"),
        (lambda f, m: add(f, "[1]"), "rows.jsonl line 6': damaged (expected a JSON object)"),
        (lambda f, m: add(f, LINE), "rows.jsonl line 6: damaged, or of an earlier version: no"),
        (lambda f, m: first(f, "p_value", "0.1"), "rows.jsonl line 1: damaged ('p_value'"),
        (lambda f, m: first(f, "p_adjusted", "0.1"), "rows.jsonl line 1: damaged ('p_adjusted'"),
        (lambda f, m: first(f, "view", True), "rows.jsonl line 1: damaged ('view' is True)"),
        (lambda f, m: first(f, "name", "../x"), "line 1: name '../x' leads outside"),
        (lambda f, m: first(f, "name", "a\0b"), "line 1: name 'a\\x00b' leads outside"),
        (lambda f, m: link(f), "leads outside the folder"),
        (lambda f, m: (f / "metrics.json").write_text("{"), "metrics.json': damaged"),
        (lambda f, m: (f / "metrics.json").write_text('{"a": 1}'), "metrics.json: damaged"),
        (lambda f, m: (f / "test.json").write_text('{"alpha": 5}'), "'alpha' is 5"),
        (lambda f, m: (f / "test.json").write_text('{"decide_by": "naive"}'), "'decide_by'"),
        (lambda f, m: (m / "profile.json").unlink(), "no profile.json"),
        (lambda f, m: (m / "profile.json").write_text("?"), "profile.json': damaged"),
        (lambda f, m: (m / "calibration.json").write_text("{}"), "calibration.json': damaged"),
        (lambda f, m: lose(m, "by_distance"), "calibration.json: damaged"),
    ],
)
def test_spoilt_files_are_named_in_one_line(
    folder: Path, model: Path, spoil: Spoil, told: str
) -> None:
    spoil(folder, model)
    with pytest.raises(InputError) as error:
        page(folder, model=model)
    assert told in str(error.value) and "\n" not in str(error.value)
    assert not (folder / "report.html").exists()


def add(folder: Path, line: str) -> None:
    with open(folder / "rows.jsonl", "a", encoding="utf-8") as file:
        file.write(line + "\n")


def first(folder: Path, key: str, value: Any) -> None:
    lines = (folder / "rows.jsonl").read_text().splitlines()
    lines[0] = json.dumps(json.loads(lines[0]) | {key: value})
    (folder / "rows.jsonl").write_text("\n".join(lines) + "\n")


def link(folder: Path) -> None:
    (folder / "overlays" / "no picture.png").symlink_to(folder / "rows.jsonl")


def lose(model: Path, key: str) -> None:
    facts = json.loads((model / "calibration.json").read_text())
    del facts["found"][key]
    (model / "calibration.json").write_text(json.dumps(facts))


def test_bad_arguments_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        page(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"model .*: no such folder"):
        page(folder, model=tmp_path / "nowhere")
    with pytest.raises(InputError, match="pictures: got -1"):
        page(folder, num_pictures=-1)
    with pytest.raises(InputError, match="cannot write"):
        page(folder, folder / "rows.jsonl" / "page.html")


@pytest.mark.slow
def test_figure_is_one_document_without_outside_parts() -> None:
    raw = np.linspace(0.001, 1, 1500)
    values, naive = raw.tolist(), (raw**9).tolist()
    drawn = calibration_figure(values, naive, 40, logarithmic=True)
    assert drawn == calibration_figure(values, naive, 40, logarithmic=True)
    assert not re.findall(r'href="(?!#)', drawn) and len(drawn) < 100_000
    assert calibration_figure([], [], 0).startswith("<?xml")


def test_picture_of_a_calibration_is_read_on_a_page(tmp_path: Path) -> None:
    rates = [Rate(m, 0.05, 1, 5, 0.2, 0.1, 0.1, 0.3) for m in METHODS]
    fit = fit_report(iid(1.0), np.random.default_rng(0).normal(size=(20, 4, 4, 1)))
    calibration_picture(tmp_path / "a.png", [0.2, 0.7], [0.01, 0.1], 2, fit, rates)
    with Image.open(tmp_path / "a.png") as whole:
        assert 700 < whole.width < 900  # a page is 800 wide


def test_band_holds_its_share_of_uniform_values() -> None:
    # 19 values: the k-th is a quantile at k/20 exactly. 4000 draws: standard error 0.0035.
    drawn = np.sort(np.random.default_rng(0).uniform(size=(4000, 19)), axis=1)
    places = np.arange(1, 20) / 20
    low, high = uniform_band(places, 19)
    held = ((drawn >= low) & (drawn <= high)).mean(axis=0)
    assert np.all(np.abs(held - 0.95) < 4 * 0.0035)


@pytest.mark.parametrize(
    "low, high, kind",
    [
        (0.06, 0.3, "bad"),
        (0.01, 0.08, "good"),
        (0.01, 0.3, "careful"),  # too few views to tell
        (0.001, 0.04, "careful"),  # power is given away
    ],
)
def test_the_colour_of_the_verdict_follows_its_words(low: float, high: float, kind: str) -> None:
    rates = [{"method": "selective", "alpha": 0.05, "low": low, "high": high}]
    assert _kind(rates) == kind
    assert _kind([]) == "careful"
