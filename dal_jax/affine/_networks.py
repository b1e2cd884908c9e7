"""Maxima and sorts built from pairwise choices, for algebras that support only those.

Comparisons between entries that both lose add nodes to a sweep, which does no harm.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np


def _part(alg: Any, x: Any, index: Any) -> Any:
    return alg.linear(lambda v: [v[index]], [x])[0]


def _concatenate(alg: Any, parts: Sequence[Any]) -> Any:
    return alg.linear(lambda *v: [jnp.concatenate(v)], parts)[0]


def _larger(alg: Any, a: Any, b: Any) -> Any:
    return alg.switch(lambda x, y: [jnp.maximum(x, y)], a, b, jnp.where)


def largest(alg: Any, x: Any) -> Any:
    """The maximum along axis 0, by pairs.

    Args:
        alg: An algebra with `linear` and `switch`.
        x: Moving value of shape (n, ...), n >= 1.

    Returns:
        Moving value of shape (...).
    """
    while (n := alg.shape(x)[0]) > 1:
        half = n // 2
        winners = _larger(alg, _part(alg, x, slice(half)), _part(alg, x, slice(half, 2 * half)))
        x = _concatenate(alg, [winners, _part(alg, x, slice(2 * half, n))]) if n % 2 else winners
    return _part(alg, x, 0)


def index_of_largest(alg: Any, x: Any) -> Any:
    """The first index of the maximum along axis 0, by pairs.

    Args:
        alg: An algebra with `linear`, `switch`, `compare` and `constant`.
        x: Moving value of shape (n, ...), n >= 1.

    Returns:
        int32 value of shape (...) that jumps.
    """
    shape = alg.shape(x)
    index: Any = _places(shape)
    while (n := alg.shape(x)[0]) > 1:
        half = n // 2
        first, second, rest = slice(half), slice(half, 2 * half), slice(2 * half, n)
        a, b = _part(alg, x, first), _part(alg, x, second)
        i, j = (alg.constant(lambda v, s=s: [v[s]], [index])[0] for s in (first, second))
        over, tied = alg.compare("gt", b, a), alg.compare("eq", b, a)
        won = alg.constant(
            lambda o, t, i, j: [jnp.where(o | (t & (j < i)), j, i)], [over, tied, i, j]
        )[0]
        tail = alg.constant(lambda v, s=rest: [v[s]], [index])[0]
        winners = _larger(alg, a, b)
        x = _concatenate(alg, [winners, _part(alg, x, rest)]) if n % 2 else winners
        index = alg.constant(lambda *v: [jnp.concatenate(v)], [won, tail])[0]
    return alg.constant(lambda v: [v[0]], [index])[0]


def running_largest(alg: Any, x: Any) -> Any:
    """The cumulative maximum along axis 0, doubling the reach each round.

    Args:
        alg: An algebra with `linear` and `switch`.
        x: Moving value of shape (n, ...).

    Returns:
        Moving value of shape (n, ...).
    """
    n, reach = alg.shape(x)[0], 1
    while reach < n:
        earlier, later = _part(alg, x, slice(n - reach)), _part(alg, x, slice(reach, n))
        x = _concatenate(alg, [_part(alg, x, slice(reach)), _larger(alg, later, earlier)])
        reach *= 2
    return x


def sort(alg: Any, key: Any, carried: Sequence[Any]) -> tuple[Any, list[Any]]:
    """Sort along axis 0 by a network of exchanges; stable.

    Args:
        alg: An algebra with `linear`, `switch`, `compare` and `constant`.
        key: Moving value of shape (n, ...).
        carried: Values of the same shape that are sorted along with the key.

    Returns:
        The key in ascending order, and the carried values in the order of the key.

    Source: Batcher's merge exchange (1968); ties are broken by the place.
    """
    n = alg.shape(key)[0]
    carried = [*carried, _places(alg.shape(key))] if carried else []
    for low, high in merge_exchange(n):
        rest = np.setdiff1d(np.arange(n), np.concatenate([low, high]))
        back = np.argsort(np.concatenate([low, high, rest]))  # where each result lies in the parts
        a, b, untouched = (_part(alg, key, index) for index in (low, high, rest))
        exchange = None
        if carried:
            over, tied = alg.compare("gt", a, b), alg.compare("eq", a, b)
            i, j = (alg.constant(lambda v, s=s: [v[s]], [carried[-1]])[0] for s in (low, high))
            exchange = alg.constant(lambda o, t, i, j: [o | (t & (i > j))], [over, tied, i, j])[0]
        smaller = alg.switch(lambda x, y: [jnp.minimum(x, y)], a, b, lambda s, x, y: s)
        larger = _larger(alg, a, b)
        key = alg.linear(
            lambda *v, back=back: [jnp.concatenate(v)[back]], [smaller, larger, untouched]
        )[0]
        carried = [
            alg.linear(
                lambda e, v, low=low, high=high, rest=rest, back=back: [
                    jnp.concatenate(
                        [jnp.where(e, v[high], v[low]), jnp.where(e, v[low], v[high]), v[rest]]
                    )[back]
                ],
                [exchange, value],
            )[0]
            for value in carried
        ]
    return key, list(carried[:-1])


def _places(shape: tuple[int, ...]) -> np.ndarray:
    column = np.arange(shape[0], dtype=np.int32).reshape(-1, *(1,) * (len(shape) - 1))
    return np.broadcast_to(column, shape)


def merge_exchange(n: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Batcher's network for n inputs: rounds of disjoint pairs (low, high) to compare.

    Args:
        n: Number of inputs, 0 and above.

    Returns:
        One pair of index arrays a round, low < high.

    Source: Knuth, The Art of Computer Programming, volume 3, algorithm 5.2.2M.
    """
    rounds = []
    p = top = 1 << max(0, (n - 1).bit_length() - 1)
    while p and n > 1:
        q, r, d = top, 0, p
        while True:
            low = np.array([i for i in range(n - d) if i & p == r], dtype=np.int64)
            if low.size:
                rounds.append((low, low + d))
            if q == p:
                break
            d, q, r = q - p, q // 2, p
        p //= 2
    return rounds
