"""How well each kind of noise model fits the normal images of a data set that were held out.

python -m benchmarks.noise_kinds --model DIR --data FOLDER

Estimates every kind from the views that a model (of `dal-jax train --data`) was made with, and
judges it by those kept aside for calibration: how often regions fixed in advance are rejected at
0.05, by size.
"""

import argparse
from pathlib import Path

from dal_jax.bench import align_rows
from dal_jax.inspection import Profile, load_profile
from dal_jax.inspection._learn import Images, Normal
from dal_jax.noise import choose, estimate, fit_report


def normal_views(profile: Profile, root: Path, *roles: str) -> Normal:
    """The views of the objects that had certain roles.

    Args:
        profile: of the model.
        root: of the data set.
        *roles: "train", "tune", "calibrate".

    Returns:
        The views.
    """
    data = profile.source.open(root)
    groups = {group for role in roles for group in profile.roles[role]}
    samples = [s for s in data.samples if s.split == "train" and s.group in groups]
    return Images(data, samples).normal_views(profile.fitted)


def main() -> None:
    """Prints a table, the best kind by cross-validation first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    wanted = parser.parse_args()
    profile = load_profile(wanted.model)
    known = normal_views(profile, wanted.data, "train", "tune")
    held = normal_views(profile, wanted.data, "calibrate")
    ranked = choose(known.pixels, groups=known.groups, seed=profile.seed, by="regions")
    rows: list[list[str]] = []
    for judged in ranked.reports:
        found = fit_report(
            estimate(known.pixels, judged.kind, groups=known.groups), held.pixels, held.groups
        )
        if not rows:
            rows.append(["kind", "error", *("{}x{}".format(*r.shape) for r in found.regions)])
        shares = [f"{region.rejection.value:.2f}" for region in found.regions]
        rows.append([judged.kind, f"{judged.region_error:.2f}", *shares])
    print(align_rows(rows))


if __name__ == "__main__":
    main()
