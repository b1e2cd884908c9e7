"""The test of one image: localizer, line, search and result."""

import time
import zlib
from collections.abc import Callable, Generator, Iterator
from functools import lru_cache, partial
from itertools import chain, islice
from typing import Any, NamedTuple

import jax
import numpy as np

from dal_jax._compat import exact_arithmetic
from dal_jax._dal_test._inputs import ImageToTest, Looked, TestOptions, looked_at
from dal_jax._dal_test._result import TestResult, empty_result, with_components, with_search
from dal_jax._errors import InputError
from dal_jax._typing import Bool, Float, Int
from dal_jax.affine import AffinePiece, affine_piece
from dal_jax.inference import Effect, Line, Noise, effect, on_line, permutation_p, region_line
from dal_jax.localizers import Localizer
from dal_jax.search import (
    AdaptiveResult,
    HostScore,
    LineProblem,
    LineRequest,
    Margins,
    Membership,
    ScanReply,
    ScanRequest,
    ScoreReply,
    ScoreRequest,
    SearchedLine,
    SearchOptions,
    SearchResult,
    SelectedRegion,
    Status,
    SweepEngine,
    Task,
    count_ties,
    exact_search,
    margins,
    misjudged_length,
    operands,
    parts_of,
    search_line,
    select_region,
)

# Images requested at once: they take no more memory than the search of the line.
BLOCK = 64
# This constant separates these random numbers from others of the same seed.
STREAM = 2402_11789
# Two float32 computations of a score agree to this multiple of what two float64 ones agree to.
COARSER = 1e6


def permutation_test(
    image: Float[np.ndarray, "H W C"],
    references: Float[np.ndarray, "*K H W C"],
    draws: Any,
    threshold: float,
    options: TestOptions,
    where: Bool[np.ndarray, "H W"] | None = None,
) -> Generator[ScoreRequest, ScoreReply, float]:
    """Compare the flagged region's difference of means with those of permuted images.

    In each permuted image b the localizer, with the same draws and threshold, flags a region M_b;
    `T_b = mean(x_b[M_b]) - mean(x_ref[M_b])`, 0 where nothing is flagged. A permuted image whose
    scores are not all finite counts as at least as extreme as the observed one. The image itself
    is scored among them, in the same precision: where rounding decides, it decides for all alike.

    Args:
        image: Test image; the channels of a pixel stay together.
        references: Reference images, which are not permuted.
        draws: Draws of this image, if every image has its own.
        threshold: Threshold of the score.
        options: Number of permutations, seed, alternative, dtype and region.
        where: Pixels that may be flagged; None stands for all.

    Yields:
        Requests for the scores of images.

    Returns:
        The p-value of `permutation_p`; NaN if the scores of the image itself are not finite.

    Source: Katsuoka et al., arXiv 2402.11789.
    """
    pixels = image.reshape(-1, image.shape[-1])
    means = pixels.mean(axis=1)
    reference = references.reshape(-1, *pixels.shape).mean(axis=(0, 2))

    def difference(order: np.ndarray, flagged: np.ndarray) -> float:
        if not flagged.any():
            return 0.0
        # In the image's own order, so that the same pixels have the same mean to the last bit.
        return float(means[np.sort(order[flagged])].mean() - reference[flagged].mean())

    wide = options.dtype == "float64"
    moving = pixels.astype(options.dtype)
    found: list[float] = []  # the image itself comes first
    permuted = permutations(image, options.permutations, options.seed)
    orders = chain([np.arange(len(pixels))], permuted)
    while block := list(islice(orders, BLOCK)):
        images = moving[np.stack(block)].reshape(-1, *image.shape)
        answer = yield ScoreRequest(images, np.full(len(block), wide), draws)
        for order, score in zip(block, answer.score, strict=True):
            if not np.isfinite(score).all():
                found.append(np.nan)
                continue
            selected = select_region(score, threshold, options.region, where)
            found.append(difference(order, selected.region.ravel()))
    return permutation_p(found[0], found[1:], options.alternative)


def permutations(
    image: Float[np.ndarray, "H W C"], count: int, seed: int
) -> Iterator[Int[np.ndarray, " n"]]:
    """Yield random orders of an image's pixels, uniform and independent of their present order.

    Args:
        image: Image whose pixel values, not their order, decide the orders beside the seed: each
            image has its own ones, and given its values an image is still exchangeable.
        count: Number of orders.
        seed: Seed of the run.

    Yields:
        Indices of the pixels, n = H W; pixel i of the permuted image is pixel `order[i]`.
    """
    values = np.sort(image.reshape(-1, image.shape[-1]), axis=0)
    rng = np.random.default_rng((seed, STREAM, zlib.crc32(values.tobytes())))
    for _ in range(count):
        yield rng.permutation(len(values))


class _Test(NamedTuple):
    """A region of an image and the line along which its mean difference varies."""

    empty: TestResult
    observed: Margins  # of the selection
    line: Callable[[], Line]  # builds it, two images, when its turn comes; or raises an InputError


def invalid_result(localizer: Localizer, options: TestOptions, error: InputError) -> TestResult:
    """Return the result of an image that cannot be tested."""
    nothing = np.full(localizer.image_shape, np.nan)
    return empty_result(
        nothing[..., 0],
        nothing,
        np.zeros(nothing.shape[:2], bool),
        options.engine,
        Status.INVALID_INPUT,
        str(error),
    )


@lru_cache(maxsize=32)
def _window_fn(membership: Membership) -> Any:
    def piece(values: Any, z: Any) -> AffinePiece:
        return affine_piece(partial(membership, values), z)

    return jax.jit(piece)


def sweep_test(
    localizer: Localizer, case: ImageToTest, noise: Noise, options: TestOptions, progress: Any
) -> TestResult:
    """Test a checked case by the sweep."""
    started = time.perf_counter()
    try:
        looked = looked_at(case, noise, options)
    except InputError as error:
        return invalid_result(localizer, options, error)
    with exact_arithmetic():
        maps = localizer.evaluate(looked.image)
        empty, selected, tests = _hypotheses(localizer, case, looked, noise, options, *maps)
        if not tests:
            return _timed(empty, started)
        wanted = vars(options.search(len(tests), case.level))
        found = []
        for test in tests:
            try:
                line = test.line()
            except InputError as error:
                found.append(_refused(test, error))
                break
            problem = _line_problem(localizer, case, selected, line)
            window = _first_window(problem)
            searched = search_line(
                SweepEngine(problem, options.dtype or "float64"),
                line.z_obs,
                perturbation=line.perturbation,
                progress=progress,
                **wanted,
            )
            interval = _interval(line, searched, options.confidence)
            found.append(_fill_result(test, line, searched, window, options, interval))
    return _timed(_whole(empty, found, options), started)


def _interval(line: Line, searched: SearchResult, confidence: float) -> Effect:
    if np.isnan(searched.bounds.p):
        return Effect(np.nan, np.nan, np.nan)
    sets = searched.truncation, searched.searched
    return effect(on_line(line.z_obs, *sets, line.perturbation), confidence)


def _fill_result(
    test: _Test,
    line: Line,
    searched: SearchResult,
    window: np.ndarray,
    options: TestOptions,
    interval: Effect,
) -> TestResult:
    return with_search(test.empty, line, searched, window, options.alternative, interval)


def _refused(test: _Test, error: InputError) -> TestResult:
    return test.empty._replace(status=Status.INVALID_INPUT, message=str(error))


def _whole(empty: TestResult, found: list[TestResult], options: TestOptions) -> TestResult:
    for part in found:
        if part.status is Status.INVALID_INPUT:  # as in a batch, where the others are tested
            return empty._replace(status=part.status, message=part.message)
    return with_components(empty, found) if options.region == "components" else found[0]


def _line_problem(
    localizer: Localizer, case: ImageToTest, selected: SelectedRegion, line: Line
) -> LineProblem:
    return LineProblem(
        localizer.score_fn,
        localizer.params,
        localizer.draws if case.draws is None else case.draws,
        localizer.threshold,
        line.base,
        line.direction,
        selected,
        line.z_obs,
    )


@exact_arithmetic()
def _first_window(problem: LineProblem) -> np.ndarray:
    """Return the window of the observed image, in standardized z."""
    values = operands(problem, "float64")
    piece = _window_fn(problem.membership)(values, np.float64(problem.z_obs))
    return np.array([float(piece.lo), float(piece.hi)])


def shared_test(
    localizer: Localizer,
    case: ImageToTest,
    noise: Noise,
    options: TestOptions,
    progress: Any = None,
) -> Task[TestResult]:
    """Test a checked case beside others, by the adaptive engine or the scan.

    Args:
        localizer: Localizer, as in `dal_test`.
        case: Checked case.
        noise: Covariance of images that do not bring their own.
        options: Options of the test.
        progress: Function called after every round of the search.

    Returns:
        A task of `run_side_by_side` that returns the result.
    """
    started = time.perf_counter()
    try:
        looked = looked_at(case, noise, options)
    except InputError as error:
        return invalid_result(localizer, options, error)
    seen = yield ScoreRequest(looked.image[None], np.array([True]), case.draws, True)
    assert seen.reconstruction is not None
    empty, selected, tests = _hypotheses(
        localizer, case, looked, noise, options, seen.score[0], seen.reconstruction
    )
    adaptive = options.engine == "adaptive"
    empty = empty._replace(num_evaluations=int(adaptive))  # exact engines count windows' alone
    if not tests:
        return _timed(empty, started)
    wanted = options.search(len(tests), case.level)
    found = yield [
        _search(localizer, case, selected, test, wanted, options, progress) for test in tests
    ]
    result = _whole(empty, found, options)
    if result.status is Status.INVALID_INPUT:
        return _timed(result, started)
    result = result._replace(num_evaluations=result.num_evaluations + int(adaptive))
    if options.permutations:
        p = yield from permutation_test(*case[:3], localizer.threshold, options, case.where)
        count = result.num_evaluations + options.permutations + 1
        result = result._replace(permutation_p=p, num_evaluations=count)
    return _timed(result, started)


def _search(
    localizer: Localizer,
    case: ImageToTest,
    selected: SelectedRegion,
    test: _Test,
    wanted: SearchOptions,
    options: TestOptions,
    progress: Any,
) -> Task[TestResult]:
    """Test one region; its line keeps a lane of the devices, or a place of the scan, to its end."""
    try:
        line = test.line()
    except InputError as error:
        return _refused(test, error)
    problem = _line_problem(localizer, case, selected, line)
    if options.engine == "scan":
        how = {"perturbation": line.perturbation, "progress": progress, **vars(wanted)}
        scanned: ScanReply = yield ScanRequest(problem, exact_search(line.z_obs, **how))
        interval = _interval(line, scanned.searched, options.confidence)
        return _fill_result(test, line, scanned.searched, scanned.window, options, interval)
    draws = () if case.draws is None else case.draws
    searched = SearchedLine(
        line.base, line.direction, selected, test.observed, localizer.threshold, draws
    )
    found: AdaptiveResult = yield LineRequest(
        searched,
        line.z_obs,
        wanted,
        options.adaptive,
        seed=options.seed,
        wide_only=_precision(localizer, options) == "float64",
        perturbation=line.perturbation,
        confidence=options.confidence,
        progress=progress,
    )
    window = np.full(2, np.nan)
    if options.first_window:
        window = _first_window(problem)
    return _fill_result(test, line, found.searched, window, options, found.effect)._replace(
        spacing=found.spacing * line.unit,
        num_checks=found.num_checks,
        num_disagreements=found.num_disagreements,
        misjudged_length=misjudged_length(found.num_checks, found.num_disagreements),
    )


def _precision(localizer: Localizer, options: TestOptions) -> str | None:
    """Return the precision of the search; scores from the host have their own."""
    score = localizer.score_fn
    return score.resolution if isinstance(score, HostScore) else options.dtype


def _hypotheses(
    localizer: Localizer,
    case: ImageToTest,
    looked: Looked,
    noise: Noise,
    options: TestOptions,
    score: np.ndarray,
    reconstruction: np.ndarray,
) -> tuple[TestResult, SelectedRegion, list[_Test]]:
    """Return the result so far, the selection, and the regions to test, if there are any."""
    if score.shape != case.image.shape[:2]:
        raise InputError(f"localizer has scores {score.shape}, expected {case.image.shape[:2]}")
    selected = select_region(score, localizer.threshold, options.region, case.where)
    empty = empty_result(score, reconstruction, selected.region, options.engine)
    empty = empty._replace(randomization=float(options.randomization), seed=int(options.seed))
    if not np.isfinite(score).all():
        return empty._replace(status=Status.NON_FINITE), selected, []
    # A localizer may have no reconstruction: NaN.
    scale = max(float(np.fmax.reduce(np.abs(v), axis=None)) for v in (looked.image, reconstruction))
    scale = max(scale, abs(localizer.threshold), float(np.abs(score).max()))
    if isinstance(localizer.score_fn, HostScore) and _precision(localizer, options) == "float32":
        scale *= COARSER
    observed = margins(score[None], localizer.threshold, selected)
    empty = empty._replace(num_ties=count_ties(observed.margin[0], scale))
    if not selected.region.any():
        return empty, selected, []
    covariance = noise if case.noise is None else case.noise
    tests = []
    for region in parts_of(selected, options.region):
        parts = case.image, case.references, region, covariance, looked.omega, options.randomization
        tests.append(_Test(empty._replace(region=region), observed, partial(region_line, *parts)))
    return empty, selected, tests


def _timed(result: TestResult, started: float) -> TestResult:
    return result._replace(seconds=time.perf_counter() - started)
