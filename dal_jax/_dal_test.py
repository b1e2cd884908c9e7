"""The DAL-Test: from a localizer and two images to a valid p-value. Joins the rooms."""

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import numpy as np

from ._compat import exact_arithmetic
from ._errors import InputError
from ._result import TestResult, empty_result, with_search
from ._typing import Float
from .affine import AffinePiece, affine_piece
from .inference import Line, Noise, region_line
from .localizers import Localizer
from .localizers._localizer import check_draws, check_threshold
from .noise import parse_noise
from .search import (
    Adaptive,
    AdaptiveOptions,
    Answer,
    Evaluator,
    Functions,
    LineProblem,
    Margins,
    Membership,
    Request,
    ScanEngine,
    SearchOptions,
    Status,
    SweepEngine,
    adaptive_search,
    operands,
    run_side_by_side,
    search_line,
)

ENGINES = ("adaptive", "sweep", "scan")
DTYPES = ("float64", "float32")
# What the tests under way may keep in the host's memory, and about how much an image keeps there.
HOST_BYTES, KEPT = 2**31, 64 * 3 * 8


@dataclass(frozen=True)
class TestOptions:
    """How images are tested; `dal_test` says what each field means.

    Raises:
        InputError: an option does not fit.
    """

    alternative: str = "two-sided"
    engine: str = "adaptive"
    dtype: str | None = None
    precision: float = 1e-3
    alpha: float | None = None
    z_max: float | None = None
    adaptive: AdaptiveOptions = field(default_factory=AdaptiveOptions)
    seed: int = 0

    __test__ = False  # not a test case, whatever pytest thinks of the name

    def __post_init__(self) -> None:
        _one_of("engine", self.engine, ENGINES)
        if self.dtype is None:
            narrow = self.engine == "adaptive"
            object.__setattr__(self, "dtype", "float32" if narrow else "float64")
        _one_of("dtype", self.dtype, DTYPES)
        if self.engine == "scan" and self.dtype == "float32":
            raise InputError("dtype is 'float32', expected 'float64' with engine 'scan'")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}, expected 0 or above")
        _ = self.search

    @property
    def search(self) -> SearchOptions:
        """What the search of the line is told."""
        return SearchOptions(self.alternative, self.precision, self.alpha, self.z_max)


class Case(NamedTuple):
    """One image to be tested."""

    image: Float[np.ndarray, "H W C"]
    references: Float[np.ndarray, "*K H W C"]
    draws: Any = None  # those of this image; None: the localizer's


def dal_test(
    localizer: Localizer,
    x: Float[np.ndarray, "H W C"],
    x_ref: Float[np.ndarray, "*K H W C"],
    noise: Noise | str,
    *,
    progress: Any = None,
    **options: Any,
) -> TestResult:
    """Tests whether the region that a localizer flags in an image differs from a reference.

    The region M is where `score > threshold`; the statistic is the difference of means inside M,
    `T = mean(x[M]) - mean(x_ref[M])`; the p-value is that of T under the null given that M was
    flagged, `P(|T| >= |T_obs| given T in Z)`, which is uniform under the null.

    Args:
        localizer: from `load_localizer`, `dal_localizer` or `from_score`.
        x: (H, W, C) the test image, finite.
        x_ref: (H, W, C) the reference image, or (K, H, W, C) independent ones to be averaged.
        noise: covariance of one image: an operator of `dal_jax.noise` or its string form
            ("iid:SIGMA", "ar1:RHO:SIGMA" or a file), in units of the image.
        progress: called with (bounds on p, |z| reached) after every round of the search.
        **options: the fields of `TestOptions`:
            alternative: "two-sided", "equal-tailed", "greater" or "less".
            engine: "adaptive" for any score function, by evaluations alone: what lies between
                them is judged by interpolation, with an error that is estimated, and checked at
                random points; "sweep", exact, for a score that is piecewise affine in the image;
                "scan", the slower check of the sweep (float64 only).
            dtype: "float32" searches in float32 and settles what decides in float64; "float64".
                None is float32 for the adaptive engine and float64 for the exact ones. Region,
                score and reconstruction are float64 in any case.
            precision: width of the bounds on p to be reached, in [0, 1); 0 searches the whole
                range.
            alpha: level in (0, 1): the search may end as soon as the decision at alpha is certain.
            z_max: half the range searched, standard deviations, widened if it would not hold the
                observed statistic; None is 10 + |z_obs|.
            adaptive: an `AdaptiveOptions`: spacing, safety, checks and so on.
            seed: of the random checks of the adaptive engine.

    Returns:
        The result. Its `status`: OK; NO_REGION (nothing flagged, p is NaN); NOT_CONVERGED (the
        bounds are wider than asked for, yet valid); TIE or NON_FINITE (p is NaN).

    Raises:
        InputError: an argument that does not fit; the message names it.
        NotPiecewiseAffineError: exact engines: the score is not piecewise affine in the image.

    Example:
        >>> result = dal_test(localizer, x, x_ref, "iid:1.0")  # doctest: +SKIP
        >>> result.p_value, result.status  # doctest: +SKIP

    Source: Katsuoka et al., arXiv 2402.11789; bounds and engines: this project.
    """
    chosen = test_options(options)
    case = _checked(localizer, Case(np.asarray(x), np.asarray(x_ref)))
    covariance = covariance_of(noise, localizer)
    if chosen.engine != "adaptive":
        return _exact(localizer, case, covariance, chosen, progress)
    evaluator = _evaluator(localizer, False, None)
    task = _adaptive(localizer, case, covariance, chosen, progress)
    return next(run_side_by_side([(0, task)], evaluator, 1))[1]


def dal_test_batch(
    localizer: Localizer,
    x: Float[np.ndarray, "B H W C"],
    x_ref: Float[np.ndarray, "B *K H W C"],
    noise: Noise | str,
    *,
    draws: Any = None,
    batch_size: int | None = None,
    devices: Sequence[Any] | int | None = None,
    progress: Any = None,
    **options: Any,
) -> list[TestResult]:
    """Tests many images side by side, on all devices, with one compiled program.

    With the adaptive engine the evaluations of all tests under way share the batches of the
    devices, and a finished test makes room for the next. Neither the batch size nor the order nor
    the other images change a result (bit for bit on a CPU). The exact engines take one image
    after the other.

    Args:
        localizer: as in `dal_test`.
        x: (B, H, W, C) the test images.
        x_ref: (B, H, W, C) or (B, K, H, W, C), the references of each.
        noise: as in `dal_test`, the same for all.
        draws: None: those of the localizer for all; or with a leading axis B, each image's own.
        batch_size: how many tests are under way at a time; None fills the devices.
        devices: JAX devices of this process, or how many of them; None is all.
        progress: called with the number of finished tests and each result as it comes.
        **options: the fields of `TestOptions`, as in `dal_test`.

    Returns:
        One result an image, in order. An image that cannot be tested has the status INVALID_INPUT
        and a `message`; the others are tested.

    Raises:
        InputError: an argument that does not fit as a whole.

    Source: Katsuoka et al., arXiv 2402.11789.
    """
    images, references = np.asarray(x), np.asarray(x_ref)
    if images.ndim != 4 or references.ndim < 4 or len(references) != len(images):
        raise InputError(
            f"x and x_ref have shapes {images.shape} and {references.shape}, expected (B, H, W, C) "
            "and as many references"
        )
    if draws is not None and len(draws) != len(images):
        raise InputError(f"draws are {len(draws)}, expected one for each of {len(images)} images")
    chosen, covariance = test_options(options), covariance_of(noise, localizer)

    def case(number: int) -> Case:
        own = None if draws is None else draws[number]
        return Case(images[number], references[number], own)

    cases = ((number, partial(case, number)) for number in range(len(images)))
    results: dict[int, TestResult] = {}
    for number, result in stream_tests(
        localizer,
        cases,
        covariance,
        chosen,
        own_draws=draws is not None,
        batch_size=batch_size,
        devices=devices,
    ):
        results[number] = result
        if progress is not None:
            progress(len(results), result)
    return [results[number] for number in range(len(images))]


def stream_tests(
    localizer: Localizer,
    cases: Iterable[tuple[Any, Callable[[], Case]]],
    noise: Noise,
    options: TestOptions,
    *,
    own_draws: bool = False,
    batch_size: int | None = None,
    devices: Sequence[Any] | int | None = None,
) -> Iterator[tuple[Any, TestResult]]:
    """Tests images that are loaded when their turn comes, and gives results as they come.

    Args:
        localizer: as in `dal_test`.
        cases: (key, function that loads the image) each; an `InputError` of the function becomes
            the status INVALID_INPUT of that image.
        noise: covariance of one image.
        options: of the tests.
        own_draws: whether the cases bring their draws.
        batch_size: as in `dal_test_batch`.
        devices: as in `dal_test_batch`.

    Yields:
        (key, result), in the order in which they finish.

    Raises:
        InputError: batch_size or devices do not fit.
    """
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size is {batch_size}, expected 1 or more")
    used = _devices(devices)
    if options.engine != "adaptive":
        for key, load in cases:
            yield key, _each(localizer, load, noise, options)
        return
    evaluator = _evaluator(localizer, own_draws, used)
    if batch_size is None:
        room = HOST_BYTES // (KEPT * math.prod(localizer.image_shape))
        batch_size = max(1, min(2 * evaluator.capacity("float32"), room))

    def task(load: Callable[[], Case]) -> Generator[Request, Answer, TestResult]:
        try:
            case = _checked(localizer, load())
        except InputError as error:
            return _refused(localizer, options, error)
        return (yield from _adaptive(localizer, case, noise, options))

    tasks = ((key, task(load)) for key, load in cases)
    yield from run_side_by_side(tasks, evaluator, batch_size)


def test_options(options: dict[str, Any]) -> TestOptions:
    """Makes options of keyword arguments.

    Args:
        options: fields of `TestOptions` by name.

    Returns:
        The options.

    Raises:
        InputError: an unknown name, or a value that does not fit.
    """
    unknown = sorted(set(options) - set(TestOptions.__dataclass_fields__))
    if unknown:
        known = ", ".join(TestOptions.__dataclass_fields__)
        raise InputError(f"options hold {unknown[0]!r}, expected only {known}")
    return TestOptions(**options)


test_options.__test__ = False  # type: ignore[attr-defined]


def covariance_of(noise: Noise | str, localizer: Localizer) -> Noise:
    """The covariance that is meant, checked against the images of a localizer.

    Args:
        noise: an operator of `dal_jax.noise` or its string form.
        localizer: whose images it is for.

    Returns:
        The operator.

    Raises:
        InputError: it does not fit.
    """
    shape = tuple(localizer.image_shape)
    if isinstance(noise, str):
        return parse_noise(noise, shape)
    if not isinstance(noise, Noise):
        raise InputError(
            f"noise is of type {type(noise).__name__}, expected a covariance of dal_jax.noise or "
            "its string form"
        )
    noise.check(shape)
    return noise


def _one_of(name: str, value: str | None, options: tuple[str, ...]) -> None:
    if value not in options:
        raise InputError(f"{name} is {value!r}, expected one of {', '.join(options)}")


def _devices(devices: Sequence[Any] | int | None) -> tuple[Any, ...]:
    there = tuple(jax.local_devices())
    if devices is None:
        return there
    if not isinstance(devices, int | np.integer):
        return tuple(devices)
    if not 1 <= devices <= len(there):
        raise InputError(f"devices is {devices}, expected 1 to {len(there)}, all that there are")
    return there[:devices]


def _checked(localizer: Localizer, case: Case) -> Case:
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
    return Case(image, references, draws)


def _refused(localizer: Localizer, options: TestOptions, error: InputError) -> TestResult:
    nothing = np.full(localizer.image_shape, np.nan)
    return empty_result(
        nothing[..., 0],
        nothing,
        localizer.threshold,
        options.engine,
        Status.INVALID_INPUT,
        str(error),
    )


def _each(
    localizer: Localizer, load: Callable[[], Case], noise: Noise, options: TestOptions
) -> TestResult:
    try:
        case = _checked(localizer, load())
    except InputError as error:
        return _refused(localizer, options, error)
    own = localizer if case.draws is None else localizer.with_draws(case.draws)
    return _exact(own, case, noise, options, None)


def _hypothesis(
    localizer: Localizer,
    case: Case,
    noise: Noise,
    engine: str,
    score: np.ndarray,
    reconstruction: np.ndarray,
) -> tuple[TestResult, Line | None]:
    """The result so far, and the line to be searched unless there is nothing to test."""
    if score.shape != case.image.shape[:2]:
        raise InputError(f"localizer has scores {score.shape}, expected {case.image.shape[:2]}")
    empty = empty_result(score, reconstruction, localizer.threshold, engine)
    if not np.isfinite(score).all():
        return empty._replace(status=Status.NON_FINITE), None
    if not empty.region.any():
        return empty, None
    return empty, region_line(case.image, case.references, empty.region, noise)


def _timed(result: TestResult, started: float) -> TestResult:
    return result._replace(seconds=time.perf_counter() - started)


# The exact engines: one image after the other.


@lru_cache(maxsize=32)
def _window_fn(score_fn: Any) -> Any:
    def piece(values: Any, z: Any) -> AffinePiece:
        return affine_piece(partial(Membership(score_fn), values), z)

    return jax.jit(piece)


def _exact(
    localizer: Localizer, case: Case, noise: Noise, options: TestOptions, progress: Any
) -> TestResult:
    started = time.perf_counter()
    with exact_arithmetic():
        maps = localizer.evaluate(case.image)
        empty, line = _hypothesis(localizer, case, noise, options.engine, *maps)
        if line is None:
            return _timed(empty, started)
        problem = LineProblem(
            localizer.score_fn,
            localizer.params,
            localizer.draws,
            localizer.threshold,
            line.base,
            line.direction,
            empty.region,
            line.z_obs,
        )
        window = _first_window(problem)
        scan = options.engine == "scan"
        engine = ScanEngine(problem) if scan else SweepEngine(problem, options.dtype or "float64")
        searched = search_line(engine, line.z_obs, progress=progress, **vars(options.search))
    return _timed(with_search(empty, line, searched, options.alternative, window), started)


def _first_window(problem: LineProblem) -> np.ndarray:
    """The window of the observed image, in standardized z."""
    values = operands(problem, "float64")
    piece = _window_fn(problem.score_fn)(values, np.float64(problem.z_obs))
    return np.array([float(piece.lo), float(piece.hi)])


# The adaptive engine: asks for evaluations, which many tests share.


def _evaluator(localizer: Localizer, own_draws: bool, devices: Any) -> Evaluator:
    height, width, channels = localizer.image_shape
    shape = (height, width, channels)
    functions = Functions(localizer.score_fn, localizer.reconstruct_fn, shape)
    return Evaluator(functions, localizer.params, localizer.draws, own_draws, devices)


def _adaptive(
    localizer: Localizer, case: Case, noise: Noise, options: TestOptions, progress: Any = None
) -> Generator[Request, Answer, TestResult]:
    started = time.perf_counter()
    seen = yield Request(case.image[None], np.array([True]), case.draws, True)
    assert seen.reconstruction is not None
    empty, line = _hypothesis(
        localizer, case, noise, options.engine, seen.score[0], seen.reconstruction
    )
    empty = empty._replace(num_evaluations=1)
    if line is None:
        return _timed(empty, started)

    def margins(score: np.ndarray) -> Margins:
        over = score.reshape(len(score), -1) - localizer.threshold
        region = empty.region.reshape(-1)
        return Margins(np.where(region, over, -over), ((over > 0) == region).all(axis=1))

    search = adaptive_search(
        line.z_obs,
        margins(seen.score),
        options.search,
        options.adaptive,
        seed=options.seed,
        wide_only=options.dtype == "float64",
        progress=progress,
    )
    points = next(search)
    while True:
        images = line.base + line.direction * points.z[:, None, None, None]
        answer = yield Request(images, points.wide, case.draws)
        try:
            points = search.send(margins(answer.score))
        except StopIteration as end:
            return _timed(_with_adaptive(empty, line, end.value, options), started)


def _with_adaptive(
    empty: TestResult, line: Line, found: Adaptive, options: TestOptions
) -> TestResult:
    result = with_search(empty, line, found.searched, options.alternative, np.full(2, np.nan))
    return result._replace(
        num_evaluations=empty.num_evaluations + result.num_evaluations,
        spacing=found.spacing * line.sd,
        num_checks=found.num_checks,
        num_disagreements=found.num_disagreements,
    )
