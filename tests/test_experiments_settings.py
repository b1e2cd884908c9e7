"""Settings of experiments: one line for those that do not fit; presets and specifications."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

import experiments
from dal_jax import InputError
from dal_jax._config import fit_fields, read_toml
from experiments._models import scale_channels
from experiments._simulation import FAMILIES

REFUSED: dict[str, list[tuple[dict[str, Any], str]]] = {
    "type1_error": [
        ({"regions": ()}, "regions is empty"),
        ({"references": ()}, "references is empty"),
        ({"randomizations": ()}, "randomizations is empty"),
    ],
    "robustness": [
        ({"families": ("cauchy",)}, "family: got 'cauchy', expected one of normal, skewnorm"),
        ({"families": ()}, "families is empty"),
        ({"signals": ()}, "signals is empty"),
        ({"variance_sizes": (8, 16, 32)}, "variance_images has 2 entries, expected 3"),
        ({"variances": ("same",)}, "variances holds 'same', expected 'known', 'estimate:same'"),
        ({"variances": ("estimate:normal:0",)}, "variances holds 'estimate:normal:0'"),
        ({"variances": ("estimate:normal:x",)}, "variances holds 'estimate:normal:x'"),
    ],
    "piecewise_linear": [
        ({"exact_images": (1, 1)}, "exact_images has 2 entries"),
        ({"exact_images": (1, 1, 1, 151)}, "expected 1 to replaced_images = 150"),
        ({"exact_images": (0, 1, 1, 1)}, "expected 1 to replaced_images"),
        ({"replaced_images": 1001}, "replaced_images: got 1001, expected 1 to smooth_images"),
        ({"score_images": 0}, "score_images: got 0"),
        ({"families": ("relu",)}, "families holds 'relu'"),
        ({"families": ()}, "families is empty"),
        ({"knots": (2, 4, 8, 16)}, "K >= 3"),
    ],
    "intervals": [
        ({"images": (1,)}, "images has 1 entries, expected 3"),
        ({"width_sizes": (64,)}, "width_sizes holds 64"),
        ({"widths": (0.01,)}, r"widths holds 0\.01"),
    ],
    "scaling": [
        ({"tests": (1,)}, "tests has 1 entries"),
        ({"width_size": 48}, "width_size: got 48"),
        ({"spacings": (0.0,)}, "spacings: got"),
        ({"widths": (0.01,)}, "widths holds"),
    ],
    "steps": [
        ({"starts": (115, 1000)}, "start: got 1000"),
        ({"steps": (0, 5)}, "steps: got 0"),
        ({"starts": (3, 460)}, "steps: got 5, expected 1 to start"),
        ({"etas": (1.5,)}, "eta: got 1.5"),
        ({"steps": ()}, "steps is empty"),
        ({"signals": (0.0, 2.0)}, "signals holds 0.0"),
        ({"calibration_images": 0}, "calibration_images: got 0"),
    ],
    "engine_agreement": [
        ({"sizes": (8, 16)}, "images has 1 entries, expected 2"),
        ({"noises": ()}, "noises is empty"),
        ({"signals": ()}, "signals is empty"),
        ({"ways": ("exakt", "adaptive")}, "ways holds 'exakt', did you mean 'exact'"),
        ({"ways": ("exact",)}, "ways has 1 entries"),
        ({"images": (1,)}, "images holds 1, expected 2 or more"),
    ],
    "real_images": [
        ({"data": ()}, "data is empty"),
        ({"data": ("sand",)}, "data holds 'sand', expected some of brick, grass, gravel, brain"),
        ({"contrasts": ()}, "contrasts: got"),
        ({"contrasts": (0.0, 1.0)}, "contrasts: got"),
        ({"size": 12}, "size: got 12, expected a divisor of 32"),
        ({"brain_size": 16}, "brain_size: got 16, expected a divisor of 40"),
        ({"shots": 0}, "shots: got 0"),
        ({"test_blocks": 0}, "tested: got 0"),
        ({"patients": 3}, "patients: got 3"),
        ({"slices": 7}, "slices: got 7"),
    ],
    "localizers": [
        ({"localizers": ("best",)}, "localizer: unknown kind 'best', expected dal, mdps"),
        ({"per_label": 0}, "per_label: got 0, expected 1 or more"),
        ({"size": 64}, "size: got 64, expected 1 to 32 without data"),
    ],
}


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [(name, *case) for name, cases in REFUSED.items() for case in cases],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_settings_that_do_not_fit_are_refused(name: str, changes: dict[str, Any], message: str):
    quick = experiments.find(name).presets["quick"]
    with pytest.raises(InputError, match=message) as refused:
        replace(quick, **changes)
    assert "\n" not in str(refused.value)


def test_a_larger_view_is_allowed_with_data():
    quick = experiments.find("localizers").presets["quick"]
    assert replace(quick, size=64, data="photographs").size == 64


def test_channels_of_another_width():
    assert scale_channels((32, 64), 0.25) == (8, 16)


@pytest.mark.parametrize("spec", ["gammas", "peak", "localizers"])
@pytest.mark.parametrize("name", ["power", "type1_error"])
def test_specifications_fit_both_experiments(name: str, spec: str):
    path = Path(experiments.__file__).parent / "specs" / f"{spec}.toml"
    kind = type(experiments.find(name).presets["quick"])
    assert kind(**fit_fields(kind, read_toml(path, "--spec"), spec))


def test_presets_of_robustness_take_every_family():
    for settings in experiments.find("robustness").presets.values():
        assert settings.families == tuple(FAMILIES) and len(FAMILIES) == 5
        assert settings.distances == (0.01, 0.02, 0.03, 0.04)


def test_the_paper_preset_has_enough_images_for_the_engines():
    paper = experiments.find("engine_agreement").presets["paper"]
    assert paper.sizes == (8, 16, 32) and sum(paper.images) >= 300
