"""Saved and named noise comes back as it was; every other file or text gives one clear line."""

import os
from pathlib import Path

import numpy as np
import pytest
from noise_cases import SHAPE, cases

from dal_jax import InputError
from dal_jax.noise import ar1, iid, load_noise, parse_noise, save_noise, scaled


@pytest.mark.parametrize("name", cases())
def test_round_trip(tmp_path, name):
    noise, _ = cases()[name]
    path = tmp_path / "folder" / "noise.npz"
    save_noise(path, noise)
    v = np.random.default_rng(0).standard_normal(SHAPE)
    for again in (load_noise(path), parse_noise(str(path), SHAPE)):
        assert type(again) is type(noise)
        # Numbers are stored as they are; a spectrum passes one more FFT.
        np.testing.assert_allclose(again.apply(v), noise.apply(v), rtol=0, atol=1e-13)
    assert [entry.name for entry in path.parent.iterdir()] == ["noise.npz"]
    with np.load(path, allow_pickle=False) as archive:
        assert all(archive[entry].dtype.kind in "fU" for entry in archive.files)


def test_what_cannot_be_saved(tmp_path):
    class Mine:
        def apply(self, v):
            return v

        def check(self, shape):
            pass

        def sample(self, rng, shape):
            return rng.standard_normal(shape)

    for noise in (Mine(), scaled(Mine(), 2.0)):
        with pytest.raises(InputError, match=r"^covariance is of type Mine, expected"):
            save_noise(tmp_path / "noise.npz", noise)
    with pytest.raises(InputError, match=r"^path: got '.*noise.npy', expected .* \.npz$"):
        save_noise(tmp_path / "noise.npy", iid(1.0))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"^cannot write"):
        save_noise(tmp_path / "file" / "noise.npz", iid(1.0))
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "noise.npz"
    save_noise(path, iid(2.0))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="No space left"):
        save_noise(path, iid(3.0))
    assert load_noise(path) == iid(2.0)
    assert [entry.name for entry in tmp_path.iterdir()] == ["noise.npz"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({}, "the entry kind is missing, expected one of iid, "),
        ({"kind": "white"}, "the entry kind: got 'white', expected one of iid, "),
        ({"kind": ["iid", "ar1"]}, r"the entry kind: got \['iid', 'ar1'\], expected"),
        ({"kind": 3.0}, "the entry kind: got 3.0, expected"),
        ({"kind": "iid"}, "the entry sigma is missing"),
        ({"kind": "iid", "sigma": -1.0}, "sigma: got -1.0, expected"),
        ({"kind": "iid", "sigma": "2"}, "the entry sigma holds <U1, expected real numbers"),
        ({"kind": "iid", "sigma": [1.0]}, "the entry sigma has 1 axes, expected one number"),
        ({"kind": "ar1", "rho": 0.5, "sigma": 1j}, "the entry sigma holds complex128"),
        ({"kind": "diagonal", "variance": [1.0]}, r"variance has shape \(1,\), expected"),
        (
            {"kind": "dense", "matrix": [[1.0, 2.0], [2.0, 1.0]]},
            "matrix .* is not positive definite",
        ),
        ({"kind": "scaled", "factor": 1.0}, "the entry covariance.kind is missing"),
        (
            {"kind": "scaled", "factor": 0.0, "covariance.kind": "iid", "covariance.sigma": 1.0},
            "factor: got 0.0, expected",
        ),
    ],
    ids=range(13),
)
def test_wrong_entries(tmp_path, entries, message):
    path = tmp_path / "noise.npz"
    np.savez(path, **entries)
    with pytest.raises(InputError, match=f"^file '.*noise.npz': {message}") as raised:
        load_noise(path)
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match=f"^noise '.*noise.npz': .*{message}"):
        parse_noise(str(path))


def test_damaged_files(tmp_path):
    path = tmp_path / "noise.npz"
    noise, _ = cases()["low rank"]
    save_noise(path, noise)
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 0xFF
    contents = [whole[:n] for n in (0, 4, 40, len(whole) // 2, len(whole) - 1)]
    for content in (*contents, bytes(flipped), b"not a zip archive, but a text"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"noise\.npz': damaged \("):
            load_noise(path)
    for place, value in ((6, 1), (8, 77)):  # encrypted, and compressed in an unknown way
        locked, start = bytearray(whole), whole.index(b"PK\x01\x02")
        locked[place] = locked[start + place + 2] = value
        path.write_bytes(bytes(locked))
        with pytest.raises(InputError, match=r"noise\.npz': damaged \("):
            load_noise(path)
    objects = {"kind": np.array("iid"), "sigma": np.array([{}, None])}
    np.savez(path, allow_pickle=True, **objects)
    with pytest.raises(InputError, match=r"noise\.npz': damaged \("):
        load_noise(path)
    with open(path, "wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(InputError, match=r"one array, expected an \.npz archive"):
        load_noise(path)
    for missing in (tmp_path / "missing.npz", Path(tmp_path)):
        with pytest.raises(InputError, match=r"no such file|cannot be read"):
            load_noise(missing)


def test_endless_nesting_is_refused(tmp_path):
    noise = iid(1.0)
    for _ in range(30):
        noise = scaled(noise, 1.0)
    path = tmp_path / "noise.npz"
    save_noise(path, noise)
    with pytest.raises(InputError, match="holds more than 8 operators within each other"):
        load_noise(path)


ONES = np.ones((2, 2, 1))


def save(folder: Path, array: np.ndarray, name: str = "noise.npy") -> str:
    np.save(folder / name, array)
    return str(folder / name)


def test_forms():
    assert parse_noise("iid:1.5") == iid(1.5)
    assert parse_noise("ar1:-0.5:2e0", (4, 4, 3)) == ar1(-0.5, 2.0)


def test_files(tmp_path):
    variance = np.arange(1.0, 7.0).reshape(2, 3, 1)
    for array in (variance, variance[:, :, 0], variance.astype(np.float32)):
        noise = parse_noise(save(tmp_path, array), (2, 3, 1))
        assert np.array_equal(noise.apply(np.ones((2, 3, 1))), variance)
    matrix = 2 * np.eye(4, dtype=int)
    assert np.array_equal(parse_noise(save(tmp_path, matrix)).apply(ONES), 2 * ONES)


def test_square_file_is_a_map_where_it_has_the_size_of_the_image(tmp_path):
    path = save(tmp_path, np.array([[2.0, 1.0], [1.0, 3.0]]))
    noise = parse_noise(path, (2, 2, 1))
    assert np.array_equal(noise.apply(ONES)[:, :, 0], [[2.0, 1.0], [1.0, 3.0]])
    assert np.array_equal(parse_noise(path).apply(np.ones((2, 1, 1))).ravel(), [3.0, 4.0])


@pytest.mark.parametrize(
    "text",
    [
        *("", "iid", "iid:", "iid:a", "iid:1:2", "iid:1,5", "iid:1\n:2"),
        *("ar1:0.5", "ar1:0.5:1:1", "ar1:x:1", "AR1:0.5:1", "white:1", "noise.txt"),
    ],
)
def test_other_texts_show_the_forms(text):
    with pytest.raises(InputError, match="expected iid:SIGMA, ar1:RHO:SIGMA or a file") as raised:
        parse_noise(text)
    assert repr(text) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("iid:0", "sigma: got 0.0, expected"),
        ("iid:-1", "sigma: got -1.0, expected"),
        ("iid:nan", "sigma: got nan, expected"),
        ("ar1:1:1", "rho: got 1.0, expected"),
        ("ar1:0.5:inf", "sigma: got inf, expected"),
        ("missing.npy", "no such file"),
    ],
)
def test_bad_values(text, message):
    with pytest.raises(InputError, match=f"^noise '{text}': .*{message}"):
        parse_noise(text)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.array(1.0), "variance has shape"),
        (np.ones(4), "variance has shape"),
        (np.ones((2, 2, 1, 1)), "variance has shape"),
        (np.ones((2, 2)), "not positive definite"),
        (np.array([[1.0, 0.0], [0.5, 1.0]]), "not symmetric"),
        (-np.ones((2, 3)), "variance holds -1.0"),
        (np.eye(4, dtype=complex), "holds complex128, expected real"),
        (np.array(["a", "b"]), "expected real"),
    ],
)
def test_bad_arrays(tmp_path, array, message):
    with pytest.raises(InputError, match=message) as raised:
        parse_noise(save(tmp_path, array))
    assert "\n" not in str(raised.value)


def test_wrong_size(tmp_path):
    for array in (np.eye(4), np.ones((2, 3)), np.ones((3, 3, 2))):
        with pytest.raises(InputError, match=r"^noise '.*': noise has .*\(3, 3, 1\)"):
            parse_noise(save(tmp_path, array), (3, 3, 1))


def test_damaged_arrays(tmp_path):
    path = Path(save(tmp_path, np.eye(8)))
    whole = path.read_bytes()
    archive = tmp_path / "archive.npz"
    np.savez(archive, a=np.eye(2))
    spoiled_header = whole.replace(b"{'descr'", b"{{{{{{{{")
    objects = tmp_path / "objects.npy"
    np.save(objects, np.array([{}, None]), allow_pickle=True)
    contents = [whole[:n] for n in (0, 4, 20, 200, len(whole) - 1)]
    for content in (*contents, archive.read_bytes(), spoiled_header, objects.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"\.npy': damaged \("):
            parse_noise(str(path))
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        parse_noise(str(tmp_path / "folder.npy"))
