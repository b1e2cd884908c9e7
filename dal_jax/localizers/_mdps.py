"""MDPS: normal counterparts drawn from a posterior given the image outside of a mask."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dal_jax._typing import Array, Float, PyTree
from dal_jax.diffusion import ReverseConfig
from dal_jax.localizers._chain import ReverseStep, add_noise, clean_image, next_image, reverse_steps
from dal_jax.localizers._localizer import (
    THRESHOLD,
    Localizer,
    check_threshold,
    gaussian_filter,
    make_draws,
)
from dal_jax.localizers._perceptual import (
    PerceptualConfig,
    check_extractor,
    difference_from,
    make_params,
)
from dal_jax.models import denoiser

# Added to the mean square under the root: the norm has no derivative at 0.
TINY = 1e-12


@dataclass(frozen=True)
class MdpsConfig(PerceptualConfig):
    """Configuration of MDPS; the other fields are those of `PerceptualConfig`.

    Weights of the guidance are per value of an image: a published weight w, for a norm over a
    batch of N values, is `w / sqrt(N)` here.

    Raises:
        InputError: A value is out of range, or the parts do not fit each other.

    Example:
        >>> config = MdpsConfig(image_size=8, start=60, samples=2)
        >>> config.reverse.levels, config.draws_shape
        ((40, 20, 0), (2, 2, 4, 8, 8, 1))

    Source: Wu et al., arXiv 2404.17900: start 150 to 250, spacing 20, eta 1, blur 4 at 256 x 256.
    """

    kind: ClassVar[str] = "mdps"

    eta: float = 1.0  # share of fresh noise in each step
    # The levels of the pass without a mask are below it; None: `start`; 0: neither pass nor mask.
    first_start: int | None = None
    first_weight: float = 0.04  # of the guidance while there is no mask
    weight: float = 0.08  # of the guidance in the masked pass
    mask_fraction: float = 0.12  # share of the range of the first map above which the mask is 1
    # Standard deviation of the blur of the map that gives the mask, pixels; None: `blur`.
    first_blur: float | None = None
    samples: int = 1  # counterparts whose maps are averaged

    def __post_init__(self) -> None:
        for name in ("first_weight", "weight"):
            self.check_number(name, 0)
        for name in ("eta", "mask_fraction"):
            self.check_number(name, 0, 1)
        self.check_number("samples", 1, whole=True)
        if self.first_start is not None:
            self.check_number("first_start", 0, whole=True)
        if self.first_blur is not None:
            self.check_number("first_blur", 0)
        super().__post_init__()
        self.first_reverse.coefficients(self.schedule)

    @property
    def reach(self) -> int:
        """Largest distance between matched places: 0, as features are compared place by place."""
        return 0

    @property
    def reverse(self) -> ReverseConfig:
        """The reverse process of the last pass."""
        return self.reverse_with(self.eta)

    @property
    def first_reverse(self) -> ReverseConfig:
        """The reverse process of the pass without a mask, if there is one."""
        return self.reverse_with(self.eta, self.first_start or None)

    @property
    def passes(self) -> int:
        """Number of passes, 1 or 2."""
        return 1 if self.first_start == 0 else 2

    @property
    def draws_shape(self) -> tuple[int, int, int, int, int, int]:
        """Shape (samples, passes, 1 + steps, H, W, C) of the draws; steps of the longer pass."""
        steps = max(self.reverse.steps, self.first_reverse.steps)
        return (self.samples, self.passes, 1 + steps, *self.image_shape)


def guidance(
    predict: Callable[[Array], Array],
    step: ReverseStep,
    x: Float[Array, "B H W C"],
    y: Float[Array, "*B H W C"],
    squared: bool,
) -> tuple[Array, Array]:
    """Predict the noise, and the gradient along which the clean image of x departs from y.

    `g = sqrt(n) grad_x ||x0(x) - y||`, with n values in an image; squared,
    `g = grad_x ||x0(x) - y||^2 / 2`, which is piecewise linear with such a network.

    Args:
        predict: Function x -> predicted noise, of the shape and dtype of x.
        step: Step of the reverse process, with the level.
        x: (B, H, W, C) noised images.
        y: (B, H, W, C) or (H, W, C) observed images.
        squared: Whether to use the second formula.

    Returns:
        The predicted noise and g, of the shape of x.

    Source: Wu et al., arXiv 2404.17900, equation 16, with a norm for each image.
    """
    eps, pull = jax.vjp(predict, x)
    residual = clean_image(step, x, eps) - y
    if not squared:
        mean = jnp.mean(jnp.square(residual), axis=(-3, -2, -1), keepdims=True)
        residual = residual * lax.rsqrt(mean + x.dtype.type(TINY))
    return eps, clean_image(step, residual, pull(residual)[0])


def posterior_sample(
    predict: Callable[[Array, Any], Array],
    y: Float[Array, "*B H W C"],
    draws: Float[Array, "B steps_and_one H W C"],
    steps: ReverseStep,
    weight: float,
    mask: Float[Array, "B H W 1"] | None = None,
    squared: bool = True,
) -> Float[Array, "B H W C"]:
    """Draw normal counterparts of images by a guided reverse process.

    Each step: `x <- m x + (1 - m) (sqrt(ab) y + sqrt(1 - ab) zeta)`, with a mask;
    `eps' = eps + w sqrt(1 - ab) g`; then the plain step with eps'.

    Args:
        predict: Function (x, condition) -> noise.
        y: (B, H, W, C) or (H, W, C) observed images.
        draws: (B, 1 + steps, H, W, C) draws: zeta, then one per step.
        steps: Steps from `reverse_steps`.
        weight: Weight w of the guidance.
        mask: (B, H, W, 1) mask, 1 where the image is taken to be wrong, 0 where it is kept; None
            stands for ones.
        squared: Choice of the formula, as in `guidance`.

    Returns:
        (B, H, W, C) counterparts.

    Source: Wu et al., arXiv 2404.17900, algorithms 1 and 2.
    """
    draws = jnp.moveaxis(draws, 1, 0)
    zeta, strength = draws[0], y.dtype.type(weight)

    def advance(x: Array, row: tuple[ReverseStep, Array]) -> tuple[Array, None]:
        step, draw = row
        if mask is not None:
            # A product rather than a choice: non-finite values stay visible.
            x = mask * x + (y.dtype.type(1) - mask) * add_noise(step, y, zeta)
        if weight:
            eps, g = guidance(lambda v: predict(v, step.condition), step, x, y, squared)
            eps = eps + strength * step.noise * g
        else:
            eps = predict(x, step.condition)
        return next_image(step, x, eps, draw), None

    first = jax.tree.map(lambda v: v[0], steps)
    return lax.scan(advance, add_noise(first, y, zeta), (steps, draws[1:]))[0]


class MdpsSamples(NamedTuple):
    """Results of MDPS for one image."""

    first: Array | None  # (samples, H, W), difference maps of the passes without masks, if any
    mask: Array  # (samples, H, W), 0 or 1
    normal: Array  # (samples, H, W, C), counterparts
    difference: Array  # (samples, H, W), difference maps of these


def mdps_samples(
    config: MdpsConfig, extractor: Any, params: PyTree, draws: Array, x: Float[Array, "H W C"]
) -> MdpsSamples:
    """Draw normal counterparts of an image, first to find a mask, then with the mask.

    A configuration with one pass draws them once, without a mask. The mask is where the first map
    exceeds `min + c (max - min)` of its own values. (The published program takes these from all
    test images, for which a test of one image could not account.)

    Args:
        config: Configuration of MDPS.
        extractor: Extractor of features.
        params: Parameters of the localizer.
        draws: (samples, passes, 1 + steps, H, W, C) draws.
        x: (H, W, C) image.

    Returns:
        The samples.

    Source: Wu et al., arXiv 2404.17900.
    """
    network = (params["network"], config.unet, config.sides, x.dtype)
    denoise, pulling = denoiser(*network), denoiser(*network, pulls=True)
    draws, linear = jnp.asarray(draws, x.dtype), config.piecewise_linear
    difference = difference_from(config, extractor, params, x)

    def draw(number: int, reverse: ReverseConfig, weight: float, mask: Array | None) -> Array:
        steps = reverse_steps(denoise, config.schedule, reverse, x.dtype)
        own = draws[:, number, : 1 + reverse.steps]
        predict = (pulling if weight else denoise).given
        return posterior_sample(predict, x, own, steps, weight, mask, linear)

    def compare(normal: Array, blur: float) -> Array:
        return gaussian_filter(x.dtype.type(0.5) * difference(normal), blur)

    if config.passes == 1:
        normal = draw(0, config.reverse, config.weight, None)
        mask = jnp.ones((config.samples, *config.sides), x.dtype)
        return MdpsSamples(None, mask, normal, compare(normal, config.blur))
    blur = config.blur if config.first_blur is None else config.first_blur
    first = compare(draw(0, config.first_reverse, config.first_weight, None), blur)
    low, high = (f(first, axis=(1, 2), keepdims=True) for f in (jnp.min, jnp.max))
    mask = (first > low + x.dtype.type(config.mask_fraction) * (high - low)).astype(x.dtype)
    normal = draw(1, config.reverse, config.weight, mask[..., None])
    # A first pass that diverged would leave an empty mask, and a plausible second pass.
    finite = jnp.all(jnp.isfinite(first), axis=(1, 2))[:, None, None, None]
    normal = jnp.where(finite, normal, x.dtype.type(jnp.nan))
    return MdpsSamples(first, mask, normal, compare(normal, config.blur))


@dataclass(frozen=True)
class MdpsReconstruct:
    """Mean of the normal counterparts: (params, draws, x (H, W, C)) -> (H, W, C).

    Example:
        >>> from dal_jax.models import UNetConfig, init_unet
        >>> config = MdpsConfig(UNetConfig(channels=(2,)), image_size=4, start=40, depths=(1,))
        >>> localizer = mdps_localizer(init_unet(config.unet, seed=0), config)
        >>> reconstruct = MdpsReconstruct(config, config.encoder)
        >>> image = jax.ShapeDtypeStruct((4, 4, 1), "float32")
        >>> jax.eval_shape(reconstruct, localizer.params, localizer.draws, image).shape
        (4, 4, 1)

    Source: Wu et al., arXiv 2404.17900.
    """

    config: MdpsConfig  # without scales, which are parameters
    extractor: Any  # of features, frozen and hashable

    def __call__(self, params: PyTree, draws: Any, x: Array) -> Array:
        """Reconstruct one image in its dtype.

        Args:
            params: Parameters of the localizer, as in `Localizer.params`.
            draws: (samples, passes, 1 + steps, H, W, C) standard normal.
            x: (H, W, C), the image.

        Returns:
            (H, W, C), in the dtype of x.
        """
        normal = mdps_samples(self.config, self.extractor, params, draws, x).normal
        return jnp.sum(normal, axis=0) * x.dtype.type(1.0 / self.config.samples)


@dataclass(frozen=True)
class MdpsScore:
    """Mean of the difference maps: (params, draws, x (H, W, C)) -> (H, W).

    Example:
        >>> from dal_jax.models import UNetConfig, init_unet
        >>> config = MdpsConfig(UNetConfig(channels=(2,)), image_size=4, start=40, depths=(1,))
        >>> localizer = mdps_localizer(init_unet(config.unet, seed=0), config)
        >>> score = MdpsScore(config, config.encoder)
        >>> image = jax.ShapeDtypeStruct((4, 4, 1), "float32")
        >>> jax.eval_shape(score, localizer.params, localizer.draws, image).shape
        (4, 4)

    Source: Wu et al., arXiv 2404.17900.
    """

    config: MdpsConfig  # without scales, which are parameters
    extractor: Any  # of features, frozen and hashable

    def __call__(self, params: PyTree, draws: Any, x: Array) -> Array:
        """Scores one image in its dtype.

        Args:
            params: Parameters of the localizer, as in `Localizer.params`.
            draws: (samples, passes, 1 + steps, H, W, C) standard normal.
            x: (H, W, C), the image.

        Returns:
            (H, W), in the dtype of x.
        """
        difference = mdps_samples(self.config, self.extractor, params, draws, x).difference
        return jnp.sum(difference, axis=0) * x.dtype.type(1.0 / self.config.samples)


def mdps_localizer(
    variables: PyTree,
    config: MdpsConfig,
    threshold: float = THRESHOLD,
    draws: Any = None,
    *,
    extractor: Any = None,
    features: PyTree = None,
) -> Localizer:
    """Make the localizer of masked diffusion posterior sampling.

    Everything is a function of one image: thresholds and maxima that the published program takes
    over a batch or the test set are per image here, or constants of the configuration, see
    `learn_scales`.

    Args:
        variables: {"params": ..., "batch_stats": ...} of `UNet(config.unet)`.
        config: Network, levels, guidance, comparison.
        threshold: Threshold, positive, in units of the score.
        draws: (samples, passes, 1 + steps, H, W, C) standard normal numbers, fixed before the image
            is seen; or a seed; None is seed 0.
        extractor: Frozen, hashable function (params, images) -> features of several depths, with
            `piecewise_linear` and `input_range`; None stands for the network's own encoder.
        features: Parameters of the extractor; None stands for the variables.

    Returns:
        The localizer; two of equal configuration share their compiled programs.

    Raises:
        InputError: The draws, the extractor or the threshold do not fit.

    Example:
        >>> from dal_jax.models import UNetConfig, init_unet
        >>> config = MdpsConfig(UNetConfig(channels=(2,)), image_size=4, start=40, depths=(1,))
        >>> localizer = mdps_localizer(init_unet(config.unet, seed=0), config, threshold=0.5)
        >>> localizer.draws.shape
        (1, 2, 3, 4, 4, 1)

    Source: Wu et al., Unsupervised Anomaly Detection via Masked Diffusion Posterior Sampling,
    arXiv 2404.17900.
    """
    extractor = check_extractor(extractor, config)
    return Localizer(
        score_fn=MdpsScore(config.unscaled, extractor),
        reconstruct_fn=MdpsReconstruct(config.unscaled, extractor),
        params=make_params(variables, config, extractor, features),
        draws=make_draws(draws, config.draws_shape),
        threshold=check_threshold(threshold),
        image_shape=config.image_shape,
    )
