"""What the tests of MDPS and GLAD share: tiny networks, and checks of a localizer."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from helpers import published_batch as dal_test_batch
from helpers import published_test as dal_test
from scipy import stats
from search_cases import check_on_grid

from dal_jax import Localizer
from dal_jax.diffusion import ReverseConfig, Schedule
from dal_jax.inference import region_line
from dal_jax.localizers._chain import ReverseStep, reverse_steps
from dal_jax.models import UNetConfig, denoiser, init_unet
from dal_jax.noise import iid
from dal_jax.search import LineProblem, select_region

UNET = UNetConfig(channels=(4, 8), time_dim=8)
SMOOTH = UNetConfig(channels=(4, 8), time_dim=8, activation="silu")


def network(unet: UNetConfig = UNET, share: float = 0.0, seed: int = 0, random: float = 1.0) -> Any:
    """Random variables that let a share of a one-channel image pass through to the noise.

    The way is `relu(x) - relu(-x)` along the first two channels of the finest blocks, so that the
    reverse process takes most of the image away, as after training on images of nothing.
    """
    variables = jax.tree.map(np.copy, init_unet(unet, seed))
    if share:
        finest = ["down1", "up1", "out"]
        kernels = {n: variables["params"][n] for n in finest}
        for name in finest[:2]:
            kernels[name]["conv"]["kernel"] *= random
        kernels["out"]["kernel"] *= random
        kernels["down1"]["conv"]["kernel"][1, 1, 0, :2] += [1.0, -1.0]
        skip = kernels["up1"]["conv"]["kernel"].shape[2] - unet.channels[0]
        for k in range(2):
            kernels["up1"]["conv"]["kernel"][1, 1, skip + k, k] += 1.0
        kernels["out"]["kernel"][0, 0, :2, 0] += [share, -share]
    return variables


def chain(
    unet: UNetConfig = UNET, side: int = 8, start: int = 300, steps: int = 3, eta: float = 1.0
) -> tuple[Any, ReverseStep, tuple[Schedule, ReverseConfig]]:
    """A random denoiser with the steps of a reverse process, float64."""
    denoise = denoiser(network(unet), unet, (side, side), np.float64)
    plan = (Schedule(), ReverseConfig(start, steps, eta))
    return denoise, reverse_steps(denoise, *plan, np.float64), plan


def normal_draws(*shape: int, seed: int = 0) -> Any:
    """Standard normal numbers."""
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


def one_step(steps: ReverseStep, k: int = 0) -> ReverseStep:
    """A single one of the steps."""
    return jax.tree.map(lambda v: v[k], steps)


def null_images(localizer: Localizer, seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and references of nothing but noise."""
    rng = np.random.default_rng(seed)
    images, references = rng.standard_normal((2, count, *localizer.image_shape))
    return images, references


def mostly_flagging(localizer: Localizer, share: float = 0.8) -> Localizer:
    """The localizer with the threshold at which it flags something in this share of null images."""
    images, _ = null_images(localizer, 99, 40)
    highest = [localizer.score(x).max() for x in images]
    return localizer.with_threshold(float(np.quantile(highest, 1 - share)))


class Flagged:
    """A null image in which something is flagged, and the line that tests it."""

    def __init__(self, localizer: Localizer, seed: int):
        self.localizer = localizer
        rng = np.random.default_rng((seed, 7))
        while True:
            self.x, self.x_ref = rng.standard_normal((2, *localizer.image_shape))
            score = localizer.score(self.x)
            if (score > localizer.threshold).any():
                break
        selected = select_region(score, localizer.threshold)
        self.line = region_line(self.x, self.x_ref, selected.region, iid(1.0))
        self.problem = LineProblem(
            *localizer[:1], *localizer[2:5], *self.line[:2], selected, self.line.z_obs
        )

    def images(self, z: np.ndarray) -> Any:
        """The images at points of the line."""
        line = self.line
        return jnp.asarray(line.base + line.direction * z[:, None, None, None])

    def largest_jump(self, reach: float = 3.0) -> float:
        """How far the score jumps where it changes most between points of a grid; 0: nowhere."""
        fn, params, draws = self.localizer[0], self.localizer.params, self.localizer.draws
        score = jax.jit(jax.vmap(lambda x: fn(params, draws, x)))
        z = np.linspace(-reach, reach, 4096)
        for _ in range(4):  # each time a grid between the neighbours that differ most
            values = np.asarray(score(self.images(z)))
            change = np.abs(np.diff(values, axis=0)).max((1, 2))
            k = int(change.argmax())
            z = np.linspace(z[k], z[k + 1], 4096)
        return float(change[k])

    def within(self, truncation: np.ndarray) -> Any:
        """400 images along what is flagged alike, as far as four deviations."""
        ends = np.clip(truncation / self.line.sd, -4, 4)
        return self.images(np.linspace(ends.min(), ends.max(), 400))

    def check_engines(self, reach: float = 4.0) -> Any:
        """The exact engine against a grid of members, and against the adaptive engine."""
        case = (self.localizer, self.x, self.x_ref, "iid:1")
        exact = dal_test(*case, engine="sweep", precision=0)
        check_on_grid(self.problem, exact.truncation / self.line.sd, -reach, reach)
        adaptive = dal_test(*case, precision=1e-4)
        assert abs(adaptive.p_value - exact.p_value) < 1e-3
        assert exact.status.value == adaptive.status.value == "OK"
        return exact


def null_p_values(
    localizer: Localizer, seed: int, count: int, **options: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Selective and naive p-values of null images in which something is flagged."""
    images, references = null_images(localizer, seed, count)
    results = dal_test_batch(localizer, images, references, "iid:1", **options)
    assert {r.status.value for r in results} <= {"OK", "NO_REGION"}
    pairs = np.array([(r.p_value, r.naive_p) for r in results if r.status.value == "OK"])
    return pairs[:, 0], pairs[:, 1]


def check_uniform(localizer: Localizer, count: int, seed: int = 1, **options: Any) -> None:
    """Selective p-values of null images are uniform, naive ones are not."""
    selective, naive = null_p_values(mostly_flagging(localizer), seed, count, **options)
    assert len(selective) > 0.6 * count
    assert stats.kstest(selective, "uniform").pvalue > 1e-3
    # 0.05 and four standard errors of the share of so many.
    assert np.mean(selective <= 0.05) < 0.05 + 4 * np.sqrt(0.05 * 0.95 / len(selective))
    assert stats.kstest(naive, "uniform").pvalue < 1e-3
