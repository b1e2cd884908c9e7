"""Parts of a profile, learned from normal images: roles, views, noise, references, threshold."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dal_jax._config import option, same_option
from dal_jax._dal_test import TestOptions, check_randomization, evaluator_of, randomization
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
from dal_jax.inspection._views import picture_of
from dal_jax.localizers import Localizer, PerceptualConfig, learn_scales, make_localizer
from dal_jax.noise import Covariance, NoiseRanking, choose, estimate
from dal_jax.search import check_region

# Shares of the normal training images by role; no object has two roles.
ROLES = {"train": 0.5, "tune": 0.1, "reference": 0.15, "calibrate": 0.25}
# Shares if each tested object gets references of its own.
DEALT_ROLES = {"train": 0.35, "tune": 0.1, "reference": 0.4, "calibrate": 0.15}
# Number of views that set the threshold: enough pixels for a quantile in a few seconds.
_TUNING = 128
# Number of views from which constants are learned; each view has to be reconstructed.
_CONSTANTS = 32
# Largest number of texture images.
_TEXTURES = 512


@dataclass(frozen=True)
class LearnOptions:
    """Options of a profile that is learned from normal images.

    Raises:
        InputError: A field is out of range or unknown.

    Example:
        >>> options = LearnOptions(noise="stationary", flag_share=0.01)
        >>> options.noise, options.references
        ('stationary', 20)
    """

    views_per_image: int = 8  # random training views of an image, besides those as in tests
    noise: str = option("auto", "Kind of noise model, or auto for the one that fits best.")
    # Each of another physical object.
    references: int = option(
        20,
        "Largest number of normal views to compare with, each of an object without another role.",
        metavar="K",
    )
    deal_references: bool = option(
        False,
        "Give each tested object K references of its own, so that no two tests share one; this "
        "needs K times as many normal objects as are tested and calibrated with. By default all "
        "tests share the same K references and depend on one another through them.",
        name="--deal-references/--share-references",
    )
    # In (0, 1).
    flag_share: float = option(0.02, "Share of the pixels of normal views to be flagged.")
    region: str = same_option(TestOptions, "region", default="peak")
    randomization: float = same_option(TestOptions, "randomization")
    seed: int = same_option(TestOptions, "seed")

    def __post_init__(self) -> None:
        if self.views_per_image < 0:
            raise InputError(f"views_per_image: got {self.views_per_image}, expected 0 or more")
        if self.references < 1:
            raise InputError(f"references: got {self.references}, expected 1 or more")
        if not 0 < self.flag_share < 1:
            raise InputError(f"flag_share: got {self.flag_share}, expected a share in (0, 1)")
        check_region(self.region)
        check_randomization(self.randomization)


class Normal(NamedTuple):
    """Views of normal images, with the physical object of each."""

    pixels: Float[np.ndarray, "N H W C"]
    groups: tuple[str, ...]  # physical object of each view
    names: tuple[str, ...]  # sample of each view
    where: Bool[np.ndarray, "N H W"]  # pixels that may be flagged


def concatenate(one: Normal, other: Normal) -> Normal:
    """Concatenate two sets of views.

    Args:
        one: First set.
        other: Second set, of other objects.

    Returns:
        The views of both sets, in order.
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
    """Assign the normal training samples to roles, each physical object to one role.

    Objects that are also among the test samples get no role. Of copies of one picture only the
    first is used, and the objects of all copies count as one object.

    Args:
        data: Data set of the samples.
        seed: Seed of the assignment.
        roles: Share of each role, by name.
        pictures: Digests of the samples that can be read, by name; None for no digests.

    Returns:
        Samples of each role, and the groups left out because they are tested.

    Raises:
        InputError: There are fewer groups than roles.
    """
    left_out = set(shared_groups(data))
    usable = [s for s in data.samples if s.split == "train" and s.group not in left_out]
    samples, objects = distinct(usable, pictures or {})
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


def distinct(
    samples: Sequence[Sample], pictures: Mapping[str, str]
) -> tuple[list[Sample], list[str]]:
    """Return the first sample of each picture, and its object; groups that share one are joined."""
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
    """Images of samples, read one at a time on each iteration; unreadable ones are reported."""

    def __init__(self, data: DataSet, samples: Sequence[Sample]):
        self._data, self._samples = data, samples
        self.refused: dict[str, str] = {}

    def pairs(self) -> Iterator[tuple[Sample, np.ndarray]]:
        """Yield each sample that can be read, with its image."""
        for sample in self._samples:
            try:
                image, _ = read_sample(self._data, sample)
            except InputError as error:
                self._refuse(sample, error)
                continue
            yield sample, image

    def pictures(self) -> dict[str, str]:
        """Return the digests of the images that can be read, by name of the sample."""
        return {sample.name: picture_of(image) for sample, image in self.pairs()}

    def __iter__(self) -> Iterator[np.ndarray]:
        return (image for _, image in self.pairs())

    def normal_views(self, fitted: Fitted) -> Normal:
        """Return the views of all images in the geometry of the tests.

        Args:
            fitted: Fitted preparation.

        Returns:
            The views; images that the preparation refuses are left out and reported.
        """
        return self._cut(lambda _, image: [views(fitted, image)])

    def training_views(self, fitted: Fitted, count: int, seed: int) -> Normal:
        """Return training views: those in the geometry of the tests, and random ones.

        Args:
            fitted: Fitted preparation; with "resize" there are no random views.
            count: Number of random views of each image, 0 or more.
            seed: Seed of the positions of the random views.

        Returns:
            The views, in float32.
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
    """Rescale views for the estimation of noise, so that zeros outside the foreground do not count.

    The result is `x_i / sqrt(q_i c)`, with q_i the share of the views whose foreground contains
    pixel i, and c the share of the pixels that are in any foreground: mean squares are then those
    inside the foreground. An underestimate of the noise would make p-values too small.

    Args:
        pixels: (N, H, W, C) views, 0 outside their foreground.
        where: (N, H, W) foreground of the views.

    Returns:
        The rescaled views; unchanged if every pixel is foreground.
    """
    share = where.mean(axis=0)
    scale = np.sqrt(share * (share > 0).mean())
    return pixels / np.where(share > 0, scale, 1.0)[..., None]


def fit_noise(normal: Normal, options: LearnOptions) -> NoiseRanking:
    """Estimate the covariance of normal views.

    Args:
        normal: Views, with their physical objects.
        options: Kind of noise model; "auto" selects the kind that fits the variance of held-out
            region means best.

    Returns:
        The estimate, and the comparison of the kinds, which is empty for a given kind.

    Raises:
        InputError: The kind is unknown, or there are too few views.
    """
    pixels = rescale_to_foreground(normal.pixels, normal.where)
    if options.noise == "auto":
        return choose(pixels, groups=normal.groups, seed=options.seed, by="regions")
    found = estimate(pixels, options.noise, groups=normal.groups)
    return NoiseRanking(options.noise, found, (), ())


def choose_references(normal: Normal, options: LearnOptions) -> np.ndarray:
    """Select normal views as references, each of another physical object.

    Args:
        normal: Views of objects that have no other role.
        options: Number K of references, whether each tested object gets its own, and the seed.

    Returns:
        At most K references (K, H, W, C); if each tested object gets its own, the largest multiple
        of K that the number of objects allows.
    """
    rng = np.random.default_rng((options.seed, 1))
    groups = np.array(normal.groups)
    order = rng.permutation(np.unique(groups))
    most = len(order) // options.references if options.deal_references else 1
    chosen = [
        int(rng.choice(np.flatnonzero(groups == group)))
        for group in order[: most * options.references]
    ]
    return normal.pixels[chosen]


def texture_views(folder: Path, fitted: Fitted, seed: int) -> Float[np.ndarray, "T H W C"]:
    """Return views of texture images, the source of synthetic anomalies.

    Args:
        folder: Folder of images, each at least as large as a view.
        fitted: Fitted preparation.
        seed: Seed of the choice of images and of the positions.

    Returns:
        Views (T, H, W, C) of at most 512 images, in float32, so that they fit on a device.

    Raises:
        InputError: No image in the folder can be used.
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
    """Learn the constants of MDPS and GLAD from normal images; other kinds have none.

    Args:
        variables: Variables of the trained network.
        config: Configuration of the localizer.
        normal: (N, H, W, C) normal images, of which at most 32 are used.
        seed: Seed of the choice of images, and of the localizer's draws.
        **parts: Further arguments of `make_localizer`.

    Returns:
        The configuration with the constants.

    Raises:
        InputError: The localizer refuses the images or the constants.

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
    """Add the randomization of the tests to normal views, as the localizer sees tested views.

    Args:
        normal: Views.
        noise: Covariance of a view.
        options: Size of the randomization, and the seed.

    Returns:
        The randomized views; without a randomization the given ones.
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
    """Return the score that the share `flag_share` of the pixels of normal views exceeds.

    Args:
        localizer: Localizer that computes the scores.
        normal: Views that are not tested afterwards, of which at most 128 are used.
        options: Share to flag, and the seed of the choice of views.

    Returns:
        The threshold, in units of the score.

    Raises:
        InputError: Scores are not finite, or the threshold is not positive.
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
    """Return the score that a given share of the pixels of images exceeds.

    Args:
        localizer: Localizer that computes the scores.
        images: (N, H, W, C) normal images that are not tested afterwards.
        flag_share: Share of the pixels, in (0, 1).
        where: (N, H, W) pixels that count; None for all.

    Returns:
        The threshold, in units of the score.

    Raises:
        InputError: Scores are not finite, or the threshold is not positive.

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
        raise InputError(f"threshold: got {threshold}, expected above 0: are the views constant?")
    return threshold
