"""Every form of the noise option, and one clear line for every other text."""

from pathlib import Path

import numpy as np
import pytest

from dal_jax import InputError
from dal_jax.noise import ar1, iid, parse_noise

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
        ("iid:0", "sigma is 0.0, expected"),
        ("iid:-1", "sigma is -1.0, expected"),
        ("iid:nan", "sigma is nan, expected"),
        ("ar1:1:1", "rho is 1.0, expected"),
        ("ar1:0.5:inf", "sigma is inf, expected"),
        ("missing.npy", "cannot be read"),
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


def test_damaged_files(tmp_path):
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
        with pytest.raises(InputError, match=r"is not a complete \.npy array of numbers$"):
            parse_noise(str(path))
    (tmp_path / "folder.npy").mkdir()
    with pytest.raises(InputError, match="cannot be read"):
        parse_noise(str(tmp_path / "folder.npy"))
