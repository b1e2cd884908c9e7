"""The test of one image: what to ask of the localizer, the line, the search, the result."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np

from dal_jax._compat import exact_arithmetic
from dal_jax._errors import InputError
from dal_jax._options import TestOptions
from dal_jax._permutation import permutation_test
from dal_jax._randomization import randomization
from dal_jax._result import TestResult, empty_result, with_components, with_search
from dal_jax._typing import Bool, Float
from dal_jax.affine import AffinePiece, affine_piece
from dal_jax.inference import Line, Noise, region_line
from dal_jax.localizers import Localizer, check_draws, check_threshold
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


class ImageToTest(NamedTuple):
    """One image to be tested.

    Example:
        >>> ImageToTest(np.ones((2, 2, 1)), np.zeros((5, 2, 2, 1))).references.shape
        (5, 2, 2, 1)
    """

    image: Float[np.ndarray, "H W C"]  # finite, in units of the noise
    references: Float[np.ndarray, "*K H W C"]  # one, or K independent ones to be averaged
    draws: Any = None  # those of this image; None: the localizer's
    noise: Noise | None = None  # the covariance of this image; None: that of all
    where: Bool[np.ndarray, "H W"] | None = None  # pixels that may be flagged; None: all
    level: float | None = None  # of this image's decision; None: that of the options
    name: str | int = 0  # with the seed tells its randomization from those of other images


def validate_image(localizer: Localizer, case: ImageToTest) -> ImageToTest:
    """The case in float64; an `InputError` names what of it does not fit the localizer."""
    check_threshold(localizer.threshold)
    shape = tuple(localizer.image_shape)
    image = np.asarray(case.image, np.float64)
    references = np.asarray(case.references, np.float64)
    if image.shape != shape:
        raise InputError(f"x has shape {image.shape}, expected {shape} (H, W, C)")
    if references.shape[-3:] != shape or references.ndim not in (3, 4) or not references.size:
        raise InputError(f"x_ref has shape {references.shape}, expected {shape} or (K, *{shape})")
    for name, array in (("x", image), ("x_ref", references)):
        if not np.isfinite(array).all():
            count = int((~np.isfinite(array)).sum())
            raise InputError(f"{name} has {count} NaN or infinite values, expected finite pixels")
    draws = case.draws
    if draws is not None:
        draws = check_draws(draws, np.shape(localizer.draws))
    if case.noise is not None:
        check_noise(case.noise, shape)
    where = case.where
    if where is not None:
        where = np.asarray(where)
        if where.shape != shape[:2] or where.dtype != bool:
            raise InputError(
                f"where is {where.dtype} of shape {where.shape}, expected bool {shape[:2]}"
            )
    if case.level is not None and not 0 < case.level < 1:
        raise InputError(f"level is {case.level!r}, expected a level between 0 and 1")
    return case._replace(image=image, references=references, draws=draws, where=where)


class Looked(NamedTuple):
    """What the localizer is given of a case: the image, or a noisier copy of it."""

    image: Float[np.ndarray, "H W C"]
    omega: Float[np.ndarray, "H W C"] | None  # what was added; None: nothing


class _Test(NamedTuple):
    """A region of an image and the line along which its mean difference varies."""

    empty: TestResult
    line: Callable[[], Line]  # two images, made when their turn comes; or an InputError


def looked_at(case: ImageToTest, noise: Noise, options: TestOptions) -> Looked:
    """Adds the randomization of the options to a checked case.

    Args:
        case: with its name.
        noise: of images that do not bring their own.
        options: how much, and the seed.

    Returns:
        The image that the localizer sees, and what was added.

    Raises:
        InputError: noise that cannot be sampled.
    """
    if not options.randomization:
        return Looked(case.image, None)
    omega = randomization(
        noise if case.noise is None else case.noise,
        case.image.shape,
        options.randomization,
        options.seed,
        case.name,
    )
    return Looked(case.image + omega, omega)


def check_noise(noise: Any, shape: tuple[int, ...]) -> None:
    """Refuses what is no covariance of images of a shape (H, W, C) by an `InputError`."""
    if not isinstance(noise, Noise):
        raise InputError(
            f"noise is of type {type(noise).__name__}, expected a covariance of dal_jax.noise or "
            "its string form"
        )
    noise.check(shape)


def invalid_result(localizer: Localizer, options: TestOptions, error: InputError) -> TestResult:
    """The result of an image that cannot be tested."""
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
    """Tests a checked case by an exact engine."""
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
        wanted = vars(_wanted(case, options, len(tests)))
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


def _wanted(case: ImageToTest, options: TestOptions, shares: int) -> SearchOptions:
    level = options.level if case.level is None else case.level
    precision = options.precision / shares  # Holm's procedure multiplies by up to so many
    return replace(options.search, precision=precision, level=level, shares=shares)


def _fill_result(
    test: _Test, line: Line, searched: SearchResult, window: np.ndarray, options: TestOptions
) -> TestResult:
    how = options.alternative, options.confidence
    return with_search(test.empty, line, searched, window, *how)


def _refused(test: _Test, error: InputError) -> TestResult:
    return test.empty._replace(status=Status.INVALID_INPUT, message=str(error))


def _whole(empty: TestResult, found: list[TestResult], options: TestOptions) -> TestResult:
    for part in found:
        if part.status is Status.INVALID_INPUT:  # the others of a batch are tested
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
    """The window of the observed image, in standardized z."""
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
    """Tests a checked case adaptively, as a task of `run_side_by_side`; returns the result."""
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
    wanted = _wanted(case, options, len(tests))
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
    """Tests one region; what it keeps of the evaluations ends with it."""
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
    """The result so far, what was selected, and what of it is tested if there is anything."""
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
