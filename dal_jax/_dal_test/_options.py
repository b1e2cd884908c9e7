"""The options of a test, checked once."""

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from dal_jax._config import option
from dal_jax._dal_test._randomization import GAMMA, check_randomization
from dal_jax._errors import InputError
from dal_jax.inference import check_level
from dal_jax.search import REGIONS, AdaptiveOptions, SearchOptions, SharedSearchOptions

ENGINES = ("adaptive", "sweep", "scan")
DTYPES = ("float64", "float32")


@dataclass(frozen=True)
class TestOptions(SearchOptions):
    """Options of a test; `dal_test` describes each field.

    Raises:
        InputError: An option does not fit.

    Example:
        >>> TestOptions(engine="sweep", alpha=0.05).dtype
        'float64'
    """

    engine: str = option(
        "adaptive",
        "How the line is searched: adaptive, by evaluations and interpolation, checked at random "
        "points; sweep, exactly, through every piece of a piecewise-linear network; scan, the "
        "slower check of the sweep.",
        choices=ENGINES,
    )
    # None stands for the dtype of the engine.
    dtype: str | None = option(
        None,
        "Computing type of the search; by default float32, settled in float64, for adaptive and "
        "float64 for sweep and scan.",
        choices=DTYPES,
    )
    adaptive: AdaptiveOptions = field(default_factory=AdaptiveOptions)
    seed: int = option(0, "Seed of everything random.")  # 0 or above
    first_window: bool = option(
        False,
        "Compute the over-conditioned p, too, with the adaptive engine (the exact ones always "
        "do); piecewise-linear networks only.",
    )
    # 0 or more; adaptive engine only.
    permutations: int = option(
        0,
        "Also compare with N permutations of the image's pixels; not valid for correlated noise.",
        metavar="N",
    )
    region: str = option(
        "all",
        "Which flagged pixels are tested: all; those connected with the highest score; or each "
        "connected component on its own.",
        choices=REGIONS,
    )
    # Noise added for the selection, in standard deviations of the noise.
    randomization: float = option(
        GAMMA,
        "Let the model see each image with so much noise added, in standard deviations of the "
        "noise, and test the image itself: p stays exact, power rises. 0 is the test as "
        "published.",
        metavar="GAMMA",
    )
    confidence: float = 0.95  # of the interval for the mean difference, in (0, 1)

    __test__ = False  # the name makes pytest take it for a test case
    __fingerprint__ = "dal_jax._options.TestOptions"  # fixed, so that older runs continue

    def __post_init__(self) -> None:
        if self.dtype is None:
            narrow = self.engine == "adaptive"
            object.__setattr__(self, "dtype", "float32" if narrow else "float64")
        super().__post_init__()
        if self.engine == "scan" and self.dtype == "float32":
            raise InputError("dtype is 'float32', expected 'float64' with engine 'scan'")
        for name in ("seed", "permutations"):
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or value < 0:
                raise InputError(f"{name} is {value!r}, expected a whole number of 0 or above")
        check_randomization(self.randomization)
        check_level("confidence", self.confidence)
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

    def search(self, shares: int, level: float | None = None) -> SharedSearchOptions:
        """Return the options of the search of each of several lines of one image.

        Args:
            shares: Number of tests of the image. As Holm's procedure multiplies p-values by up to
                this number, each line is searched that much more precisely.
            level: Level of the image's decision, in (0, 1); None stands for that of the options.

        Returns:
            The options.
        """
        own = {search.name: getattr(self, search.name) for search in fields(SearchOptions)}
        own |= {"precision": self.precision / shares, "level": level or self.level}
        return SharedSearchOptions(**own, shares=shares)


def test_options(options: dict[str, Any]) -> TestOptions:
    """Create options from keyword arguments.

    Args:
        options: Fields of `TestOptions` by name.

    Returns:
        The options.

    Raises:
        InputError: A name is unknown, or a value does not fit.
    """
    unknown = sorted(set(options) - set(TestOptions.__dataclass_fields__))
    if unknown:
        known = ", ".join(TestOptions.__dataclass_fields__)
        raise InputError(f"options hold {unknown[0]!r}, expected only {known}")
    return TestOptions(**options)


test_options.__test__ = False  # type: ignore[attr-defined]
