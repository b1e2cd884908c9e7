"""Photographs as people have them: what their numbers mean, or one line that refuses them."""

from pathlib import Path

import numpy as np
import pytest
from file_cases import FileCase, check, check_table

from dal_jax.images import read_image

pillow = pytest.importorskip("PIL.Image")

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (5, 7)).astype(np.uint8)
COLOUR = RNG.integers(0, 256, (5, 7, 3)).astype(np.uint8)

CASES = [
    FileCase(
        "PNG",
        "8 bits, grey",
        "read: one channel, divided by 255",
        "x.png",
        lambda path: pillow.fromarray(GREY).save(path),
        GREY[..., None] / 255,
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.kind}: {case.content}")
def test_every_file_is_read_or_refused(case: FileCase, tmp_path: Path) -> None:
    check(case, tmp_path, read_image)


def test_the_page_has_the_table() -> None:
    check_table("Photographs", CASES)
