"""Real images: the data sets hold what is promised, are read back, and pass the whole chain."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from experiment_cases import assert_figures_and_words, table

pytest.importorskip("typer")
pytest.importorskip("matplotlib")
pytest.importorskip("skimage")
pytest.importorskip("nibabel")

from dal_jax import InputError
from dal_jax.images import DataSet, Sample, open_data, read_sample, shared_groups
from dal_jax.inspection import load_profile
from dal_jax.inspection._learn import share_out
from experiments import _brain, _textures, real_images
from experiments._brain import MIDDLE, BrainPlan, cases_to_test, lesions_of, write_patients
from experiments._experiment import Context, run_experiment
from experiments._textures import (
    GROUPS,
    PATCH,
    SIDE,
    TexturePlan,
    block_corners,
    contrast_of,
    photograph,
    write_textures,
)
from experiments.real_images import EXPERIMENT, METHODS, Settings

pytestmark = pytest.mark.slow  # training and compiling for each of its fixtures

TEXTURES = TexturePlan(contrasts=(0.5, 2.0), tested=5, seed=3)
PATIENTS = BrainPlan(contrasts=(1.0, 3.0), patients=16, slices=2, seed=3)
SMALL: dict[str, Any] = {
    "data": ("gravel", "brain"),
    "contrasts": (2.0, 4.0),
    "test_blocks": 5,
    "size": 8,
    "patients": 20,
    "slices": 1,
    "brain_size": 8,
    "channels": (4, 8),
    "steps": 2,
    "noise": "diagonal",
    "flag_share": 0.05,
}


def head() -> np.ndarray:
    """An ellipsoid where the template has a brain, darker in the middle."""
    index = np.indices((197, 233, 120), dtype=np.float32)
    distance = sum(
        ((index[k] - centre) / axis) ** 2
        for k, (centre, axis) in enumerate(zip((98, 117, 90), (72, 90, 70), strict=True))
    )
    return np.where(distance < 1, 200 - 60 * np.exp(-40 * np.asarray(distance)), 0.0)


@pytest.fixture(scope="module")
def texture(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """Gravel, opened."""
    folder = tmp_path_factory.mktemp("textures") / "gravel"
    write_textures(folder, "gravel", TEXTURES)
    return open_data(folder, groups=GROUPS)


@pytest.fixture(scope="module")
def patients(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    """Patients, opened."""
    folder = tmp_path_factory.mktemp("patients") / "brain"
    write_patients(folder, PATIENTS, head())
    return open_data(folder, contrast="t1")


def _files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _of(data: DataSet, label: str, split: str = "test") -> list[Sample]:
    return [s for s in data.samples if s.label == label and s.split == split]


def _grey(data: DataSet, sample: Sample) -> np.ndarray:
    return read_sample(data, sample)[0][..., 0]


def test_textures_have_the_layout_of_mvtec_and_no_block_crosses(texture: DataSet):
    assert texture.layout == "mvtec" and shared_groups(texture) == ()
    count = len(block_corners((512, 512), TEXTURES.shots))
    assert count == 14 * 7
    assert len(_of(texture, "normal", "train")) == 2 * (count - TEXTURES.tested)
    assert len(_of(texture, "normal")) == 2 * TEXTURES.tested
    for contrast in TEXTURES.contrasts:
        assert len(_of(texture, f"contrast_{contrast:g}")) == 2 * TEXTURES.tested
    tested = {s.group for s in texture.samples if s.split == "test"}
    assert len(tested) == TEXTURES.tested
    assert len({s.group for s in texture.samples}) == count
    dealt, left_out = share_out(texture, 0)
    roles = [{s.group for s in part} for part in dealt.values()]
    assert not left_out and sum(map(len, roles)) == len(set.union(*roles)) == count - len(tested)


def test_no_two_images_share_a_pixel_of_the_photograph(texture: DataSet):
    photo, seen = photograph("gravel"), np.zeros((512, 512), int)
    corners = block_corners(photo.shape, TEXTURES.shots)
    for sample in texture.samples:
        if sample.label != "normal":
            continue
        stem = sample.path.stem
        row, column = corners[int(sample.group.removeprefix("block"))]
        place = (slice(row, row + SIDE), slice(column + SIDE * int(stem[-1]), None))
        place = (place[0], slice(place[1].start, place[1].start + SIDE))
        np.testing.assert_array_equal(np.rint(255 * _grey(texture, sample)), photo[place])
        seen[place] += 1
    assert seen.max() == 1 and seen.sum() == SIDE**2 * 2 * len(corners)


def test_a_defect_has_its_contrast_its_mask_and_one_place(texture: DataSet):
    sd = photograph("gravel").std()
    good = {s.path.name: _grey(texture, s) for s in _of(texture, "normal")}
    masks: dict[float, dict[str, np.ndarray]] = {}
    for contrast in TEXTURES.contrasts:
        label = f"contrast_{contrast:g}"
        assert contrast_of(label) == contrast
        for sample in _of(texture, label):
            image, mask = read_sample(texture, sample)
            assert mask is not None and np.pi * 3 * 3 * 0.7 < mask.sum() < np.pi * 6 * 6 * 1.2
            edge = (SIDE - PATCH) // 2
            assert mask.sum() == mask[edge:-edge, edge:-edge].sum()
            change = 255 * (image[..., 0] - good[sample.path.name])
            limits = (0, 255)  # where the grey values were clipped the change is smaller
            free = mask & ~np.isin(np.rint(255 * image[..., 0]), limits)
            heights = np.abs(change[free]) / sd
            assert free.any() and heights.max() == pytest.approx(contrast, abs=0.05)
            assert heights.min() > 0.45 * contrast - 0.05
            assert np.abs(change[~mask]).max() <= 0.5 * contrast * sd + 0.5
            masks.setdefault(contrast, {})[sample.path.name] = mask
    for name, mask in masks[0.5].items():
        np.testing.assert_array_equal(mask, masks[2.0][name])
    assert contrast_of("normal") == 0.0
    for sample in _of(texture, "normal"):
        mask = read_sample(texture, sample)[1]
        assert mask is not None and not mask.any()


def test_textures_are_written_once_and_the_same(texture: DataSet, tmp_path: Path):
    write_textures(tmp_path / "again", "gravel", TEXTURES)
    assert _files(tmp_path / "again") == _files(texture.root)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]
    write_textures(tmp_path / "again", "gravel", TexturePlan(tested=7))
    assert _files(tmp_path / "again") == _files(texture.root)  # existing files stay
    write_textures(tmp_path / "other", "gravel", TexturePlan((0.5, 2.0), tested=5, seed=4))
    assert set(_files(tmp_path / "other")) != set(_files(texture.root))


def test_patients_have_the_layout_of_brats_and_never_cross(patients: DataSet):
    assert patients.layout == "brats2021" and shared_groups(patients) == ()
    cases = sorted({s.group for s in patients.samples})
    assert len(cases) == 16 and len(patients.samples) == 32
    tested = {s.group for s in patients.samples if s.split == "test"}
    assert tested == set(cases_to_test(cases)) and 0 < len(tested) < 16
    lesions = lesions_of(patients.root)
    assert set(lesions) < tested and set(lesions.values()) == {1.0, 3.0}
    for sample in patients.samples:
        assert (sample.label == "tumour") == (sample.group in lesions)
    dealt, left_out = share_out(patients, 0)
    roles = [{s.group for s in part} for part in dealt.values()]
    assert not left_out and sum(map(len, roles)) == len(set.union(*roles)) == 16 - len(tested)


def test_lesions_are_marked_and_lie_in_the_middle(patients: DataSet):
    lesions = lesions_of(patients.root)
    for sample in patients.samples:
        image, mask = read_sample(patients, sample)
        assert image.shape == (80, 64, 1) and mask is not None
        middle = (slice((80 - MIDDLE) // 2, (80 + MIDDLE) // 2), slice(12, 12 + MIDDLE))
        assert mask.any() == (sample.group in lesions)
        assert mask[middle].sum() == mask.sum()
        assert image[0].max() == 0
        if sample.group not in lesions:
            assert image[middle].min() > 0  # all brain


def test_patients_differ_by_their_lesions_alone(patients: DataSet, tmp_path: Path):
    other = tmp_path / "other"
    write_patients(other, BrainPlan((2.0, 6.0), 16, 2, seed=3), head())
    double, changes = open_data(other, contrast="t1"), []
    for one, two in zip(patients.samples, double.samples, strict=True):
        assert one.name == two.name
        (first, mask), (second, _) = read_sample(patients, one), read_sample(double, two)
        assert mask is not None
        change = np.abs(second - first)[..., 0]
        contrast = lesions_of(patients.root).get(one.group, 0.0)
        if not contrast:
            assert not change.any()
            continue
        # Half of a blob's height at its edge, then less; the bias field alone changes the rest.
        assert np.median(change[mask]) > 2 * change[~mask].mean()
        changes.append(np.median(change[mask]) / contrast)
    assert max(changes) < 2 * min(changes)


def test_patients_are_written_once_and_the_same(patients: DataSet, tmp_path: Path):
    write_patients(tmp_path / "again", PATIENTS, head())
    assert _files(tmp_path / "again") == _files(patients.root)
    assert [path.name for path in tmp_path.iterdir()] == ["again"]
    again = _files(tmp_path / "again")
    write_patients(tmp_path / "again", BrainPlan(seed=9), head())
    assert _files(tmp_path / "again") == again


@pytest.mark.skipif(importlib.util.find_spec("nilearn") is None, reason="needs nilearn")
def test_the_template_is_in_the_wheel():
    found = _brain.template()
    assert found.shape == (197, 233, 189)
    half = int(MIDDLE * _brain.VOXEL / 2)
    # The middle of a slice is brain.
    assert (found[98 - half : 98 + half, 117 - half : 117 + half, 90] > 0).mean() > 0.98


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, on a head that needs no template."""
    out = tmp_path_factory.mktemp("real_images")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_brain, "template", head)
        context = Context(out / "run", out / "models")
        run_experiment("real_images", EXPERIMENT, Settings(**SMALL), context)
    return out


def test_the_tables_are_complete(out: Path):
    rows = table(out / "run", "real_images")
    keys = [(row["data"], row["part"], row["contrast"], row["method"]) for row in rows]
    assert set(keys) == {
        (name, part, contrast, method)
        for name in SMALL["data"]
        for part, levels in (("held out", [0.0]), ("test", [0.0]), ("defect", SMALL["contrasts"]))
        for contrast in levels
        for method in METHODS
    }
    assert len(keys) == len(set(keys))
    for row in rows:
        assert row["failed"] == 0 and row["views"] > 0
        assert row["tested"] + row["no_region"] + row["elsewhere"] == row["views"]
        assert row["part"] == "defect" or row["elsewhere"] == 0
        if row["tested"]:
            assert row["rate"] == row["rejected"] / row["tested"]
        if row["objects"] > 1:
            assert row["low"] <= row["rate"] <= row["high"]
    gravel = [row for row in rows if row["data"] == "gravel" and row["method"] == "naive"]
    assert [row["views"] for row in gravel[1:]] == [10, 10, 10]
    assert [row["data"] for row in table(out / "run", "data_sets")] == list(SMALL["data"])


def test_tested_groups_serve_for_nothing_else(out: Path):
    for home in sorted((out / "models").iterdir()):
        name = home.name.split("-")[1]
        profile = load_profile(home)
        data = profile.source.open(out / "run" / "data" / name)
        tested = {s.group for s in data.samples if s.split == "test"}
        roles = [group for groups in profile.roles.values() for group in groups]
        assert len(roles) == len(set(roles)) and not tested & set(roles)
        assert tested | set(roles) == {s.group for s in data.samples}


def test_false_calls_are_those_of_the_calibration(out: Path):
    rows = {
        row["method"]: row for row in table(out / "run", "real_images") if row["part"] == "held out"
    }
    facts = [row["verdict"] for row in table(out / "run", "data_sets") if row["data"] == "brain"]
    one = rows["selective"]  # of the last data set
    assert f"({one['rejected']} of {one['tested']};" in facts[0]


def test_figures_and_summary(out: Path):
    figures = ["real_images_false_calls", "real_images_power"]
    words = ("gravel", "brain", "held out", "Least conformal p", "from one template")
    assert_figures_and_words(out / "run", figures, words)


def test_a_finished_run_is_not_done_again(out: Path, monkeypatch: pytest.MonkeyPatch):
    def never(*_: Any, **__: Any):
        raise AssertionError("a finished step was done again")

    before = (out / "run" / "real_images.csv").read_bytes()
    monkeypatch.setattr(real_images, "train_with_bar", never)
    monkeypatch.setattr(_textures, "photograph", never)
    monkeypatch.setattr(_brain, "template", never)
    context = Context(out / "run", out / "models")
    run_experiment("real_images", EXPERIMENT, Settings(**SMALL), context)
    assert (out / "run" / "real_images.csv").read_bytes() == before


def test_data_that_cannot_be_written_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match="tested: got 98, expected 97 or fewer"):
        write_textures(tmp_path / "t", "grass", TexturePlan(tested=98))
    with pytest.raises(InputError, match="kind 'sand'"):
        write_textures(tmp_path / "t", "sand", TEXTURES)
    with pytest.raises(InputError, match="patients: got 4, too few for 4 contrasts"):
        write_patients(tmp_path / "p", BrainPlan(patients=4), head())
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install \"dal-jax\[brain\]\""):
        write_patients(tmp_path / "p", PATIENTS)
    with pytest.raises(InputError, match=r"pip install \"dal-jax\[images\]\""):
        write_textures(tmp_path / "t", "grass", TEXTURES)
    assert not list(tmp_path.iterdir())
