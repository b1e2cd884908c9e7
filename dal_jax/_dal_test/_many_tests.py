"""The DAL-Test of one image, and of many images side by side."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from dal_jax._arrays import chosen_devices, memory_of
from dal_jax._dal_test._inputs import (
    ImageToTest,
    TestOptions,
    check_engine,
    check_sampled,
    covariance_of,
    test_options,
    validate_image,
)
from dal_jax._dal_test._one_test import invalid_result, shared_test, sweep_test
from dal_jax._dal_test._result import TestResult
from dal_jax._errors import InputError
from dal_jax._typing import Bool, Float
from dal_jax.inference import Noise
from dal_jax.localizers import Localizer
from dal_jax.search import LINES, Evaluator, Functions, Status, Task, run_side_by_side

# Memory for concurrent searches, of a processor in bytes and of other devices as a share, and
# approximate bytes that each search keeps for a pixel: the margins of 128 points and, while they
# are judged, of 64 of them again.
LINES_BYTES, LINES_SHARE, KEPT = 3 * 2**29, 0.25, (128 + 64) * 8


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
    """Test whether the region that a localizer flags in an image differs from a reference.

    The region M is where `score > threshold`, or part of it (see `region`); the statistic is the
    difference of means inside M, `T = mean(x[M]) - mean(x_ref[M])`; the p-value is that of T under
    the null given that M was selected, `P(|T| >= |T_obs| given T in Z)`, uniform under the null.

    Args:
        localizer: Localizer from `load_localizer`, `dal_localizer`, `from_score` or
            `from_callable`.
        x: Test image (H, W, C), finite.
        x_ref: Reference image (H, W, C), or (K, H, W, C) independent ones to be averaged.
        noise: Covariance of one image: an operator of `dal_jax.noise` or its string form
            ("iid:SIGMA", "ar1:RHO:SIGMA" or a file), in units of the image.
        where: Pixels that may be flagged, bool (H, W); None stands for all. The mask must not
            depend on the noise in x: it is fixed, or comes from elsewhere than the tested pixels.
        name: Name of the image, or its number: images with the same seed and different names are
            randomized independently.
        progress: Function called with (bounds on p, |z| reached) after every round of the search.
        **options: Fields of `TestOptions`:
            alternative: "two-sided", "equal-tailed", "greater" or "less".
            engine: "adaptive" serves any score function and only evaluates it: values between the
                evaluations are interpolated, the error of the interpolation is estimated, and the
                result is checked at random points. "sweep" is exact, for a score that is piecewise
                affine in the image. "scan" is exact, too, by other code (float64 only): slower on a
                processor, without the host between windows, and many images at a time.
            dtype: "float32" searches in float32 and settles decisive points in float64; "float64"
                uses float64 throughout. None is float32 for the adaptive engine and float64 for the
                exact ones. Region, score and reconstruction are float64 in any case. A score of
                `from_callable` has a precision of its own.
            precision: Width of the bounds on p to be reached, in [0, 1); for components, of the
                adjusted p; 0 searches the whole range. (The adaptive engine replaces values below
                1e-7, for each component, by 1e-7.)
            alpha: Level in (0, 1); the search may end as soon as the decision at alpha is certain.
            level: Level in (0, 1) at which p will be decided on: the search does not end before the
                bounds settle that decision, however narrow they are. If the range or the
                evaluations are exhausted first, the decision may stay open.
            recalibrations: Laws and ranks (`dal_jax.inference`) whose p-values will be decided on
                at the level, too; see `recalibrated`.
            z_max: Half the searched range in standard deviations, widened if it would not hold the
                observed statistic; None is 10 + |z_obs|.
            adaptive: Settings of the adaptive engine as `AdaptiveOptions`: spacing, safety, checks
                and others.
            seed: Seed of the random checks of the adaptive engine, of the permutations and, with
                the image's name, of the randomization.
            randomization: Gamma, 0 or from .001 to 1000; .5 by default. The localizer sees a
                noisier image `x + omega`, `omega ~ N(0, gamma^2 Sigma)`; x itself is tested. p is
                exact for any gamma. The larger gamma is, the less evidence selection uses up, and
                the less the localizer sees of its target. 0 is the test as published.
            confidence: Confidence of the interval for the mean difference inside M, in (0, 1). The
                interval is always finite with a randomization, and may be infinite without one.
            first_window: True computes the first window, and with it `over_conditioned_p`, with the
                adaptive engine, too; the score must then be piecewise affine. The exact engines
                always compute it.
            region: Choice of the flagged pixels that form M. "all" takes every one, as published.
                "peak" takes those connected with the highest score through flagged ones (eight
                neighbours); p is then conditional on less: other flagged pixels may come and go as
                long as none has a higher score. "components" tests each connected component of
                "all" on its own, given all flagged pixels: see `components` and `p_holm` of the
                result; the p-value of the whole image is then the smallest of Holm's adjusted
                p-values.
            permutations: Number of permutations of the image's pixels for `permutation_p`, 0 or
                more; adaptive engine only. The localizer flags a region M_b in each permuted image,
                `T_b = mean(x_b[M_b]) - mean(x_ref[M_b])`, 0 where nothing is flagged, and p is the
                share of these statistics, T among them, that are at least as extreme as T. It is
                exact if the pixels are exchangeable under the null, and over all images: images in
                which nothing is flagged count as not rejected. It is not valid for correlated
                noise. A permuted image whose score is not finite counts as extreme. With a
                randomization this is still the test of x itself, without added noise.

    Returns:
        The result. Its `status` is OK; NO_REGION (nothing is flagged, and p is NaN); NOT_CONVERGED
        (the bounds are wider than requested, yet valid); TIE or NON_FINITE (p is NaN).

    Raises:
        InputError: An argument does not fit; the message names it.
        NotPiecewiseAffineError: With an exact engine or first_window, the score is not piecewise
            affine in the image.

    Example:
        >>> from dal_jax import from_score
        >>> brightness = from_score(lambda params, draws, x: x[..., 0], (1, 2, 1), 2.5)
        >>> x = np.array([[[3.0], [0.0]]])
        >>> result = dal_test(brightness, x, np.zeros((1, 2, 1)), "iid:1.0", precision=1e-6)
        >>> round(result.naive_p, 2), round(result.p_value, 3), result.status.value
        (0.03, 0.125, 'OK')

    Source: Katsuoka et al., arXiv 2402.11789.
    """
    chosen = test_options(options)
    check_engine(localizer, chosen)
    case = validate_image(
        localizer, ImageToTest(np.asarray(x), np.asarray(x_ref), where=where, name=name)
    )
    covariance = covariance_of(noise, localizer)
    if chosen.engine != "sweep":
        # The evaluations of an adaptive test fill no more than one device.
        used = chosen_devices(1 if chosen.engine == "adaptive" else None)
        evaluator = evaluator_of(localizer, False, used)
        task = shared_test(localizer, case, covariance, chosen, progress)
        parted = chosen.region == "components"
        in_flight = _in_flight(evaluator, localizer, chosen) if parted else 1
        result = next(run_side_by_side([(0, task)], evaluator, in_flight))[1]
    else:
        result = sweep_test(localizer, case, covariance, chosen, progress)
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
    """Test many images side by side, on all devices, with one compiled program.

    With the adaptive engine the evaluations of all concurrent tests share the batches of the
    devices, with the scan the segments of all lines share their lanes, and a finished test makes
    room for the next. The batch size, the order and the other
    images change a result by rounding alone: region (where `num_ties` is 0), status and number of
    intervals stay the same; statistic, p-value and ends of intervals agree to 1e-9 (relative to 1
    or to the number; ends in standard deviations). Bounds on p stay compatible; so do p and the
    ends of intervals after a search that `alpha` ended early, because they are determined only to
    the width of the bounds. The sweep takes one image after the other.

    Args:
        localizer: Localizer, as in `dal_test`.
        x: Test images (B, H, W, C), finite.
        x_ref: References of each image, (B, H, W, C) or (B, K, H, W, C).
        noise: Covariance, as in `dal_test`, of all images but those with their own.
        draws: Draws with a leading axis B, one entry for each image; None uses those of the
            localizer for all.
        noises: Covariance of each image, or None for an image with `noise`; None uses `noise` for
            all.
        where: Pixels of each image that may be flagged, bool (B, H, W); None stands for all.
        batch_size: Number of concurrent tests, where each component counts as one; None fills the
            devices.
        devices: JAX devices of this process, or their number; None is all.
        progress: Function called with the number of finished tests and each result as it comes.
        **options: Fields of `TestOptions`, as in `dal_test`.

    Returns:
        One result for each image, in order. An image that cannot be tested has the status
        INVALID_INPUT and a `message`; the others are tested.

    Raises:
        InputError: An argument does not fit as a whole.

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
            "and one reference for each image"
        )
    for name, given in {"draws": draws, "noises": noises, "where": where}.items():
        if given is not None and len(given) != len(images):
            expected = f"expected one for each of {len(images)} images"
            raise InputError(f"{name} has {len(given)} entries, {expected}")
    chosen, covariance = test_options(options), covariance_of(noise, localizer)

    def case(number: int) -> ImageToTest:
        own = None if draws is None else draws[number]
        found = None if noises is None else noises[number]
        found = None if found is None else covariance_of(found, localizer)
        shown = None if where is None else where[number]
        return ImageToTest(images[number], references[number], own, found, shown, name=number)

    cases = ((number, partial(case, number)) for number in range(len(images)))
    if batch_size is not None and chosen.region != "components" and len(images):
        batch_size = min(batch_size, len(images))  # memory is taken for this number of lines
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
    """Test images that are loaded when their turn comes, and yield results as they come.

    Args:
        localizer: Localizer, as in `dal_test`.
        cases: Pairs (key, function that loads the image); an `InputError` of the function becomes
            the status INVALID_INPUT of that image.
        noise: Covariance of one image, for those that do not bring their own.
        options: Options of the tests.
        own_draws: True if the cases bring their draws.
        batch_size: Number of concurrent tests, as in `dal_test_batch`.
        devices: JAX devices, as in `dal_test_batch`.

    Yields:
        Pairs (key, result), in the order in which the tests finish.

    Raises:
        InputError: The argument batch_size or devices does not fit.

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
    check_engine(localizer, options)
    if options.randomization:
        check_sampled(noise)
    if batch_size is not None and batch_size < 1:
        raise InputError(f"batch_size: got {batch_size}, expected 1 or more")
    used = chosen_devices(devices)
    if options.engine == "sweep":
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
        return (yield from shared_test(localizer, case, noise, options))

    tasks = ((key, task(load)) for key, load in cases)
    yield from run_side_by_side(tasks, evaluator, batch_size)


def _in_flight(evaluator: Evaluator, localizer: Localizer, options: TestOptions) -> int:
    """Return the number of searches that fill the devices, at most as many as memory holds."""
    devices, room = evaluator.devices, float(LINES_BYTES)
    if devices[0].platform != "cpu":
        room = LINES_SHARE * memory_of(devices[0]) * len(devices)
    room = int(room / (KEPT * math.prod(localizer.image_shape[:2])))
    if options.engine == "scan":
        return max(1, min(LINES * len(devices), room))
    return max(1, min(2 * evaluator.capacity(options.dtype or "float32"), room))


def _each(
    localizer: Localizer, load: Callable[[], ImageToTest], noise: Noise, options: TestOptions
) -> TestResult:
    try:
        case = validate_image(localizer, load())
    except InputError as error:
        return invalid_result(localizer, options, error)
    own = localizer if case.draws is None else localizer.with_draws(case.draws)
    return sweep_test(own, case, noise, options, None)


def evaluator_of(
    localizer: Localizer, own_draws: bool = False, devices: Sequence[Any] | None = None
) -> Evaluator:
    """Return the evaluator of a localizer's images.

    Args:
        localizer: Localizer, as in `dal_test`.
        own_draws: True if every image comes with its own draws.
        devices: JAX devices to be used; None is all of this process.

    Returns:
        The evaluator.

    Raises:
        InputError: There are no devices.

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
