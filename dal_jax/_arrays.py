"""Operations on arrays and devices that several rooms share."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dal_jax._errors import InputError
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


def power_of_2(least: int) -> int:
    """Return the smallest power of 2 that is `least`, 1 or more, or above it.

    Arrays of such lengths share their compiled programs.

    Example:
        >>> [power_of_2(count) for count in (1, 2, 3, 65)]
        [1, 2, 4, 128]
    """
    return 1 << int(least - 1).bit_length()


def chosen_devices(devices: Sequence[Any] | int | None) -> tuple[Any, ...]:
    """Return the devices that a caller names.

    Args:
        devices: JAX devices of this process, or their number; None is all.

    Returns:
        The devices.

    Raises:
        InputError: There are fewer devices than requested, or none is named.

    Example:
        >>> len(chosen_devices(1))
        1
    """
    there = tuple(jax.local_devices())
    if devices is None:
        return there
    if not isinstance(devices, int | np.integer):
        if not len(devices):
            raise InputError("devices is empty, expected at least one device")
        return tuple(devices)
    if not 1 <= devices <= len(there):
        raise InputError(
            f"devices: got {devices}, expected 1 to {len(there)}, the devices available"
        )
    return there[:devices]


def memory_of(device: Any) -> int:
    """Return the memory of a device in bytes; 8 GiB where the device does not say.

    Example:
        >>> memory_of(chosen_devices(1)[0]) > 2**20
        True
    """
    return int((device.memory_stats() or {}).get("bytes_limit", 2**33))
