"""Anomaly-oriented training: the network learns to lead images with anomalies to normal ones."""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp

from dal_jax._typing import Array, Float, Int
from dal_jax.diffusion._schedule import Schedule
from dal_jax.diffusion._synthesis import Synthesis, synthesize
from dal_jax.diffusion._update import Batch, NoisePrediction


class GladPair(NamedTuple):
    """What a network sees in anomaly-oriented training, and what it should predict."""

    noised: Array  # (B, H, W, C), z_t
    target: Array  # (B, H, W, C), of the predicted noise


def glad_pair(
    normal: Float[Array, "B H W C"],
    anomalous: Float[Array, "B H W C"],
    level: Int[Array, " B"],
    noise: Float[Array, "B H W C"],
    schedule: Schedule,
) -> GladPair:
    """Noises mixtures of images with and without an anomaly, and gives the noise to be predicted.

    `z_s = (t/T) z_a + (1 - t/T) z_n`, `z_t = sqrt(ab) z_s + sqrt(1 - ab) n`, and the target
    `n + sqrt(ab / (1 - ab)) (z_s - z_n)`: with it `(z_t - sqrt(1 - ab) target) / sqrt(ab) = z_n`.

    Args:
        normal: (B, H, W, C), z_n.
        anomalous: (B, H, W, C), the same images with synthetic anomalies, z_a.
        level: (B,), t, 0 and above.
        noise: (B, H, W, C) standard normal, n.
        schedule: of T levels.

    Returns:
        The pair, in the dtype of the images.

    Example:
        >>> normal, noise = jnp.ones((1, 2, 2, 1)), jnp.full((1, 2, 2, 1), 0.5)
        >>> pair_of = jax.jit(glad_pair, static_argnums=4)
        >>> pair = pair_of(normal, normal, jnp.array([10]), noise, Schedule())
        >>> bool((pair.target == noise).all())  # without an anomaly: the noise itself
        True

    Source: Yao et al., arXiv 2406.07487, section 3.1, with the sign that leads to the normal image.
    """
    number = normal.dtype.type
    share = jnp.asarray(schedule.alpha_bar[1:], normal.dtype)[level][:, None, None, None]
    progress = (level.astype(normal.dtype) * number(1 / schedule.num_levels))[:, None, None, None]
    mixed = progress * (anomalous - normal)  # z_s - z_n
    rest = number(1) - share
    noised = jnp.sqrt(share) * (normal + mixed) + jnp.sqrt(rest) * noise
    return GladPair(noised, noise + jnp.sqrt(share / rest) * mixed)


@dataclass(frozen=True)
class AnomalyRemoval(NoisePrediction):
    """Least squares of the noise that leads images with synthetic anomalies to normal ones.

    `mean |target - UNet(z_t, t)|^2` with the pair of `glad_pair`; normal images without an anomaly
    among them are learned as in `NoisePrediction`.

    Example:
        >>> from dal_jax.models import UNetConfig
        >>> objective = AnomalyRemoval(UNetConfig(channels=(2,)), Schedule())
        >>> batch = Batch(jnp.ones((2, 8, 8, 1)))
        >>> noised, level, target = jax.eval_shape(objective.prepare, jax.random.key(0), batch)
        >>> noised.shape, level.shape, target.shape
        ((2, 8, 8, 1), (2,), (2, 8, 8, 1))

    Source: Yao et al., arXiv 2406.07487, section 3.1; mask and textures: Zavrtanik et al., DRAEM,
    arXiv 2108.07610, section 3.1; own tiles: Yang et al., MemSeg, arXiv 2205.00908.
    """

    synthesis: Synthesis = field(default_factory=Synthesis)  # how anomalies are made

    def prepare(self, key: Array, batch: Batch) -> tuple[Array, Array, Array]:
        """Gives images anomalies and noises each to a level of its own, uniform over the levels.

        Args:
            key: of random numbers.
            batch: normal images, where anomalies may be put, textures.

        Returns:
            Noised images (B, H, W, C), levels (B,), targets (B, H, W, C).
        """
        draw_key, anomaly_key = jax.random.split(key)
        level, noise = self.levels_and_noise(draw_key, batch.images.shape)
        anomalous, _ = synthesize(anomaly_key, batch, self.synthesis)
        pair = glad_pair(batch.images, anomalous, level, noise, self.schedule)
        return pair.noised, level, pair.target
