"""The same noise with another correlation length."""

import numpy as np
from scipy import ndimage

from dal_jax.noise import Covariance, stationary


def stretch_correlation(noise: Covariance, shape: tuple[int, ...], factor: float) -> Covariance:
    """Returns stationary noise correlated over `factor` times the distance.

    `R'(l) = R(l / factor)`, R the covariance of the middle pixel with the others; what the change
    makes negative in the spectrum is clipped and the variance kept.

    Args:
        noise: of images of the shape.
        shape: (H, W, C).
        factor: above 0.

    Returns:
        Covariance for images of the shape.
    """
    height, width, channels = shape
    rows, columns = (_torus_lags(side) for side in (height, width))
    middle = (height // 2, width // 2)
    places = np.meshgrid(middle[0] + rows / factor, middle[1] + columns / factor, indexing="ij")
    table = np.zeros((len(rows), len(columns), channels, channels))
    for channel in range(channels):
        impulse = np.zeros(shape)
        impulse[(*middle, channel)] = 1.0
        covariance = noise.apply(impulse)
        for other in range(channels):
            table[..., channel, other] = ndimage.map_coordinates(
                covariance[..., other], places, order=1, mode="constant", cval=0.0
            )
    # R[-l] = R[l]': the middle of an even side is no centre of symmetry.
    mirrored = np.roll(table[::-1, ::-1], 1, axis=(0, 1)).swapaxes(2, 3)
    return stationary((table + mirrored) / 2, clip=True)


def _torus_lags(side: int) -> np.ndarray:
    """Lags 0, 1, ..., -2, -1 of a torus on which an image's opposite edges do not meet."""
    return np.fft.fftfreq(2 * side, 1 / (2 * side))
