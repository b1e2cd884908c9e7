"""The tested pixels of a score map, and the line along which they must stay the same."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from dal_jax._arrays import cast_floats
from dal_jax._errors import InputError
from dal_jax._typing import Array, Bool, Float, Int, PyTree

REGIONS = ("all", "peak", "components")
# A pixel's neighbours: the eight around it.
_NEIGHBOURS = np.ones((3, 3), bool)
# Two float64 computations of a score agree to this share of the values it is computed from.
TIE = 1e-12


class Margins(NamedTuple):
    """Margins of the pixels at evaluated points of a line.

    Example:
        >>> score = np.array([[2.0, 0.0]])
        >>> found = margins(score[None], 1.0, select_region(score, 1.0))
        >>> found.margin.tolist(), found.inside.tolist()
        ([[1.0, 1.0]], [True])
    """

    margin: Float[np.ndarray, "k n"]  # of every pixel that counts, positive if it is as observed
    inside: Bool[np.ndarray, " k"]  # the region is the observed one


class SelectedRegion(NamedTuple):
    """A region, and the other pixels that decide whether it is selected, as masks (H, W).

    Example:
        >>> selected = select_region(np.array([[2.0, 0.0, 3.0, 0.5, 0.0]]), 1.0, "peak")
        >>> selected.must_not_flag.tolist(), selected.must_stay_lower.tolist()
        ([[False, True, False, True, False]], [[True, False, False, False, True]])
    """

    region: Bool[np.ndarray, "H W"]  # all of it must be flagged
    must_not_flag: Bool[np.ndarray, "H W"]  # none of it may be flagged
    must_stay_lower: Bool[np.ndarray, "H W"]  # none of it may score above all of the region

    @property
    def counts(self) -> Bool[np.ndarray, "H W"]:
        """Pixels that decide whether the region is selected."""
        return self.region | self.must_not_flag | self.must_stay_lower


def check_region(kind: Any) -> str:
    """Check that a kind of region is known.

    Args:
        kind: Kind of region, as in `select_region`.

    Returns:
        The kind.

    Raises:
        InputError: Unknown kind.

    Example:
        >>> check_region("peak")
        'peak'
    """
    if kind not in REGIONS:
        raise InputError(f"region: got {kind!r}, expected one of {', '.join(REGIONS)}")
    return kind


def select_region(
    score: Float[np.ndarray, "H W"],
    threshold: float,
    kind: str = "all",
    where: Bool[np.ndarray, "H W"] | None = None,
) -> SelectedRegion:
    """Select the pixels to be tested.

    Args:
        score: (H, W) score map.
        threshold: Threshold of the score; flagged pixels have a higher score.
        kind: "all", every flagged pixel; "peak", those connected with the highest score (the first
            of equal ones in row-major order) through flagged pixels, diagonal neighbours included;
            "components", every flagged pixel, to be split by `parts_of`.
        where: (H, W) pixels that may be flagged; None stands for all.

    Returns:
        The region, empty if nothing is flagged, with the pixels that decide on it.

    Raises:
        InputError: Unknown kind.

    Example:
        >>> select_region(np.array([[2.0, 0.0, 3.0, 2.5]]), 1.0, "peak").region.tolist()
        [[False, False, True, True]]

    Source: Katsuoka et al., arXiv 2402.11789 ("all").
    """
    check_region(kind)
    allowed = np.ones(score.shape, bool) if where is None else where
    flagged = (score > threshold) & allowed
    if kind != "peak" or not flagged.any():
        return SelectedRegion(flagged, ~flagged & allowed, np.zeros_like(flagged))
    labels = label_components(flagged)
    highest = np.where(flagged, score, -np.inf).argmax()
    region = labels == labels.reshape(-1)[highest]
    rim = _grown(region) & ~region & allowed
    return SelectedRegion(region, rim, allowed & ~region & ~rim)


def _grown(region: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Return a region, not empty, with the neighbours of its pixels."""
    used = (np.flatnonzero(region.any(axis)) for axis in (1, 0))
    box = tuple(slice(max(0, at[0] - 1), at[-1] + 2) for at in used)
    grown = np.zeros_like(region)
    grown[box] = ndimage.binary_dilation(region[box], _NEIGHBOURS)
    return grown


def label_components(region: Bool[np.ndarray, "H W"]) -> Int[np.ndarray, "H W"]:
    """Number the connected components of a region, diagonal neighbours included.

    Args:
        region: (H, W) mask.

    Returns:
        (H, W), 1, 2, ... in the row-major order of each component's first pixel; 0 outside.

    Example:
        >>> label_components(np.array([[True, False, True], [False, False, True]])).tolist()
        [[1, 0, 2], [0, 0, 2]]
    """
    return np.asarray(ndimage.label(region, _NEIGHBOURS)[0])  # type: ignore[index]


def parts_of(selected: SelectedRegion, kind: str) -> list[Bool[np.ndarray, "H W"]]:
    """Return the regions to test, each given that all selected pixels were selected.

    Args:
        selected: Selected region, not empty.
        kind: Kind of region, as in `select_region`.

    Returns:
        Masks (H, W): each connected component for "components", else the region itself.

    Example:
        >>> selected = select_region(np.array([[2.0, 0.0, 3.0, 2.5]]), 1.0, "components")
        >>> [part.sum().item() for part in parts_of(selected, "components")]
        [1, 2]
    """
    if kind != "components":
        return [selected.region]
    labels = label_components(selected.region)
    return [labels == number for number in range(1, int(labels.max()) + 1)]


def margins(
    score: Float[np.ndarray, "k H W"], threshold: float, selected: SelectedRegion
) -> Margins:
    """Return the margins by which score maps select the observed region.

    The region is selected if and only if its pixels are flagged, those of the rim are not, and the
    highest score of the region and the rest (the first of equal ones, as in `select_region`) lies
    in the region.

    Args:
        score: (k, H, W) score maps.
        threshold: Threshold of the score; flagged pixels have a higher score.
        selected: Region selected in the observed map, not empty.

    Returns:
        Margins of the pixels that count, positive if a pixel is as observed, in units of the score;
        and whether all pixels are as observed.

    Example:
        >>> selected = select_region(np.array([[2.0, 0.0]]), 1.0)
        >>> along = np.array([[[2.0, 0.0]], [[2.0, 1.5]]])  # in the second both are flagged
        >>> margins(along, 1.0, selected).inside.tolist()
        [True, False]
    """
    region, rim, rest = (mask.reshape(-1) for mask in selected)
    over = score.reshape(len(score), -1) - threshold
    margin = -over
    np.copyto(margin, over, where=region)
    as_observed = (margin > 0) | ((margin == 0) & rim[None]) | ~(region | rim)[None]
    same = as_observed.all(axis=1)
    if rest.any():
        pixels = np.flatnonzero(region)
        inside = over[:, pixels]
        np.subtract(inside.max(axis=1, keepdims=True), over, out=margin, where=rest)
        later = np.arange(len(rest)) > pixels[inside.argmax(axis=1), None]
        lower = (margin > 0) | ((margin == 0) & later) | ~rest
        same = np.logical_and(same, lower.all(axis=1))
    counts = selected.counts.reshape(-1)
    return Margins(margin if counts.all() else margin[:, counts], same)


def count_ties(margin: Float[np.ndarray, " n"], scale: float) -> int:
    """Count the pixels of a score map whose selection is decided by rounding.

    Args:
        margin: Margins (n,) of the score map in which the region was selected, in float64.
        scale: Size of the scores, the threshold and the values that the scores are computed from,
            in units of the score.

    Returns:
        Number of margins of at most 1e-12 times the scale. If it is not 0, another processor or
        another batch may select another region.

    Example:
        >>> score = np.array([[2.0, 1.0 + 1e-15, 0.0]])
        >>> count_ties(margins(score[None], 1.0, select_region(score, 1.0)).margin[0], scale=3.0)
        1
    """
    return int(np.count_nonzero(np.abs(margin) <= TIE * scale))


class LineProblem(NamedTuple):
    """Search for the part of `base + direction z` on which the region is the observed one.

    Example:
        >>> from dal_jax.search import select_region
        >>> bright, along = lambda params, draws, x: x[..., 0], np.array([[[1.0], [0.0]]])
        >>> selected = select_region(np.array([[2.0, 0.0]]), 1.0)  # at z = 2
        >>> problem = LineProblem(bright, (), (), 1.0, 0 * along, along, selected, 2.0)
        >>> bool(problem.membership(operands(problem, "float32"), jnp.float32(0.5))[0])  # 0.5 < 1
        False
    """

    score_fn: Callable[..., Any]  # (params, draws, x (H, W, C)) -> (H, W)
    params: PyTree  # of the score
    draws: PyTree  # fixed random numbers of the score
    threshold: float  # of the score
    base: Float[np.ndarray, "H W C"]  # independent of the statistic
    direction: Float[np.ndarray, "H W C"]  # per standard deviation of the statistic
    selected: SelectedRegion  # at z_obs
    z_obs: float  # observed statistic in units of its standard deviation

    @property
    def membership(self) -> "Membership":
        """Function that decides whether the observed region is selected at a point of the line."""
        return Membership(self.score_fn, bool(self.selected.must_stay_lower.any()))


@dataclass(frozen=True)
class Membership:
    """Function (operands, z) -> (whether the region is the observed one, the score map).

    Example:
        >>> from dal_jax.search import select_region
        >>> bright, along = lambda params, draws, x: x[..., 0], np.array([[[1.0], [0.0]]])
        >>> selected = select_region(np.array([[2.0, 0.0]]), 1.0)  # at z = 2
        >>> problem = LineProblem(bright, (), (), 1.0, 0 * along, along, selected, 2.0)
        >>> at = operands(problem, "float32"), jnp.float32(3.0)
        >>> same, score = Membership(bright)(*at)
        >>> bool(same), score.tolist()
        (True, [[3.0, 0.0]])
    """

    score_fn: Callable[..., Any]  # (params, draws, x (H, W, C)) -> (H, W)
    must_stay_lower: bool = False  # whether any pixel must only score below the region's highest

    def __call__(self, operands: Any, z: Array) -> tuple[Array, Array]:
        """Evaluate at one point of the line.

        Args:
            operands: Arrays from the function `operands`.
            z: Standardized point, a scalar of the same dtype.

        Returns:
            (bool, (H, W)): whether the observed region is selected there, and the score.
        """
        params, draws, base, direction, selected, threshold = operands
        score = self.score_fn(params, draws, base + direction * z)
        flagged = score > threshold
        same = jnp.all(jnp.where(selected.region, flagged, ~(flagged & selected.must_not_flag)))
        if self.must_stay_lower:
            highest = jnp.max(jnp.where(selected.region, score, threshold))
            level = score == highest
            first = jnp.argmax(level & selected.region)  # `select_region` takes the first of equals
            later = jnp.arange(score.size).reshape(score.shape) > first
            same &= jnp.all((score < highest) | (level & later) | ~selected.must_stay_lower)
        return same, score


def operands(problem: LineProblem, dtype: Any) -> Any:
    """Return the arrays of a problem, with one floating dtype.

    Args:
        problem: Problem of the line.
        dtype: Floating dtype of the computation.

    Returns:
        The first argument of a `Membership`.

    Example:
        >>> from dal_jax.search import select_region
        >>> bright, along = lambda params, draws, x: x[..., 0], np.array([[[1.0], [0.0]]])
        >>> selected = select_region(np.array([[2.0, 0.0]]), 1.0)  # at z = 2
        >>> problem = LineProblem(bright, (), (), 1.0, 0 * along, along, selected, 2.0)
        >>> _, _, base, _, _, threshold = operands(problem, "float32")
        >>> base.dtype.name, threshold.dtype.name
        ('float32', 'float32')
    """
    arrays = (problem.params, problem.draws, problem.base, problem.direction)
    return (*cast_floats(arrays, dtype), problem.selected, np.asarray(problem.threshold, dtype))


def tree_spec(tree: Any) -> tuple[Any, tuple[Any, ...]]:
    """Return a hashable description of a pytree of arrays: its structure, shapes and dtypes.

    Args:
        tree: Pytree of arrays.

    Returns:
        (structure, ((shape, dtype), ...)); `tree_from_spec` turns it into shapes to trace with.
    """
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple((tuple(np.shape(v)), np.dtype(v.dtype).name) for v in leaves)


def tree_from_spec(description: tuple[Any, tuple[Any, ...]]) -> Any:
    """Return the pytree of `jax.ShapeDtypeStruct` that a description stands for.

    Args:
        description: Description from `tree_spec`.

    Returns:
        A tree to trace functions with.
    """
    structure, leaves = description
    return structure.unflatten([jax.ShapeDtypeStruct(s, np.dtype(d)) for s, d in leaves])
