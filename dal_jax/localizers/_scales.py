"""Weights of features and pixels in a comparison, learned from normal images."""

from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dal_jax._arrays import cast_floats
from dal_jax._compat import exact_arithmetic
from dal_jax._errors import InputError
from dal_jax._typing import Array, Float, PyTree
from dal_jax.localizers._glad import GladConfig, departures
from dal_jax.localizers._localizer import Localizer
from dal_jax.localizers._perceptual import PerceptualConfig, distance, features, perceptual_map

# Share of normal images whose reverse process stops, by which the distance is learned.
STOPPING = 0.05


def learn_scales(localizer: Localizer, images: Float[np.ndarray, "K H W C"]) -> PerceptualConfig:
    """Learn the constants of an MDPS or GLAD localizer from normal images.

    GLAD with `stop_distance` None: the distance that 5% of the images exceed at some level. "pl":
    `scale_d = 1 / mean d_d`, over places and images; "faithful": 1, as published. Then
    `scale_pixel = mean over images of max perceptual / max pixel`, where the published programs
    take the maxima of the test images themselves.

    Args:
        localizer: Localizer made by `mdps_localizer` or `glad_localizer`.
        images: (K, H, W, C) normal images, none of them to be tested.

    Returns:
        The configuration with these constants, to make a localizer of the same variables. Its
        scores differ, so that the threshold is to be set afterwards.

    Raises:
        InputError: The localizer is of another kind, images are missing or of another shape, or
            differences are zero or not finite.

    Example:
        >>> from dal_jax.localizers import load_localizer, make_localizer
        >>> localizer = load_localizer("model", localizer="mdps:pl")  # doctest: +SKIP
        >>> config = learn_scales(localizer, normal_images)  # doctest: +SKIP
        >>> localizer = make_localizer(localizer.params["network"], config)  # doctest: +SKIP

    Source: Wu et al., arXiv 2404.17900 (ratio of the maxima).
    """
    fn, images = localizer.score_fn, np.asarray(images, np.float64)
    if not hasattr(fn, "extractor"):
        raise InputError(f"localizer: got {type(fn).__name__}, expected one of MDPS or GLAD")
    if images.shape[1:] != localizer.image_shape or not len(images):
        sides = ", ".join(map(str, localizer.image_shape))
        raise InputError(f"images: got shape {images.shape}, expected (K, {sides}), K above 0")
    with exact_arithmetic(), np.errstate(divide="ignore"):  # refused below
        params = cast_floats(localizer.params, np.float64)
        draws = cast_floats(localizer.draws, np.float64)
        config = _with_stop(fn, params, draws, images)
        parts: tuple[Any, Any] = (localizer.score_fn, localizer.reconstruct_fn)
        fn, reconstruct = (replace(part, config=config) for part in parts)
        pairs = [(x, _normal(reconstruct, params, draws, x)) for x in images]
        means = np.mean([_means(fn, params, *pair) for pair in pairs], axis=0)
        scales = 1.0 / means if config.piecewise_linear else np.ones_like(means)
        ratio = np.mean([_ratio(fn, params, scales, *pair) for pair in pairs])
    if not np.isfinite([*scales, ratio]).all():
        raise InputError(
            "images: some equal their reconstructions or are not finite, "
            "expected finite differences"
        )
    return replace(config, feature_scales=tuple(map(float, scales)), pixel_scale=float(ratio))


def _with_stop(fn: Any, params: PyTree, draws: Array, images: np.ndarray) -> PerceptualConfig:
    config = fn.config
    if not isinstance(config, GladConfig) or config.stop_distance is not None:
        return config
    # With a single level nothing is compared, and the distance does not matter.
    farthest = [float(np.max(_departures(fn, params, draws, x), initial=0.0)) for x in images]
    return replace(config, stop_distance=float(np.quantile(farthest, 1 - STOPPING)))


@partial(jax.jit, static_argnums=0)
def _departures(fn: Any, params: PyTree, draws: Array, x: Array) -> Array:
    return departures(fn.config, fn.extractor, params, draws, x)


@partial(jax.jit, static_argnums=0)
def _normal(fn: Any, params: PyTree, draws: Array, x: Array) -> Array:
    return fn(params, draws, x)


def _looks(fn: Any, params: PyTree, x: Array, normal: Array) -> list[list[Array]]:
    look = partial(features, fn.extractor, params["features"], image_range=fn.config.image_range)
    return [look(image[None]) for image in (x, normal)]


@partial(jax.jit, static_argnums=0)
def _means(fn: Any, params: PyTree, x: Array, normal: Array) -> Array:
    seen, made = _looks(fn, params, x, normal)
    reach, linear = fn.config.reach, fn.config.piecewise_linear
    pairs = zip(seen, made, strict=True)
    return jnp.stack([jnp.mean(distance(u, v, reach, linear)) for u, v in pairs])


@partial(jax.jit, static_argnums=0)
def _ratio(fn: Any, params: PyTree, scales: Array, x: Array, normal: Array) -> Array:
    how = (scales, fn.config.sides, fn.config.reach, fn.config.piecewise_linear)
    seen, made = _looks(fn, params, x, normal)
    perceptual = perceptual_map(seen, made, *how)
    return jnp.max(perceptual) / jnp.max(jnp.mean(jnp.abs(normal - x), axis=-1))
