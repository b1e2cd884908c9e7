"""The tested difference of means and the line of images along which only it changes."""

from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from dal_jax._errors import InputError
from dal_jax._typing import Float
from dal_jax.inference._randomized import NO_PERTURBATION, Perturbation

# A statistic further from 0 than this, in standard deviations, is no noise of these images, and
# no line is searched that far.
FARTHEST = 1e6


@runtime_checkable
class Noise(Protocol):
    """Covariance operator as a line needs it; the operators of `dal_jax.noise` implement it.

    Example:
        >>> class Unit:
        ...     def apply(self, v):
        ...         return v
        ...     def check(self, shape):
        ...         pass
        >>> isinstance(Unit(), Noise)
        True
    """

    def apply(self, v: Float[np.ndarray, "H W C"]) -> Float[np.ndarray, "H W C"]:
        """Return Sigma v.

        Args:
            v: (H, W, C).

        Returns:
            (H, W, C), in squared units of the image times those of v.
        """
        ...

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse a shape of images.

        Args:
            shape: (H, W, C).

        Raises:
            InputError: Images of this shape do not fit.
        """
        ...


class Line(NamedTuple):
    """The test image as a function of the standardized statistic: `X(z) = base + direction z`.

    Example:
        >>> from dal_jax.noise import iid
        >>> x = np.array([[[3.0], [0.0]]])
        >>> line = region_line(x, np.zeros((1, 2, 1)), [[True, False]], iid(1.0))
        >>> bool(np.allclose(line.base + line.direction * line.z_obs, x))
        True
    """

    base: Float[np.ndarray, "H W C"]  # independent of the statistic
    direction: Float[np.ndarray, "H W C"]  # per unit of z
    z_obs: float  # X(z_obs) is the image that selection saw; statistic / sd if that is the observed
    statistic: float  # T_obs, in units of the image
    sd: float  # of the statistic, in units of the image
    perturbation: Perturbation = NO_PERTURBATION  # of what selection saw, in units of sd

    @property
    def standardized(self) -> float:
        """The statistic in its standard deviations."""
        return self.statistic / self.sd

    @property
    def unit(self) -> float:
        """Unit of z in units of the image: standard deviation of the statistic that selection
        saw.
        """
        return self.sd * self.perturbation.scale


def region_line(
    x: ArrayLike,
    x_ref: ArrayLike,
    region: ArrayLike,
    noise: Noise,
    omega: ArrayLike | None = None,
    gamma: float = 0.0,
) -> Line:
    """Return the line along which the mean difference inside a region varies, all else fixed.

    `T = nu . (x - mean_k x_ref_k)` with `nu = 1_M / (|M| C)` (channels pooled),
    `sd^2 = nu' Sigma nu (1 + 1/K)`, `direction = Sigma nu / sd`, `z_obs = T / sd` and
    `base = x - direction z_obs`. The reference half of the line, `-direction/K` for the mean
    reference, is left out: no localizer sees it.

    If the region was chosen on `y = x + omega`, `omega ~ N(0, gamma^2 Sigma)`, the line is that of
    `V = T + nu . omega / c`, `c = K / (K + 1)`, through y: `z_obs = V / sd_V` with
    `sd_V^2 = sd^2 + gamma^2 nu' Sigma nu / c^2`, and `direction = Sigma nu sd_V / sd^2`. Given
    `y - (Sigma nu / nu' Sigma nu) nu . y` and the images' common mean, T and `nu . omega` are
    independent normal variables, and the choice restricts V.

    Args:
        x: (H, W, C) test image.
        x_ref: (H, W, C) reference image, or (K, H, W, C) references to be averaged.
        region: (H, W) bool, the flagged region M; not empty.
        noise: Covariance Sigma of one image; the images are independent.
        omega: (H, W, C) noise that was added to x for the choice of the region, or None.
        gamma: Standard deviation of omega relative to that of the noise; 0 without omega.

    Returns:
        Line(base, direction, z_obs, statistic, sd, perturbation) in float64.

    Raises:
        InputError: Shapes that do not fit, an omega without gamma, an empty region, a variance
            that is not positive, or a statistic of more than a million standard deviations.

    Example:
        >>> from dal_jax.noise import iid
        >>> x = np.array([[[3.0], [0.0]]])
        >>> line = region_line(x, np.zeros((1, 2, 1)), [[True, False]], iid(1.0))
        >>> line.statistic, round(line.sd, 4), round(line.z_obs, 4)
        (3.0, 1.4142, 2.1213)

    Source: Katsuoka et al., arXiv 2402.11789; randomization: Tian and Taylor, Annals of Statistics
    46, 2018.
    """
    image, references = _images(x, x_ref)
    mask = np.asarray(region, dtype=bool)
    if mask.shape != image.shape[:2]:
        raise InputError(f"region has shape {mask.shape}, expected {image.shape[:2]} as x")
    pixels = np.flatnonzero(mask)
    if not pixels.size:
        raise InputError("region is empty, expected at least one flagged pixel")
    noise.check(image.shape)

    def mean(of: np.ndarray) -> float:
        return float(of.reshape(-1, mask.size, image.shape[2])[:, pixels].mean())

    nu = np.zeros((mask.size, image.shape[2]))
    nu[pixels] = 1 / (pixels.size * image.shape[2])
    covariance = noise.apply(nu.reshape(image.shape))
    share = 1 + 1 / len(references)  # 1 / c
    variance = mean(covariance) * share
    if not 0 < variance < np.inf:
        raise InputError(f"noise gives the statistic the variance {variance}, expected positive")
    sd = float(np.sqrt(variance))
    statistic = mean(image) - mean(references)
    if not abs(statistic / sd) <= FARTHEST:
        raise InputError(
            f"x differs from x_ref by {statistic / sd:.3g} standard deviations of the noise, "
            f"expected at most {FARTHEST:g}: give x, x_ref and noise in the same unit"
        )
    if (omega is None) != (gamma == 0) or not 0 <= gamma < np.inf:
        there = "none" if omega is None else "one"
        raise InputError(
            f"omega, gamma are {there}, {gamma!r}, expected an omega with a gamma above 0, or "
            "neither"
        )
    if omega is None:
        direction, z_obs = covariance / sd, statistic / sd
        return Line(image - direction * z_obs, direction, z_obs, statistic, sd)
    added = np.asarray(omega, np.float64)
    if added.shape != image.shape:
        raise InputError(f"omega has shape {added.shape}, expected {image.shape} as x")
    shift = mean(added) * share / sd
    perturbation = Perturbation(gamma * float(np.sqrt(share)), shift)
    direction = covariance * (perturbation.scale / sd)
    z_obs = (statistic / sd + shift) / perturbation.scale
    return Line(image + added - direction * z_obs, direction, z_obs, statistic, sd, perturbation)


def _images(
    x: ArrayLike, x_ref: ArrayLike
) -> tuple[Float[np.ndarray, "H W C"], Float[np.ndarray, "K H W C"]]:
    image, references = np.asarray(x, dtype=np.float64), np.asarray(x_ref, dtype=np.float64)
    if image.ndim != 3:
        raise InputError(f"x has shape {image.shape}, expected (H, W, C)")
    if references.ndim == 3:
        references = references[None]
    if references.shape[1:] != image.shape or len(references) == 0:
        raise InputError(
            f"x_ref has shape {np.shape(x_ref)}, expected {image.shape} as x, or (K, ...) of them"
        )
    return image, references
