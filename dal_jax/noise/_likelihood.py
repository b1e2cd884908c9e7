"""Whitening, likelihood and the explicit matrix of any covariance operator."""

import numpy as np
from numpy.typing import ArrayLike

from dal_jax._errors import InputError
from dal_jax._typing import Float
from dal_jax.noise._covariance import Covariance, Whitening, _batch
from dal_jax.noise._dense import dense

# Images of up to this many values are treated with an explicit matrix (32 MB) where it helps.
DENSE_LIMIT = 2048


def as_matrix(covariance: Covariance, shape: tuple[int, int, int]) -> Float[np.ndarray, "n n"]:
    """Return the matrix of a covariance on small images, column by column.

    Args:
        covariance: Any operator.
        shape: Shape (H, W, C) of the images, at most 2048 values.

    Returns:
        The matrix (n, n) of the flattened image, n = H*W*C.

    Raises:
        InputError: The size does not fit or is too large.

    Example:
        >>> from dal_jax.noise import iid
        >>> as_matrix(iid(2.0), (1, 2, 1)).tolist()
        [[4.0, 0.0], [0.0, 4.0]]
    """
    n = int(np.prod(shape))
    if n > DENSE_LIMIT:
        raise InputError(f"shape {shape} holds {n} values, expected at most {DENSE_LIMIT}")
    covariance.check(shape)
    columns = [covariance.apply(unit.reshape(shape)).ravel() for unit in np.eye(n)]
    return np.stack(columns, axis=1)


def whitening(covariance: Covariance, shape: tuple[int, ...]) -> Whitening:
    """Return the covariance itself if it can whiten, else its matrix (small images only).

    Args:
        covariance: Any operator.
        shape: Shape (H, W, C) of the images.

    Returns:
        An operator that can whiten images of that shape.

    Raises:
        InputError: The operator cannot whiten, and the images have more than 2048 values.
    """
    if isinstance(covariance, Whitening):
        return covariance
    explicit = dense(as_matrix(covariance, (shape[0], shape[1], shape[2])))
    assert isinstance(explicit, Whitening)
    return explicit


def whiten(covariance: Covariance, images: ArrayLike) -> Float[np.ndarray, "N H W C"]:
    """Turn noise into independent standard normal values, `A e` with `A Sigma A' = I`.

    A depends on the operator: it is triangular (innovations along the flattened image) for `dense`,
    `ar1`, `toeplitz` and `kronecker`, symmetric for `low_rank` and `circulant`, and triangular for
    `stationary`, exact up to 2048 values and block by block beyond (see there).

    Args:
        covariance: Covariance Sigma of one image.
        images: Noise (N, H, W, C), its mean removed, in units of the image.

    Returns:
        Values (N, H, W, C), without unit.

    Raises:
        InputError: Sizes do not fit, or the covariance is singular.

    Example:
        >>> from dal_jax.noise import iid
        >>> whiten(iid(2.0), np.ones((1, 1, 1, 1))).item()
        0.5
    """
    values = _batch(covariance, images)
    return whitening(covariance, values.shape[1:]).whiten(values)


def log_likelihood(covariance: Covariance, images: ArrayLike) -> Float[np.ndarray, " N"]:
    """Return the log density of each image under N(0, Sigma).

    `-(|A e|^2 + log det Sigma + n log(2 pi)) / 2`, with `A Sigma A' = I` and n = H*W*C. Where
    `covariance.is_exact(shape)` is False it is the density of the block approximation, itself a
    density and thus fit for comparing operators on held-out images.

    Args:
        covariance: Covariance Sigma of one image.
        images: Noise (N, H, W, C), its mean removed, in units of the image.

    Returns:
        Log densities (N,), in nats.

    Raises:
        InputError: Sizes do not fit, or the covariance is singular.

    Example:
        >>> from dal_jax.noise import iid
        >>> round(log_likelihood(iid(1.0), np.zeros((1, 1, 1, 1))).item(), 4)
        -0.9189
    """
    values = _batch(covariance, images)
    operator = whitening(covariance, values.shape[1:])
    squares = np.sum(operator.whiten(values) ** 2, axis=(1, 2, 3))
    constant = operator.log_determinant(values.shape[1:]) + values[0].size * np.log(2 * np.pi)
    return -0.5 * (squares + constant)
