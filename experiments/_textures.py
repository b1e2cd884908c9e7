"""Photographs of textures as an inspection data set: blocks of a photograph, some with defects.

The photographs are `brick.png`, `grass.png` and `gravel.png` in scikit-image's wheel (512 x 512,
grey, CC0). A block of the photograph, some patches side by side, stands for one physical object; no
two patches share a pixel. All blocks are of one photograph, however: light and material are the
same, and the edges of neighbouring blocks are alike.
"""

import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dal_jax import InputError
from dal_jax.images import read_image

KINDS = ("brick", "grass", "gravel")
GROUPS = r"regex:(block\d+)"  # see `dal_jax.images.group_of`
SIDE = 36  # of an image, pixels
PATCH = 32  # side of its middle, which is inspected and holds the defect
RADII = (3.0, 6.0)  # half axes of a defect, pixels
CONTRAST = "contrast_"  # folder of defects, followed by the number


@dataclass(frozen=True)
class TexturePlan:
    """Blocks to cut out of a photograph, and defects to put in.

    Raises:
        InputError: A value does not fit.
    """

    contrasts: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)  # deviations of the photograph
    shots: int = 2  # images of a block, side by side
    tested: int = 32  # number of blocks for the test, not for training
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("shots", "tested"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, expected 1 or more")
        if not self.contrasts or min(self.contrasts) <= 0:
            raise InputError(f"contrasts: got {self.contrasts}, expected numbers above 0")


class Defect(NamedTuple):
    """A blob with a soft edge of about a pixel."""

    pattern: np.ndarray  # of an image's shape, from -1 or 0 to 0 or 1
    inside: np.ndarray  # bool, true where its height is over a half


def photograph(kind: str) -> np.ndarray:
    """Read a photograph from scikit-image's wheel, without importing it and offline.

    Args:
        kind: Kind of texture, one of `KINDS`.

    Returns:
        Grey values (H, W), 0 to 255.

    Raises:
        InputError: The kind is unknown, or scikit-image is not installed.
    """
    if kind not in KINDS:
        raise InputError(f"kind {kind!r}, expected one of {', '.join(KINDS)}")
    package = importlib.util.find_spec("skimage")
    if package is None or package.origin is None:
        raise InputError('textures: need scikit-image: pip install "dal-jax[images]"')
    path = Path(package.origin).parent / "data" / f"{kind}.png"
    return np.rint(255 * read_image(path)[..., 0])


def write_textures(folder: Path, kind: str, plan: TexturePlan) -> None:
    """Write a data set in the layout of MVTec AD, whole or not at all; keep an existing one.

    train/good holds the images of the training blocks, test/good those of the others, and
    test/contrast_C these again, each with a defect of C standard deviations of the photograph. An
    image's defect has the same place and form at every contrast; where the sum leaves the range of
    grey values it is clipped.

    Args:
        folder: Folder of the data set.
        kind: Kind of texture, one of `KINDS`.
        plan: Blocks and defects.

    Raises:
        InputError: The photograph has too few blocks, or cannot be read.
    """
    if folder.is_dir():
        return
    photo = photograph(kind)
    corners = block_corners(photo.shape, plan.shots)
    if plan.tested >= len(corners):
        raise InputError(f"tested: got {plan.tested}, expected {len(corners) - 1} or fewer")
    order = np.random.default_rng((plan.seed, KINDS.index(kind))).permutation(len(corners))
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    for place, number in enumerate(map(int, order)):
        tested = place < plan.tested
        for shot in range(plan.shots):
            image = _image(photo, corners[number], shot)
            home = "test" if tested else "train"
            name = f"block{number:03d}_{shot}.png"
            _write(part / home / "good" / name, image)
            if tested:
                rng = np.random.default_rng((plan.seed, 1, number, shot))
                _write_defects(part, name, image, plan.contrasts, photo.std(), rng)
    part.rename(folder)


def block_corners(shape: Sequence[int], shots: int) -> list[tuple[int, int]]:
    """Return the first pixels of the blocks of a photograph, row by row.

    Args:
        shape: Shape of the photograph.
        shots: Number of images of a block, side by side.

    Returns:
        Row and column of each block.
    """
    rows, columns = shape[0] // SIDE, shape[1] // (SIDE * shots)
    return [(SIDE * row, SIDE * shots * column) for row in range(rows) for column in range(columns)]


def draw_defect(
    rng: np.random.Generator, centres: Sequence[tuple[float, float]], shape: Sequence[int]
) -> Defect:
    """Draw an ellipse with a soft edge, dark or bright, whole within given limits.

    Args:
        rng: Source of random numbers.
        centres: For each axis the limits within which the ellipse must stay, pixels.
        shape: Shape of the image.

    Returns:
        The defect.
    """
    axes = rng.uniform(*RADII, size=2)
    angle, sign = rng.uniform(0, np.pi), rng.choice([-1.0, 1.0])
    reach = float(axes.max())
    centre = [rng.uniform(low + reach, high - reach) for low, high in centres[:2]]
    row, column = np.meshgrid(*(np.arange(n, dtype=float) for n in shape[:2]), indexing="ij")
    along = (row - centre[0]) * np.sin(angle) + (column - centre[1]) * np.cos(angle)
    across = (row - centre[0]) * np.cos(angle) - (column - centre[1]) * np.sin(angle)
    distance = np.hypot(along / axes[0], across / axes[1])
    soft = 1 / (1 + np.exp(np.minimum(12 * (distance - 1), 50.0)))
    return Defect(sign * soft, distance < 1)


def contrast_of(label: str) -> float:
    """Return the contrast of a test image.

    Args:
        label: Label of the sample: the name of its folder, or "normal".

    Returns:
        The contrast in standard deviations of the photograph; 0 for a normal image.
    """
    return float(label.removeprefix(CONTRAST)) if label.startswith(CONTRAST) else 0.0


def _write_defects(
    folder: Path,
    name: str,
    image: np.ndarray,
    contrasts: Sequence[float],
    sd: float,
    rng: np.random.Generator,
) -> None:
    margin = (SIDE - PATCH) // 2
    defect = draw_defect(rng, [(margin, SIDE - 1 - margin)] * 2, image.shape)
    for contrast in contrasts:
        kind = f"{CONTRAST}{contrast:g}"
        _write(folder / "test" / kind / name, image + contrast * sd * defect.pattern)
        truth = folder / "ground_truth" / kind / name.replace(".png", "_mask.png")
        _write(truth, 255.0 * defect.inside)


def _image(photo: np.ndarray, corner: tuple[int, int], shot: int) -> np.ndarray:
    row, column = corner[0], corner[1] + SIDE * shot
    return photo[row : row + SIDE, column : column + SIDE]


def _write(path: Path, pixels: np.ndarray) -> None:
    from PIL import Image  # slow to import, and part of an extra

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(np.rint(pixels), 0, 255).astype(np.uint8)).save(path)
