"""Simulated images: noise of a known law, Gaussian or not, with a raised square in some."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, stats

from dal_jax import ImageToTest, InputError
from dal_jax.noise import Covariance, iid, parse_noise

# Streams of random numbers for training, tested images and images that the noise is estimated from.
TRAINING, TESTING, NORMAL = 0, 1, 2
SAME, OTHERS = "estimate:same", "estimate:normal:"
# Nodes of the trapezoid rule on each side of zero; kinks of |F - Phi| cost 1 / nodes^2.
_NODES = 4000
# The integral ends where both distributions leave this much probability.
_TAIL = 1e-12


class _Kind(NamedTuple):
    """A scipy family and its range of shapes: W1 grows strictly from `nearest` to `farthest`."""

    make: Callable[..., Any]
    normal: float  # shape, or its limit, that is the normal distribution
    nearest: float  # at most 4e-7 from normal; closer, scipy's exponnorm loses its digits
    farthest: float


_KINDS = {
    "skewnorm": _Kind(stats.skewnorm, 0.0, 0.01, 1000.0),
    "exponnorm": _Kind(stats.exponnorm, 0.0, 0.01, 100.0),
    "gennorm_steep": _Kind(stats.gennorm, 2.0, 2.0, 0.5),
    # Beyond 100 scipy's gennorm.cdf loses its digits.
    "gennorm_flat": _Kind(stats.gennorm, 2.0, 2.0, 100.0),
    "t": _Kind(stats.t, np.inf, 1e6, 2.5),
}
FAMILIES: tuple[str, ...] = tuple(_KINDS)


@dataclass(frozen=True)
class Family:
    """A distribution of mean 0 and variance 1, `(Y - E[Y]) / sd(Y)` with Y of a scipy family.

    Args:
        name: Name of the family, one of `FAMILIES`.
        shape: Parameter of scipy, without unit: `a` of skewnorm in [0.01, 1000], `K` of exponnorm
            in [0.01, 100], `beta` of gennorm in [0.5, 2] (steep) or [2, 100] (flat), degrees of
            freedom of t in [2.5, 1e6]; or its limit for N(0, 1): 0, 0, 2, 2 and infinity.

    Raises:
        InputError: The name is unknown, or the shape lies outside these ranges.

    Source: Katsuoka et al., arXiv 2402.11789, the robustness experiment.
    """

    name: str
    shape: float

    def __post_init__(self):
        kind = _kind(self.name)
        low, high = sorted((kind.nearest, kind.farthest))
        if self.shape != kind.normal and not low <= self.shape <= high:
            raise InputError(
                f"shape: got {self.shape}, expected {low:g} to {high:g} or {kind.normal:g} "
                f"for {self.name}"
            )

    @cached_property
    def distribution(self) -> Any:
        """The frozen scipy distribution, standardized by its own mean and deviation."""
        kind = _kind(self.name)
        if self.shape == kind.normal:
            return stats.norm()
        mean, variance = (float(m) for m in kind.make(self.shape).stats("mv"))
        deviation = variance**0.5
        return kind.make(self.shape, loc=-mean / deviation, scale=1 / deviation)

    def sample(self, rng: np.random.Generator, shape: int | tuple[int, ...]) -> np.ndarray:
        """Return independent draws in float64, of any shape, by scipy's `rvs`."""
        return np.asarray(self.distribution.rvs(shape, random_state=rng), np.float64)


@lru_cache
def family_at(name: str, distance: float) -> Family:
    """Return the member of a family at a given 1-Wasserstein distance from N(0, 1).

    The shape solves `W1(F, N(0, 1)) = distance`, to 1e-6 in the distance.

    Args:
        name: Name of the family, one of `FAMILIES`.
        distance: Distance in standard deviations, 0 to that of the family's last shape, about
            0.1929 (skewnorm), 0.3143 (exponnorm), 0.3489 (gennorm_steep), 0.1540 (gennorm_flat)
            and 0.3147 (t); 0 is N(0, 1) itself.

    Returns:
        The member.

    Raises:
        InputError: The name is unknown, or the distance is out of reach.

    Example:
        >>> round(family_at("t", 0.02).shape, 1)
        20.2

    Source: Katsuoka et al., arXiv 2402.11789, the robustness experiment.
    """
    kind = _kind(name)
    limit = _distance(name, kind.farthest)
    if not 0 <= distance <= limit:
        raise InputError(f"distance: got {distance}, expected 0 to {limit:.4f} for {name}")
    if distance == 0:
        return Family(name, kind.normal)
    if distance <= _distance(name, kind.nearest):
        return Family(name, kind.nearest)

    def shape(way: float) -> float:  # geometric, and exact at both ends
        return kind.nearest ** (1 - way) * kind.farthest**way

    def excess(way: float) -> float:
        return _distance(name, shape(way)) - distance

    root: Any = optimize.brentq(excess, 0.0, 1.0, xtol=1e-9)
    return Family(name, shape(root))


def wasserstein_to_normal(distribution: Any) -> float:
    """Return the 1-Wasserstein distance of a continuous distribution from N(0, 1).

    `W1 = int_0^1 |F^-1(u) - Phi^-1(u)| du = int |F(x) - Phi(x)| dx`, by the trapezoid rule in s
    with x = sinh(s), which reaches far into heavy tails. The absolute error is below 1e-6 for the
    members of `FAMILIES`.

    Args:
        distribution: Frozen scipy distribution, with vectorized `sf`, and `ppf` and `isf`.

    Returns:
        The distance, in the unit of x.

    Source: the two forms of W1 are textbook.
    """
    reach = max(-distribution.ppf(_TAIL), distribution.isf(_TAIL), stats.norm.isf(_TAIL))
    s = np.linspace(-1.0, 1.0, 2 * _NODES + 1) * np.arcsinh(reach)
    x = np.sinh(s)
    gap = np.abs(distribution.sf(x) - stats.norm.sf(x))  # skewnorm's cdf is slow in its left tail
    return float(np.trapezoid(gap * np.cosh(s), s))


def _kind(name: str) -> _Kind:
    if name not in _KINDS:
        raise InputError(f"name: got {name!r}, expected one of {', '.join(FAMILIES)}")
    return _KINDS[name]


def _distance(name: str, shape: float) -> float:
    return wasserstein_to_normal(Family(name, shape).distribution)


@dataclass(frozen=True)
class Simulation:
    """Images x = s + e and references x_ref = e_ref; e, e_ref of one law, s a raised square or 0.

    The references of an image are independent; a larger number of them begins with the same ones.

    Raises:
        InputError: A value does not fit.
    """

    size: int  # side, pixels
    noise: str = "iid:1"  # covariance of e, as `parse_noise` takes it
    signal: float = 0.0  # height of the square, units of the image
    family: str = "normal"  # or one of `FAMILIES`: independent pixels that are not Gaussian
    distance: float = 0.0  # 1-Wasserstein distance of a pixel's law from N(0, 1)
    seed: int = 0
    references: int = 1  # number of references of an image

    def __post_init__(self) -> None:
        for name in ("size", "references"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, expected 1 or more")
        if self.family != "normal":
            if self.family not in FAMILIES:
                names = ", ".join(["normal", *FAMILIES])
                raise InputError(f"family: got {self.family!r}, expected one of {names}")
            if self.noise != "iid:1":
                raise InputError(
                    f"noise: got {self.noise!r}, expected 'iid:1' with family {self.family!r}"
                )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an image, (H, W, C)."""
        return self.size, self.size, 1

    def case(self, number: int, draws_shape: tuple[int, ...], assumed: str = "") -> ImageToTest:
        """Draw an image, its references and the draws of its diffusion.

        They depend on the seed and the number alone, but for the signal: images of one number
        differ in the height of the square only.

        Args:
            number: Number of the image, 0 or more.
            draws_shape: Shape of the localizer's draws.
            assumed: Noise that the test assumes: "estimate:same" for the variance of this image
                around its mean, "estimate:normal:M" for that of M other normal images, "" for the
                noise of the test itself.

        Returns:
            The image to test.
        """
        image, references, draws, square = self._draw(number, draws_shape)
        image = image + self.signal * square
        noise: Covariance | None = None
        if assumed == SAME:
            noise = iid(float(image.std(ddof=1)))
        elif assumed.startswith(OTHERS):
            others = np.random.default_rng((self.seed, NORMAL, number))
            images = [self._noise(others) for _ in range(int(assumed.removeprefix(OTHERS)))]
            noise = iid(float(np.sqrt(np.mean([one.var(ddof=1) for one in images]))))
        return ImageToTest(image, references, draws, noise)

    def square(self, number: int, draws_shape: tuple[int, ...]) -> np.ndarray:
        """Return the place of the square of an image.

        Args:
            number: Number of the image, as in `case`.
            draws_shape: Shape of the draws, as in `case`.

        Returns:
            bool (H, W), true inside the square.
        """
        return self._draw(number, draws_shape)[-1][..., 0] > 0

    def training_images(self, count: int) -> np.ndarray:
        """Draw normal images to train on.

        Args:
            count: Number of images.

        Returns:
            float32 (count, H, W, C).
        """
        rng = np.random.default_rng((self.seed, TRAINING))
        images = np.empty((count, *self.shape), np.float32)
        for number in range(count):
            images[number] = self._noise(rng)
        return images

    def _draw(self, number: int, draws_shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """Draw noise, references, draws and square; all references but the first come last."""
        rng = np.random.default_rng((self.seed, TESTING, number))
        image, references = self._noise(rng), self._noise(rng)
        draws, square = rng.standard_normal(draws_shape), self._square(rng)
        if self.references > 1:
            others = [self._noise(rng) for _ in range(self.references - 1)]
            references = np.stack([references, *others])
        return image, references, draws, square

    def _noise(self, rng: np.random.Generator) -> np.ndarray:
        if self.family != "normal":
            return family_at(self.family, self.distance).sample(rng, self.shape)
        return parse_noise(self.noise, self.shape).sample(rng, self.shape)

    def _square(self, rng: np.random.Generator) -> np.ndarray:
        """Return 1 inside, 0 outside; the side is a third of the image's (paper, section 5)."""
        side = max(1, self.size // 3)
        top, left = rng.integers(0, self.size - side + 1, 2)
        square = np.zeros(self.shape)
        square[top : top + side, left : left + side] = 1.0
        return square
