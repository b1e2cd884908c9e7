"""Reverse steps as a loop of the program, beside the same steps written out one after the other.

python -m benchmarks.reverse_steps [--sizes 8 16 64] [--rounds 9]

Prints compile time (tracing included) and run time of the evaluator, of the affine piece with its
window and of the sweep, with the U-Net of the paper (untrained) in float32. Calls of both ways
alternate; the ratio is the median over the rounds. The sweep is left out above 16 pixels.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dal_jax import affine_piece
from dal_jax.affine import sweep
from dal_jax.diffusion import DalConfig
from dal_jax.localizers import DalReconstruct
from dal_jax.models import denoiser, init_unet
from dal_jax.search import Evaluator, Functions

SWEEP_UP_TO = 16  # pixels a side
HALF_LENGTH = 0.02  # of the swept part of the line


@dataclass(frozen=True)
class WrittenOut:
    """`DalReconstruct` with the reverse steps one after the other."""

    config: DalConfig

    def __call__(self, params: Any, draws: Any, x: Any) -> Any:
        """Return the reconstruction of an image (H, W, C)."""
        config = self.config
        c = config.reverse.coefficients(config.schedule)
        denoise = denoiser(params, config.unet, config.sides, x.dtype)
        conditions = denoise.conditions(c.levels)
        draws, number = jnp.asarray(draws, x.dtype), x.dtype.type
        y = number(c.start_keep) * x[None] + number(c.start_draw) * draws[0]
        for k, (keep, factor, draw) in enumerate(zip(c.keep, c.denoise, c.draw, strict=True)):
            row = jax.tree.map(lambda v, k=k: v[k], conditions)
            predicted = denoise.given(y, row)
            y = number(keep) * y + number(factor) * predicted + number(draw) * draws[k + 1]
        return y[0]


@dataclass(frozen=True)
class Difference:
    """Score of an image (H, W, C): its distance (H, W) from its reconstruction."""

    reconstruct: Any

    def __call__(self, params: Any, draws: Any, x: Any) -> Any:
        """Return the score."""
        return jnp.abs(self.reconstruct(params, draws, x) - x).sum(-1)


Case = Callable[[], Any]  # compiles, and returns a function that runs once


def evaluator(score: Any, config: DalConfig, params: Any, draws: Any) -> Case:
    """Return the evaluator of full batches."""
    images = np.random.default_rng(1).normal(size=(1, *config.image_shape)).astype(np.float32)

    def make() -> Any:
        functions = Functions(score, score.reconstruct, config.image_shape)
        made = Evaluator(functions, params, draws)
        full = np.repeat(images, made.capacity("float32"), axis=0)
        return lambda: made(full, (), "float32").score.block_until_ready()

    return make


def along_line(score: Any, operands: Any, z: Any) -> Any:
    """Return the score at z on a line of images."""
    params, draws, start, direction = operands
    return score(params, draws, start + z * direction)


def piece(score: Any, config: DalConfig, params: Any, draws: Any) -> Case:
    """Return the piece at one point, with its window."""
    operands = (params, draws, *lines(config))

    def make() -> Any:
        at = jax.jit(lambda given, z: affine_piece(partial(along_line, score, given), z))
        z = np.float32(0.0)
        compiled = at.lower(operands, z).compile()
        return lambda: jax.block_until_ready(compiled(operands, z))

    return make


def swept(score: Any, config: DalConfig, params: Any, draws: Any) -> Case:
    """Return the sweep of a short part of the line."""
    operands = (params, draws, *lines(config))

    def make() -> Any:
        made = sweep(partial(along_line, score), operands, np.float32(0.0))
        made.bind(operands)  # compiles
        part = [(-HALF_LENGTH, HALF_LENGTH)]
        return lambda: list(made.run(made.bind(operands), part))

    return make


def lines(config: DalConfig) -> tuple[Any, Any]:
    """Return start and direction of a line of images (H, W, C), float32."""
    rng = np.random.default_rng(2)
    start, direction = rng.normal(size=(2, *config.image_shape)).astype(np.float32)
    return start, direction


def seconds(call: Callable[[], Any]) -> float:
    """Return the time of one call."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(ways: dict[str, Case], rounds: int) -> str:
    """Return the row of a table: compile times, run times, median ratio of loop to written out."""
    runs, compiling = {}, {}
    for way, make in ways.items():
        start = time.perf_counter()
        runs[way] = make()
        compiling[way] = time.perf_counter() - start
        runs[way]()
    times = [{way: seconds(run) for way, run in runs.items()} for _ in range(rounds)]
    ratio = np.median([row["loop"] / row["written out"] for row in times])
    cells = [f"{compiling[way]:.1f}" for way in ways]
    cells += [f"{1000 * np.median([row[way] for row in times]):.3g}" for way in ways]
    return " | ".join([*cells, f"{ratio:.3f}"])


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    print("| size | program | compile, s: loop | written out | ms: loop | written out | ratio |")
    print("|---|---|---|---|---|---|---|")
    for size in given.sizes:
        config = DalConfig(image_size=size)
        params = init_unet(config.unet, seed=0)
        draws = np.random.default_rng(0).normal(size=config.draws_shape).astype(np.float32)
        kinds = {"evaluator": evaluator, "piece": piece, "sweep": swept}
        for name, kind in kinds.items():
            if name == "sweep" and size > SWEEP_UP_TO:
                continue
            networks = {"loop": DalReconstruct(config), "written out": WrittenOut(config)}
            ways = {
                way: kind(Difference(network), config, params, draws)
                for way, network in networks.items()
            }
            print(f"| {size} | {name} | {compare(ways, given.rounds)} |", flush=True)


if __name__ == "__main__":
    main()
