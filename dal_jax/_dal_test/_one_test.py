"""The test of one image: localizer, line, search and result."""

import time
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np

from dal_jax._compat import exact_arithmetic
from dal_jax._dal_test._image import ImageToTest, Looked, looked_at
from dal_jax._dal_test._options import TestOptions
from dal_jax._dal_test._permutation import permutation_test
from dal_jax._dal_test._result import TestResult, empty_result, with_components, with_search
from dal_jax._errors import InputError
from dal_jax.affine import AffinePiece, affine_piece
from dal_jax.inference import Line, Noise, region_line
from dal_jax.localizers import Localizer
from dal_jax.search import (
    AdaptiveResult,
    LineProblem,
    Membership,
    ScanEngine,
    ScoreRequest,
    SearchOptions,
    SearchResult,
    SelectedRegion,
    Status,
    SweepEngine,
    Task,
    adaptive_search,
    count_ties,
    margins,
    misjudged_length,
    operands,
    parts_of,
    search_line,
    select_region,
)


class _Test(NamedTuple):
    """A region of an image and the line along which its mean difference varies."""

    empty: TestResult
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


def exact_test(
    localizer: Localizer, case: ImageToTest, noise: Noise, options: TestOptions, progress: Any
) -> TestResult:
    """Test a checked case by an exact engine."""
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
            scan = options.engine == "scan"
            engine = (
                ScanEngine(problem) if scan else SweepEngine(problem, options.dtype or "float64")
            )
            searched = search_line(
                engine,
                line.z_obs,
                perturbation=line.perturbation,
                progress=progress,
                **wanted,
            )
            found.append(_fill_result(test, line, searched, window, options))
    return _timed(_whole(empty, found, options), started)


def _fill_result(
    test: _Test, line: Line, searched: SearchResult, window: np.ndarray, options: TestOptions
) -> TestResult:
    how = options.alternative, options.confidence
    return with_search(test.empty, line, searched, window, *how)


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


def adaptive_test(
    localizer: Localizer,
    case: ImageToTest,
    noise: Noise,
    options: TestOptions,
    progress: Any = None,
) -> Task[TestResult]:
    """Test a checked case adaptively, as a task of `run_side_by_side` that returns the result."""
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
    empty = empty._replace(num_evaluations=1)
    if not tests:
        return _timed(empty, started)
    wanted = options.search(len(tests), case.level)
    found = yield [
        _search(localizer, case, selected, test, wanted, options, progress) for test in tests
    ]
    result = _whole(empty, found, options)
    if result.status is Status.INVALID_INPUT:
        return _timed(result, started)
    result = result._replace(num_evaluations=result.num_evaluations + 1)
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
    """Test one region; the evaluations that it keeps are released at its end."""
    try:
        line = test.line()
    except InputError as error:
        return _refused(test, error)
    judge = partial(margins, threshold=localizer.threshold, selected=selected)
    search = adaptive_search(
        line.z_obs,
        judge(test.empty.score[None]),
        wanted,
        options.adaptive,
        seed=options.seed,
        wide_only=options.dtype == "float64",
        perturbation=line.perturbation,
        progress=progress,
    )
    found: AdaptiveResult | None = None
    points = next(search)
    while found is None:
        images = line.base + line.direction * points.z[:, None, None, None]
        answer = yield ScoreRequest(images, points.wide, case.draws)
        try:
            points = search.send(judge(answer.score))
        except StopIteration as end:
            found = end.value
    window = np.full(2, np.nan)
    if options.first_window:
        window = _first_window(_line_problem(localizer, case, selected, line))
    return _fill_result(test, line, found.searched, window, options)._replace(
        spacing=found.spacing * line.unit,
        num_checks=found.num_checks,
        num_disagreements=found.num_disagreements,
        misjudged_length=misjudged_length(found.num_checks, found.num_disagreements),
    )


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
    scale = float(np.nan_to_num(np.abs([looked.image, reconstruction])).max())
    ties = count_ties(score, localizer.threshold, selected, scale)
    empty = empty._replace(num_ties=ties)
    if not selected.region.any():
        return empty, selected, []
    covariance = noise if case.noise is None else case.noise
    tests = []
    for region in parts_of(selected, options.region):
        parts = case.image, case.references, region, covariance, looked.omega, options.randomization
        tests.append(_Test(empty._replace(region=region), partial(region_line, *parts)))
    return empty, selected, tests


def _timed(result: TestResult, started: float) -> TestResult:
    return result._replace(seconds=time.perf_counter() - started)
