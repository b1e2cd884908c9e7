"""What is tested: the options of a test, its image, and the noise added for the selection."""

import hashlib
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np

from dal_jax._config import nearest, option
from dal_jax._errors import InputError
from dal_jax._typing import Bool, Float
from dal_jax.inference import Noise, check_level
from dal_jax.localizers import Localizer, check_draws, check_threshold
from dal_jax.noise import parse_noise
from dal_jax.search import (
    REGIONS,
    AdaptiveOptions,
    HostScore,
    SearchOptions,
    SharedSearchOptions,
)

# Default gamma: the best compromise of power, localization and interval lengths in
# experiments/specs/gammas.toml (docs/results.md).
GAMMA = 0.5
# Range of gamma: less has no effect, more leaves nothing of the image to be seen.
LEAST, MOST = 1e-3, 1e3
# This constant separates these random numbers from others of the same seed.
STREAM = 1507_06739


def randomization(
    noise: Noise, shape: tuple[int, ...], gamma: float, seed: int, name: str | int = 0
) -> Float[np.ndarray, "H W C"]:
    """Draw the noise added to one image before a localizer sees it: `omega ~ N(0, gamma^2 Sigma)`.

    Args:
        noise: Covariance Sigma of one image; it must be one that can be sampled.
        shape: Shape (H, W, C) of the image.
        gamma: Standard deviation of omega in units of the noise's, above 0.
        seed: Seed of the run, 0 or above.
        name: Name of the image, or its number: images of different names have independent draws. It
            must not depend on the image's pixels.

    Returns:
        Noise (H, W, C) in units of the image; the same for the same arguments.

    Raises:
        InputError: The noise cannot be sampled.

    Example:
        >>> from dal_jax.noise import iid
        >>> one, other = (randomization(iid(1.0), (8, 8, 1), 0.5, 0, name) for name in "ab")
        >>> bool(np.any(one == other)), bool(0.3 < one.std() < 0.7)
        (False, True)

    Source: Tian and Taylor, Annals of Statistics 46, 2018.
    """
    check_sampled(noise)
    kind = "number" if isinstance(name, int | np.integer) else "name"
    text = f"{kind} {name}".encode("utf-8", "surrogatepass")  # names of files may hold any bytes
    words = np.frombuffer(hashlib.blake2b(text, digest_size=16).digest(), "<u4").tolist()
    rng = np.random.default_rng([seed, STREAM, *words])
    return gamma * noise.sample(rng, tuple(shape))  # type: ignore[attr-defined]


def check_sampled(noise: Noise) -> None:
    """Refuse a covariance that cannot be sampled by an `InputError`."""
    if not hasattr(noise, "sample"):
        raise InputError(
            f"noise is of type {type(noise).__name__} without `sample`, expected a covariance that "
            "can be sampled: its noise is added to the image (tests with randomization 0 add none)"
        )


def check_randomization(gamma: Any, name: str = "randomization", none: bool = True) -> None:
    """Refuse an invalid gamma by an `InputError`, and also 0 unless `none` is true."""
    number = isinstance(gamma, int | float | np.integer | np.floating)
    number = number and not isinstance(gamma, bool)
    if not number or not (LEAST <= gamma <= MOST or (none and gamma == 0)):
        expected = f"{'0 or ' if none else ''}a number from {LEAST:g} to {MOST:g}"
        raise InputError(f"{name}: got {gamma!r}, expected {expected}")


ENGINES = ("adaptive", "sweep", "scan")
DTYPES = ("float64", "float32")


@dataclass(frozen=True)
class TestOptions(SearchOptions):
    """Options of a test; `dal_test` describes each field.

    Raises:
        InputError: An option does not fit.

    Example:
        >>> TestOptions(engine="sweep", alpha=0.05).dtype
        'float64'
    """

    engine: str = option(
        "adaptive",
        "Search of the line: adaptive, by evaluations and interpolation with checks at random "
        "points; sweep, exactly, through every piece of a piecewise-linear network; scan, exactly, "
        "too, window by window, for many images at a time.",
        choices=ENGINES,
    )
    # None stands for the dtype of the engine.
    dtype: str | None = option(
        None,
        "Floating-point type of the search; by default float32 for adaptive, with decisions in "
        "float64, and float64 for sweep and scan.",
        choices=DTYPES,
    )
    adaptive: AdaptiveOptions = field(default_factory=AdaptiveOptions)
    seed: int = option(0, "Seed of all random numbers.")  # 0 or above
    first_window: bool = option(
        False,
        "Also compute the over-conditioned p with the adaptive engine (the exact engines always "
        "do); piecewise-linear networks only.",
    )
    # 0 or more; adaptive engine only.
    permutations: int = option(
        0,
        "Also compute a p-value from N permutations of the image's pixels; not valid for "
        "correlated noise.",
        metavar="N",
    )
    region: str = option(
        "all",
        "Flagged pixels to test: all of them, the component of the highest score (peak), or each "
        "connected component on its own (components).",
        choices=REGIONS,
    )
    # Noise added for the selection, in standard deviations of the noise.
    randomization: float = option(
        GAMMA,
        "Standard deviation of the noise added to the image that the model sees, in standard "
        "deviations of the image's noise; the image itself is tested: p stays exact, and power "
        "rises. 0 adds none, as published.",
        metavar="GAMMA",
    )
    confidence: float = 0.95  # of the interval for the mean difference, in (0, 1)

    __test__ = False  # the name makes pytest take it for a test case
    __fingerprint__ = "dal_jax._options.TestOptions"  # fixed, so that older runs continue

    def __post_init__(self) -> None:
        if self.dtype is None:
            narrow = self.engine == "adaptive"
            object.__setattr__(self, "dtype", "float32" if narrow else "float64")
        super().__post_init__()
        if self.engine == "scan" and self.dtype == "float32":
            raise InputError("dtype is 'float32', expected 'float64' with engine 'scan'")
        for name in ("seed", "permutations"):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < 0:
                raise InputError(f"{name}: got {value!r}, expected a whole number of 0 or above")
        check_randomization(self.randomization)
        check_level("confidence", self.confidence)
        if not isinstance(self.adaptive, AdaptiveOptions):
            raise InputError(f"adaptive: got {self.adaptive!r}, expected an AdaptiveOptions")
        if self.permutations and self.engine != "adaptive":
            raise InputError(
                f"permutations: got {self.permutations}, expected 0 with engine {self.engine!r}"
            )
        if self.permutations and self.region == "components":
            raise InputError(
                f"permutations: got {self.permutations}, expected 0 with region 'components'"
            )

    def search(self, shares: int, level: float | None = None) -> SharedSearchOptions:
        """Return the options of the search of each of several lines of one image.

        Args:
            shares: Number of tests of the image. As Holm's procedure multiplies p-values by up to
                this number, each line is searched that much more precisely.
            level: Level of the image's decision, in (0, 1); None stands for that of the options.

        Returns:
            The options.
        """
        own = {search.name: getattr(self, search.name) for search in fields(SearchOptions)}
        own |= {"precision": self.precision / shares, "level": level or self.level}
        return SharedSearchOptions(**own, shares=shares)


def test_options(options: dict[str, Any]) -> TestOptions:
    """Create options from keyword arguments.

    Args:
        options: Fields of `TestOptions` by name.

    Returns:
        The options.

    Raises:
        InputError: A name is unknown, or a value does not fit.
    """
    known = list(TestOptions.__dataclass_fields__)
    for key in options:
        if key not in known:
            raise InputError(f"options: unknown key {key!r}, {nearest(key, known)}")
    return TestOptions(**options)


test_options.__test__ = False  # type: ignore[attr-defined]


def check_engine(localizer: Localizer, options: TestOptions) -> None:
    """Refuse an engine that must trace a score which is not JAX by an `InputError`."""
    traced = options.engine != "adaptive" or options.first_window
    if traced and isinstance(localizer.score_fn, HostScore):
        raise InputError(
            f"engine: got {options.engine!r}, first_window {options.first_window}, expected "
            "'adaptive', False: the score is not JAX, and is only called"
        )


class ImageToTest(NamedTuple):
    """One image to be tested.

    Example:
        >>> ImageToTest(np.ones((2, 2, 1)), np.zeros((5, 2, 2, 1))).references.shape
        (5, 2, 2, 1)
    """

    image: Float[np.ndarray, "H W C"]  # finite, in units of the noise
    references: Float[np.ndarray, "*K H W C"]  # one, or K independent ones to be averaged
    draws: Any = None  # draws of this image; None: those of the localizer
    noise: Noise | None = None  # covariance of this image; None: the common one
    where: Bool[np.ndarray, "H W"] | None = None  # pixels that may be flagged; None: all
    level: float | None = None  # level of this image's decision; None: that of the options
    name: str | int = 0  # with the seed, separates its randomization from that of other images


def validate_image(localizer: Localizer, case: ImageToTest) -> ImageToTest:
    """Return the case in float64; an `InputError` names the part that does not fit."""
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
    if case.level is not None:
        check_level("level", case.level)
    return case._replace(image=image, references=references, draws=draws, where=where)


class Looked(NamedTuple):
    """Input of the localizer for one case: the image, or a noisier copy of it."""

    image: Float[np.ndarray, "H W C"]
    omega: Float[np.ndarray, "H W C"] | None  # added noise; None without randomization


def looked_at(case: ImageToTest, noise: Noise, options: TestOptions) -> Looked:
    """Add the randomization of the options to a checked case.

    Args:
        case: Checked case, with its name.
        noise: Covariance of images that do not bring their own.
        options: Test options, of which the randomization and the seed are used.

    Returns:
        The image that the localizer sees, and the noise that was added to it.

    Raises:
        InputError: The noise cannot be sampled.
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
    """Refuse anything but a covariance of images of a shape (H, W, C) by an `InputError`."""
    if not isinstance(noise, Noise):
        raise InputError(
            f"noise is of type {type(noise).__name__}, expected a covariance of dal_jax.noise or "
            "its string form"
        )
    noise.check(shape)


def covariance_of(noise: Noise | str, localizer: Localizer) -> Noise:
    """Return a covariance as an operator, checked against the images of a localizer.

    Args:
        noise: Operator of `dal_jax.noise`, or its string form.
        localizer: Localizer of the images.

    Returns:
        The operator.

    Raises:
        InputError: The covariance does not fit the images.

    Example:
        >>> from dal_jax import from_score
        >>> brightness = from_score(lambda params, draws, x: x[..., 0], (2, 2, 1), 2.5)
        >>> covariance_of("iid:2.0", brightness).apply(np.ones((2, 2, 1)))[0, 0].item()
        4.0
    """
    shape = tuple(localizer.image_shape)
    if isinstance(noise, str):
        return parse_noise(noise, shape)
    check_noise(noise, shape)
    return noise
