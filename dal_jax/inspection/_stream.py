"""Images that arrive one after the other: discoveries online, and a warning when they drift."""

import io
import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dal_jax._errors import InputError
from dal_jax._files import csv_text, file_errors, write_text
from dal_jax._typing import Float
from dal_jax.images import DataSet, Sample
from dal_jax.inspection._calibration import load_calibration
from dal_jax.inspection._inspect import Inspection, inspect_folder
from dal_jax.inspection._profile import Profile, load_profile
from dal_jax.inspection._views import to_test
from dal_jax.runs import decode, encode

STREAM = "stream.csv"
_ROWS = "stream.jsonl"  # the same, exactly
# A stream without drift gets a warning with at most this probability, however long it is.
DRIFT_LEVEL = 0.01
# Bets of the martingale on small, no particular and large ranks, and the share that changes sides.
_BETS, _JUMP = np.array([-1.0, 0.0, 1.0]), 0.01
# A martingale begins anew each so many objects.
_ANEW = 50


class StreamRow(NamedTuple):
    """An image of a stream: a row of stream.csv.

    Example:
        >>> StreamRow(1, "a.png", "a", 1e-6, 2.7e-3, True, 7.2, 1.0).discovery
        True
    """

    number: int  # place in the stream, from 1
    name: str  # name of the image
    group: str  # physical object
    p_adjusted: float  # p-value of the image, an upper bound; NaN if nothing was tested
    level: float  # level at which the stream rejects it; NaN if nothing was tested
    discovery: bool  # whether p_adjusted is at most the level
    max_score: float  # largest score of the image
    drift: float  # martingale after this image; large if images drift, see `drift_martingale`


def online_levels(p_values: Sequence[float], alpha: float) -> Float[np.ndarray, " n"]:
    """Return the levels at which a stream of p-values is rejected, by LOND.

    The false discovery rate is at most alpha at every time, whatever the dependence of the
    p-values, as that of images that share references or a calibration.

    Args:
        p_values: P-values (n,) in [0, 1], in the order of the stream.
        alpha: False discovery rate, in (0, 1).

    Returns:
        Levels (n,); a p-value of at most its level is a discovery. Each depends on earlier
        p-values alone.

    Raises:
        InputError: The package online-fdr is not installed, or alpha is out of range.

    Example:
        >>> online_levels([1e-9, 0.5, 1e-9], 0.05).round(5).tolist()
        [0.00268, 0.00078, 0.00054]

    Source: Javanmard and Montanari, Annals of Statistics 46, 2018.
    """
    if not 0 < alpha < 1:
        raise InputError(f"alpha: got {alpha}, expected a false discovery rate in (0, 1)")
    lond = _lond()(alpha, dependent=True)
    levels = []
    for p in p_values:
        lond.test_one(float(p))
        levels.append(lond.last_test_level)
    return np.array(levels, float)


def _lond() -> Any:
    try:
        from online_fdr.p_values import Lond
    except ImportError as error:
        hint = 'pip install "dal-jax[stream]"'
        raise InputError(f"a stream needs the package online-fdr: {hint}") from error
    return Lond


def drift_martingale(
    scores: Sequence[float], seed: int = 0, known: int = 0
) -> Float[np.ndarray, " n"]:
    """Return a test martingale for the hypothesis that objects are exchangeable.

    Each score is ranked among itself and all earlier ones, with ties broken at random; without
    drift the ranks are independent and uniform. The Simple Jumper bets on small and on large
    ranks. So that a drift after a long time shows as well, a jumper begins anew after every 50
    objects, the k-th with a stake of 1 / (k (k + 1)).

    Args:
        scores: Scores, one of each object, in the order of the stream; NaN is left out, and the
            martingale stays as it is.
        seed: Seed of the ties.
        known: Number of leading scores that are ranked with and not bet on, such as those of a
            calibration.

    Returns:
        Values (n,) after each of the other scores, beginning at about 1. Without drift a value of
        at least 1 / delta is ever reached with probability at most delta.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> scores = np.concatenate([rng.normal(size=100), rng.normal(1.5, size=50)])
        >>> drift = drift_martingale(scores)
        >>> bool(drift[:100].max() < 20), bool(drift[-1] > 1000)
        (True, True)

    Source: Vovk et al., Proceedings of Machine Learning Research 152, 2021 (COPA).
    """
    rng = np.random.default_rng((seed, 6))
    before = [score for score in scores[:known] if not math.isnan(score)]
    wealth = np.empty((0, len(_BETS)))  # of each jumper, by bet
    unused, value, bets, found = 1.0, 1.0, 0, []
    for score in scores[known:]:
        if not math.isnan(score):
            before.append(score)
            ranked = np.array(before)
            larger, equal = (ranked > score).sum(), (ranked == score).sum()
            rank = (larger + rng.uniform() * equal) / len(ranked)
            if bets % _ANEW == 0:
                stake = 1 / ((len(wealth) + 1) * (len(wealth) + 2))
                wealth = np.vstack([wealth, np.full(len(_BETS), stake / len(_BETS))])
                unused -= stake
            bets += 1
            mean = wealth.mean(axis=1, keepdims=True)
            wealth = ((1 - _JUMP) * wealth + _JUMP * mean) * (1 + _BETS * (rank - 0.5))
            value = float(wealth.sum()) + unused
        found.append(value)
    return np.array(found, float)


def stream_rows(
    found: Inspection,
    baseline: Sequence[float] = (),
    earlier: Sequence[StreamRow] = (),
    seed: int = 0,
) -> list[StreamRow]:
    """Return the rows of a stream with the images that came last.

    Args:
        found: Results of images; those without a row are new, in this order.
        baseline: Scores of normal objects that are known beforehand, see `drift_martingale`.
        earlier: Rows of the stream so far, which stay as they are.
        seed: Seed of ties between scores.

    Returns:
        The earlier rows and one for each new image. An image whose object had one before does not
        bet on drift: images of one object resemble each other.

    Raises:
        InputError: The package online-fdr is not installed, or alpha or baseline are not those of
            the earlier rows.

    Example:
        >>> from dal_jax.inspection import ImageResult, InspectOptions, Tally
        >>> image = ImageResult("a.png", "unknown", "a", "significant", 1e-9, 1, 1, 1, 0)
        >>> counts = Tally(1, 1, 1, {}, "")
        >>> found = Inspection(None, InspectOptions(), [], [image], {}, counts, 1, [], {})
        >>> stream_rows(found)[0].discovery
        True
    """
    rows, seen = list(earlier), {row.name for row in earlier}
    largest: dict[str, float] = {}
    for view in found.views:
        if not math.isnan(view.max_score):
            largest[view.name] = max(largest.get(view.name, view.max_score), view.max_score)
    for one in found.images:
        if one.name not in seen:
            p, score = one.p_adjusted, largest.get(one.name, math.nan)
            new = StreamRow(len(rows) + 1, one.name, one.group, p, math.nan, False, score, 1.0)
            rows.append(new)
    tested = [k for k, row in enumerate(rows) if not math.isnan(row.p_adjusted)]
    levels = np.full(len(rows), math.nan)
    levels[tested] = online_levels([rows[k].p_adjusted for k in tested], found.options.alpha)
    scores, objects = [], set[str]()
    for row in rows:
        scores.append(math.nan if row.group in objects else row.max_score)
        if not math.isnan(row.max_score):
            objects.add(row.group)
    drift = drift_martingale([*baseline, *scores], seed, len(baseline))
    rows = [
        row._replace(level=level, discovery=row.p_adjusted <= level, drift=value)
        for row, level, value in zip(rows, levels.tolist(), drift.tolist(), strict=True)
    ]
    for old, new in zip(earlier, rows, strict=False):
        # Another machine may round otherwise.
        if not np.allclose(
            (old.level, old.drift), (new.level, new.drift), rtol=1e-9, atol=0, equal_nan=True
        ):
            raise InputError(
                f"stream: got another alpha or calibration than when {old.name!r} came, expected "
                "the same: another --out begins a new stream"
            )
    return [*earlier, *rows[len(earlier) :]]


def watch_folder(
    folder: Path,
    model: Path,
    out: Path,
    *args: Any,
    every: float = 10.0,
    select: Callable[[DataSet, Profile], DataSet] | None = None,
    **options: Any,
) -> Iterator[tuple[Inspection, list[StreamRow]]]:
    """Test the images of a folder as they come, until the caller stops.

    A file is tested once its size and time of change stay the same between two looks. Tables and
    pictures are written as by `inspect_folder`; the stream goes to stream.csv. The same call goes
    on after an interruption. Images that are removed from the folder keep their rows there.

    Args:
        folder: Folder of the images; it may be empty at first.
        model: Directory of a model trained with --data.
        out: Directory for the results.
        *args: Further arguments of `inspect_folder`.
        every: Seconds between two looks at the folder.
        select: As in `inspect_folder`.
        **options: Further arguments of `inspect_folder`.

    Yields:
        Results of all images, and the rows of the stream, each time that new ones were tested.

    Raises:
        InputError: As `inspect_folder`; the package online-fdr is not installed; the model deals
            references out among a fixed number of objects; the rows in `out` are damaged.

    Example:
        >>> for found, rows in watch_folder(Path("line-7"), Path("model"), Path("run")):
        ...     print([row.name for row in rows if row.discovery])  # doctest: +SKIP
    """
    if not every > 0:
        raise InputError(f"every: got {every}, expected a number of seconds above 0")
    _lond()  # before any work
    profile = load_profile(model)
    if profile.each:
        raise InputError(
            f"model {str(model)!r}: deals references out among a fixed number of objects, expected "
            "one trained with --share-references"
        )
    calibration = options.get("calibration") or load_calibration(model)
    baseline = () if calibration is None else calibration.object_scores
    rows = read_stream(out)
    before: dict[str, tuple[int, int]] = {}
    once = _NewLines()
    while True:
        samples: list[Sample] = []
        with redirect_stderr(once):
            try:
                data = profile.source.open(folder)
                data = data if select is None else select(data, profile)
                samples = to_test(data, profile)
            except InputError as error:
                print(f"waiting for images: {error}", file=sys.stderr)
        now = {sample.name: state for sample in samples if (state := _state(sample))}
        settled = {name for name, state in now.items() if before.get(name) == state}
        before = now
        if settled - {row.name for row in rows}:

            def chosen(data: DataSet, profile: Profile, names: set[str] = settled) -> DataSet:
                data = data if select is None else select(data, profile)
                own = [one for one in data.samples if one.name in names or one.split != "test"]
                return data._replace(samples=tuple(own))

            with redirect_stderr(once):
                try:
                    found = inspect_folder(folder, model, out, *args, select=chosen, **options)
                except InputError as error:
                    if all(_state(s) == now[s.name] for s in samples if s.name in settled):
                        raise
                    print(f"waiting for images: {error}", file=sys.stderr)  # one has gone since
                    time.sleep(every)
                    continue
            rows = stream_rows(found, baseline, rows, profile.seed)
            _write_rows(out, rows)
            yield found, rows
        time.sleep(every)


def drift_warning(rows: Sequence[StreamRow]) -> str:
    """Return a warning that the images of a stream drift.

    Args:
        rows: Rows of the stream.

    Returns:
        One sentence; "" as long as the martingale stays below 1 / `DRIFT_LEVEL`.

    Example:
        >>> rows = [StreamRow(1, "a.png", "a", 0.3, 2.7e-3, False, 1.0, 250.0)]
        >>> drift_warning(rows)[:37]
        'From a.png (1) on the images look oth'
    """
    first = next((row for row in rows if row.drift >= 1 / DRIFT_LEVEL), None)
    if first is None:
        return ""
    return (
        f"From {first.name} ({first.number}) on the images look otherwise than those before: the "
        f"test martingale came to {first.drift:.3g}, which {DRIFT_LEVEL:.0%} of streams without "
        "drift ever do. Calibrate with later normal images before trusting p-values."
    )


class _NewLines(io.StringIO):
    """A standard error that prints each line once, however often it is written."""

    def __init__(self) -> None:
        super().__init__()
        self._to, self._seen = sys.stderr, set[str]()

    def write(self, text: str) -> int:
        count = super().write(text)
        if text.endswith("\n"):
            for line in self.getvalue().splitlines():
                if line not in self._seen:
                    print(line, file=self._to)
                self._seen.add(line)
            self.seek(0)
            self.truncate()
        return count


def _state(sample: Sample) -> tuple[int, int] | None:
    """Return size and time of change of a file; None if it is gone."""
    try:
        found = sample.path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _write_rows(directory: Path, rows: Sequence[StreamRow]) -> None:
    plain = [row._asdict() for row in rows]
    lines = [json.dumps(encode(row), allow_nan=False, ensure_ascii=False) for row in plain]
    write_text(directory / _ROWS, "".join(f"{line}\n" for line in lines))
    write_text(directory / STREAM, csv_text(plain))


def read_stream(directory: Path) -> list[StreamRow]:
    """Read the rows of a stream.

    Args:
        directory: Directory of the results.

    Returns:
        The rows, exactly as they were; none if the images were no stream.

    Raises:
        InputError: The file is damaged.

    Example:
        >>> read_stream(Path("nowhere"))
        []
    """
    path = directory / _ROWS
    if not path.is_file():
        return []
    with file_errors(path, "stream", advice="remove it and stream.csv to begin a new stream"):
        text = path.read_text(encoding="utf-8")
        return [StreamRow(**decode(json.loads(line))) for line in text.splitlines()]
