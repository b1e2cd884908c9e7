"""Training on a folder of images: the network and its profile."""

import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from dal_jax._errors import InputError
from dal_jax._typing import PyTree
from dal_jax.diffusion import TrainConfig, train
from dal_jax.images import Fitted, Preparation, fit
from dal_jax.inspection._learn import (
    DEALT_ROLES,
    ROLES,
    Images,
    LearnOptions,
    Normal,
    as_looked_at,
    choose_references,
    concatenate,
    fit_noise,
    learn_constants,
    set_threshold,
    share_out,
    texture_views,
)
from dal_jax.inspection._profile import Profile, Source, own_scale, save_profile
from dal_jax.localizers import (
    DetectorConfig,
    ExtractorFile,
    Localizer,
    check_extractor,
    is_detector,
    load_localizer,
    read_checkpoint,
    save_detector,
    save_extractor,
    with_rescaling,
)
from dal_jax.noise import NoiseRanking

# Function with the arguments of `dal_jax.diffusion.train` except `progress` and `resume`, which
# starts a training or resumes it.
Trainer = Callable[..., Any]
# Share of copies among the training images above which every result carries a warning.
_COPIES = 0.1


class Learned(NamedTuple):
    """Results of training on a folder.

    Example:
        >>> learned = learn(  # doctest: +SKIP
        ...     root, Source(), preparation, config, train_config, options, directory, train
        ... )
        >>> learned.profile.noise_kind == learned.choice.kind  # doctest: +SKIP
        True
    """

    profile: Profile  # profile, as written beside the network
    choice: NoiseRanking  # choice of the noise model
    num_views: int  # number of training views
    left_out: tuple[str, ...]  # groups left out because they are also tested
    refused: dict[str, str]  # reason for each image that could not be used, by name


class LearnedViews(NamedTuple):
    """Results of training on views.

    Example:
        >>> from dal_jax.diffusion import DalConfig
        >>> from dal_jax.models import UNetConfig
        >>> config = DalConfig(UNetConfig(1, (4, 8)), image_size=8)
        >>> LearnedViews(config, threshold=0.8, trained=None).config.image_shape
        (8, 8, 1)
    """

    config: Any  # configuration of the localizer, with learned constants, or of a detector
    threshold: float  # score that the share `flag_share` of the views' pixels exceeds
    trained: Any  # result of the trainer; None for a detector


def train_with_bar(
    views: np.ndarray,
    config: Any,
    settings: TrainConfig,
    out: Path,
    resume: bool = True,
    **parts: Any,
) -> tuple[float, float]:
    """Train with a progress bar on standard error that shows the loss.

    Args:
        views: (N, H, W, C) training views.
        config: Configuration of the localizer.
        settings: Settings of the training.
        out: Folder for checkpoint, state and log.
        resume: Whether to resume a run stored in the folder.
        **parts: Further arguments of `dal_jax.diffusion.train`.

    Returns:
        The last mean loss (NaN if the run had already finished), and the duration in seconds.

    Example:
        >>> learn_views(  # doctest: +SKIP
        ...     views, config, TrainConfig(), LearnOptions(), Path("model"), train_with_bar
        ... )
    """
    begun, losses = time.perf_counter(), [float("nan")]

    def follow(step: int, total: int, loss: float) -> None:
        losses.append(loss)
        bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        bar.update(step - bar.n)

    with tqdm(total=settings.steps, unit="step", desc="training", disable=None) as bar:
        train(views, config, settings, out, follow, resume, **parts)
    return losses[-1], time.perf_counter() - begun


def learn_views(
    views: np.ndarray,
    config: Any,
    train_config: TrainConfig,
    options: LearnOptions,
    directory: Path,
    trainer: Trainer,
    textures: np.ndarray | None = None,
    extractor: ExtractorFile | None = None,
) -> LearnedViews:
    """Train a localizer on views of normal images and write it, without a noise model.

    The constants of MDPS and GLAD and the threshold are computed from some of the training views. A
    detector is not trained, but stored.

    Args:
        views: (N, H, W, C) views of normal images.
        config: Configuration of the localizer, whose image size and channels are replaced by those
            of the views; or that of a detector.
        train_config: Settings of the training.
        options: Share to flag, and the seed.
        directory: Directory of the model.
        trainer: Function that trains the network in `directory`.
        textures: (T, H, W, C) texture images, for GLAD's synthetic anomalies.
        extractor: Feature extractor, for MDPS and GLAD; None for the network's own encoder.

    Returns:
        The configuration, the threshold and the result of the trainer.

    Raises:
        InputError: The arguments do not fit each other.

    Example:
        >>> from dal_jax.diffusion import train
        >>> views = np.random.default_rng(0).normal(size=(500, 32, 32, 1))
        >>> found = learn_views(  # doctest: +SKIP
        ...     views, config, TrainConfig(), LearnOptions(), Path("model"), train
        ... )
        >>> found.threshold > 0  # doctest: +SKIP
        True
    """
    config, count = config.for_images(views.shape[1:]), len(views)
    _check_textures(config, textures)
    more = {} if textures is None else {"textures": textures}
    plan = _Plan(config, train_config, directory, trainer, extractor, options.seed)
    trained = plan.run(views, views, **more)
    config, localizer = plan.stored()
    everywhere = np.ones(views.shape[:3], bool)
    normal = Normal(views, ("",) * count, ("",) * count, everywhere)
    return LearnedViews(config, set_threshold(localizer, normal, options), trained)


def learn(
    root: Path,
    source: Source,
    preparation: Preparation,
    config: Any,
    train_config: TrainConfig,
    options: LearnOptions,
    directory: Path,
    trainer: Trainer,
    textures: Path | None = None,
    extractor: ExtractorFile | None = None,
) -> Learned:
    """Train a network on the normal images of a folder and write it with its profile.

    Normal training images are assigned to roles by physical object: 50% train the network, 10% set
    the threshold, 15% are references and 25% are held out for `calibrate_folder`. The noise is
    estimated from the first two parts. If each tested object gets references of its own, the shares
    are 35, 10, 40 and 15%.

    Args:
        root: Root of the data set.
        source: Options for reading the data set.
        preparation: Preparation of each image.
        config: Configuration of the localizer, whose image size and channels are replaced by those
            of the views; or that of a detector, which is not trained.
        train_config: Settings of the training.
        options: Options of noise, references and threshold.
        directory: Directory of the model.
        trainer: Function that trains the network in `directory`.
        textures: Folder of texture images, for GLAD's synthetic anomalies.
        extractor: Feature extractor, for MDPS and GLAD; None for the network's own encoder.

    Returns:
        The profile, the choice of the noise model, and the images and groups left out. Network and
        profile are written to `directory`.

    Raises:
        InputError: The data set or an image of it does not fit the options.

    Example:
        >>> from dal_jax.diffusion import train
        >>> learned = learn(  # doctest: +SKIP
        ...     Path("tiles"), Source(), Preparation(), config, TrainConfig(), LearnOptions(),
        ...     Path("model"), train,
        ... )
        >>> sorted(learned.profile.roles)  # doctest: +SKIP
        ['calibrate', 'reference', 'train', 'tune']
    """
    data = source.open(root)
    normal = [sample for sample in data.samples if sample.split == "train"]
    pictures = Images(data, normal).pictures()
    shares = DEALT_ROLES if options.deal_references else ROLES
    dealt, left_out = share_out(data, options.seed, shares, pictures)
    warnings = _of_copies(pictures)
    images = Images(data, dealt["train"])
    fitted = fit(preparation, images, [s.name for s in dealt["train"] if s.name in pictures])
    training = images.training_views(fitted, options.views_per_image, options.seed)
    config = config.for_images(training.pixels.shape[1:])
    others = Images(data, dealt["tune"])
    tuning = others.normal_views(fitted)
    more = _more(config, preparation, training, textures, fitted, options.seed)
    plan = _Plan(config, train_config, directory, trainer, extractor, options.seed)
    known = concatenate(images.normal_views(fitted), tuning)
    choice = fit_noise(known, options)  # may raise, and therefore precedes hours of training
    apart = Images(data, dealt["reference"])
    references = choose_references(apart.normal_views(fitted), options)
    roles = {role: tuple(sorted({s.group for s in part})) for role, part in dealt.items()}
    _check_dealt(references, options, len(roles["calibrate"]))
    looked = as_looked_at(tuning, choice.covariance, options)
    plan.run(training.pixels, looked.pixels, **more)
    _, localizer = plan.stored()
    localizer = with_rescaling(localizer) if own_scale(fitted) else localizer
    profile = Profile(
        source,
        fitted,
        choice.kind,
        choice.covariance,
        references,
        set_threshold(localizer, looked, options),
        options.region,
        options.flag_share,
        roles,
        options.seed,
        options.references if options.deal_references else 0,
        {role: tuple(pictures.get(s.name, "") for s in part) for role, part in dealt.items()},
        warnings,
        options.randomization,
    )
    save_profile(directory, profile)
    refused = {**images.refused, **others.refused, **apart.refused}
    return Learned(profile, choice, len(training.pixels), left_out, refused)


def _of_copies(pictures: Mapping[str, str]) -> tuple[str, ...]:
    """Print a warning if training images are copies of others, and return it if they are many."""
    known = [digest for digest in pictures.values() if digest]
    copies = len(known) - len(set(known))
    if not copies:
        return ()
    told = f"{copies} of {len(pictures)} normal training images are copies of others"
    print(f"{told}: left out", file=sys.stderr)
    return (told,) if copies > _COPIES * len(pictures) else ()


def _check_dealt(references: np.ndarray, options: LearnOptions, reserved: int) -> None:
    count = len(references) // options.references
    if options.deal_references and count <= reserved:
        raise InputError(
            f"references: there are {options.references} each for {count} objects, expected more "
            f"than the {reserved} that calibrate tests: fewer references, or more normal objects"
        )


class _Plan(NamedTuple):
    """Plan of a training, including the constants that are learned before the network is stored."""

    config: Any
    train_config: TrainConfig
    directory: Path
    trainer: Trainer
    extractor: ExtractorFile | None
    seed: int

    def run(self, views: np.ndarray, tuning: np.ndarray, **more: Any) -> Any:
        """Train on views, and learn the localizer's constants from the tuning views."""
        if isinstance(self.config, DetectorConfig):
            return save_detector(self.directory, self.config)
        if is_detector(self.directory):
            home = str(self.directory)
            raise InputError(f"model {home!r}: holds a detector, expected a folder of its own")
        parts: dict[str, Any] = {}
        if self.extractor is not None:
            parts = self.extractor.load()
            check_extractor(parts["extractor"], self.config)

        def finish(variables: PyTree) -> Any:
            config = learn_constants(variables, self.config, tuning, self.seed, **parts)
            save_extractor(self.directory, self.extractor)  # the checkpoint is written next
            return config

        more = {"finish": finish, **more}
        return self.trainer(views, self.config, self.train_config, self.directory, **more)

    def stored(self) -> tuple[Any, Localizer]:
        """Return the configuration as it was stored, and the localizer without its threshold."""
        own = self.config
        if isinstance(own, DetectorConfig):
            name = own.source if own.is_code else None
            return own, load_localizer(self.directory, draws=self.seed, localizer=name)
        _, config = read_checkpoint(self.directory)
        return config, load_localizer(self.directory, draws=self.seed)


def _more(
    config: Any,
    preparation: Preparation,
    training: Normal,
    textures: Path | None,
    fitted: Fitted,
    seed: int,
) -> dict[str, Any]:
    """Return further arguments of the trainer: foreground and textures for GLAD, else none."""
    _check_textures(config, textures)
    if config.kind != "glad":
        return {}
    where = None if preparation.foreground == "none" else training.where
    found = None if textures is None else texture_views(textures, fitted, seed)
    return {"where": where, "textures": found}


def _check_textures(config: Any, textures: Any) -> None:
    if textures is not None and config.kind != "glad":
        raise InputError(f"textures: got some for {config.kind}, expected none but for glad")
