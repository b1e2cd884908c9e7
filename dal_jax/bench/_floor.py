"""The floor of a search: its own program called back to back, and how often a search calls it."""

import contextlib
import time
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from dal_jax._compat import exact_arithmetic
from dal_jax.search import CALLS, Evaluator

# A measurement of the bare forward pass lasts about this long.
FLOOR_SECONDS, FLOOR_CALLS = 0.5, 200


def bare_seconds(evaluator: Evaluator, dtype: str, images: np.ndarray) -> float:
    """Seconds of one full batch by the evaluator's own program, arrays lying on the devices.

    As many calls are under way at a time as in a search, so that both overlap alike.

    Args:
        evaluator: whose program.
        dtype: of the program.
        images: (N, H, W, C), repeated to fill the batch.

    Returns:
        Wall time of many calls over their number.

    Example:
        >>> from dal_jax.search import Functions
        >>> def brightness(params, draws, x):
        ...     return x.sum(-1)
        >>> functions = Functions(brightness, lambda params, draws, x: x, (4, 4, 1))
        >>> bare_seconds(Evaluator(functions, (), ()), "float32", np.zeros((1, 4, 4, 1))) > 0
        True
    """
    program, prepared = evaluator._program(dtype)
    count = evaluator.capacity(dtype)
    batch = np.resize(images, (count, *images.shape[1:])).astype(dtype)
    with exact_arithmetic():
        batch = jax.device_put(batch, program.apply.input_shardings[0][-1])
        jax.block_until_ready(program.apply(prepared, (), batch))
        started = time.perf_counter()
        jax.block_until_ready(program.apply(prepared, (), batch))
        once = time.perf_counter() - started
        calls = int(np.clip(FLOOR_SECONDS / once, 2, FLOOR_CALLS))
        under_way: deque[Any] = deque()
        started = time.perf_counter()
        for _ in range(calls):
            under_way.append(program.apply(prepared, (), batch))
            if len(under_way) >= CALLS:
                jax.block_until_ready(under_way.popleft())
        jax.block_until_ready(list(under_way))
    return (time.perf_counter() - started) / calls


@contextlib.contextmanager
def counted_calls() -> Iterator[Counter[str]]:
    """Counts calls and images of every evaluator, by dtype.

    Yields:
        The counts so far, by "calls DTYPE" and "images DTYPE".

    Example:
        >>> from dal_jax.search import Functions
        >>> def brightness(params, draws, x):
        ...     return x.sum(-1)
        >>> functions = Functions(brightness, lambda params, draws, x: x, (4, 4, 1))
        >>> with counted_calls() as counts:
        ...     _ = Evaluator(functions, (), ())(np.zeros((3, 4, 4, 1)), (), "float32")
        >>> counts["calls float32"], counts["images float32"]
        (1, 3)
    """
    counts: Counter[str] = Counter()
    original = Evaluator.__call__

    def counting(self: Evaluator, images: np.ndarray, draws: Any, dtype: str) -> Any:
        counts[f"calls {dtype}"] += 1
        counts[f"images {dtype}"] += len(images)
        return original(self, images, draws, dtype)

    Evaluator.__call__ = counting  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        Evaluator.__call__ = original  # type: ignore[method-assign]
