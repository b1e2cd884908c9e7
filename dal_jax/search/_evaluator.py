"""Scores of many images at a time, by one compiled program per precision on all given devices."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dal_jax._arrays import cast_floats
from dal_jax._compat import exact_arithmetic, split_known
from dal_jax._errors import InputError
from dal_jax._typing import Array, Float, PyTree
from dal_jax.search._selection import tree_from_spec, tree_spec

# Pixels per device and call on a CPU (more leave the cache, fewer waste time between calls), and
# the largest number of images.
CPU_PIXELS, CPU_LANES = 2048, 32
# On other devices: pixels that keep a device busy, the largest number of images per call (more
# would be padding), and the share of the memory that a call may take.
DEVICE_PIXELS, DEVICE_LANES, MEMORY_SHARE = 2**20, 1024, 0.25


class Functions(NamedTuple):
    """Functions of a localizer; hashable, and equal ones share their programs.

    Example:
        >>> def brightness(params, draws, x):
        ...     return x.mean(-1)
        >>> Functions(brightness, lambda params, draws, x: x, (28, 28, 1)).image_shape
        (28, 28, 1)
    """

    score: Any  # (params, draws, x (H, W, C)) -> (H, W)
    reconstruct: Any  # (params, draws, x (H, W, C)) -> (H, W, C)
    image_shape: tuple[int, int, int]  # (H, W, C)


class Evaluated(NamedTuple):
    """Arrays on the devices, perhaps still being computed."""

    score: Array  # (capacity, H, W)
    reconstruction: Array | None  # (capacity, H, W, C), with float64 only


class _Program(NamedTuple):
    prepare: Any  # parameters and shared draws -> values that need no image
    apply: Any  # (prepared, draws of each image or (), images) -> outputs
    lanes: int  # images a device takes at a time
    temporary_bytes: int  # temporary memory of one device


class Evaluator:
    """Evaluator of images, `capacity` at a time, in float32 or in float64.

    Every device computes the same number of images with the same program, whichever tests they
    belong to. The place of an image in a batch, and the other images, change its scores by rounding
    alone: a matrix product may treat the last rows of a block differently from the first.

    Args:
        functions: Functions of the localizer.
        params: Parameters of the functions.
        draws: Draws shared by all images or, with `own_draws`, an example of the draws of one
            image.
        own_draws: Whether every image comes with its own draws.
        devices: Devices to be used; None selects all devices of this process.

    Raises:
        InputError: No devices; at the first use, scores whose shape is not that of the images.

    Example:
        >>> def brightness(params, draws, x):
        ...     return x.mean(-1)
        >>> functions = Functions(brightness, lambda params, draws, x: x, (1, 2, 1))
        >>> evaluated = Evaluator(functions, (), ())(np.full((3, 1, 2, 1), 7.0), (), "float32")
        >>> evaluated.score[:3].tolist()
        [[[7.0, 7.0]], [[7.0, 7.0]], [[7.0, 7.0]]]
    """

    @exact_arithmetic()
    def __init__(
        self,
        functions: Functions,
        params: PyTree,
        draws: PyTree,
        own_draws: bool = False,
        devices: Sequence[Any] | None = None,
    ):
        self._devices = tuple(jax.local_devices() if devices is None else devices)
        if not self._devices:
            raise InputError("devices is empty, expected at least one device")
        self._functions, self._own = functions, own_draws
        self._fixed = (params, () if own_draws else draws)
        self._one_draws = draws
        self._bound: dict[str, tuple[_Program, Any]] = {}

    def capacity(self, dtype: str) -> int:
        """Return the number of images of one call.

        Args:
            dtype: "float32" or "float64".

        Returns:
            The number, for all devices together.
        """
        return self._program(dtype)[0].lanes * len(_devices_for(self._devices, dtype))

    @property
    def devices(self) -> tuple[Any, ...]:
        """Devices on which the images are evaluated."""
        return self._devices

    @exact_arithmetic()
    def __call__(
        self,
        images: Float[np.ndarray, "k H W C"] | Float[Array, "k H W C"],
        draws: PyTree,
        dtype: str,
        count: int | None = None,
    ) -> Evaluated:
        """Start the evaluation of up to `capacity` images.

        Args:
            images: (k, H, W, C), k <= capacity; on the devices already with k = capacity.
            draws: Draws with a leading axis k if every image has its own, else unused.
            dtype: "float32" or "float64".
            count: Number of images that are not padding; None for all. Nothing depends on it.

        Returns:
            The outputs, of which the first k rows are valid.
        """
        program, prepared = self._program(dtype)
        own = cast_floats(draws, dtype) if self._own else ()
        if isinstance(images, np.ndarray):
            capacity = self.capacity(dtype)
            own, images = jax.tree.map(lambda v: _pad(v, capacity), (own, images.astype(dtype)))
        outputs = program.apply(prepared, own, images)
        return Evaluated(outputs[0], outputs[1] if len(outputs) > 1 else None)

    def _program(self, dtype: str) -> tuple[_Program, Any]:
        if dtype not in self._bound:
            self._bind(dtype)
        return self._bound[dtype]

    @exact_arithmetic()
    def _bind(self, dtype: str) -> None:
        fixed = cast_floats(self._fixed, dtype)
        devices = _devices_for(self._devices, dtype)
        draws = tree_spec(cast_floats(self._one_draws, dtype)) if self._own else None
        program = _program_for(self._functions, tree_spec(fixed), draws, dtype, devices)
        self._bound[dtype] = program, program.prepare(fixed)


def _devices_for(devices: tuple[Any, ...], dtype: str) -> tuple[Any, ...]:
    """Return the devices, or the host's processor if they have no float64."""
    if dtype == "float64" and devices[0].platform == "tpu":
        return tuple(jax.local_devices(backend="cpu")[:1])
    return devices


def _pad(values: np.ndarray, count: int) -> np.ndarray:
    if len(values) == count:
        return values
    return np.concatenate(
        [values, np.zeros((count - len(values), *values.shape[1:]), values.dtype)]
    )


@lru_cache(maxsize=64)
def _program_for(
    functions: Functions, fixed: Any, draws: Any, dtype: str, devices: tuple[Any, ...]
) -> _Program:
    pixels = int(np.prod(functions.image_shape[:2]))
    if devices[0].platform == "cpu":
        lanes = int(np.clip(CPU_PIXELS // pixels, 1, CPU_LANES))
        return _compile(functions, fixed, draws, dtype, devices, lanes)
    trial = _compile(functions, fixed, draws, dtype, devices, 8)
    limit = (devices[0].memory_stats() or {}).get("bytes_limit", 2**33)
    fitting = MEMORY_SHARE * limit / max(1, trial.temporary_bytes / trial.lanes)
    wanted = min(DEVICE_PIXELS // pixels, DEVICE_LANES)
    lanes = 2 ** int(np.log2(np.clip(min(fitting, wanted), 1, DEVICE_LANES)))
    return _compile(functions, fixed, draws, dtype, devices, lanes)


def _compile(
    functions: Functions, fixed: Any, draws: Any, dtype: str, devices: tuple[Any, ...], lanes: int
) -> _Program:
    wanted = [functions.score]
    if dtype == "float64":  # the observed images, whose reconstructions are shown
        wanted.append(functions.reconstruct)

    def evaluate(given: Any, moving: Any) -> list[Array]:
        params, shared = given
        own, images = moving
        axes = (None, None, 0) if draws is None else (None, 0, 0)
        every = shared if draws is None else own
        return [jax.vmap(function, axes)(params, every, images) for function in wanted]

    def moving(count: int) -> Any:
        own = () if draws is None else tree_from_spec(draws)
        one = (own, jax.ShapeDtypeStruct(functions.image_shape, np.dtype(dtype)))
        return jax.tree.map(lambda v: jax.ShapeDtypeStruct((count, *v.shape), v.dtype), one)

    # The functions are traced for these devices, not for the default platform: the host computes
    # the float64 of a TPU.
    with jax.default_device(devices[0]):
        scores = jax.eval_shape(evaluate, tree_from_spec(fixed), moving(1))[0].shape[1:]
        if scores != functions.image_shape[:2]:
            raise InputError(f"localizer has scores {scores}, expected {functions.image_shape[:2]}")
        prepare, apply = split_known(evaluate, tree_from_spec(fixed), moving(lanes))
    mesh = Mesh(np.array(devices), ("lanes",))
    everywhere, apart = NamedSharding(mesh, P()), NamedSharding(mesh, P("lanes"))
    prepare = jax.jit(prepare, out_shardings=everywhere)
    mapped = jax.shard_map(
        lambda known, own, images: apply(known, (own, images)),
        mesh=mesh,
        in_specs=(P(), P("lanes"), P("lanes")),
        out_specs=P("lanes"),
        check_vma=False,
    )
    shapes = jax.eval_shape(prepare, tree_from_spec(fixed))
    program = jax.jit(mapped, in_shardings=(everywhere, apart, apart), out_shardings=apart)
    compiled = program.lower(shapes, *moving(lanes * len(devices))).compile()
    analysis = compiled.memory_analysis()
    return _Program(prepare, compiled, lanes, getattr(analysis, "temp_size_in_bytes", 0))
