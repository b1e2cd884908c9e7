"""How images are tested: the options, checked once."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dal_jax._dal_test._randomization import GAMMA, check_randomization
from dal_jax._errors import InputError
from dal_jax.inference import NullLaw, Ranks
from dal_jax.search import AdaptiveOptions, SearchOptions, check_region

ENGINES = ("adaptive", "sweep", "scan")
DTYPES = ("float64", "float32")


@dataclass(frozen=True)
class TestOptions:
    """How images are tested; `dal_test` says what each field means.

    Raises:
        InputError: an option does not fit.

    Example:
        >>> TestOptions(engine="sweep", alpha=0.05).dtype
        'float64'
    """

    alternative: str = "two-sided"  # or "equal-tailed", "greater", "less"
    engine: str = "adaptive"  # or "sweep", "scan"
    dtype: str | None = None  # None becomes the engine's: "float32" or "float64"
    precision: float = 1e-3  # width of the bounds on p (of components: adjusted), in [0, 1)
    alpha: float | None = None  # level in (0, 1) whose decision is enough
    z_max: float | None = None  # half the range searched, standard deviations; None: 10 + |z_obs|
    adaptive: AdaptiveOptions = field(default_factory=AdaptiveOptions)
    seed: int = 0  # 0 or above
    first_window: bool = False  # with the adaptive engine, too
    permutations: int = 0  # 0 or more; adaptive engine only
    region: str = "all"  # or "peak", "components"
    level: float | None = None  # in (0, 1), at which the decision must be certain, too
    recalibrations: tuple[
        NullLaw | Ranks, ...
    ] = ()  # whose decisions at it must be certain as well
    randomization: float = GAMMA  # noise added for the selection, in deviations of the noise
    confidence: float = 0.95  # of the interval for the mean difference, in (0, 1)

    __test__ = False  # not a test case, whatever pytest thinks of the name
    __fingerprint__ = "dal_jax._options.TestOptions"  # its first place: runs under way go on

    def __post_init__(self) -> None:
        _one_of("engine", self.engine, ENGINES)
        check_region(self.region)
        if self.dtype is None:
            narrow = self.engine == "adaptive"
            object.__setattr__(self, "dtype", "float32" if narrow else "float64")
        _one_of("dtype", self.dtype, DTYPES)
        if self.engine == "scan" and self.dtype == "float32":
            raise InputError("dtype is 'float32', expected 'float64' with engine 'scan'")
        _whole("seed", self.seed)
        check_randomization(self.randomization)
        if not 0 < self.confidence < 1:
            raise InputError(f"confidence is {self.confidence!r}, expected a level between 0 and 1")
        _whole("permutations", self.permutations)
        if not isinstance(self.adaptive, AdaptiveOptions):
            raise InputError(f"adaptive is {self.adaptive!r}, expected an AdaptiveOptions")
        if self.permutations and self.engine != "adaptive":
            raise InputError(
                f"permutations is {self.permutations}, expected 0 with engine {self.engine!r}"
            )
        if self.permutations and self.region == "components":
            raise InputError(
                f"permutations is {self.permutations}, expected 0 with region 'components'"
            )
        _ = self.search

    @property
    def search(self) -> SearchOptions:
        """What the search of the line is told."""
        return SearchOptions(
            self.alternative,
            self.precision,
            self.alpha,
            self.z_max,
            self.level,
            self.recalibrations,
        )


def test_options(options: dict[str, Any]) -> TestOptions:
    """Makes options of keyword arguments.

    Args:
        options: fields of `TestOptions` by name.

    Returns:
        The options.

    Raises:
        InputError: an unknown name, or a value that does not fit.
    """
    unknown = sorted(set(options) - set(TestOptions.__dataclass_fields__))
    if unknown:
        known = ", ".join(TestOptions.__dataclass_fields__)
        raise InputError(f"options hold {unknown[0]!r}, expected only {known}")
    return TestOptions(**options)


test_options.__test__ = False  # type: ignore[attr-defined]


def _whole(name: str, value: Any) -> None:
    if not isinstance(value, int | np.integer) or value < 0:
        raise InputError(f"{name} is {value!r}, expected a whole number of 0 or above")


def _one_of(name: str, value: str | None, options: tuple[str, ...]) -> None:
    if value not in options:
        raise InputError(f"{name} is {value!r}, expected one of {', '.join(options)}")
