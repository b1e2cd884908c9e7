"""Fit of each kind of noise model to the held-out normal images of a data set.

python -m benchmarks.noise_kinds --model DIR --data FOLDER

Estimates every kind from the training views of a model (of `dal-jax train --data`), and judges it
by the views kept for calibration: the rate at which regions fixed in advance are rejected at 0.05,
by size.
"""

import argparse
from pathlib import Path

from dal_jax.bench import align_rows
from dal_jax.inspection import Profile, load_profile
from dal_jax.inspection._learn import Images, Normal
from dal_jax.noise import choose, estimate, fit_report


def normal_views(profile: Profile, root: Path, *roles: str) -> Normal:
    """Return the views of the objects that had certain roles.

    Args:
        profile: Profile of the model.
        root: Folder of the data set.
        *roles: Some of "train", "tune" and "calibrate".

    Returns:
        The views.
    """
    data = profile.source.open(root)
    groups = {group for role in roles for group in profile.roles[role]}
    samples = [s for s in data.samples if s.split == "train" and s.group in groups]
    return Images(data, samples).normal_views(profile.fitted)


def main() -> None:
    """Print a table, the best kind by cross-validation first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="Folder of the model.")
    parser.add_argument("--data", type=Path, required=True, help="Folder of the images.")
    options = parser.parse_args()
    profile = load_profile(options.model)
    known = normal_views(profile, options.data, "train", "tune")
    held = normal_views(profile, options.data, "calibrate")
    ranked = choose(known.pixels, groups=known.groups, seed=profile.seed, by="regions")
    rows: list[list[str]] = []
    for judged in ranked.reports:
        fit = fit_report(
            estimate(known.pixels, judged.kind, groups=known.groups), held.pixels, held.groups
        )
        if not rows:
            rows.append(["kind", "error", *("{}x{}".format(*r.shape) for r in fit.regions)])
        shares = [f"{region.rejection.value:.2f}" for region in fit.regions]
        rows.append([judged.kind, f"{judged.region_error:.2f}", *shares])
    print(align_rows(rows))


if __name__ == "__main__":
    main()
