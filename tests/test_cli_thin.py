"""The verbs thin and test-thinned: a round trip, and what they refuse."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("typer")

from dal_jax import InputError, __version__, thinned, thinned_test
from dal_jax._dal_test._inputs import check_sampled
from dal_jax.cli import main
from dal_jax.images import read_image
from dal_jax.inference import SelectiveP, holm
from dal_jax.noise import dense, diagonal, iid, parse_noise, save_noise
from dal_jax.runs import fingerprint

SHAPE = (6, 7, 1)
AR1 = "ar1:0.5:0.8"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder worked in: an image, two references, a thinned copy and a mask from it."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    x = rng.normal(size=SHAPE)
    x[2:5, 2:5] += 3.0
    np.save("x.npy", x)
    for name in ("y", "z"):
        np.save(f"{name}.npy", rng.normal(size=SHAPE))
    assert main(["thin", "x.npy", *words(noise=AR1, randomization=0.5, seed=3, out="thin")]) == 0
    np.save("mask.npy", np.load("thin/x.thinned.npy") > 1.5)
    return tmp_path


def words(**options: Any) -> list[str]:
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def command(*more: str, **options: Any) -> list[str]:
    """Words of a test that works, with some options replaced."""
    usual = {"mask": "mask.npy", "thinned": "thin", "image": "x.npy", "reference": "y.npy"}
    return ["test-thinned", *words(**{**usual, **options}), *more]


def refused(capsys: pytest.CaptureFixture[str], given: list[str]) -> str:
    capsys.readouterr()
    code = main(given)
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith(f"dal-jax {given[0]}: ")
    return err


def told(capsys: pytest.CaptureFixture[str], given: list[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*given, "--json"]) == 0
    out, _ = capsys.readouterr()
    assert out.count("\n") == 1
    return json.loads(out)


@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
def test_the_command_gives_what_python_gives(
    capsys: pytest.CaptureFixture[str], folder: Path, alternative: str
) -> None:
    x, y, z = (np.load(f"{name}.npy") for name in "xyz")
    noise = parse_noise(AR1, SHAPE)
    halves = thinned(x, noise, 0.5, seed=3, name="x.npy")
    np.testing.assert_array_equal(np.load("thin/x.thinned.npy"), halves.seen[..., 0])
    np.testing.assert_array_equal(read_image("thin/x.thinned.npy"), halves.seen)
    mask = halves.seen[..., 0] > 1.5
    options = {"alternative": alternative, "confidence": 0.9}
    expected = thinned_test(halves, mask, np.stack([y, z]), noise, **options)
    fields = told(capsys, command(*words(reference="z.npy", alpha=0.01, **options)))
    (row,) = fields["results"]
    assert {name: row[name] for name in expected._fields} == expected._asdict()
    assert row["z"] == expected.statistic / expected.sd
    assert row["p_adjusted"] == expected.p_value
    assert row["decision"] == ("significant" if expected.p_value <= 0.01 else "not significant")
    known = {"image": "x.npy", "mask": "mask.npy", "references": ["y.npy", "z.npy"], "gamma": 0.5}
    known |= {"seed": 3, "noise": AR1, "alpha": 0.01, "version": __version__, **options}
    assert {name: fields[name] for name in known} == known
    assert row["num_tested"] == mask.sum()
    assert main(command()) == 0
    assert "mean difference in the mask" in capsys.readouterr().out


def test_each_component_of_a_mask_is_tested_on_its_own(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    x, y = np.load("x.npy"), np.load("y.npy")
    mask = np.zeros(SHAPE[:2], bool)
    mask[0, 0] = mask[2:5, 2:4] = mask[5, 4] = mask[1, 6] = True  # two join across a corner
    np.save("mask.npy", mask)
    parts = [np.zeros_like(mask) for _ in range(3)]
    parts[0][0, 0] = parts[1][1, 6] = True
    parts[2][2:5, 2:4] = parts[2][5, 4] = True
    noise = parse_noise(AR1, SHAPE)
    halves = thinned(x, noise, 0.5, seed=3, name="x.npy")
    expected = [thinned_test(halves, part, y, noise) for part in parts]
    least = min(one.p_value for one in expected)
    level = 2.9 * least  # significant but for the correction
    rows = told(capsys, command("--components", alpha=level))["results"]
    assert [row["p_value"] for row in rows] == [one.p_value for one in expected]
    assert [row["num_tested"] for row in rows] == [1, 1, 7]
    box = [[row[name] for name in ("top", "left", "bottom", "right")] for row in rows]
    assert box == [[0, 0, 1, 1], [1, 6, 2, 7], [2, 2, 6, 5]]
    adjusted = [p.p for p in holm([SelectiveP(*[one.p_value] * 3) for one in expected])]
    assert [row["p_adjusted"] for row in rows] == adjusted and min(adjusted) == 3 * least
    assert {row["decision"] for row in rows} == {"not significant"}
    rows = told(capsys, command("--components", alpha=3 * least))["results"]
    assert [row["decision"] for row in rows].count("significant") == 1
    assert main(command("--components")) == 0
    out = capsys.readouterr().out
    assert "component 3 of 3, rows 2 to 5, columns 2 to 4: p = " in out


def test_null_p_values_of_the_commands_are_uniform(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The detector picks the brightest pixel, for which a plain test would nearly always reject."""
    monkeypatch.chdir(tmp_path)
    rng, p = np.random.default_rng(1), []
    for number in range(60):
        np.save(f"{number}.npy", rng.normal(size=SHAPE))
    common = {"noise": "iid:1", "randomization": 1.0, "out": "thin"}
    assert main(["thin", *(f"{number}.npy" for number in range(60)), *words(**common)]) == 0
    for number in range(60):
        seen = np.load(f"thin/{number}.thinned.npy")
        np.save("mask.npy", seen == seen.max())
        np.save("y.npy", rng.normal(size=SHAPE))
        given = command(image=f"{number}.npy", alternative="greater")
        p.append(told(capsys, given)["results"][0]["p_value"])
    # 3 standard errors of a share of 0.2 and of the mean of uniform numbers.
    assert abs(np.mean(np.array(p) <= 0.2) - 0.2) < 3 * np.sqrt(0.2 * 0.8 / len(p))
    assert abs(np.mean(p) - 0.5) < 3 / np.sqrt(12 * len(p))


def test_pictures_and_colours(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pillow = pytest.importorskip("PIL.Image")
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(2)
    for name in ("x", "y"):
        pixels = rng.integers(0, 256, (6, 7, 3)).astype(np.uint8)
        pillow.fromarray(pixels).save(f"{name}.png")
    mask = np.zeros((6, 7), np.uint8)
    mask[1:3, 2:4] = 255
    pillow.fromarray(mask).save("mask.png")
    save_noise("n.npz", iid(0.1))
    common = {"noise": "n.npz", "randomization": 0.5, "out": "thin"}
    made = told(capsys, ["thin", "*.png", *words(**common)])
    assert made["copies"] == [f"thin/{name}.thinned.npy" for name in ("mask", "x", "y")]
    assert np.load("thin/x.thinned.npy").shape == (6, 7, 3)
    given = {"mask": "mask.png", "image": "x.png", "reference": "y.png"}
    # The same covariance, given in another way.
    fields = [told(capsys, command(**given, **more)) for more in ({}, {"noise": "iid:0.1"})]
    assert fields[0]["results"] == fields[1]["results"]
    assert fields[0]["results"][0]["sd"] == pytest.approx(0.1 * np.sqrt(6 / 12))


def test_the_same_command_again_changes_nothing(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    def contents() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in Path("thin").iterdir()}

    before = contents()
    again = {"noise": AR1, "randomization": 0.5, "seed": 3, "out": "thin"}
    assert main(["thin", "x.npy", *words(**again)]) == 0
    assert contents() == before
    # The same noise in other words, or another release of the package, is no other setting.
    assert main(["thin", "x.npy", *words(**{**again, "noise": "ar1:0.50:.8"})]) == 0
    record = json.loads(Path("thin/x.thinned.json").read_text())
    Path("thin/x.thinned.json").write_text(json.dumps({**record, "version": "0.0.1"}))
    before = contents()
    assert main(["thin", "x.npy", *words(**again)]) == 0
    assert contents() == before
    # A second look with other noise would leave the first one's record beside another copy.
    for change in ({"seed": 4}, {"randomization": 0.7}, {"noise": "iid:1"}):
        err = refused(capsys, ["thin", "x.npy", *words(**{**again, **change})])
        assert "expected another folder" in err
    np.save("x.npy", np.load("y.npy"))
    assert "expected another folder" in refused(capsys, ["thin", "x.npy", *words(**again)])
    assert contents() == before


def test_what_a_detector_has_seen_is_not_overwritten(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    """Other random numbers of another release would leave the record beside another copy."""
    path, again = Path("thin/x.thinned.npy"), words(noise=AR1, randomization=0.5, seed=3)
    copy = np.load(path)
    np.save(path, copy + 0.01)
    given = ["thin", "x.npy", *again, "--out", "thin"]
    assert "differs from the image with the noise" in refused(capsys, given)
    np.testing.assert_array_equal(np.load(path), copy + 0.01)
    path.unlink()
    assert main(given) == 0
    np.testing.assert_array_equal(np.load(path), copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"randomization": 0}, "--randomization: got 0.0, expected a number from 0.001 to 1000"),
        ({"randomization": -1}, "--randomization: got -1.0, expected a number from 0.001"),
        ({"randomization": "inf"}, "--randomization: got inf, expected a number from 0.001"),
        ({"randomization": "nan"}, "--randomization: got nan, expected a number from 0.001"),
        ({"randomization": "half"}, "--randomization"),
        ({"seed": -1}, "seed: got -1, expected a whole number of 0 or above"),
        ({"seed": 0.5}, "--seed"),
        ({"noise": "pink"}, "noise 'pink': expected iid:SIGMA"),
        ({"noise": "m.npy"}, "noise 'm.npy': "),
        ({"out": "y.npy"}, "cannot write"),
    ],
)
def test_bad_thinning_is_one_line(
    capsys: pytest.CaptureFixture[str], folder: Path, change: dict[str, Any], message: str
) -> None:
    np.save("m.npy", np.eye(3))
    before = sorted(folder.rglob("*"))
    given = {"noise": "iid:1", "randomization": 0.5, "out": "new", **change}
    assert message in refused(capsys, ["thin", "x.npy", *words(**given)])
    assert sorted(folder.rglob("*")) == before


def test_bad_images_are_one_line(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    np.save("nan.npy", np.full(SHAPE, np.nan))
    Path("b").mkdir()
    np.save("b/x.npy", np.load("y.npy"))
    common = words(noise="iid:1", randomization=0.5, out="new")
    assert "no such file" in refused(capsys, ["thin", "absent.npy", *common])
    assert "no file fits" in refused(capsys, ["thin", "*.tif", *common])
    assert "NaN or infinite" in refused(capsys, ["thin", "nan.npy", *common])
    assert "has the name of 'x.npy'" in refused(capsys, ["thin", "x.npy", "b/x.npy", *common])
    assert not Path("new").exists()


def test_an_image_given_twice_is_one_line(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    common = words(noise="iid:1", randomization=0.5, out="new")
    for names in (("x.npy", "./x.npy"), ("x.npy", str(folder / "x.npy")), ("x.npy", "[x].npy")):
        err = refused(capsys, ["thin", *names, *common])
        assert err.startswith("dal-jax thin: IMAGE: got ")
        assert err.endswith("x.npy' twice, expected each file once\n")


def test_one_bad_image_does_not_stop_the_others(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    for name in ("bad", "worse"):
        Path(f"{name}.npy").write_bytes(b"bad")
    common = words(noise="iid:1", randomization=0.5, out="new")
    capsys.readouterr()
    assert main(["thin", "x.npy", "bad.npy", "worse.npy", "y.npy", *common]) == 2
    out, err = capsys.readouterr()
    assert out.startswith("2 copies with 0.5 times the noise added")
    lines = err.splitlines()
    for line, name in zip(lines, ("bad", "worse"), strict=True):
        assert line.startswith(f"dal-jax thin: image '{name}.npy': unreadable or damaged")
    assert {p.name for p in Path("new").glob("*.npy")} == {"x.thinned.npy", "y.thinned.npy"}
    assert main(["thin", "x.npy", "bad.npy", *common, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["images"] == ["x.npy"]


def test_copies_are_not_thinned_again(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    Path("mask.npy").unlink()
    np.save("own.thinned.npy", np.load("y.npy"))  # an image whose name only looks like one
    given = ["thin", "*.npy", *words(noise="iid:1", randomization=0.5, out=".")]
    made = told(capsys, given)
    assert made["images"] == ["own.thinned.npy", "x.npy", "y.npy", "z.npy"]
    assert main(given) == 0
    assert capsys.readouterr().err == (
        "IMAGE: not used: copies that thin wrote (4): 'own.thinned.thinned.npy', 'x.thinned.npy', "
        "'y.thinned.npy', ...\n"
    )
    assert len(list(Path().glob("*.npy"))) == 8
    for name in ("x.thinned.npy", "thin/*.npy"):
        assert "a copy that thin wrote, expected an image" in refused(
            capsys, ["thin", name, *given[2:]]
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "b/x.npy"}, "--image 'b/x.npy': other pixels than those that were thinned"),
        ({"image": "y.npy"}, "record 'thin/y.thinned.json': no such file"),
        ({"image": "x.tif"}, "image 'x.tif': no such file"),
        ({"randomization": 0.7}, "--randomization: got 0.7, expected 0.5, with which 'x.npy'"),
        ({"seed": 4}, "--seed: got 4, expected 3, with which 'x.npy'"),
        ({"noise": "iid:0.8"}, "--noise: got 'iid:0.8', another covariance"),
        ({"noise": "pink"}, "noise 'pink': expected iid:SIGMA"),
        ({"mask": "empty.npy"}, "--mask 'empty.npy': is empty"),
        ({"mask": "small.npy"}, "--mask 'small.npy': shape (3, 3), expected (6, 7)"),
        ({"mask": "absent.npy"}, "test-thinned: --mask 'absent.npy': no such file"),
        ({"mask": "pickle.npy"}, "test-thinned: --mask 'pickle.npy': unreadable"),
        ({"mask": "mask.txt"}, "test-thinned: --mask 'mask.txt': unknown kind of file"),
        ({"reference": "small.npy"}, "--reference 'small.npy': shape (3, 3, 1), expected (6, 7, 1"),
        ({"reference": "nan.npy"}, "NaN or infinite"),
        ({"reference": "x.npy"}, "is the tested image or its copy"),
        ({"reference": "thin/x.thinned.npy"}, "is the tested image or its copy"),
        ({"alternative": "up"}, "--alternative"),
        ({"confidence": 1}, "confidence: got 1.0, expected a level between 0 and 1"),
        ({"alpha": 0}, "--alpha: got 0.0, expected a level between 0 and 1"),
        ({"thinned": "absent"}, "record 'absent/x.thinned.json': no such file"),
    ],
)
def test_bad_test_is_one_line(
    capsys: pytest.CaptureFixture[str], folder: Path, change: dict[str, Any], message: str
) -> None:
    Path("b").mkdir()
    np.save("b/x.npy", np.load("x.npy") + 1e-9)
    np.save("nan.npy", np.full(SHAPE, np.nan))
    np.save("empty.npy", np.zeros(SHAPE[:2], bool))
    np.save("small.npy", np.ones((3, 3)))
    Path("mask.txt").write_text("1")
    np.save("pickle.npy", np.array([{}], object), allow_pickle=True)
    assert message in refused(capsys, command(**change))


@pytest.mark.parametrize(
    ("other", "value", "message"),
    [
        (0, 1, None),
        (0, 255, None),
        (0, 7.0, None),
        (False, True, None),
        (255, 255, None),
        (0, np.nan, "holds nan, expected 0 and one other value above it"),
        (0, np.inf, "holds inf, expected 0 and one"),
        (0, -1, "holds -1, expected 0 and one"),
        (0, [1, -1], "holds -1, 1, expected 0 and one"),
        (0, [1, np.nan], "holds 1, nan, expected 0 and one"),
        (0.125, [0.25, 0.5, 0.75], "holds 0.125, 0.25, 0.5, ..., expected 0 and one"),
        (1, 2, "holds 1, 2, expected 0 and one"),
        (0.5, 0.5, "holds 0.5, expected 0 and one"),
        (0, 1j, "values of type complex128, expected bool or numbers"),
        ("a", "b", "values of type <U1, expected bool or numbers"),
    ],
)
def test_a_mask_holds_0_and_one_other_value(
    capsys: pytest.CaptureFixture[str], folder: Path, other: Any, value: Any, message: str | None
) -> None:
    """A map of scores is no mask: nobody can tell which of its pixels were flagged."""
    flagged = np.load("mask.npy")
    values = np.full(SHAPE[:2], other, np.result_type(np.asarray(other), np.asarray(value)))
    values[flagged] = np.resize(value, flagged.sum())
    np.save("mask.npy", values)
    if message is None:
        expected = values.size if other else flagged.sum()
        assert told(capsys, command())["results"][0]["num_tested"] == expected
    else:
        assert f"test-thinned: --mask 'mask.npy': {message}" in refused(capsys, command())


@pytest.mark.parametrize("way", ["red on white", "transparency", "palette"])
def test_a_mask_in_unclear_colours_is_refused(
    capsys: pytest.CaptureFixture[str], folder: Path, way: str
) -> None:
    pillow = pytest.importorskip("PIL.Image")
    marks = np.load("mask.npy").astype(np.uint8)
    colours = 255 - marks[..., None] * np.array([0, 255, 255], np.uint8)
    if way == "transparency":
        colours = np.concatenate([0 * colours + 255, 255 * marks[..., None]], -1).astype(np.uint8)
    made = pillow.fromarray(colours)
    if way == "palette":
        made = pillow.fromarray(marks, "L")
        made.putpalette([255, 0, 0, 0, 0, 0])
    made.save("mask.png")
    expected = {
        "red on white": "colours without black",
        "transparency": "colours and transparency differ",
        "palette": "a palette of colours, expected black as entry 0",
    }
    assert f"--mask 'mask.png': {expected[way]}" in refused(capsys, command(mask="mask.png"))


def test_a_reference_is_needed(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    given = command()
    where = given.index("--reference")
    assert "--reference: got none" in refused(capsys, given[:where] + given[where + 2 :])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": "a.npy"}, "the copy is of 'a.npy'"),
        ({"gamma": 0}, "gamma: got 0.0, expected a number from 0.001"),
        ({"gamma": -0.5}, "gamma: got -0.5, expected a number from"),
        ({"gamma": float("inf")}, "gamma: got inf, expected a number from"),
        ({"gamma": 10**400}, "gamma: got 1000"),
        ({"gamma": 0.4}, "copy 'thin/x.thinned.npy': differs"),
        ({"gamma": True}, "gamma: got True, expected a number"),
        ({"seed": -1}, "seed: got -1, expected a whole number of 0 or above"),
        ({"seed": None}, "seed: got None, expected a whole number"),
        ({"seed": 4}, "copy 'thin/x.thinned.npy': differs"),
        ({"noise": "iid:1"}, "--noise: got 'iid:1', another covariance"),
        ({"more": 1}, "unknown key 'more'"),
    ],
)
def test_another_record_is_refused(
    capsys: pytest.CaptureFixture[str], folder: Path, change: dict[str, Any], message: str
) -> None:
    path = Path("thin/x.thinned.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    assert message in refused(capsys, command())


@pytest.mark.parametrize("text", ["", "[]", '{"image": "x.npy"}', "[" * 100_000, "\x00"])
def test_damaged_records_are_refused(
    capsys: pytest.CaptureFixture[str], folder: Path, text: str
) -> None:
    Path("thin/x.thinned.json").write_text(text)
    err = refused(capsys, command())
    assert "record 'thin/x.thinned.json': " in err
    assert "expected a record that thin wrote" in err or "'pixels_sha256' is missing" in err


def test_another_copy_is_refused(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    """The added noise is drawn again; that the detector saw it is checked."""
    path = Path("thin/x.thinned.npy")
    copy = np.load(path)
    np.save(path, copy + 1e-9)  # rounding, as between machines
    assert main(command()) == 0
    np.save(path, copy + 0.01)
    assert "differs from the image with the noise" in refused(capsys, command())
    np.save(path, copy[:-1])
    assert "differs from the image with the noise" in refused(capsys, command())
    path.unlink()
    assert "no such file" in refused(capsys, command())


def test_noise_in_a_file_is_known_by_its_numbers(
    capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    np.save("n.npy", np.full(SHAPE[:2], 2.0))
    common = {"noise": "n.npy", "randomization": 0.5, "out": "new"}
    assert main(["thin", "x.npy", *words(**common)]) == 0
    Path("n.npy").rename("moved.npy")
    assert "noise 'n.npy'" in refused(capsys, command(thinned="new"))
    assert main(command(thinned="new", noise="moved.npy")) == 0
    np.save("n.npy", np.full(SHAPE[:2], 2.5))
    assert "another covariance" in refused(capsys, command(thinned="new"))


def test_digests_tell_covariances_apart() -> None:
    covariances = [
        *(iid(1.0), iid(2.0), parse_noise(AR1, SHAPE), diagonal(np.ones(SHAPE))),
        *(diagonal(np.ones((7, 6, 1))), dense(np.eye(42)), dense(2 * np.eye(42))),
    ]
    assert len({fingerprint(one) for one in covariances}) == len(covariances)


def test_every_verb_says_the_same_of_noise(capsys: pytest.CaptureFixture[str]) -> None:
    told = []
    for verb in ("test", "thin", "test-thinned"):
        assert main([verb, "--help"]) == 0
        words = " ".join(capsys.readouterr().out.split())
        told.append(words[words.index("--noise") :].partition("or a matrix (n, n).")[0])
    assert "iid:SIGMA|ar1:RHO:SIGMA|FILE Covariance" in told[0]
    assert "8-bit files divided by 255" in told[0] and "FILE.npz of save_noise" in told[0]
    assert told[0] == told[1] == told[2]


def test_noise_that_cannot_be_sampled_is_refused(
    capsys: pytest.CaptureFixture[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No covariance that the command can name is of this kind."""

    class Unsampled:
        def apply(self, v: np.ndarray) -> np.ndarray:
            return v

        def check(self, shape: tuple[int, ...]) -> None:
            pass

    with pytest.raises(InputError, match="without `sample`"):
        check_sampled(Unsampled())
    monkeypatch.setattr("dal_jax.cli._thin.parse_noise", lambda text, shape: Unsampled())
    monkeypatch.setattr("dal_jax.cli._thin.fingerprint", lambda part: "")
    given = ["thin", "x.npy", *words(noise="iid:1", randomization=0.5, out="new")]
    assert "without `sample`, expected a covariance that can" in refused(capsys, given)
    assert not Path("new").exists()
