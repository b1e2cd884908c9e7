"""What must not depend on the tested pixels: references, masks; copies and shared references."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import published_batch as dal_test_batch

from dal_jax import InputError, from_score
from dal_jax.images import DataSet, Fitted, Preparation, Sample, fit, views
from dal_jax.images._views import cut_views, windows
from dal_jax.inspection import LearnOptions, Profile, Source
from dal_jax.inspection._learn import (
    DEALT_ROLES,
    ROLES,
    Normal,
    choose_references,
    share_out,
)
from dal_jax.inspection._views import picture_of
from dal_jax.noise import iid

SIDE = 4
SHAPE = (SIDE, SIDE, 1)


def brightness(params, draws, x):
    """The score of a network that knows the mean and looks for what is brighter."""
    return jnp.maximum(x - params, 0).sum(-1)


def rejected(p, alpha=0.05):
    """Share of p-values at most alpha, and its standard error where they are uniform."""
    p = p[~np.isnan(p)]
    return float((p <= alpha).mean()), float(np.sqrt(alpha * (1 - alpha) / len(p)))


def listed(groups, split="train"):
    """A data set whose samples are of these groups."""
    return DataSet(
        Path("d"),
        "folder",
        tuple(
            Sample(f"{k}.png", Path(f"d/{k}.png"), split, "normal", None, group)
            for k, group in enumerate(groups)
        ),
    )


def of_trained_network(from_role, count, seed, objects=8, references=1):
    """P-values of null images, with references from one role or from the training objects."""
    data, p = listed([f"g{k:02d}" for k in range(objects)]), []
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        pictures = {s.name: rng.standard_normal(SHAPE) for s in data.samples}
        dealt, _ = share_out(data, number)
        own = {
            role: Normal(
                np.stack([pictures[s.name] for s in part]),
                tuple(s.group for s in part),
                tuple(s.name for s in part),
                np.ones((len(part), SIDE, SIDE), bool),
            )
            for role, part in dealt.items()
        }
        chosen = choose_references(own[from_role], LearnOptions(references=references, seed=number))
        localizer = from_score(brightness, SHAPE, 0.5, own["train"].pixels.mean(axis=0))
        tested = rng.standard_normal((8, *SHAPE))
        shown = np.stack([chosen] * len(tested))
        p += [r.p_high for r in dal_test_batch(localizer, tested, shown, iid(1.0), region="all")]
    return np.array(p).reshape(count, -1)


@pytest.mark.slow
def test_references_that_the_network_has_seen_are_not_independent_of_what_it_flags():
    """One training object, which is the reference, too: .17 at .05; another object's view: .05."""
    rate, error = rejected(of_trained_network("train", 30, seed=0, objects=4).ravel())
    assert rate > 0.05 + 5 * error
    rate, error = rejected(of_trained_network("reference", 40, seed=0, objects=4).ravel())
    assert rate < 0.05 + 2 * error


def test_every_object_serves_for_one_thing():
    for roles in (ROLES, DEALT_ROLES):
        assert sum(roles.values()) == pytest.approx(1.0)
        dealt, left_out = share_out(listed([f"g{k // 2}" for k in range(80)]), 3, roles)
        groups = [{s.group for s in part} for part in dealt.values()]
        assert list(dealt) == list(roles) and not left_out
        assert sum(map(len, groups)) == len(set.union(*groups)) == 40
        assert len(groups[2]) == round(40 * roles["reference"])


def profile_of(references, each, calibrate=2):
    fitted = Fitted(Preparation(size=SIDE), 1, (0.0, 0.5, 1.0), (0.0,), 1.0, 20)
    roles = {"calibrate": tuple(f"c{k}" for k in range(calibrate))}
    return Profile(Source(), fitted, "iid", iid(1.0), references, 0.5, "all", 0.02, roles, 0, each)


def test_references_are_dealt_so_that_no_two_objects_share_one():
    rng = np.random.default_rng(0)
    count, where = 13, np.ones((13, SIDE, SIDE), bool)
    groups = tuple(f"r{k}" for k in range(count))
    normal = Normal(rng.standard_normal((count, *SHAPE)), groups, groups, where)
    pool = choose_references(normal, LearnOptions(references=2, deal_references=True))
    assert len(pool) == 12  # six times two: the last one is left over
    assert len(choose_references(normal, LearnOptions(references=2))) == 2
    profile = profile_of(pool, each=2)
    tested = profile.references_of(["a", "a", "b", "c", "a", "d"])
    kept = profile.references_of(["c0", "c1"], calibrating=True)
    taken = np.concatenate([*tested.values(), *kept.values()])
    assert list(tested) == ["a", "b", "c", "d"] and profile.num_references == 2
    assert len(taken) == 12 == len({one.tobytes() for one in taken})
    with pytest.raises(InputError, match="4 objects can have 2 of their own, got 5 to test"):
        profile.references_of(list("abcde"))
    shared = profile_of(pool, each=0)
    assert all(own is pool for own in shared.references_of(list("abcde")).values())
    assert shared.num_references == 12


def test_copies_of_two_pictures_are_two_pictures():
    """Twenty files of two pictures: nothing can be learned of what varies, and it is refused."""
    rng = np.random.default_rng(1)
    two = [picture_of(rng.standard_normal(SHAPE)) for _ in range(2)]
    data = listed([f"g{k}" for k in range(20)])
    pictures = {s.name: two[k % 2] for k, s in enumerate(data.samples)}
    with pytest.raises(InputError, match=r"2 groups .*\(18 of 20 images are copies of others\)"):
        share_out(data, 0, ROLES, pictures)
    # A copy joins its objects: no role may hold another shot of what a second role has seen.
    data = listed([f"g{k // 2}" for k in range(40)])
    pictures = {s.name: str(k) for k, s in enumerate(data.samples)} | {"39.png": "0"}
    for seed in range(20):
        dealt, _ = share_out(data, seed, ROLES, pictures)
        names = {role: {s.name for s in part} for role, part in dealt.items()}
        home = next(role for role, own in names.items() if "0.png" in own)
        assert "38.png" in names[home] and "39.png" not in set.union(*names.values())
    assert picture_of(np.zeros(SHAPE)) == ""  # black slices are no copies of one another
    assert picture_of(np.ones((2, 8, 1)) + np.eye(2, 8)[..., None]) != picture_of(
        np.ones((4, 4, 1)) + np.eye(2, 8).reshape(4, 4, 1)
    )


def of_masks(own, count, seed):
    """P-values of null images whose masks are their own, or that of the training images."""
    rng, side, contrast = np.random.default_rng(seed), 8, 3.5
    mean = np.zeros((side, side, 1))
    mean[2:6, 2:6] = contrast
    preparation = Preparation(side, "crop", "raw", "none", "none", foreground="otsu")

    def drawn():
        return mean + rng.standard_normal(mean.shape)

    def cut(image):
        if own:  # as it was done before the mask was fixed
            return cut_views(fitted, image, *windows(preparation, image.shape), own=True)
        return views(fitted, image)

    fitted = fit(preparation, [drawn() for _ in range(60)])
    found = [[cut(drawn()) for _ in range(9)] for _ in range(count)]
    pixels = np.array([[view.pixels[0] for view in one] for one in found])
    localizer = from_score(brightness, mean.shape, 0.5, pixels.mean(axis=(0, 1)))
    results = dal_test_batch(
        localizer,
        pixels[:, 0],
        pixels[:, 1:],
        iid(1.0),
        region="all",
        where=[one[0].foreground[0] for one in found],
    )
    return np.array([r.p_high for r in results])


@pytest.mark.slow
def test_a_mask_of_the_tested_pixels_is_not_valid_and_one_of_training_images_is():
    """Otsu's mask drops pixels that are dark by chance: .24 at .05; fixed beforehand: .05."""
    rate, error = rejected(of_masks(own=True, count=150, seed=0))
    assert rate > 0.05 + 5 * error
    p = [of_masks(own=False, count=400, seed=seed) for seed in range(3)]
    rate, error = rejected(np.concatenate(p))
    assert rate < 0.05 + 2 * error
