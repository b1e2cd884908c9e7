"""One image to be tested: its checks, and the input of the localizer."""

from typing import Any, NamedTuple

import numpy as np

from dal_jax._dal_test._options import TestOptions
from dal_jax._dal_test._randomization import randomization
from dal_jax._errors import InputError
from dal_jax._typing import Bool, Float
from dal_jax.inference import Noise, check_level
from dal_jax.localizers import Localizer, check_draws, check_threshold
from dal_jax.noise import parse_noise


class ImageToTest(NamedTuple):
    """One image to be tested.

    Example:
        >>> ImageToTest(np.ones((2, 2, 1)), np.zeros((5, 2, 2, 1))).references.shape
        (5, 2, 2, 1)
    """

    image: Float[np.ndarray, "H W C"]  # finite, in units of the noise
    references: Float[np.ndarray, "*K H W C"]  # one, or K independent ones to be averaged
    draws: Any = None  # draws of this image; None: those of the localizer
    noise: Noise | None = None  # covariance of this image; None: the common one
    where: Bool[np.ndarray, "H W"] | None = None  # pixels that may be flagged; None: all
    level: float | None = None  # level of this image's decision; None: that of the options
    name: str | int = 0  # with the seed, separates its randomization from that of other images


def validate_image(localizer: Localizer, case: ImageToTest) -> ImageToTest:
    """Return the case in float64; an `InputError` names the part that does not fit."""
    check_threshold(localizer.threshold)
    shape = tuple(localizer.image_shape)
    image = np.asarray(case.image, np.float64)
    references = np.asarray(case.references, np.float64)
    if image.shape != shape:
        raise InputError(f"x has shape {image.shape}, expected {shape} (H, W, C)")
    if references.shape[-3:] != shape or references.ndim not in (3, 4) or not references.size:
        raise InputError(f"x_ref has shape {references.shape}, expected {shape} or (K, *{shape})")
    for name, array in (("x", image), ("x_ref", references)):
        if not np.isfinite(array).all():
            count = int((~np.isfinite(array)).sum())
            raise InputError(f"{name} has {count} NaN or infinite values, expected finite pixels")
    draws = case.draws
    if draws is not None:
        draws = check_draws(draws, np.shape(localizer.draws))
    if case.noise is not None:
        check_noise(case.noise, shape)
    where = case.where
    if where is not None:
        where = np.asarray(where)
        if where.shape != shape[:2] or where.dtype != bool:
            raise InputError(
                f"where is {where.dtype} of shape {where.shape}, expected bool {shape[:2]}"
            )
    if case.level is not None:
        check_level("level", case.level)
    return case._replace(image=image, references=references, draws=draws, where=where)


class Looked(NamedTuple):
    """Input of the localizer for one case: the image, or a noisier copy of it."""

    image: Float[np.ndarray, "H W C"]
    omega: Float[np.ndarray, "H W C"] | None  # added noise; None without randomization


def looked_at(case: ImageToTest, noise: Noise, options: TestOptions) -> Looked:
    """Add the randomization of the options to a checked case.

    Args:
        case: Checked case, with its name.
        noise: Covariance of images that do not bring their own.
        options: Test options, of which the randomization and the seed are used.

    Returns:
        The image that the localizer sees, and the noise that was added to it.

    Raises:
        InputError: The noise cannot be sampled.
    """
    if not options.randomization:
        return Looked(case.image, None)
    omega = randomization(
        noise if case.noise is None else case.noise,
        case.image.shape,
        options.randomization,
        options.seed,
        case.name,
    )
    return Looked(case.image + omega, omega)


def check_noise(noise: Any, shape: tuple[int, ...]) -> None:
    """Refuse anything but a covariance of images of a shape (H, W, C) by an `InputError`."""
    if not isinstance(noise, Noise):
        raise InputError(
            f"noise is of type {type(noise).__name__}, expected a covariance of dal_jax.noise or "
            "its string form"
        )
    noise.check(shape)


def covariance_of(noise: Noise | str, localizer: Localizer) -> Noise:
    """Return a covariance as an operator, checked against the images of a localizer.

    Args:
        noise: Operator of `dal_jax.noise`, or its string form.
        localizer: Localizer of the images.

    Returns:
        The operator.

    Raises:
        InputError: The covariance does not fit the images.

    Example:
        >>> from dal_jax import from_score
        >>> brightness = from_score(lambda params, draws, x: x[..., 0], (2, 2, 1), 2.5)
        >>> covariance_of("iid:2.0", brightness).apply(np.ones((2, 2, 1)))[0, 0].item()
        4.0
    """
    shape = tuple(localizer.image_shape)
    if isinstance(noise, str):
        return parse_noise(noise, shape)
    check_noise(noise, shape)
    return noise
