"""GLAD: a reverse process that is fused with the image once it departs from it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dal_jax._errors import InputError
from dal_jax._typing import Array, Float, PyTree
from dal_jax.diffusion import AnomalyRemoval
from dal_jax.localizers._chain import ReverseStep, add_noise, clean_image, next_image, reverse_steps
from dal_jax.localizers._localizer import (
    THRESHOLD,
    Localizer,
    check_threshold,
    gaussian_filter,
    make_draws,
    resize,
)
from dal_jax.localizers._perceptual import (
    PerceptualConfig,
    check_constants,
    check_extractor,
    difference_from,
    distance,
    features,
    make_params,
)
from dal_jax.models import denoiser


@dataclass(frozen=True)
class GladConfig(PerceptualConfig):
    """Configuration of GLAD; the other fields are those of `PerceptualConfig`.

    Raises:
        InputError: A value is out of range, or the parts do not fit each other.

    Example:
        >>> config = GladConfig(image_size=8, start=120, stop_distance=0.5)
        >>> config.reverse.levels, config.tau
        ((80, 40, 0), 0.5)

    Source: Yao et al., arXiv 2406.07487: start 500, spacing 40, blur 6 at 512 x 512.
    """

    kind: ClassVar[str] = "glad"

    start: int = 500  # the levels visited are below it
    spacing: int = 40  # spacing of the levels
    # tau: the process stops once it is this far; infinity: never; None: as `learn_scales`
    # learns it, and 0.3 until then.
    stop_distance: float | None = None
    stop_level: int = 0  # below it the process stops in any case; 0: never
    stop_count: int = 10  # largest distances whose mean is compared with tau
    radius: int | None = None  # places that are matched; None: 1 with "pl", all with "faithful"
    fusion_centre: float | None = None  # of the mask; None: tau with "pl", 0 with "faithful"
    fusion_width: float = 1.0  # of the mask's sigmoid, in units of the distance; "faithful" only

    def __post_init__(self) -> None:
        if self.stop_distance not in (None, float("inf")):
            self.check_number("stop_distance", 0)
        for name, low in (("stop_level", 0), ("stop_count", 1)):
            self.check_number(name, low, whole=True)
        if self.radius is not None:
            self.check_number("radius", 0, whole=True)
        if self.fusion_centre is not None:
            self.check_number("fusion_centre", 0)
        self.check_number("fusion_width", 0, positive=True)
        super().__post_init__()
        if self.stop_level > self.reverse.start:
            raise InputError(
                f"stop_level: got {self.stop_level}, expected at most {self.reverse.start}, "
                "the highest level"
            )

    @property
    def draws_shape(self) -> tuple[int, int, int, int]:
        """Shape (1, H, W, C) of the draws: the noise of the input; the process itself has none."""
        return (1, *self.image_shape)

    @property
    def tau(self) -> float:
        """Distance at which the process stops."""
        return 0.3 if self.stop_distance is None else self.stop_distance

    @property
    def objective(self) -> AnomalyRemoval:
        """Objective that training minimizes."""
        return AnomalyRemoval(self.unet, self.schedule)

    @property
    def reach(self) -> int | None:
        """Largest distance between matched places; None stands for any distance."""
        return 1 if self.radius is None and self.piecewise_linear else self.radius

    def mixing(self, far: Float[Array, "B H W"]) -> Float[Array, "B H W"]:
        """Return the share mu of the reverse process in the fused image, 0 to 1, from distances.

        Args:
            far: (B, H, W) distances of features.

        Returns:
            (B, H, W), in the dtype of `far`; 0 or 1 with the variant "pl".
        """
        centre = self.fusion_centre
        if centre is None:
            centre = self.tau if self.piecewise_linear else 0.0
        if self.piecewise_linear:
            return (far > far.dtype.type(centre)).astype(far.dtype)
        return jax.nn.sigmoid(
            (far - far.dtype.type(centre)) * far.dtype.type(1 / self.fusion_width)
        )


def fuse(mu: Array, chain: Array, given: Array) -> Array:
    """Mix the image of the reverse process with that of the input: `mu a + (1 - mu) b`."""
    return mu * chain + (mu.dtype.type(1) - mu) * given


class Chain(NamedTuple):
    """State of images in the reverse process, or at its end."""

    x: Array  # (B, H, W, C)
    stopped: Array  # (B,), the level at which it was fused; -1: not yet


def adaptive_chain(
    config: GladConfig,
    predict: Callable[[Array, Any], Array],
    look: Callable[[Array], list[Array]],
    y: Float[Array, "B H W C"],
    noise: Float[Array, "B H W C"],
    steps: ReverseStep,
) -> Chain:
    """Reconstruct images by a reverse process without draws that is fused once with its input.

    At each level after the first, where both images are still the same, the network's noise gives
    two clean images, `x0` of the process and `y0` of the noised input. The distances between their
    features of the last depth, place by place, give the mean of the largest `stop_count` distances
    and the mask mu. At the first level where that mean exceeds tau, `x0 <- mu x0 + (1 - mu) y0`; if
    none did before, `x0 <- y0` at the first level below `stop_level`. All levels are visited in any
    case, so that every image takes the same work.

    Args:
        config: Configuration of GLAD.
        predict: Function (x, condition) -> noise.
        look: Function of images -> features of several depths.
        y: (B, H, W, C) observed images.
        noise: (B, H, W, C) noise of the input at every level.
        steps: Steps from `reverse_steps`.

    Returns:
        The reconstructions, and the level at which each was fused.

    Source: Yao et al., arXiv 2406.07487, sections 3.2 and 3.3.
    """
    number = y.dtype.type

    def advance(chain: Chain, step: ReverseStep) -> tuple[Chain, None]:
        eps, given = predict(chain.x, step.condition), add_noise(step, y, noise)
        far = _departure(config, look, step, eps, given, chain.x)
        running = chain.stopped < 0
        over = running & (_mean_of_largest(far, config.stop_count) > number(config.tau))
        last = running & ~over & (step.level < config.stop_level)
        # One choice among three shares: all of the process, that of the mask, none.
        mu = config.mixing(resize(far, (y.shape[1], y.shape[2])))
        mu = jnp.where(over[:, None, None], mu, number(1))
        mu = jnp.where(last[:, None, None], number(0), mu)[..., None]
        stopped = jnp.where(over | last, step.level, chain.stopped)
        return Chain(next_image(step, fuse(mu, chain.x, given), eps), stopped), None

    second, rest = _second(predict, y, noise, steps)
    return lax.scan(advance, Chain(second, jnp.full(y.shape[:1], -1, y.dtype)), rest)[0]


def departures(
    config: GladConfig, extractor: Any, params: PyTree, draws: Array, x: Float[Array, "H W C"]
) -> Float[Array, " levels"]:
    """Return how far the reverse process of one image departs from it, if it never stops.

    Args:
        config: Configuration of GLAD, whose fields about stopping are ignored.
        extractor: Extractor of features.
        params: Parameters of the localizer.
        draws: (1, H, W, C) draws.
        x: (H, W, C) image.

    Returns:
        (levels,) mean of the largest distances, to be compared with tau, at each level but the
        first.
    """
    predict, look, steps = _parts(config, extractor, params, x)
    y, noise = x[None], jnp.asarray(draws, x.dtype)

    def advance(x: Array, step: ReverseStep) -> tuple[Array, Array]:
        eps = predict(x, step.condition)
        far = _departure(config, look, step, eps, add_noise(step, y, noise), x)
        return next_image(step, x, eps), _mean_of_largest(far, config.stop_count)

    return lax.scan(advance, *_second(predict, y, noise, steps))[1][:, 0]


def _second(
    predict: Callable[[Array, Any], Array], y: Array, noise: Array, steps: ReverseStep
) -> tuple[Array, ReverseStep]:
    """Return the image after the first level, where nothing is compared, and the other steps."""
    first, rest = (jax.tree.map(lambda v, k=k: v[k], steps) for k in (0, slice(1, None)))
    start = add_noise(first, y, noise)
    return next_image(first, start, predict(start, first.condition)), rest


def _departure(
    config: GladConfig,
    look: Callable[[Array], list[Array]],
    step: ReverseStep,
    eps: Array,
    given: Array,
    x: Array,
) -> Array:
    """Return the distances (B, h, w) of the clean images of the input and of x for equal noise."""
    seen, made = (look(clean_image(step, image, eps))[-1] for image in (given, x))
    return distance(seen, made, config.reach, config.piecewise_linear)


def _mean_of_largest(far: Array, count: int) -> Array:
    flat = far.reshape(len(far), -1)
    count = min(count, flat.shape[1])
    if count == 1:
        return jnp.max(flat, axis=1)
    largest = lax.slice_in_dim(lax.sort(flat), flat.shape[1] - count, flat.shape[1], axis=1)
    return jnp.sum(largest, axis=1) * far.dtype.type(1.0 / count)


def glad_chain(
    config: GladConfig, extractor: Any, params: PyTree, draws: Array, x: Float[Array, "H W C"]
) -> Chain:
    """Reconstruct one image by `adaptive_chain` with a network and an extractor.

    Args:
        config: Configuration of GLAD.
        extractor: Extractor of features.
        params: Parameters of the localizer.
        draws: (1, H, W, C) draws.
        x: (H, W, C) image.

    Returns:
        The chain of one image, with a leading axis.
    """
    predict, look, steps = _parts(config, extractor, params, x)
    return adaptive_chain(config, predict, look, x[None], jnp.asarray(draws, x.dtype), steps)


def _parts(
    config: GladConfig, extractor: Any, params: PyTree, x: Array
) -> tuple[Any, Any, ReverseStep]:
    """Return the prediction of noise, the features of images, and the steps."""
    denoise = denoiser(params["network"], config.unet, config.sides, x.dtype)

    def look(images: Array) -> list[Array]:
        return features(extractor, params["features"], images, config.image_range)

    steps = reverse_steps(denoise, config.schedule, config.reverse, x.dtype)
    return denoise.given, look, steps


@dataclass(frozen=True)
class GladReconstruct:
    """The fused reconstruction: (params, draws, x (H, W, C)) -> (H, W, C).

    Example:
        >>> from dal_jax.models import UNetConfig, init_unet
        >>> config = GladConfig(UNetConfig(channels=(2,)), image_size=4, start=40, depths=(1,))
        >>> localizer = glad_localizer(init_unet(config.unet, seed=0), config)
        >>> reconstruct = GladReconstruct(config, config.encoder)
        >>> image = jax.ShapeDtypeStruct((4, 4, 1), "float32")
        >>> jax.eval_shape(reconstruct, localizer.params, localizer.draws, image).shape
        (4, 4, 1)

    Source: Yao et al., arXiv 2406.07487.
    """

    config: GladConfig  # without scales, which are parameters
    extractor: Any  # of features, frozen and hashable

    def __call__(self, params: PyTree, draws: Any, x: Array) -> Array:
        """Reconstruct one image in its dtype.

        Args:
            params: Parameters of the localizer, as in `Localizer.params`.
            draws: (1, H, W, C) standard normal.
            x: (H, W, C), the image.

        Returns:
            (H, W, C), in the dtype of x.
        """
        return glad_chain(self.config, self.extractor, params, draws, x).x[0]


@dataclass(frozen=True)
class GladScore:
    """Blurred difference from the reconstruction: (params, draws, x (H, W, C)) -> (H, W).

    Example:
        >>> from dal_jax.models import UNetConfig, init_unet
        >>> config = GladConfig(UNetConfig(channels=(2,)), image_size=4, start=40, depths=(1,))
        >>> localizer = glad_localizer(init_unet(config.unet, seed=0), config)
        >>> score = GladScore(config, config.encoder)
        >>> image = jax.ShapeDtypeStruct((4, 4, 1), "float32")
        >>> jax.eval_shape(score, localizer.params, localizer.draws, image).shape
        (4, 4)

    Source: Yao et al., arXiv 2406.07487.
    """

    config: GladConfig  # without scales, which are parameters
    extractor: Any  # of features, frozen and hashable

    def __call__(self, params: PyTree, draws: Any, x: Array) -> Array:
        """Scores one image in its dtype.

        Args:
            params: Parameters of the localizer, as in `Localizer.params`.
            draws: (1, H, W, C) standard normal.
            x: (H, W, C), the image.

        Returns:
            (H, W), in the dtype of x.
        """
        config = self.config
        normal = glad_chain(config, self.extractor, params, draws, x).x
        difference = difference_from(config, self.extractor, params, x)
        return gaussian_filter(difference(normal), config.blur)[0] * params["foreground"]


def glad_localizer(
    variables: PyTree,
    config: GladConfig,
    threshold: float = THRESHOLD,
    draws: Any = None,
    *,
    extractor: Any = None,
    features: PyTree = None,
    foreground: Any = None,
) -> Localizer:
    """Make the localizer of global and local adaptive diffusion, in the space of pixels.

    Everything is a function of one image: quantities that the published program takes over a batch
    are per image here, or constants (of the configuration, see `learn_scales`, or `foreground`).

    Args:
        variables: {"params": ..., "batch_stats": ...} of `UNet(config.unet)`.
        config: Network, levels, stopping, fusion, comparison.
        threshold: Threshold, positive, in units of the score.
        draws: (1, H, W, C) standard normal numbers, fixed before the image is seen; or a seed; None
            is seed 0.
        extractor: Frozen, hashable function (params, images) -> features of several depths, with
            `piecewise_linear` and `input_range`; None stands for the network's own encoder.
        features: Parameters of the extractor; None stands for the variables.
        foreground: (H, W) factors of the score, 0 or above, that do not depend on the noise in the
            image; None stands for ones.

    Returns:
        The localizer; two of equal configuration share their compiled programs.

    Raises:
        InputError: The draws, the foreground, the extractor or the threshold do not fit.

    Example:
        >>> from dal_jax.models import UNetConfig, init_unet
        >>> config = GladConfig(UNetConfig(channels=(2,)), image_size=4, start=40, depths=(1,))
        >>> localizer = glad_localizer(init_unet(config.unet, seed=0), config, threshold=0.5)
        >>> localizer.draws.shape
        (1, 4, 4, 1)

    Source: Yao et al., GLAD: Towards Better Reconstruction with Global and Local Adaptive
    Diffusion Models for Unsupervised Anomaly Detection, arXiv 2406.07487.
    """
    extractor = check_extractor(extractor, config)
    params = make_params(variables, config, extractor, features)
    shown = np.ones(config.sides) if foreground is None else foreground
    params["foreground"] = check_constants("foreground", shown, config.sides)
    return Localizer(
        score_fn=GladScore(config.unscaled, extractor),
        reconstruct_fn=GladReconstruct(config.unscaled, extractor),
        params=params,
        draws=make_draws(draws, config.draws_shape),
        threshold=check_threshold(threshold),
        image_shape=config.image_shape,
    )
