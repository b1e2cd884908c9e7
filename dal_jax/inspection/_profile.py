"""Profile of a trained model: preparation of images, noise, references, threshold and roles."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from dal_jax._config import build
from dal_jax._dal_test import TestOptions
from dal_jax._errors import CheckpointError, InputError
from dal_jax._files import file_digest, file_errors, read_array, read_json
from dal_jax._typing import Bool, Float
from dal_jax.images import DataSet, Fitted, open_data, write_array, write_text
from dal_jax.localizers import Localizer, is_detector, load_localizer, with_rescaling
from dal_jax.noise import Covariance, load_noise, masked, save_noise
from dal_jax.search import check_region

RECORD, NOISE, REFERENCES = "profile.json", "noise.npz", "references.npy"
_FORMAT = 3


@dataclass(frozen=True)
class Source:
    """Options for reading a folder of images, as in `open_data`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.png").write_bytes(b"")  # listed, not read
        ...     print([sample.name for sample in Source("folder").open(Path(folder)).samples])
        ['a.png']
    """

    layout: str = "auto"  # name of the layout; "auto" to detect it
    category: str | None = None  # category of products; None for the only one
    contrast: str | None = None  # contrast of BraTS volumes; None for FLAIR
    slices: tuple[int, ...] | None = None  # (start, stop) or (start, stop, step)
    groups: str | None = None  # rule that names the physical object, as in `group_of`

    def open(self, root: Path) -> DataSet:
        """Open a folder as a data set, with a list of its samples.

        Args:
            root: Root of the folder.

        Returns:
            The data set.

        Raises:
            InputError: The folder does not fit the options.
        """
        return open_data(
            root,
            self.layout,
            category=self.category,
            contrast=self.contrast,
            slices=self.slices,
            groups=self.groups,
        )


class Profile(NamedTuple):
    """Settings and estimates of a model that are fixed before any tested image is seen.

    Example:
        >>> from dal_jax.images import Preparation
        >>> from dal_jax.noise import iid
        >>> fitted = Fitted(Preparation(size=4), 1, (0.0, 0.5, 1.0), (0.0,), 1.0, 20)
        >>> views, roles = np.zeros((2, 4, 4, 1)), {"train": ("a", "b")}
        >>> profile = Profile(Source(), fitted, "iid", iid(2.0), views, 0.5, "peak", 0.02, roles, 0)
        >>> profile.noise_kind, profile.references.shape, profile.roles["train"]
        ('iid', (2, 4, 4, 1), ('a', 'b'))
    """

    source: Source  # options for reading the folder
    fitted: Fitted  # preparation of each image
    noise_kind: str  # kind of noise model, as in `dal_jax.noise.estimate`
    noise: Covariance  # covariance of one view
    references: Float[np.ndarray, "K H W C"]  # views of normal images, of K physical objects
    threshold: float  # threshold of the score, in units of a view
    region: str  # tested pixels, as in `TestOptions`
    flag_share: float  # share of the pixels of normal views for which the threshold was set
    roles: dict[str, tuple[str, ...]]  # groups by role: "train", "tune", "reference", "calibrate"
    seed: int  # seed of the roles, the references and the localizer's draws
    each: int = 0  # number of each tested object's own references; 0 if all objects share them
    pictures: Mapping[str, tuple[str, ...]] = MappingProxyType({})  # digests of images by role
    warnings: tuple[str, ...] = ()  # warnings about the training images, shown with every result
    randomization: float = 0.0  # gamma of the threshold and of all tests, as in `TestOptions`

    @property
    def num_references(self) -> int:
        """Number of references of one test."""
        return self.each or len(self.references)

    def references_of(
        self, groups: Sequence[str], calibrating: bool = False
    ) -> dict[str, np.ndarray]:
        """Return the references of each tested object.

        Args:
            groups: Groups of the tested views.
            calibrating: Whether the objects are those held out for the calibration, for which the
                last references are reserved.

        Returns:
            References (K, H, W, C) by group; if objects have references of their own, no two
            groups share any.

        Raises:
            InputError: There are not enough references for all objects.
        """
        names = list(dict.fromkeys(groups))
        if not self.each:
            return dict.fromkeys(names, self.references)
        pool = self.references.reshape(-1, self.each, *self.references.shape[1:])
        reserved = min(len(pool), len(self.roles["calibrate"]))
        pool = pool[::-1][:reserved] if calibrating else pool[: len(pool) - reserved]
        if len(names) > len(pool):
            raise InputError(
                f"references: {len(pool)} objects can have {self.each} of their own, got "
                f"{len(names)} to test: fewer, or a model trained with --share-references"
            )
        return dict(zip(names, pool, strict=False))

    def adapt(self, options: TestOptions) -> TestOptions:
        """Return options with the region and the randomization of the profile.

        Args:
            options: Options of the tests.

        Returns:
            Options for this model.
        """
        return replace(options, region=self.region, randomization=self.randomization)

    def seen(self, but: str = "") -> frozenset[str]:
        """Return the digests of the images of all roles, or of all roles but one."""
        return frozenset(d for role, own in self.pictures.items() if role != but for d in own)

    @property
    def tested_noise(self) -> Covariance:
        """Covariance of a tested view: 0 outside the foreground, where the pixels are 0."""
        shown = self.where
        if shown is None:
            return self.noise
        channels = self.fitted.channels
        return masked(self.noise, np.repeat(shown[..., None], channels, axis=2))

    @property
    def where(self) -> Bool[np.ndarray, "H W"] | None:
        """Pixels of a view that may be flagged, fixed by the training images; None for all."""
        return self.fitted.shown if self.fitted.foreground else None


def save_profile(directory: Path, profile: Profile) -> None:
    """Write a profile beside a checkpoint.

    The file `profile.json` is written last and holds the digests of the others.
    Args:
        directory: Directory of the model.
        profile: Profile to write.

    Raises:
        InputError: A file cannot be written.

    Example:
        >>> import tempfile
        >>> from dal_jax.images import Preparation
        >>> from dal_jax.noise import iid
        >>> fitted = Fitted(Preparation(size=4), 1, (0.0, 0.5, 1.0), (0.0,), 1.0, 20)
        >>> views, roles = np.zeros((2, 4, 4, 1)), {"train": ("a", "b")}
        >>> profile = Profile(Source(), fitted, "iid", iid(2.0), views, 0.5, "peak", 0.02, roles, 0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_profile(Path(folder), profile)
        ...     print(sorted(path.name for path in Path(folder).iterdir()))
        ['noise.npz', 'profile.json', 'references.npy']
    """
    save_noise(directory / NOISE, profile.noise)
    write_array(directory / REFERENCES, profile.references)
    facts = {
        "format": _FORMAT,
        "source": asdict(profile.source),
        "preparation": profile.fitted.to_dict(),
        "noise_kind": profile.noise_kind,
        "threshold": profile.threshold,
        "region": profile.region,
        "flag_share": profile.flag_share,
        "roles": {role: list(groups) for role, groups in profile.roles.items()},
        "seed": profile.seed,
        "each": profile.each,
        "pictures": {role: list(own) for role, own in profile.pictures.items()},
        "warnings": list(profile.warnings),
        "randomization": profile.randomization,
        "sha256": {name: file_digest(directory / name) for name in (NOISE, REFERENCES)},
    }
    write_text(directory / RECORD, json.dumps(facts, indent=1) + "\n")


def load_profile(directory: Path) -> Profile:
    """Read a profile that `save_profile` wrote.

    Args:
        directory: Directory of the model.

    Returns:
        The profile.

    Raises:
        CheckpointError: The model has no profile, a file is damaged, or a file belongs to another
            profile.

    Example:
        >>> import tempfile
        >>> from dal_jax.images import Preparation
        >>> from dal_jax.noise import iid
        >>> fitted = Fitted(Preparation(size=4), 1, (0.0, 0.5, 1.0), (0.0,), 1.0, 20)
        >>> views, roles = np.zeros((2, 4, 4, 1)), {"train": ("a", "b")}
        >>> profile = Profile(Source(), fitted, "iid", iid(2.0), views, 0.5, "peak", 0.02, roles, 0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_profile(Path(folder), profile)
        ...     print(load_profile(Path(folder)).fitted == fitted)
        True
    """
    path = directory / RECORD
    if not path.is_file():
        raise CheckpointError(
            f"model {str(directory)!r}: no {RECORD}, expected a model trained with --data"
        )
    with file_errors(path, "profile", CheckpointError):
        facts = read_json(path, "profile", CheckpointError)
        if facts["format"] != _FORMAT:
            raise CheckpointError(
                f"{path}: format {facts['format']}, expected {_FORMAT}: train again (references of "
                "older models were of objects that the network had seen)"
            )
        for name, digest in facts["sha256"].items():
            if name not in (NOISE, REFERENCES) or file_digest(directory / name) != digest:
                raise CheckpointError(f"{directory / name}: is not the file of {RECORD}")
        return _parsed(directory, facts)


def open_model(directory: Path, profile: Profile, localizer: str | None = None) -> Localizer:
    """Load the localizer that a profile belongs to.

    If each view is divided by its own standard deviation, the localizer repeats the division at
    each point of the searched line (`with_rescaling`).

    Args:
        directory: Directory of the model.
        profile: Profile of the model.
        localizer: Name of the model's detector, if that is code; else None.

    Returns:
        The localizer, with the threshold of the profile and draws from its seed.

    Raises:
        CheckpointError: The checkpoint is missing or damaged.
        InputError: The name is missing or another one, or there is none to be given.

    Example:
        >>> profile = load_profile(Path("model"))  # doctest: +SKIP
        >>> open_model(Path("model"), profile).threshold == profile.threshold  # doctest: +SKIP
        True
    """
    if localizer is not None and not is_detector(directory):
        raise InputError(
            f"--localizer: got {localizer!r}, expected none with FOLDER, the model has fixed it"
        )
    found = load_localizer(directory, profile.threshold, profile.seed, localizer)
    return with_rescaling(found) if own_scale(profile.fitted) else found


def check_options(options: TestOptions, profile: Profile) -> None:
    """Refuse options that do not fit a profile.

    Args:
        options: Options of the tests.
        profile: Profile of the model.

    Raises:
        InputError: The regions or the randomizations differ, or the options require a piecewise
            affine score, which a model that divides each view by its own standard deviation does
            not have.
    """
    if options.region != profile.region:
        raise InputError(
            f"options: got region {options.region!r}, expected {profile.region!r}, the profile's"
        )
    if options.randomization != profile.randomization:
        raise InputError(
            f"options: got randomization {options.randomization:g}, expected "
            f"{profile.randomization:g}, the profile's"
        )
    if own_scale(profile.fitted) and (options.engine != "adaptive" or options.first_window):
        raise InputError(
            f"options: got engine {options.engine!r}, first window {options.first_window}, "
            "expected 'adaptive', False: the model divides each view by its own deviation, and "
            "that is not piecewise affine (train with --scale train for the exact engine)"
        )


def own_scale(fitted: Fitted) -> bool:
    """Return whether a view is divided by the standard deviation of all of its pixels."""
    preparation = fitted.preparation
    return preparation.scale == "view" and preparation.foreground == "none"


def _parsed(directory: Path, facts: dict[str, Any]) -> Profile:
    return Profile(
        build(Source, facts["source"], "source"),
        Fitted.from_dict(facts["preparation"]),
        str(facts["noise_kind"]),
        load_noise(directory / NOISE),
        read_array(directory / REFERENCES),
        float(facts["threshold"]),
        check_region(facts["region"]),
        float(facts["flag_share"]),
        {role: tuple(groups) for role, groups in facts["roles"].items()},
        int(facts["seed"]),
        int(facts["each"]),
        {role: tuple(digests) for role, digests in facts["pictures"].items()},
        tuple(facts["warnings"]),
        float(facts.get("randomization", 0.0)),  # absent in models of earlier versions
    )
