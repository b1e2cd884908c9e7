"""Preparation: views of one size, statistics of the training images alone, maps put together."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dal_jax import InputError
from dal_jax.images import (
    Fitted,
    Preparation,
    Views,
    cut,
    fit,
    foreign,
    mask_views,
    random_views,
    stitch,
    views,
)

pytest.importorskip("skimage")

RNG = np.random.default_rng(2)
PLAIN = Preparation(size=8, intensity="raw", background="none", scale="none")


def noise(height: int, width: int, channels: int = 1) -> np.ndarray:
    return RNG.uniform(0.1, 0.9, (height, width, channels))


def prepared(preparation: Preparation, image: np.ndarray) -> Views:
    return views(fit(preparation, [image]), image)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (19, 30), (33, 17)])
@pytest.mark.parametrize(("overlap", "border"), [(0, 0), (3, 0), (7, 2)])
def test_tiles_put_together_are_the_image(
    height: int, width: int, overlap: int, border: int
) -> None:
    image = noise(height, width)
    fitted = fit(replace(PLAIN, view="tile", overlap=overlap, border=border), [image])
    found = views(fitted, image)
    back = stitch(fitted, found.pixels[..., 0], found, image.shape)
    inner = (slice(border, height - border), slice(border, width - border))
    # A weighted mean of equal values: a few roundings.
    np.testing.assert_allclose(back[inner], image[inner][..., 0], rtol=0, atol=1e-12)
    outside = np.ones(image.shape[:2], bool)
    outside[inner] = False
    assert np.isnan(back[outside]).all()
    # The last tile is moved inwards: none leaves the interior.
    assert found.corners.min() == border
    assert ((found.corners + found.extents).max(0) == np.array([height, width]) - border).all()


def test_seams_are_blended() -> None:
    """Neighbouring tiles that disagree: the map passes from one to the other in steps."""
    image = noise(8, 12)
    fitted = fit(replace(PLAIN, view="tile", overlap=4), [image])
    found = views(fitted, image)
    maps = np.stack([np.zeros((8, 8)), np.ones((8, 8))])
    row = stitch(fitted, maps, found, image.shape)[0]
    np.testing.assert_array_equal(row[:4], 0.0)
    np.testing.assert_array_equal(row[8:], 1.0)
    # Weights 4, 3, 2, 1 against 1, 2, 3, 4, in fifths.
    np.testing.assert_allclose(row[4:8], np.array([1, 2, 3, 4]) / 5, rtol=1e-12)


@given(st.integers(8, 40), st.integers(8, 40), st.integers(0, 7), st.integers(1, 2))
def test_tiles_cover_everything(height: int, width: int, overlap: int, reduce: int) -> None:
    image = np.ones((height * reduce, width * reduce, 1))
    image[::2] = 2.0
    image[:, ::3] = 3.0
    fitted = fit(replace(PLAIN, view="tile", overlap=overlap, reduce=reduce), [image])
    found = views(fitted, image)
    back = stitch(fitted, np.ones((len(found.corners), 8, 8)), found, image.shape)
    np.testing.assert_allclose(back, 1.0, rtol=1e-14)


def test_averaged_pixels_and_corners() -> None:
    image = noise(30, 40)
    found = prepared(replace(PLAIN, view="crop", reduce=3, border=1), image)
    assert found.corners.tolist() == [[3, 8]]
    expected = image[3:27, 8:32].reshape(8, 3, 8, 3).mean((1, 3))
    np.testing.assert_allclose(found.pixels[0, ..., 0], expected, rtol=1e-14)
    fitted = fit(replace(PLAIN, view="crop", reduce=3, border=1), [image])
    back = stitch(fitted, found.pixels[..., 0], found, image.shape)
    np.testing.assert_allclose(back[3:6, 8:11], found.pixels[0, 0, 0, 0], rtol=1e-14)
    assert np.isnan(back).sum() == 30 * 40 - 24 * 24


@pytest.mark.parametrize(("height", "width"), [(40, 23), (8, 8), (5, 30)])
def test_resizing_is_anti_aliased_and_maps_go_back(height: int, width: int) -> None:
    image = np.broadcast_to(np.linspace(0, 1, width)[None, :, None], (height, width, 1))
    found = prepared(PLAIN, image)
    assert found.pixels.shape == (1, 8, 8, 1) and found.extents.tolist() == [[height, width]]
    # A ramp stays a ramp away from the edges, where the filter reflects.
    middles = (np.arange(8) + 0.5) / 8 * width - 0.5
    expected = middles / (width - 1)
    np.testing.assert_allclose(found.pixels[0, 3, 2:6, 0], expected[2:6], atol=0.02)
    fine = RNG.integers(0, 2, (80, 80, 1)) * 1.0
    # Black and white far finer than the view is grey: 0.5 / 10 for means of 10 by 10 pixels.
    assert prepared(PLAIN, fine).pixels.std() < 0.1
    grid = np.arange(64.0).reshape(8, 8)
    back = stitch(fit(PLAIN, [image]), grid[None], found, image.shape)
    assert back.shape == (height, width) and set(back.ravel()) <= set(grid.ravel())
    if height >= 8 and width >= 8:
        assert len(set(back.ravel())) == 64


def test_masks_keep_every_marked_pixel() -> None:
    image, mask = noise(37, 50), np.zeros((37, 50), bool)
    mask[36, 49] = mask[0, 20] = True
    fitted = fit(PLAIN, [image])
    small = mask_views(fitted, mask, views(fitted, image))
    assert small.shape == (1, 8, 8) and small.dtype == bool
    assert small.sum() == 2 and small[0, 7, 7] and small[0, 0, 3]
    tiled = fit(replace(PLAIN, view="tile", reduce=2), [image])
    found = views(tiled, image)
    assert mask_views(tiled, mask, found).sum() == ((mask[:, :32].sum() > 0) + 0) + 1
    tiny = noise(4, 5)
    fitted = fit(PLAIN, [tiny])
    grown = mask_views(fitted, np.eye(4, 5) > 0, views(fitted, tiny))
    assert 0.25 * 64 / 2 < grown.sum() < 0.7 * 64


@pytest.mark.parametrize("channels", [1, 3])
def test_a_quadratic_is_taken_off_exactly(channels: int) -> None:
    rows, columns = np.indices((8, 8)) / 7.0
    ramp = 1 + 2 * rows - columns + 0.5 * rows * columns + 3 * rows**2 - columns**2
    image = np.stack([(k + 1) * ramp for k in range(channels)], axis=-1)
    preparation = replace(PLAIN, background="quadratic", grey=False)
    np.testing.assert_allclose(prepared(preparation, image).pixels, 0.0, atol=1e-13)
    with pytest.raises(InputError, match="nothing is left"):
        prepared(replace(preparation, scale="view"), image)
    logs = replace(preparation, intensity="log")
    bright = np.exp(image / 10)
    np.testing.assert_allclose(prepared(logs, bright).pixels, 0.0, atol=1e-13)
    # What is left of any image is orthogonal to the background: applying it again changes nothing.
    noisy = noise(8, 8, channels)
    once = prepared(preparation, noisy).pixels[0]
    np.testing.assert_allclose(prepared(preparation, once).pixels[0], once, atol=1e-13)


@pytest.mark.parametrize("grey", [True, False])
def test_view_scale(grey: bool) -> None:
    image = noise(20, 24, 3)
    found = prepared(replace(PLAIN, scale="view", grey=grey), image)
    assert found.pixels.shape[-1] == (1 if grey else 3)
    np.testing.assert_allclose(found.pixels.mean((1, 2)), 0, atol=1e-14)
    assert found.pixels.std() == pytest.approx(1, rel=1e-12)
    # Brightness and gain of the camera do not matter any more.
    other = prepared(replace(PLAIN, scale="view", grey=grey), 5 * image + 3)
    np.testing.assert_allclose(other.pixels, found.pixels, atol=1e-12)
    np.testing.assert_allclose(other.scale, 5 * found.scale, rtol=1e-12)


def test_train_scale_knows_the_training_images_alone() -> None:
    images = [noise(16, 16, 2) * (k + 1) for k in range(4)]
    preparation = replace(PLAIN, view="tile", scale="train", grey=False)
    fitted = fit(preparation, images)
    stack = np.stack(images).reshape(-1, 2)
    np.testing.assert_allclose(fitted.mean, stack.mean(0), rtol=1e-12)
    assert fitted.sd == pytest.approx(np.sqrt(stack.var(0).mean()), rel=1e-12)
    assert fitted.num_images == 4
    test = noise(16, 16, 2)
    found = views(fitted, test).pixels[0]
    np.testing.assert_allclose(found, (test[:8, :8] - stack.mean(0)) / fitted.sd, rtol=1e-12)
    with pytest.raises(InputError, match="an iterator"):
        fit(preparation, iter(images))
    assert fit(PLAIN, iter(images)).channels == 1


def test_quantiles_and_floor_of_the_logarithm() -> None:
    image = noise(16, 16)
    image[0, 0] = 0.0
    fitted = fit(replace(PLAIN, view="tile", intensity="log", background="none"), [image])
    low, middle, high = np.quantile(image, [0.001, 0.5, 0.999])
    np.testing.assert_allclose(fitted.quantiles, (low, middle, high), rtol=1e-12)
    found = views(fitted, image).pixels[0, 0, 0, 0]
    assert found == pytest.approx(np.log(high / 255), rel=1e-12)


def test_json_round_trip() -> None:
    preparation = Preparation(16, "tile", border=2, grey=False, overlap=3, scale="train")
    fitted = fit(preparation, [noise(30, 41, 3), noise(25, 25, 3)])
    text = json.dumps(fitted.to_dict())
    again = Fitted.from_dict(json.loads(text))
    assert again == fitted
    image = noise(30, 30, 3)
    np.testing.assert_array_equal(views(again, image).pixels, views(fitted, image).pixels)
    broken = json.loads(text)
    for change in (
        {"sd": "wide"},
        {"more": 1},
        {"preparation": None},
        {"preparation": {**broken["preparation"], "size": 0}},
        {"quantiles": [1.0]},
    ):
        with pytest.raises(InputError):
            Fitted.from_dict({**broken, **change})


def test_random_views() -> None:
    image = noise(20, 30)
    fitted = fit(replace(PLAIN, view="crop", border=2, reduce=2), [image])
    found = random_views(fitted, image, count=40, seed=1)
    assert found.pixels.shape == (40, 8, 8, 1)
    assert found.corners.min(0).tolist() == [2, 2]
    assert found.corners.max(0).tolist() == [2, 12]  # 20 - 4 - 16 and 30 - 4 - 16, and the border
    for (top, left), view in zip(found.corners, found.pixels, strict=True):
        block = image[top : top + 16, left : left + 16].reshape(8, 2, 8, 2).mean((1, 3))
        np.testing.assert_allclose(view[..., 0], block, rtol=1e-13)
    np.testing.assert_array_equal(found.pixels, random_views(fitted, image, 40, 1).pixels)
    with pytest.raises(InputError, match="there are none"):
        random_views(fit(PLAIN, [image]), image, 3, 0)


@pytest.mark.parametrize("foreground", ["nonzero", "otsu"])
def test_foreground_rules_background_and_scale(foreground: str) -> None:
    """A bright object on black: what lies outside changes nothing inside."""
    image = np.zeros((24, 40, 1))
    image[2:20, 3:14] = noise(18, 11) + 1
    kind = {"view": "crop", "background": "quadratic", "scale": "view", "foreground": foreground}
    preparation = replace(PLAIN, **kind)
    middle = np.roll(image, 12, axis=1)
    fitted = fit(preparation, [middle])
    found = random_views(fitted, image, count=100, seed=0)
    np.testing.assert_array_equal(found.pixels[~found.foreground], 0.0)
    for shown, corner, extent in zip(found.foreground, found.corners, found.extents, strict=True):
        inside = cut(image, corner, extent)[..., 0] > 0
        assert not (shown & ~inside).any() and (not shown.any() or shown.sum() > 0.5 * inside.sum())
    empty = ~found.foreground.any((1, 2))
    assert 0 < empty.sum() < 90 and np.isnan(found.scale[empty]).all()
    for view, shown, scale in zip(found.pixels, found.foreground, found.scale, strict=True):
        if shown.any():
            assert view[shown].std() == pytest.approx(1, rel=1e-9) and scale > 0
            assert abs(view[shown].mean()) < 1e-9
    for dark in (np.zeros((24, 40, 1)), np.zeros((8, 8, 1))):
        with pytest.raises(InputError, match="without foreground"):
            random_views(fitted, dark, count=2, seed=0)


@pytest.mark.parametrize("foreground", ["nonzero", "otsu"])
@pytest.mark.parametrize("scale", ["view", "train"])
def test_the_foreground_is_that_of_the_training_images(foreground: str, scale: str) -> None:
    """What is tested has no say in which of its pixels are: they are the same in every image."""

    def photograph(left: int = 3) -> np.ndarray:
        image = np.zeros((12, 16, 1))
        image[2:10, left:12] = noise(8, 12 - left) + 1
        return image

    kind = {"view": "crop", "scale": scale, "foreground": foreground}
    training = [photograph() for _ in range(30)] + [photograph(8)]  # one in 31 lacks some columns
    fitted = fit(replace(PLAIN, **kind), training)
    np.testing.assert_array_equal(fitted.shown, np.ones((8, 8), bool))  # columns 4 to 11
    wide = fit(replace(PLAIN, size=12, **kind), training)
    expected = np.zeros((12, 12), bool)
    expected[2:10, 1:10] = True
    np.testing.assert_array_equal(wide.shown, expected)
    found = views(wide, photograph(7))
    np.testing.assert_array_equal(found.foreground[0], expected)
    assert found.pixels[0][expected].all() and not found.pixels[0][~expected].any()
    assert Fitted.from_dict(json.loads(json.dumps(wide.to_dict()))) == wide
    broken = {**wide.to_dict(), "foreground": [3, 4]}
    with pytest.raises(InputError, match="foreground of 7 pixels, expected 12 x 12"):
        Fitted.from_dict(broken)
    with pytest.raises(InputError, match="expected 12 or more: is what they show in the same"):
        high, left = photograph(), photograph()
        high[4:], left[:, 6:] = 0, 0  # they share four pixels
        fit(replace(PLAIN, **kind), [high, left])
    with pytest.raises(InputError, match="an iterator"):
        fit(replace(PLAIN, **kind), iter(training))
    with pytest.raises(InputError, match="'tile', expected 'resize' or 'crop'"):
        replace(PLAIN, view="tile", foreground=foreground)


def test_images_in_other_units_are_warned_of_or_refused() -> None:
    """A model of 8-bit images given 12 bits in 16, or floats of 0 to 255, is told so."""
    training = [noise(20, 20) for _ in range(10)]  # 0.1 to 0.9
    fitted = fit(PLAIN, training)
    assert [foreign(fitted, image) for image in training] == [""] * 10
    image = noise(20, 20)
    assert foreign(fitted, image) == ""
    for other in (255 * image, image * 4095 / 65535, image / 257, image - 5):
        with pytest.raises(InputError, match="other units than the training images"):
            foreign(fitted, other)
    spotted = image.copy()
    spotted[:6, :6] = 1.0  # 9% of the pixels: a defect may do that
    assert foreign(fitted, spotted) == ""
    spotted[:12, :12] = 1.0  # 36%
    assert "of its pixels are outside of 0.1" in foreign(fitted, spotted)
    assert "its brightest pixels" in foreign(fitted, 0.1 + (image - 0.1) / 2.5)


@pytest.mark.parametrize(
    ("intensity", "background", "scale"),
    list(product(("raw", "log"), ("none", "quadratic"), ("view", "train", "none"))),
)
def test_black_image_is_refused(intensity: str, background: str, scale: str) -> None:
    given = {"intensity": intensity, "background": background, "scale": scale}
    fitted = fit(replace(PLAIN, **given), [noise(20, 20)])
    for level in (0.0, 0.1, 1e-8):
        with pytest.raises(InputError, match="view without contrast"):
            views(fitted, np.full((30, 20, 1), level))
    tiny = 1e-8 * noise(20, 20)  # dim is not black, unless the logarithm says so
    if intensity == "raw":
        assert np.isfinite(views(fitted, tiny).pixels).all()


def test_refusals_of_images() -> None:
    fitted = fit(replace(PLAIN, view="tile", grey=False, border=1), [noise(20, 20, 3)])
    cases = [
        (noise(20, 9, 3), "20 by 9 pixels without a border of 1: view 'tile' needs 8 by 8"),
        (noise(20, 20, 1), "1 channels, expected 3"),
        (np.zeros((20, 20)), r"shape \(20, 20\)"),
        (np.full((20, 20, 3), np.nan), "NaN or infinite"),
    ]
    for image, message in cases:
        with pytest.raises(InputError, match=message):
            views(fitted, image)
    logs = replace(PLAIN, intensity="log")
    with pytest.raises(InputError, match="negative pixels"):
        views(fit(logs, [noise(9, 9)]), noise(9, 9) - 1)
    with pytest.raises(InputError, match="training image 1: image with NaN"):
        fit(PLAIN, [noise(9, 9), np.full((9, 9, 1), np.inf)])
    with pytest.raises(InputError, match="training image 1: view without contrast"):
        fit(replace(PLAIN, scale="train"), [noise(9, 9), np.ones((9, 9, 1))])
    with pytest.raises(InputError, match="none given"):
        fit(PLAIN, [])
    with pytest.raises(InputError, match="no positive pixels"):
        fit(logs, [np.zeros((9, 9, 1))])
    mixed, names = [noise(9, 9), noise(9, 9, 3)], ["a.png", "b.png"]
    with pytest.raises(
        InputError, match=r"images with 1 \(image 'a.png'\) and 3 \(image 'b.png'\)"
    ):
        fit(replace(PLAIN, grey=False), mixed, names)
    with pytest.raises(InputError, match=r"training image 'b.png': image with NaN"):
        fit(PLAIN, [noise(9, 9), np.full((9, 9, 1), np.inf)], names)
    found = views(fitted, noise(20, 20, 3))
    with pytest.raises(InputError, match="maps of shape"):
        stitch(fitted, np.zeros((2, 8, 8)), found, (20, 20))


@pytest.mark.parametrize(
    "given",
    [
        {"size": 1},
        {"size": 8.0},
        {"view": "zoom"},
        {"intensity": "sqrt"},
        {"background": "cubic"},
        {"scale": "batch"},
        {"foreground": "brain"},
        {"border": -1},
        {"overlap": 32},
        {"overlap": True},
        {"reduce": 0},
        {"reduce": 2},
        {"grey": 1},
    ],
)
def test_refusals_of_choices(given: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(given))):
        Preparation(**given)  # type: ignore[arg-type]
