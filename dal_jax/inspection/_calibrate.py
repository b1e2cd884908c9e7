"""Calibration: the held-out normal images of a profile are tested, and what that says is kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dal_jax._one_test import Case
from dal_jax._options import TestOptions
from dal_jax._test_run import Item, run_tests
from dal_jax.images import DataSet
from dal_jax.inference import Law
from dal_jax.inspection._calibration import (
    Calibration,
    Rate,
    cross_fitted_p,
    fit_calibration,
    observed_of,
    rates,
    save_calibration,
    uniformity,
)
from dal_jax.inspection._items import Reader, as_items, view_items
from dal_jax.inspection._profile import Profile
from dal_jax.inspection._stretch import stretched
from dal_jax.inspection._verdict import verdict
from dal_jax.localizers import Localizer
from dal_jax.noise import Covariance, FitReport, fit_report
from dal_jax.runs import Host

# Factors of the noise's standard deviation, free; and of its correlation length, searched anew.
SIGMA_FACTORS = (0.8, 0.9, 1.0, 1.1, 1.25)
LENGTH_FACTORS = (0.7, 1.4)
ALPHA = 0.05


@dataclass(frozen=True)
class CalibrateOptions:
    """How much is tested besides the held-out images."""

    control: int = 200  # images drawn from the fitted noise model; 0 leaves them out
    lengths: bool = True  # test under other correlation lengths, too
    seed: int = 0


class Calibrated(NamedTuple):
    """What calibration found."""

    calibration: Calibration
    records: list[dict[str, Any]]  # of the held-out normal views
    groups: list[str]
    p_values: dict[str, np.ndarray]  # cross-fitted, by method
    rates: list[Rate]
    control: list[dict[str, Any]]  # records of images drawn from the noise model
    control_rates: list[Rate]
    fit: FitReport  # of the noise model on the held-out views
    sensitivity: list[dict[str, Any]]
    verdict: list[str]  # plain sentences
    smallest: list[tuple[dict[str, Any], np.ndarray]]  # records and views (H, W, C), see `smallest`


# (directory, items, noise) -> records
Runner = Callable[[Path, Sequence[Item], Covariance], list[dict[str, Any]]]


def runner(
    localizer: Localizer,
    test_options: TestOptions,
    host: Host,
    devices: int | None,
    shared: Any,
    say: Callable[[str, int, int], None],
) -> Runner:
    """What tests items in a run directory and gives their records.

    Args:
        localizer: of the profile.
        test_options: of all tests.
        host: this process.
        devices: to use.
        shared: what else decides the results.
        say: called with (what, done, of how many).

    Returns:
        The runner.
    """

    def run(directory: Path, items: Sequence[Item], noise: Covariance) -> list[dict[str, Any]]:
        made = run_tests(
            directory,
            localizer,
            items,
            noise,
            test_options,
            host=host,
            devices=devices,
            shared=shared,
            progress=lambda done, _: say(directory.name, done, len(items)),
        )
        return list(made.finished().values())

    return run


def calibrate(
    data: DataSet,
    profile: Profile,
    run: Runner,
    directory: Path,
    options: CalibrateOptions,
) -> Calibrated:
    """Tests the held-out normal images of a profile and fits the recalibrations.

    Args:
        data: the data set that the profile was learnt from.
        profile: of the model.
        run: what tests, see `runner`.
        directory: for the runs; continued if they are there.
        options: how much.

    Returns:
        What was found.

    Raises:
        InputError: no held-out images, or none with a region.
    """
    held = set(profile.roles["calibrate"])
    samples = [s for s in data.samples if s.split == "train" and s.group in held]
    reader = Reader(data, profile.fitted)
    listed = view_items(reader, samples)
    items = as_items(reader, listed, profile.references)
    found = run(directory / "views", items, profile.noise)
    kept = [k for k, record in enumerate(found) if record["status"] != "INVALID_INPUT"]
    records = [found[k] for k in kept]
    groups = [listed[k].sample.group for k in kept]
    p_values = cross_fitted_p(records, groups, options.seed)
    control = _control(profile, run, directory, options)
    own_rates = rates(p_values, groups)
    control_rates = rates(
        {"selective": np.array([record["p_value"] for record in control])},
        [str(k) for k in range(len(control))],
    )
    pixels = np.stack([reader.read(listed[k].sample)[2].pixels[listed[k].view] for k in kept])
    fit = fit_report(profile.noise, pixels, groups, kind=profile.noise_kind)
    sensitivity = _sigma(records) + _lengths(profile, run, directory, items, options)
    calibration = fit_calibration(records, groups)
    told = verdict(own_rates, control_rates, fit, profile.noise_kind, calibration)
    return Calibrated(
        calibration,
        records,
        groups,
        p_values,
        own_rates,
        control,
        control_rates,
        fit,
        sensitivity,
        told,
        [(records[k], pixels[k]) for k in smallest(records)],
    )


def keep(directory: Path, found: Calibrated) -> None:
    """Writes a calibration beside its model.

    Args:
        directory: of the model.
        found: by `calibrate`.

    Raises:
        InputError: the file cannot be written.
    """
    facts = {
        "verdict": found.verdict,
        "rates": [rate._asdict() for rate in found.rates],
        "control_rates": [rate._asdict() for rate in found.control_rates],
        "uniformity": {method: uniformity(p) for method, p in found.p_values.items()},
        "by_distance": by_distance(found.records),
        "sensitivity": found.sensitivity,
        "smallest": [record["name"] for record, _ in found.smallest],
    }
    save_calibration(directory, found.calibration, facts)


def smallest(records: Sequence[dict[str, Any]], count: int = 12) -> list[int]:
    """The views of the smallest raw selective p-values: contaminated normal images show here.

    Args:
        records: of views.
        count: how many, at most.

    Returns:
        Their numbers, the smallest p first.
    """
    tested = [k for k, record in enumerate(records) if record["status"] == "OK"]
    return sorted(tested, key=lambda k: records[k]["p_value"])[:count]


def by_distance(records: Sequence[dict[str, Any]], alpha: float = ALPHA) -> list[dict[str, Any]]:
    """Raw selective rejections by |z|: tails heavier than the model's show here.

    Args:
        records: of normal views.
        alpha: level.

    Returns:
        For |z| below 1, 1 to 2, 2 to 3 and above: views and rejections.
    """
    tested = [record for record in records if record["status"] == "OK"]
    z = np.array([abs(record["statistic"] / record["sd"]) for record in tested])
    p = np.array([record["p_value"] for record in tested])
    return [
        {
            "from": low,
            "to": high,
            "views": int(((z >= low) & (z < high)).sum()),
            "rejected": int(((z >= low) & (z < high) & (p <= alpha)).sum()),
        }
        for low, high in pairwise((0.0, 1.0, 2.0, 3.0, np.inf))
    ]


def _control(
    profile: Profile, run: Runner, directory: Path, options: CalibrateOptions
) -> list[dict[str, Any]]:
    """Tests images of the fitted model itself: there the raw p-values must be uniform."""
    if not options.control:
        return []
    items = [
        Item(f"{number:06d}", None, partial(_drawn, profile, options.seed, number))
        for number in range(options.control)
    ]
    return run(directory / f"control-{options.seed}-{options.control}", items, profile.noise)


def _drawn(profile: Profile, seed: int, number: int) -> Case:
    rng = np.random.default_rng((seed, 3, number))
    mean = profile.references.mean(axis=0)
    shape = mean.shape
    drawn = [mean + profile.noise.sample(rng, shape) for _ in range(1 + len(profile.references))]
    return Case(drawn[0], np.stack(drawn[1:]))


def _sigma(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """False calls if the noise's standard deviation were off: no new searches."""
    tested = [observed_of(record) for record in records if record["status"] == "OK"]
    rows = []
    for factor in SIGMA_FACTORS:
        p = np.array([Law(factor).p_value(one).p for one in tested])
        rows.append(_row("sigma", factor, p))
    return rows


def _lengths(
    profile: Profile,
    run: Runner,
    directory: Path,
    items: Sequence[Item],
    options: CalibrateOptions,
) -> list[dict[str, Any]]:
    """False calls if the correlation length were off: other lines, searched anew."""
    if not options.lengths:
        return []
    rows = []
    shape = profile.references.shape[1:]
    for factor in LENGTH_FACTORS:
        noise = stretched(profile.noise, shape, factor)
        found = run(directory / f"length-{factor:g}", items, noise)
        p = np.array([record["p_value"] for record in found if record["status"] == "OK"])
        rows.append(_row("correlation length", factor, p))
    return rows


def _row(what: str, factor: float, p: np.ndarray) -> dict[str, Any]:
    return {
        "what": what,
        "factor": factor,
        "tested": len(p),
        "rejected": int(np.sum(p <= ALPHA)),
        "alpha": ALPHA,
    }
