"""What dividing a view by its own deviation, and taking its background off, does to a test."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import published_batch as dal_test_batch
from helpers import published_test as dal_test

from dal_jax import from_score
from dal_jax.images import Preparation, fit, views
from dal_jax.inference import contains
from dal_jax.localizers import gaussian_filter, with_rescaling
from dal_jax.noise import dense, estimate
from tests.search_cases import pooled_localizer

REFERENCES, SHARE = 20, 0.05


def smooth_score(params, draws, x):
    return jnp.abs(gaussian_filter(x[..., 0], 2.0))


def local_score(params, draws, x):
    return jnp.abs(gaussian_filter(x[..., 0], 1.0) - gaussian_filter(x[..., 0], 4.0))


@dataclass(frozen=True)
class Prepared:
    """A score that prepares the image itself: background, then deviation."""

    function: Any

    def __call__(self, params, draws, x):
        flat = x.reshape(-1)
        flat = flat - params["basis"] @ (params["basis"].T @ flat)
        return self.function(params, draws, (flat / jnp.sqrt(jnp.mean(flat**2))).reshape(x.shape))


def basis_of(side):
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, side),) * 2, indexing="ij")
    terms = [np.ones_like(rows), rows, columns, rows * columns, rows**2, columns**2]
    return np.linalg.qr(np.stack(terms, axis=-1).reshape(-1, 6))[0]


@dataclass(frozen=True)
class Scene:
    """Photographs of one view: correlated noise of a scale of its own on a light of its own."""

    side: int
    length: float  # of the correlation, pixels

    def draw(self, rng, count, defects=None):
        """Images (count, side, side, 1), and log-normal scales (count, 1)."""
        n = self.side**2
        places = np.stack(np.divmod(np.arange(n), self.side), axis=-1)
        distance = np.linalg.norm(places[:, None] - places, axis=-1)
        root = np.linalg.cholesky(0.9 * np.exp(-distance / self.length) + 0.1 * np.eye(n))
        noise = rng.normal(size=(count, n)) @ root.T
        if defects is not None:
            noise += defects.reshape(count, n)
        scale = np.exp(0.4 * rng.normal(size=(count, 1)))
        light = rng.normal(size=(count, 6)) * [3, 2, 2, 1, 1, 1] * self.side / 2
        return (light @ basis_of(self.side).T + scale * noise).reshape(count, *self.shape)

    @property
    def shape(self):
        return self.side, self.side, 1


def prepared(images, scale="view"):
    preparation = Preparation(size=images.shape[1], intensity="raw", scale=scale)
    fitted = fit(preparation, images)
    return np.concatenate([views(fitted, image).pixels for image in images])


def localizer_of(score, normal):
    shape = normal.shape[1:]
    params = {"basis": basis_of(shape[0])}
    localizer = from_score(score, shape, 1.0, params)
    scores = [localizer.score(view) for view in normal]
    return localizer.with_threshold(float(np.quantile(scores, 1 - SHARE)))


def test_the_line_stays_among_views_of_unit_deviation():
    # Along the line, the region of the view that would have come, divided by its own deviation.
    plain = pooled_localizer(3, threshold=1.0)
    localizer, rng = with_rescaling(plain), np.random.default_rng(5)
    x = rng.normal(size=(40, *plain.image_shape))
    x = x / np.sqrt((x**2).mean(axis=(1, 2, 3), keepdims=True))
    noise = estimate(x, "iid")
    differ = 0
    for view in x[:8]:
        result = dal_test(localizer, view, np.zeros_like(view), noise, precision=1e-6, z_max=8.0)
        assert np.array_equal(result.region, plain.region(view))
        if result.status.value == "NO_REGION":
            continue
        # Pixels are independent, and half of the difference is the reference's.
        direction = result.region[..., None] / 2
        points = np.linspace(-4, 4, 401)
        moved = view + direction * (points - result.statistic)[:, None, None, None]
        unit = moved / np.sqrt((moved**2).mean(axis=(1, 2, 3), keepdims=True))
        same = [np.array_equal(plain.region(one), result.region) for one in unit]
        # An end is found to 1e-7 of a deviation; a point of the grid nearer than 1e-5 is left out.
        ends = np.append(result.truncation.reshape(-1), np.inf)
        clear = np.abs(points[:, None] - ends).min(axis=1) > 1e-5
        assert np.array_equal(contains(result.truncation, points)[clear], np.array(same)[clear])
        before = [np.array_equal(plain.region(one), result.region) for one in moved]
        differ += int(np.sum(np.array(before) != same))
    assert differ > 0  # the line of the plain localizer has other regions


def test_a_defect_moves_clean_pixels_of_a_prepared_view():
    # As docs/noise_models.md says: 4 deviations, 12 x 12 of 32 x 32.
    rng = np.random.default_rng(0)
    defect = np.zeros((32, 32, 1))
    defect[10:22, 4:16] = 4.0
    noise = rng.normal(size=(200, 32, 32, 1))
    clean = (slice(None), slice(13, 18), slice(20, 25))
    moved = prepared(noise + defect)[clean].mean(axis=(1, 2, 3))
    error = moved.std() / np.sqrt(len(moved))
    assert moved.mean() < -0.5 and error < 0.02
    # All of it is the background: a division moves no mean away from 0.
    basis = basis_of(32)
    flat = (noise + defect).reshape(200, -1)
    flat = (flat - flat @ basis @ basis.T).reshape(200, 32, 32, 1)
    assert flat[clean].mean() < moved.mean()
    print(f"clean patch: {moved.mean():.2f} ({error:.2f}), undivided {flat[clean].mean():.2f}")


def p_values(localizer, x, references, noise):
    """P-values of the regions."""
    results = dal_test_batch(localizer, x, references, noise, region="peak")
    return np.array([result.p_value for result in results if result.status.value == "OK"])


def ways_of(score, normal):
    """Each way of preparation: localizer, noise, and what is done to the images beforehand."""
    known, flat = prepared(normal), prepared(normal, "none")
    plain = localizer_of(score, known[:200])
    exact = [dense(_covariance(pixels)) for pixels in (known, flat, normal)]
    fitted = estimate(known[:300], "stationary")
    return {
        "divided once, dense": (plain, exact[0], prepared),
        "divided along the line, dense": (with_rescaling(plain), exact[0], prepared),
        "divided once, stationary": (plain, fitted, prepared),
        "divided along the line, stationary": (with_rescaling(plain), fitted, prepared),
        "both along the line, stationary": (_inside(plain), fitted, prepared),
        "not divided, dense": (_inside(plain), exact[1], partial(prepared, scale="none")),
        "unprepared pixels, dense": (_inside(plain), exact[2], np.asarray),
    }


@pytest.mark.study
@pytest.mark.parametrize(
    ("score", "length"), [(local_score, 2.0), (smooth_score, 3.0)], ids=["local", "smooth"]
)
def test_ways_of_preparation(score, length):
    """The null of each way of preparation, and the power of the new way over the old one."""
    scene, rng = Scene(16, length), np.random.default_rng(0)
    ways = ways_of(score, scene.draw(rng, 3000))
    called = {}
    for defect, count in ((0.0, 1000), (6.0, 400)):
        squares = np.zeros((count, *scene.shape))
        for square, (row, column) in zip(squares, rng.integers(0, 13, (count, 2)), strict=True):
            square[row : row + 4, column : column + 4] = defect
        x = scene.draw(rng, count, squares)
        pool = scene.draw(rng, 3000)
        selects = np.stack([rng.choice(len(pool), REFERENCES, replace=False) for _ in x])
        for name, (localizer, noise, prepare) in ways.items():
            p = p_values(localizer, prepare(x), prepare(pool)[selects], noise)
            rates = {level: float((p <= level).mean()) for level in (0.05, 0.01, 0.05 / 16)}
            told = ", ".join(
                f"{rate:.4f} ({np.sqrt(rate * (1 - rate) / len(p)):.4f})" for rate in rates.values()
            )
            print(f"defect {defect:g}, {name}: {told} of {len(p)}", flush=True)
            called[defect, name] = rates[0.05], len(p)
            if not defect and name.startswith("divided along"):
                for level, rate in rates.items():
                    assert rate <= level + 2 * np.sqrt(level * (1 - level) / len(p)), name
    old, count = called[6.0, "divided once, dense"]
    new, _ = called[6.0, "divided along the line, dense"]
    # The same images: their difference varies less than either.
    assert new > old + 2 * np.sqrt(old * (1 - old) / count)
    stationary = [
        called[6.0, f"divided {way}, stationary"][0] for way in ("once", "along the line")
    ]
    assert stationary[1] > stationary[0]


def _covariance(pixels):
    flat = pixels.reshape(len(pixels), -1)
    found = flat.T @ flat / len(flat)
    return found + 1e-7 * np.trace(found) / len(found) * np.eye(len(found))


def _inside(localizer):
    return localizer._replace(score_fn=Prepared(localizer.score_fn))
