"""A detector without a network, which is called as a detector of the user is: global RX."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from dal_jax.localizers import DetectorConfig

DETECTOR = DetectorConfig(f"{__name__}:rx")
_SIDE = 5  # of a patch, pixels


def rx(x: np.ndarray) -> np.ndarray:
    """Score images by the Mahalanobis distance of each patch from all patches of its image.

    Args:
        x: Images (B, H, W, C).

    Returns:
        Scores (B, H, W), in standard deviations.

    Source: Reed and Yu, IEEE Transactions on Acoustics, Speech and Signal Processing 38 (1990).
    """
    half = _SIDE // 2
    padded = np.pad(x.mean(axis=-1), ((0, 0), (half, half), (half, half)), mode="reflect")
    windows = sliding_window_view(padded, (_SIDE, _SIDE), axis=(1, 2))
    return np.stack([_distances(image) for image in windows])


def _distances(windows: np.ndarray) -> np.ndarray:
    patches = windows.reshape(-1, _SIDE**2)
    patches = patches - patches.mean(axis=0)
    covariance = patches.T @ patches / len(patches)
    ridge = 1e-3 * np.trace(covariance) / _SIDE**2  # smooth images have a singular covariance
    solved = np.linalg.solve(covariance + ridge * np.eye(_SIDE**2), patches.T).T
    return np.sqrt(np.maximum((patches * solved).sum(axis=1), 0)).reshape(windows.shape[:2])
