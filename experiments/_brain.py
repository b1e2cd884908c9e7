"""Simulated patients in the layout of BraTS 2021, all from one template of the head.

The template is the T1-weighted MNI ICBM152 (2009a, nonlinear, skull-stripped) of nilearn's wheel. A
patient is the template with a smooth deformation, a smooth bias field and noise of its own. No real
patient is among them: the variation between real brains (folds, ventricles, pathology, scanners) is
missing, so that the noise of these data is kinder than that of a hospital.
"""

import csv
import hashlib
import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from dal_jax import InputError
from dal_jax.images import read_volume, write_text, write_volume
from experiments._textures import draw_defect

VOXEL = 2.5  # side of a voxel, mm
PLANE = (64, 80)  # voxels from left to right and from back to front: 160 x 200 mm
MIDDLE = 40  # side of the square in the middle of a slice that is all brain, voxels
LESIONS = "lesions.csv"
TRAIN_SHARE = 0.7  # of the patients, in the loader of BraTS
_FILE = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
_CENTRE = (98.0, 117.0, 90.0)  # of the slab, voxels of the template, which are 1 mm
_MARGIN = 16  # template slices kept above and below the slab, mm
_GREY = 4.0  # units of a patient's volume in one of the template
# Nodes of the smooth fields: about 40 mm apart.
_NODES = (5, 6, 3)


@dataclass(frozen=True)
class BrainPlan:
    """Settings of the simulated patients.

    Raises:
        InputError: A value does not fit.
    """

    contrasts: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0)  # deviations of the template's brain
    patients: int = 300
    slices: int = 2
    shift: float = 2.0  # standard deviation of the deformation at its nodes, mm
    bias: float = 0.1  # standard deviation of the logarithm of the bias field at its nodes
    noise: float = 6.0  # standard deviation; white matter of the template is about 230
    seed: int = 0

    def __post_init__(self) -> None:
        if not 4 <= self.patients <= 99999:
            raise InputError(f"patients: got {self.patients}, expected 4 to 99999")
        if not 1 <= self.slices <= 6:
            raise InputError(f"slices: got {self.slices}, expected 1 to 6")
        if not self.contrasts or min(self.contrasts) <= 0:
            raise InputError(f"contrasts: got {self.contrasts}, expected numbers above 0")


class Slab(NamedTuple):
    """The part of the template that patients are made of."""

    grey: np.ndarray  # (X, Y, Z) at 1 mm, anti-aliased for `VOXEL`
    first: float  # slice of the template that is its first
    sd: float  # of the grey values of its brain


def template() -> np.ndarray:
    """Read the template from nilearn's wheel, without importing it and offline.

    Returns:
        Grey values (X, Y, Z) at 1 mm, X to the right, Y to the front, Z upwards.

    Raises:
        InputError: nilearn is not installed.
    """
    package = importlib.util.find_spec("nilearn")
    if package is None or package.origin is None:
        raise InputError("data holds 'brain': needs nilearn: pip install \"dal-jax[brain]\"")
    return read_volume(Path(package.origin).parent / "datasets" / "data" / _FILE).voxels


def write_patients(folder: Path, plan: BrainPlan, head: np.ndarray | None = None) -> None:
    """Write T1 volumes and masks of patients, whole or not at all; keep existing ones.

    Patients that the loader gives to the test have lesions of one contrast each, or none, in equal
    parts; a lesion is in all slices of its patient. `lesions.csv` lists patients and contrasts.

    Args:
        folder: Folder of the data set.
        plan: Settings of the patients.
        head: Grey values (X, Y, Z) in place of those of `template`.

    Raises:
        InputError: The template cannot be read, or there are too few patients for all contrasts.
    """
    if folder.is_dir():
        return
    slab = _slab(template() if head is None else head, plan.slices)
    cases = [f"BraTS2021_{number:05d}" for number in range(plan.patients)]
    tested = cases_to_test(cases)
    if len(tested) <= len(plan.contrasts):
        raise InputError(
            f"patients: got {plan.patients}, too few for {len(plan.contrasts)} contrasts"
        )
    levels = (0.0, *plan.contrasts)
    lesions = {case: levels[k % len(levels)] for k, case in enumerate(tested)}
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    for number, case in enumerate(cases):
        grey, lesion = _patient(slab, plan, number, lesions.get(case, 0.0))
        for name, voxels in (("t1", grey), ("seg", lesion)):
            write_volume(part / case / f"{case}_{name}.nii.gz", voxels, _affine())
    lines = "".join(f"{case},{contrast:g}\n" for case, contrast in lesions.items() if contrast)
    write_text(part / LESIONS, f"name,contrast\n{lines}")
    part.rename(folder)


def cases_to_test(cases: list[str]) -> list[str]:
    """Return the patients that the loader of BraTS gives to the test, in the order of their names.

    Those whose names have the smallest hashes are for training.

    Args:
        cases: Names of all patients.

    Returns:
        Names of the others.
    """
    hashed = sorted(cases, key=lambda case: hashlib.sha256(case.encode()).hexdigest())
    train = set(hashed[: min(round(TRAIN_SHARE * len(cases)), len(cases) - 1)])
    return [case for case in cases if case not in train]


def lesions_of(folder: Path) -> dict[str, float]:
    """Return the contrast of each patient with a lesion.

    Args:
        folder: Folder that `write_patients` wrote.

    Returns:
        Contrasts in standard deviations of the slab's brain, by patient.
    """
    with open(folder / LESIONS, encoding="utf-8", newline="") as file:
        return {row["name"]: float(row["contrast"]) for row in csv.DictReader(file)}


def _slab(head: np.ndarray, slices: int) -> Slab:
    half = VOXEL * slices / 2 + _MARGIN
    low, high = int(_CENTRE[2] - half), int(np.ceil(_CENTRE[2] + half))
    grey = np.asarray(head[:, :, low:high], np.float64)
    # As wide as a voxel at half its height.
    smooth = ndimage.gaussian_filter(grey, VOXEL / 2.355)
    return Slab(smooth, float(low), float(grey[grey > 0].std()))


def _patient(
    slab: Slab, plan: BrainPlan, number: int, contrast: float
) -> tuple[np.ndarray, np.ndarray]:
    """Draw volume and mask (64, 80, slices) of a patient."""
    rng = np.random.default_rng((plan.seed, 2, number))
    shape = (*PLANE, plan.slices)
    index = np.indices(shape, dtype=np.float64)
    offsets = [(n - 1) / 2 for n in shape]
    centre = (*_CENTRE[:2], _CENTRE[2] - slab.first)
    places = [
        centre[k] + VOXEL * (index[k] - offsets[k]) + plan.shift * _field(rng, shape)
        for k in range(3)
    ]
    anatomy = ndimage.map_coordinates(slab.grey, places, order=1)
    bias = np.exp(plan.bias * _field(rng, shape))
    grain = plan.noise * rng.standard_normal(shape)
    limits = [((side - MIDDLE) / 2, (side + MIDDLE) / 2 - 1) for side in PLANE]
    defect = draw_defect(rng, limits, PLANE)
    lesion = contrast * slab.sd * defect.pattern[..., None]
    signal = np.where(anatomy > 1, (anatomy + lesion) * bias + grain, 0.0)
    mask = np.broadcast_to(defect.inside[..., None] & (contrast > 0), shape)
    return np.rint(_GREY * np.maximum(signal, 0)).astype(np.int16), mask.astype(np.uint8)


def _field(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draw a smooth random field; its standard deviation is 1 at its nodes."""
    nodes = rng.standard_normal(_NODES)
    axes = [np.linspace(0, n - 1, side) for n, side in zip(_NODES, shape, strict=True)]
    return ndimage.map_coordinates(nodes, np.meshgrid(*axes, indexing="ij"), order=3, mode="mirror")


def _affine() -> np.ndarray:
    """Return approximate millimetres of the template: X right, Y to the front, Z upwards."""
    affine = np.diag([VOXEL, VOXEL, VOXEL, 1.0])
    affine[:3, 3] = -VOXEL * PLANE[0] / 2, -VOXEL * PLANE[1] / 2, 0.0
    return affine
