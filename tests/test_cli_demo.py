"""The demonstration's data and its shipped model; the whole demo is run by `.ci/run`."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("typer")
pytest.importorskip("skimage")

from dal_jax.cli import _demo, _demo_data, main
from dal_jax.diffusion import load_checkpoint


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return _demo_data.photograph()


@pytest.mark.slow
def test_the_shipped_model_is_the_one_that_the_demo_trains() -> None:
    with _demo._model(None) as directory:
        assert load_checkpoint(directory)[1] == _demo._CONFIG


@pytest.mark.slow
def test_views_are_new_places_and_half_have_a_defect(photo: np.ndarray) -> None:
    scene = _demo_data.scene(photo, 12, 8, seed=0)
    assert [view.kind == "normal" for view in scene.views] == [True] * 6 + [False] * 6
    assert [bool(view.truth.any()) for view in scene.views] == [False] * 6 + [True] * 6
    assert scene.references.shape == (8, 16, 16, 1)
    again = _demo_data.scene(photo, 12, 8, seed=0)
    np.testing.assert_array_equal(scene.views[7].image, again.views[7].image)
    other = _demo_data.scene(photo, 12, 8, seed=1)
    assert not np.array_equal(scene.views[7].image, other.views[7].image)


@pytest.mark.slow
def test_no_test_pixel_is_in_a_training_view(photo: np.ndarray) -> None:
    corners = _demo_data._test_corners(photo)
    taken = np.zeros(photo.shape, int)
    for corner in corners:
        _demo_data._square(taken, corner)[:] += 1
    assert taken.max() == 1
    changed = np.where(taken > 0, photo.mean(), photo)
    np.testing.assert_array_equal(
        _demo_data.training_views(changed), _demo_data.training_views(photo)
    )


@pytest.mark.slow
def test_standardizing_removes_brightness_and_contrast(photo: np.ndarray) -> None:
    square = _demo_data._square(photo, _demo_data._test_corners(photo)[0])
    ramp = np.linspace(0, 0.3, square.size).reshape(square.shape)
    view = _demo_data._standardized(square)
    # Least squares on 324 doubles of size 1: 1e-9 is far above their rounding.
    np.testing.assert_allclose(_demo_data._standardized(3 * square + ramp), view, atol=1e-9)


@pytest.mark.slow
def test_the_demo_writes_its_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["demo", "--out", str(tmp_path), "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)
    assert len(fields["results"]) == 12
    assert (tmp_path / "demo.png").stat().st_size > 0
