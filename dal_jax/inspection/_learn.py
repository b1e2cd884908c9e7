"""From normal images to a profile: who serves for what, views, noise, references, threshold."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dal_jax._dal_test import GAMMA, check_randomization, evaluator_of, randomization
from dal_jax._errors import InputError
from dal_jax._typing import Bool, Float, PyTree
from dal_jax.images import (
    DataSet,
    Fitted,
    Sample,
    Views,
    image_files,
    random_views,
    read_image,
    read_sample,
    shared_groups,
    split_groups,
    views,
)
from dal_jax.localizers import Localizer, PerceptualConfig, learn_scales, make_localizer
from dal_jax.noise import Covariance, NoiseRanking, choose, estimate
from dal_jax.search import check_region

# Shares of the normal training images; references serve for nothing else.
ROLES = {"train": 0.5, "tune": 0.1, "reference": 0.15, "calibrate": 0.25}
# The same where each tested object gets references of its own.
DEALT_ROLES = {"train": 0.35, "tune": 0.1, "reference": 0.4, "calibrate": 0.15}
MOST_REFERENCES = 20
# Views on which the threshold is set: enough pixels for a quantile, few seconds of work.
_TUNING = 128
# Views from which constants are learned, which takes a reconstruction of each.
_CONSTANTS = 32
# Images of other things.
_TEXTURES = 512


@dataclass(frozen=True)
class LearnOptions:
    """How a profile is made.

    Raises:
        InputError: a value does not fit.

    Example:
        >>> options = LearnOptions(noise="stationary", flag_share=0.01)
        >>> options.noise, options.references
        ('stationary', 20)
    """

    views_per_image: int = 8  # random ones, to train on; the tested geometry's own come on top
    noise: str = "auto"  # a kind of `dal_jax.noise.estimate`, or the best on held-out groups
    references: int = MOST_REFERENCES  # at most; of as many physical objects
    deal: bool = False  # give each tested object `references` of its own, not the same to all
    flag_share: float = 0.02  # of the pixels of normal views, to be flagged
    region: str = "peak"  # which flagged pixels are tested, as in `TestOptions`
    seed: int = 0
    randomization: float = GAMMA  # as in `TestOptions`

    def __post_init__(self) -> None:
        if self.views_per_image < 0:
            raise InputError(f"views_per_image is {self.views_per_image}, expected 0 or more")
        if self.references < 1:
            raise InputError(f"references is {self.references}, expected 1 or more")
        if not 0 < self.flag_share < 1:
            raise InputError(f"flag_share is {self.flag_share}, expected a share in (0, 1)")
        check_region(self.region)
        check_randomization(self.randomization)


class Normal(NamedTuple):
    """Views of normal images and the physical object that each is of."""

    pixels: Float[np.ndarray, "N H W C"]
    groups: tuple[str, ...]
    names: tuple[str, ...]  # of their samples
    where: Bool[np.ndarray, "N H W"]  # pixels that may be flagged


def picture_of(image: Float[np.ndarray, "H W C"]) -> str:
    """A digest of an image's pixels, the same for copies; "" for one without contrast.

    Args:
        image: as read.

    Returns:
        16 hexadecimal digits, or "".
    """
    if not np.ptp(image):
        return ""
    pixels = np.ascontiguousarray(image, np.float64)
    return sha256(str(pixels.shape).encode() + pixels.tobytes()).hexdigest()[:16]


def concatenate(one: Normal, other: Normal) -> Normal:
    """The views of both.

    Args:
        one: views.
        other: more of them, of other objects.

    Returns:
        All, in order.
    """
    return Normal(
        np.concatenate([one.pixels, other.pixels]),
        one.groups + other.groups,
        one.names + other.names,
        np.concatenate([one.where, other.where]),
    )


def share_out(
    data: DataSet,
    seed: int,
    roles: Mapping[str, float] = ROLES,
    pictures: Mapping[str, str] | None = None,
) -> tuple[dict[str, list[Sample]], tuple[str, ...]]:
    """Deals the normal training samples out to roles, each physical object to one.

    Objects that are also among the test samples serve for nothing. Of copies of one picture the
    first serves, and the objects that they were said to be are one.

    Args:
        data: the samples.
        seed: of the dealing.
        roles: names and shares.
        pictures: digest of each sample by name, of those that are known; None: of none.

    Returns:
        (samples of each role, groups left out since they are tested).

    Raises:
        InputError: too few groups.
    """
    left_out = set(shared_groups(data))
    usable = [s for s in data.samples if s.split == "train" and s.group not in left_out]
    samples, objects = _distinct(usable, pictures or {})
    if len(set(objects)) < len(roles):
        copies = len(usable) - len(samples)
        told = f" ({copies} of {len(usable)} images are copies of others)" if copies else ""
        raise InputError(
            f"data {str(data.root)!r}: {len(set(objects))} groups of normal training "
            f"images{told}, expected {len(roles)} or more"
        )
    parts = split_groups(objects, list(roles.values()), seed)
    dealt = {role: [samples[k] for k in part] for role, part in zip(roles, parts, strict=True)}
    return dealt, tuple(sorted(left_out))


def _distinct(
    samples: Sequence[Sample], pictures: Mapping[str, str]
) -> tuple[list[Sample], list[str]]:
    """The first sample of each picture, and their objects: groups that share one are joined."""
    kept: dict[str, Sample] = {}
    joined_to: dict[str, str] = {}

    def root(group: str) -> str:
        while group in joined_to:
            group = joined_to[group]
        return group

    for sample in samples:
        first = kept.setdefault(pictures.get(sample.name) or f"{sample.name}\0", sample)
        one, other = root(first.group), root(sample.group)
        if one != other:
            joined_to[other] = one
    return list(kept.values()), [root(sample.group) for sample in kept.values()]


class Images:
    """Images of samples, read one at a time, as often as wanted; what cannot be read is told."""

    def __init__(self, data: DataSet, samples: Sequence[Sample]):
        self._data, self._samples = data, samples
        self.refused: dict[str, str] = {}

    def pairs(self) -> Iterator[tuple[Sample, np.ndarray]]:
        """Yields (sample, image) of those that can be read."""
        for sample in self._samples:
            try:
                image, _ = read_sample(self._data, sample)
            except InputError as error:
                self._refuse(sample, error)
                continue
            yield sample, image

    def pictures(self) -> dict[str, str]:
        """Returns the digests of those that can be read, by name of the sample."""
        return {sample.name: picture_of(image) for sample, image in self.pairs()}

    def __iter__(self) -> Iterator[np.ndarray]:
        return (image for _, image in self.pairs())

    def normal_views(self, fitted: Fitted) -> Normal:
        """The views of all images that are tested in this geometry.

        Args:
            fitted: the preparation.

        Returns:
            The views; images that the preparation refuses are left out and told.
        """
        return self._cut(lambda _, image: [views(fitted, image)])

    def training_views(self, fitted: Fitted, count: int, seed: int) -> Normal:
        """Views to train on: those of the tested geometry, and random ones (none if "resize").

        Args:
            fitted: the preparation.
            count: random views of each image, 0 or more.
            seed: of their places.

        Returns:
            The views, float32.
        """
        count = 0 if fitted.preparation.view == "resize" else count

        def cut(number: int, image: np.ndarray) -> list[Views]:
            found = [views(fitted, image)]
            if count:
                found.append(random_views(fitted, image, count, seed + number))
            return [one._replace(pixels=one.pixels.astype(np.float32)) for one in found]

        return self._cut(cut)

    def _cut(self, cut: Callable[[int, np.ndarray], list[Views]]) -> Normal:
        pixels, where, groups, names = [], [], [], []
        for number, (sample, image) in enumerate(self.pairs()):
            try:
                found = cut(number, image)
            except InputError as error:
                self._refuse(sample, error)
                continue
            for one in found:
                some = one.foreground.any(axis=(1, 2))  # a tile without foreground shows nothing
                pixels.append(one.pixels[some])
                where.append(one.foreground[some])
                groups += [sample.group] * int(some.sum())
                names += [sample.name] * int(some.sum())
        if not pixels:
            raise InputError("data: no normal image can be used")
        return Normal(np.concatenate(pixels), tuple(groups), tuple(names), np.concatenate(where))

    def _refuse(self, sample: Sample, error: InputError) -> None:
        if sample.name not in self.refused:
            self.refused[sample.name] = str(error)
            print(f"{sample.name}: left out: {error}", file=sys.stderr)


def rescale_to_foreground(
    pixels: Float[np.ndarray, "N H W C"], where: Bool[np.ndarray, "N H W"]
) -> Float[np.ndarray, "N H W C"]:
    """Views as their noise is estimated from them: the zeros outside the foreground are no noise.

    `x_i / sqrt(q_i c)`, q_i the share of the views in whose foreground pixel i is, and c the share
    of the pixels that are in any: mean squares are then those inside the foreground. With less
    noise than there is in it, p-values would be too small.

    Args:
        pixels: views, 0 outside their foreground.
        where: their foreground.

    Returns:
        The views, as they are where all of them is foreground.
    """
    share = where.mean(axis=0)
    scale = np.sqrt(share * (share > 0).mean())
    return pixels / np.where(share > 0, scale, 1.0)[..., None]


def fit_noise(normal: Normal, options: LearnOptions) -> NoiseRanking:
    """Estimates the covariance of normal views.

    Args:
        normal: views, with the objects they are of.
        options: which kind; "auto" takes the best judge of held-out region means.

    Returns:
        The estimate, and how the kinds compared (a given kind is not compared).

    Raises:
        InputError: unknown kind, or too few views.
    """
    pixels = rescale_to_foreground(normal.pixels, normal.where)
    if options.noise == "auto":
        return choose(pixels, groups=normal.groups, seed=options.seed, by="regions")
    found = estimate(pixels, options.noise, groups=normal.groups)
    return NoiseRanking(options.noise, found, (), ())


def choose_references(normal: Normal, options: LearnOptions) -> np.ndarray:
    """Selects normal views to compare with, each of another physical object.

    Args:
        normal: views of objects that serve for nothing else.
        options: how many, whether they are dealt out, and the seed.

    Returns:
        (K, H, W, C); if dealt out, of all objects, a multiple of K.
    """
    rng = np.random.default_rng((options.seed, 1))
    groups = np.array(normal.groups)
    order = rng.permutation(np.unique(groups))
    most = len(order) // options.references if options.deal else 1
    chosen = [
        int(rng.choice(np.flatnonzero(groups == group)))
        for group in order[: most * options.references]
    ]
    return normal.pixels[chosen]


def texture_views(folder: Path, fitted: Fitted, seed: int) -> Float[np.ndarray, "T H W C"]:
    """Views of images of other things, to take synthetic anomalies from.

    Args:
        folder: of images of any size that holds a view.
        fitted: the preparation.
        seed: of the choice and of the places.

    Returns:
        float32, of at most so many images that they fit a device.

    Raises:
        InputError: no image in the folder can be used.
    """
    paths = image_files(folder, "textures", deep=True)
    order = np.random.default_rng((seed, 3)).permutation(len(paths))
    found: list[np.ndarray] = []
    for k in order[:_TEXTURES]:
        try:
            image = read_image(paths[k])
            resized = fitted.preparation.view == "resize"
            cut = views(fitted, image) if resized else random_views(fitted, image, 1, seed + int(k))
        except InputError as error:
            print(f"{paths[k].name}: left out: {error}", file=sys.stderr)
            continue
        found.append(cut.pixels.astype(np.float32))
    if not found:
        raise InputError(f"textures {str(folder)!r}: no image in this folder can be used")
    return np.concatenate(found)


def learn_constants(
    variables: PyTree, config: Any, normal: Float[np.ndarray, "N H W C"], seed: int, **parts: Any
) -> Any:
    """Learns the constants of MDPS and GLAD from normal images; other kinds have none.

    Args:
        variables: of the trained network.
        config: of the localizer.
        normal: images; at most some dozens of them are looked at.
        seed: of the choice, and of the localizer's draws.
        **parts: of `make_localizer`.

    Returns:
        The configuration with the constants.

    Raises:
        InputError: images or constants that the localizer refuses.

    Example:
        >>> from dal_jax.diffusion import DalConfig
        >>> from dal_jax.models import UNetConfig
        >>> config = DalConfig(UNetConfig(1, (4, 8)), image_size=8)
        >>> learn_constants((), config, np.zeros((1, 8, 8, 1)), seed=0) is config  # none to learn
        True
    """
    if not isinstance(config, PerceptualConfig):
        return config
    count = min(_CONSTANTS, len(normal))
    chosen = np.random.default_rng((seed, 4)).choice(len(normal), count, replace=False)
    localizer = make_localizer(variables, config, draws=seed, **parts)
    return learn_scales(localizer, normal[chosen])


def as_looked_at(normal: Normal, noise: Covariance, options: LearnOptions) -> Normal:
    """Normal views as a localizer will see tested ones: with the randomization added.

    Args:
        normal: views.
        noise: covariance of a view.
        options: how much, and the seed.

    Returns:
        The views; without a randomization those that were given.
    """
    gamma, shape = options.randomization, normal.pixels.shape[1:]
    if not gamma:
        return normal
    added = [
        randomization(noise, shape, gamma, options.seed, f"tune {number}")
        for number in range(len(normal.pixels))
    ]
    return normal._replace(pixels=normal.pixels + np.stack(added))


def set_threshold(localizer: Localizer, normal: Normal, options: LearnOptions) -> float:
    """The score that a wanted share of the pixels of normal views exceeds.

    Args:
        localizer: whose scores.
        normal: views that are not tested afterwards; some are looked at.
        options: the share.

    Returns:
        The threshold.

    Raises:
        InputError: scores that are not finite, or no positive threshold.
    """
    rng = np.random.default_rng((options.seed, 2))
    chosen = rng.choice(len(normal.pixels), min(_TUNING, len(normal.pixels)), replace=False)
    return threshold_of(localizer, normal.pixels[chosen], options.flag_share, normal.where[chosen])


def threshold_of(
    localizer: Localizer,
    images: Float[np.ndarray, "N H W C"],
    flag_share: float,
    where: Bool[np.ndarray, "N H W"] | None = None,
) -> float:
    """The score that a share of the pixels of images exceeds.

    Args:
        localizer: whose scores.
        images: normal ones that are not tested afterwards.
        flag_share: the share, in (0, 1).
        where: pixels that count; None: all.

    Returns:
        The threshold.

    Raises:
        InputError: scores that are not finite, or no positive threshold.

    Example:
        >>> from dal_jax.localizers import from_score
        >>> localizer = from_score(lambda params, draws, x: x.sum(-1), (4, 4, 1), threshold=1.0)
        >>> threshold_of(localizer, np.arange(16.0).reshape(1, 4, 4, 1), flag_share=0.25)
        11.25
    """
    evaluator, count = evaluator_of(localizer), len(images)
    step = evaluator.capacity("float32")
    parts = [
        np.asarray(evaluator(images[k : k + step], None, "float32").score)[: count - k]
        for k in range(0, count, step)
    ]
    scores = np.concatenate(parts).astype(np.float64)
    scores = scores if where is None else scores[where]
    threshold = float(np.quantile(scores, 1 - flag_share))
    if not threshold > 0:
        raise InputError(f"threshold is {threshold}, expected above 0: are the views constant?")
    return threshold
