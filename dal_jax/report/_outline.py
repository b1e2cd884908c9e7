"""The boundary of a region of pixels, drawn along the pixels' edges."""

import numpy as np

from dal_jax._typing import Bool, Float


def outline(region: Bool[np.ndarray, "H W"]) -> Float[np.ndarray, "K 2 2"]:
    """Lists the pixel edges that separate a region from the rest.

    Args:
        region: bool (H, W).

    Returns:
        K segments ((x0, y0), (x1, y1)) in the coordinates of `imshow`: pixel (i, j) covers
        [j - 1/2, j + 1/2] x [i - 1/2, i + 1/2]. No segment for an empty region.

    Example:
        >>> import numpy as np
        >>> outline(np.array([[True]])).shape
        (4, 2, 2)
    """
    padded = np.pad(np.asarray(region, bool), 1)
    i, j = np.nonzero(padded[1:, 1:-1] != padded[:-1, 1:-1])
    level = np.stack([np.stack([j - 0.5, i - 0.5], -1), np.stack([j + 0.5, i - 0.5], -1)], 1)
    i, j = np.nonzero(padded[1:-1, 1:] != padded[1:-1, :-1])
    upright = np.stack([np.stack([j - 0.5, i - 0.5], -1), np.stack([j - 0.5, i + 0.5], -1)], 1)
    return np.concatenate([level, upright])
