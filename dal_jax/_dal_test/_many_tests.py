"""The DAL-Test of one image, and of many side by side."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np

from dal_jax._dal_test._image import ImageToTest, covariance_of, validate_image
from dal_jax._dal_test._one_test import adaptive_test, exact_test, invalid_result
from dal_jax._dal_test._options import TestOptions, test_options
from dal_jax._dal_test._randomization import check_sampled
from dal_jax._dal_test._result import TestResult
from dal_jax._errors import InputError
from dal_jax._typing import Bool, Float
from dal_jax.inference import Noise
from dal_jax.localizers import Localizer
from dal_jax.search import Evaluator, Functions, Status, Task, run_side_by_side

# What the searches under way may keep in the host's memory, and about how much a pixel takes there.
HOST_BYTES, KEPT = 2**31, 64 * 3 * 8


def dal_test(
    localizer: Localizer,
    x: Float[np.ndarray, "H W C"],
    x_ref: Float[np.ndarray, "*K H W C"],
    noise: Noise | str,
    *,
    where: Bool[np.ndarray, "H W"] | None = None,
    name: str | int = 0,
    progress: Any = None,
    **options: Any,
) -> TestResult:
    """Tests whether the region that a localizer flags in an image differs from a reference.

    The region M is where `score > threshold`, or part of it (see `region`); the statistic is the
    difference of means inside M, `T = mean(x[M]) - mean(x_ref[M])`; the p-value is that of T under
    the null given that M was selected, `P(|T| >= |T_obs| given T in Z)`, uniform under the null.

    Args:
        localizer: from `load_localizer`, `dal_localizer` or `from_score`.
        x: (H, W, C) the test image, finite.
        x_ref: (H, W, C) the reference image, or (K, H, W, C) independent ones to be averaged.
        noise: covariance of one image: an operator of `dal_jax.noise` or its string form
            ("iid:SIGMA", "ar1:RHO:SIGMA" or a file), in units of the image.
        where: (H, W) bool, pixels that may be flagged; None: all. It must not depend on the noise
            in x: a fixed mask, or one from elsewhere than the tested pixels.
        name: of the image, or its number: images of one seed but other names are randomized
            independently.
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
            precision: width of the bounds on p to be reached, in [0, 1), of components on the
                adjusted p; 0 searches the whole range. (The adaptive engine takes what is below
                1e-7, of each component, for 1e-7.)
            alpha: level in (0, 1): the search may end as soon as the decision at alpha is certain.
            level: level in (0, 1) at which p will be decided on: the search does not end before
                the bounds tell that decision, however narrow they are. Where the range is
                exhausted, or the evaluations are, the decision may stay open.
            recalibrations: laws and ranks (`dal_jax.inference`) whose p-values will be decided on
                at the level, too: see `recalibrated`.
            z_max: half the range searched, standard deviations, widened if it would not hold the
                observed statistic; None is 10 + |z_obs|.
            adaptive: an `AdaptiveOptions`: spacing, safety, checks and so on.
            seed: of the random checks of the adaptive engine, of the permutations and, with the
                image's name, of the randomization.
            randomization: gamma, 0 or from .001 to 1000; .5 by default. The localizer sees a
                noisier image `x + omega`, `omega ~ N(0, gamma^2 Sigma)`; what is tested is x
                itself. p is exact for any gamma, and the larger gamma the less evidence selection
                uses up, while the localizer sees less of what it looks for. 0 is the test as
                published.
            confidence: of the interval for the mean difference inside M, in (0, 1). The interval
                is always finite with a randomization, and may be infinite without one.
            first_window: True computes the first window, and with it `over_conditioned_p`, with
                the adaptive engine, too; the score must then be piecewise affine. The exact
                engines always do.
            region: which flagged pixels are M: "all", as published; "peak", those connected with
                the highest score through flagged ones (eight neighbours). p is then conditional on
                less: other flagged pixels may come and go as long as none has a higher score;
                "components", each connected component of "all" on its own, given all that is
                flagged: see `components` and `p_holm` of the result. What the result says of the
                image as a whole is then the smallest of Holm's adjusted p-values.
            permutations: how many times to permute the pixels of the image for `permutation_p`, 0
                or more; adaptive engine only. The localizer flags a region M_b in each permuted
                image, `T_b = mean(x_b[M_b]) - mean(x_ref[M_b])`, 0 where nothing is flagged, and
                p is the share of them, T among them, that are at least as extreme as T. It is
                exact if the pixels are exchangeable under the null, and over all images: those
                in which nothing is flagged count as not rejected. It is not valid for correlated
                noise. A permuted image whose score is not finite counts as extreme. With a
                randomization this is still the test of x itself, without noise added.

    Returns:
        The result. Its `status`: OK; NO_REGION (nothing flagged, p is NaN); NOT_CONVERGED (the
        bounds are wider than asked for, yet valid); TIE or NON_FINITE (p is NaN).

    Raises:
        InputError: an argument that does not fit; the message names it.
        NotPiecewiseAffineError: exact engines, or first_window: the score is not piecewise affine
            in the image.

    Example:
        >>> from dal_jax import from_score
        >>> brightness = from_score(lambda params, draws, x: x[..., 0], (1, 2, 1), 2.5)
        >>> x = np.array([[[3.0], [0.0]]])
        >>> result = dal_test(brightness, x, np.zeros((1, 2, 1)), "iid:1.0", precision=1e-6)
        >>> round(result.naive_p, 2), round(result.p_value, 3), result.status.value
        (0.03, 0.125, 'OK')

    Source: Katsuoka et al., arXiv 2402.11789; bounds and engines: this project.
    """
    chosen = test_options(options)
    case = validate_image(
        localizer, ImageToTest(np.asarray(x), np.asarray(x_ref), where=where, name=name)
    )
    covariance = covariance_of(noise, localizer)
    if chosen.engine == "adaptive":
        evaluator = evaluator_of(localizer, False, _devices(1))  # too little work for more
        task = adaptive_test(localizer, case, covariance, chosen, progress)
        parted = chosen.region == "components"
        in_flight = _in_flight(evaluator, localizer, chosen) if parted else 1
        result = next(run_side_by_side([(0, task)], evaluator, in_flight))[1]
    else:
        result = exact_test(localizer, case, covariance, chosen, progress)
    if result.status is Status.INVALID_INPUT:
        raise InputError(result.message)
    return result


def dal_test_batch(
    localizer: Localizer,
    x: Float[np.ndarray, "B H W C"],
    x_ref: Float[np.ndarray, "B *K H W C"],
    noise: Noise | str,
    *,
    draws: Any = None,
    noises: Sequence[Noise | str | None] | None = None,
    where: Bool[np.ndarray, "B H W"] | None = None,
    batch_size: int | None = None,
    devices: Sequence[Any] | int | None = None,
    progress: Any = None,
    **options: Any,
) -> list[TestResult]:
    """Tests many images side by side, on all devices, with one compiled program.

    With the adaptive engine the evaluations of all tests under way share the batches of the
    devices, and a finished test makes room for the next. The batch size, the order and the other
    images change a result by rounding alone: region (where `num_ties` is 0), status and number of
    intervals stay the same, statistic, p-value and ends of intervals to 1e-9 (relative to 1 or to
    the number; ends in standard deviations). Bounds on p, and after a search that `alpha` ended
    early p and ends, too, stay compatible: they are known to the width of the bounds. The exact
    engines take one image after the other.

    Args:
        localizer: as in `dal_test`.
        x: (B, H, W, C) the test images.
        x_ref: (B, H, W, C) or (B, K, H, W, C), the references of each.
        noise: as in `dal_test`, of all images but those with their own.
        draws: None: those of the localizer for all; or with a leading axis B, each image's own.
        noises: None: `noise` for all; or of each image its own, or None where that is `noise`.
        where: None, or (B, H, W) bool: of each image the pixels that may be flagged.
        batch_size: how many tests are under way at a time, that of each component being one; None
            fills the devices.
        devices: JAX devices of this process, or how many of them; None is all.
        progress: called with the number of finished tests and each result as it comes.
        **options: the fields of `TestOptions`, as in `dal_test`.

    Returns:
        One result an image, in order. An image that cannot be tested has the status INVALID_INPUT
        and a `message`; the others are tested.

    Raises:
        InputError: an argument that does not fit as a whole.

    Example:
        >>> from dal_jax import from_score
        >>> brightness = from_score(lambda params, draws, x: x[..., 0], (1, 2, 1), 2.5)
        >>> images = np.array([[[[3.0], [0.0]]], [[[1.0], [2.0]]]])
        >>> results = dal_test_batch(brightness, images, np.zeros((2, 1, 2, 1)), "iid:1.0")
        >>> [result.status.value for result in results]
        ['OK', 'NO_REGION']

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
    if noises is not None and len(noises) != len(images):
        raise InputError(f"noises are {len(noises)}, expected one for each of {len(images)} images")
    if where is not None and len(where) != len(images):
        raise InputError(f"where has {len(where)} masks, expected {len(images)}, one an image")
    chosen, covariance = test_options(options), covariance_of(noise, localizer)

    def case(number: int) -> ImageToTest:
        own = None if draws is None else draws[number]
        found = None if noises is None else noises[number]
        found = None if found is None else covariance_of(found, localizer)
        shown = None if where is None else where[number]
        return ImageToTest(images[number], references[number], own, found, shown, name=number)

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
    cases: Iterable[tuple[Any, Callable[[], ImageToTest]]],
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
        noise: covariance of one image, for those that do not bring their own.
        options: of the tests.
        own_draws: whether the cases bring their draws.
        batch_size: as in `dal_test_batch`.
        devices: as in `dal_test_batch`.

    Yields:
        (key, result), in the order in which they finish.

    Raises:
        InputError: batch_size or devices do not fit.

    Example:
        >>> from dal_jax import TestOptions, from_score
        >>> from dal_jax.noise import iid
        >>> brightness = from_score(lambda params, draws, x: x[..., 0], (1, 1, 1), 2.5)
        >>> x = np.full((1, 1, 1), 3.0)
        >>> images = [("a.png", lambda: ImageToTest(x, np.zeros_like(x)))]
        >>> for name, result in stream_tests(brightness, images, iid(1.0), TestOptions()):
        ...     print(name, result.status.value)
        a.png OK
    """
    if options.randomization:
        check_sampled(noise)
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size is {batch_size}, expected 1 or more")
    used = _devices(devices)
    if options.engine != "adaptive":
        for key, load in cases:
            yield key, _each(localizer, load, noise, options)
        return
    evaluator = evaluator_of(localizer, own_draws, used)
    if batch_size is None:
        batch_size = _in_flight(evaluator, localizer, options)

    def task(load: Callable[[], ImageToTest]) -> Task[TestResult]:
        try:
            case = validate_image(localizer, load())
            if (case.draws is not None) != own_draws:
                there, expected = ("none", "its own") if own_draws else ("its own", "none")
                raise InputError(f"draws: the image has {there}, expected {expected}")
        except InputError as error:
            return invalid_result(localizer, options, error)
        return (yield from adaptive_test(localizer, case, noise, options))

    tasks = ((key, task(load)) for key, load in cases)
    yield from run_side_by_side(tasks, evaluator, batch_size)


def _in_flight(evaluator: Evaluator, localizer: Localizer, options: TestOptions) -> int:
    """How many searches fill the devices, if the host has room for what they keep."""
    room = HOST_BYTES // (KEPT * math.prod(localizer.image_shape))
    return max(1, min(2 * evaluator.capacity(options.dtype or "float32"), room))


def _each(
    localizer: Localizer, load: Callable[[], ImageToTest], noise: Noise, options: TestOptions
) -> TestResult:
    try:
        case = validate_image(localizer, load())
    except InputError as error:
        return invalid_result(localizer, options, error)
    own = localizer if case.draws is None else localizer.with_draws(case.draws)
    return exact_test(own, case, noise, options, None)


def evaluator_of(
    localizer: Localizer, own_draws: bool = False, devices: Sequence[Any] | None = None
) -> Evaluator:
    """The evaluator of a localizer's images.

    Args:
        localizer: as in `dal_test`.
        own_draws: whether every image comes with its own draws.
        devices: to be used; None is all of this process.

    Returns:
        The evaluator.

    Raises:
        InputError: no devices.

    Example:
        >>> from dal_jax import from_score
        >>> brightness = from_score(lambda params, draws, x: x[..., 0], (2, 2, 1), 2.5)
        >>> evaluator_of(brightness).capacity("float64") > 0
        True
    """
    height, width, channels = localizer.image_shape
    shape = (height, width, channels)
    functions = Functions(localizer.score_fn, localizer.reconstruct_fn, shape)
    return Evaluator(functions, localizer.params, localizer.draws, own_draws, devices)


def _devices(devices: Sequence[Any] | int | None) -> tuple[Any, ...]:
    there = tuple(jax.local_devices())
    if devices is None:
        return there
    if not isinstance(devices, int | np.integer):
        return tuple(devices)
    if not 1 <= devices <= len(there):
        raise InputError(f"devices is {devices}, expected 1 to {len(there)}, all that there are")
    return there[:devices]
