"""A covariance in other units, or with a scale of its own in each pixel."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from dal_jax._errors import InputError
from dal_jax._typing import Bool, Float
from dal_jax.noise._covariance import Covariance, Whitening, _batch, _check_map, _positive_map
from dal_jax.noise._likelihood import whitening


def scaled(covariance: Covariance, factor: float | ArrayLike) -> Covariance:
    """Return the covariance of noise times a factor: `c^2 Sigma`, or `diag(c) Sigma diag(c)`.

    A map of factors gives a stationary correlation, such as that of `stationary`, a standard
    deviation of its own in each pixel.

    Args:
        covariance: Covariance Sigma of one image.
        factor: Factor c > 0, a number or a map (H, W, C), without unit.

    Returns:
        The covariance, for images that fit both.

    Raises:
        InputError: The factor is not positive and finite, or has another number of axes.

    Example:
        >>> from dal_jax.noise import iid
        >>> scaled(iid(1.0), 3.0).apply(np.ones((1, 1, 1))).item()
        9.0
    """
    if np.ndim(factor) > 0:
        return _Scaled(covariance, _positive_map(factor, "factor"))
    value = float(np.asarray(factor, dtype=np.float64))
    if not 0 < value < np.inf:
        raise InputError(f"factor: got {value!r}, expected a positive, finite number")
    return _Scaled(covariance, np.array(value))


def masked(covariance: Covariance, shown: Bool[np.ndarray, "H W C"]) -> Covariance:
    """Remove the noise from some pixels, as for images that are 0 there.

    Args:
        covariance: Covariance Sigma of one image.
        shown: Mask (H, W, C), True where the noise stays.

    Returns:
        The covariance, 0 in all rows and columns of pixels that are not shown.

    Example:
        >>> from dal_jax.noise import iid
        >>> noise = masked(iid(1.0), np.array([[[True], [False]]]))
        >>> noise.apply(np.ones((1, 2, 1))).ravel().tolist()
        [1.0, 0.0]
    """
    return _Scaled(covariance, shown.astype(np.float64))


@dataclass(frozen=True, eq=False)
class _Scaled:
    covariance: Covariance
    factor: np.ndarray  # () or (H, W, C)

    def apply(self, v: Float[np.ndarray, "H W C"]) -> Float[np.ndarray, "H W C"]:
        self.check(v.shape)
        return self.factor * self.covariance.apply(self.factor * v)

    def check(self, shape: tuple[int, ...]) -> None:
        self.covariance.check(shape)
        if self.factor.ndim:
            _check_map(self.factor, "factors", shape)

    def sample(
        self, rng: np.random.Generator, shape: tuple[int, int, int]
    ) -> Float[np.ndarray, "H W C"]:
        self.check(shape)
        return self.factor * self.covariance.sample(rng, shape)

    def whiten(self, images: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N H W C"]:
        values = _batch(self, images) / self.factor
        return self._inner(values.shape[1:]).whiten(values)

    def log_determinant(self, shape: tuple[int, ...]) -> float:
        self.check(shape)
        logs = np.broadcast_to(np.log(self.factor), shape)
        return self._inner(shape).log_determinant(shape) + 2 * float(np.sum(logs))

    def is_exact(self, shape: tuple[int, ...]) -> bool:
        return self._inner(shape).is_exact(shape)

    def _inner(self, shape: tuple[int, ...]) -> Whitening:
        return whitening(self.covariance, shape)
