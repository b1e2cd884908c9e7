"""Operations on pytrees of arrays that several rooms share."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dal_jax._typing import PyTree


def cast_floats(tree: PyTree, dtype: Any) -> PyTree:
    """Cast the floating arrays of a pytree and leave the others as they are.

    Args:
        tree: Pytree of arrays.
        dtype: Floating dtype.

    Returns:
        A pytree of JAX arrays (numpy stays numpy until it is used).

    Example:
        >>> found = cast_floats({"weight": np.ones(2), "count": np.arange(2)}, np.float32)
        >>> str(found["weight"].dtype), str(found["count"].dtype)
        ('float32', 'int64')
    """

    def cast(leaf: Any) -> Any:
        array = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        return array.astype(dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array

    return jax.tree.map(cast, tree)
