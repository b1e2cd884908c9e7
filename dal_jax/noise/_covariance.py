"""The protocol of covariance operators, and the operators of independent noise."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import ArrayLike

from dal_jax._errors import InputError
from dal_jax._typing import Float


@runtime_checkable
class Covariance(Protocol):
    """The covariance Sigma of the flattened noise (H*W*C,) of one image, given by its operations.

    Example:
        >>> noise = iid(2.0)
        >>> isinstance(noise, Covariance)
        True
        >>> noise.sample(np.random.default_rng(0), (4, 4, 1)).shape
        (4, 4, 1)
    """

    def apply(self, v: Float[np.ndarray, "H W C"]) -> Float[np.ndarray, "H W C"]:
        """Return Sigma v.

        Args:
            v: Values (H, W, C).

        Returns:
            Values (H, W, C), in squared units of the image times those of v.

        Raises:
            InputError: The size does not fit.
        """
        ...

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse a shape of images.

        Args:
            shape: Shape (H, W, C) of the images.

        Raises:
            InputError: Images of this shape do not fit.
        """
        ...

    def sample(
        self, rng: np.random.Generator, shape: tuple[int, int, int]
    ) -> Float[np.ndarray, "H W C"]:
        """Return one draw of N(0, Sigma).

        Args:
            rng: NumPy's random number generator.
            shape: Shape (H, W, C) of the image.

        Returns:
            Noise (H, W, C) in units of the image.

        Raises:
            InputError: The size does not fit.
        """
        ...


@runtime_checkable
class Whitening(Covariance, Protocol):
    """A covariance that can also turn its noise into independent standard normal values.

    Example:
        >>> noise = iid(2.0)
        >>> isinstance(noise, Whitening)
        True
        >>> noise.whiten(np.full((1, 1, 1, 1), 6.0)).item()
        3.0
    """

    def whiten(self, images: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N H W C"]:
        """Return `A e` for each image e, with `A Sigma A' = I`.

        Args:
            images: Draws of the noise (N, H, W, C) in units of the image.

        Returns:
            Independent standard normal values (N, H, W, C).

        Raises:
            InputError: The size does not fit, or Sigma is singular.
        """
        ...

    def log_determinant(self, shape: tuple[int, ...]) -> float:
        """Return log det Sigma.

        Args:
            shape: Shape (H, W, C) of the images.

        Returns:
            The natural logarithm, for Sigma in squared units of the image.

        Raises:
            InputError: The size does not fit, or Sigma is singular.
        """
        ...

    def is_exact(self, shape: tuple[int, ...]) -> bool:
        """Return whether `whiten` and `log_determinant` are exact.

        Args:
            shape: Shape (H, W, C) of the images.

        Returns:
            True, unless an operator overrides it: False where both belong to an approximation.
        """
        return True


def iid(sigma: float) -> Covariance:
    """Return independent noise of one level: `Sigma = sigma^2 I`.

    Args:
        sigma: Standard deviation in units of the image, > 0.

    Returns:
        The covariance, for images of any size.

    Raises:
        InputError: The argument sigma is not positive and finite.

    Example:
        >>> iid(2.0).apply(np.ones((1, 2, 1))).ravel().tolist()
        [4.0, 4.0]

    Source: Katsuoka et al., arXiv 2402.11789.
    """
    _check_sigma(sigma)
    return _Iid(float(sigma))


def diagonal(variance: ArrayLike) -> Covariance:
    """Return independent noise with a level of its own in each pixel: `Sigma = diag(variance)`.

    Args:
        variance: Variances (H, W, C) in squared units of the image, > 0.

    Returns:
        The covariance, for images of that size.

    Raises:
        InputError: The number of axes is wrong, or a variance is not positive and finite.

    Example:
        >>> diagonal([[[1.0], [4.0]]]).apply(np.ones((1, 2, 1))).ravel().tolist()
        [1.0, 4.0]
    """
    return _Diagonal(_positive_map(variance, "variance"))


@dataclass(frozen=True)
class _Iid(Whitening):
    sigma: float

    def apply(self, v: Float[np.ndarray, "H W C"]) -> Float[np.ndarray, "H W C"]:
        return self.sigma**2 * v

    def check(self, shape: tuple[int, ...]) -> None:
        pass  # any size fits

    def sample(
        self, rng: np.random.Generator, shape: tuple[int, int, int]
    ) -> Float[np.ndarray, "H W C"]:
        return self.sigma * rng.standard_normal(shape)

    def whiten(self, images: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N H W C"]:
        return _batch(self, images) / self.sigma

    def log_determinant(self, shape: tuple[int, ...]) -> float:
        return 2 * int(np.prod(shape)) * float(np.log(self.sigma))


@dataclass(frozen=True, eq=False)
class _Diagonal(Whitening):
    variance: Float[np.ndarray, "H W C"]

    def apply(self, v: Float[np.ndarray, "H W C"]) -> Float[np.ndarray, "H W C"]:
        self.check(v.shape)
        return self.variance * v

    def check(self, shape: tuple[int, ...]) -> None:
        _check_map(self.variance, "variances", shape)

    def sample(
        self, rng: np.random.Generator, shape: tuple[int, int, int]
    ) -> Float[np.ndarray, "H W C"]:
        self.check(shape)
        return np.sqrt(self.variance) * rng.standard_normal(shape)

    def whiten(self, images: Float[np.ndarray, "N H W C"]) -> Float[np.ndarray, "N H W C"]:
        return _batch(self, images) / np.sqrt(self.variance)

    def log_determinant(self, shape: tuple[int, ...]) -> float:
        self.check(shape)
        return float(np.sum(np.log(self.variance)))


def _check_sigma(sigma: float) -> None:
    if not 0 < sigma < np.inf:
        raise InputError(f"sigma: got {sigma!r}, expected a positive, finite standard deviation")


def _positive_map(values: ArrayLike, name: str) -> Float[np.ndarray, "H W C"]:
    array = np.array(values, dtype=np.float64)
    if array.ndim != 3:
        raise InputError(f"{name} has shape {array.shape}, expected (H, W, C)")
    wrong = array[~((array > 0) & (array < np.inf))]
    if wrong.size:
        raise InputError(f"{name} holds {wrong[0]}, expected positive and finite values")
    return array


def _check_map(values: np.ndarray, name: str, shape: tuple[int, ...]) -> None:
    if tuple(shape) != values.shape:
        raise InputError(f"noise has {name} {values.shape}, the image is {shape}")


def _batch(covariance: Covariance, images: ArrayLike) -> Float[np.ndarray, "N H W C"]:
    """Return the images in float64 after a check that their shape fits the covariance."""
    values = np.asarray(images, dtype=np.float64)
    if values.ndim != 4:
        raise InputError(f"images has shape {values.shape}, expected (N, H, W, C)")
    covariance.check(values.shape[1:])
    return values
