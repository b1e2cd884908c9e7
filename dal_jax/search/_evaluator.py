"""Scores of many images at a time, by one compiled program per precision on all given devices."""

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dal_jax._arrays import cast_floats, chosen_devices, memory_of
from dal_jax._compat import exact_arithmetic, split_known
from dal_jax._errors import InputError
from dal_jax._typing import Array, Float, PyTree
from dal_jax.search._lanes import each_row
from dal_jax.search._selection import tree_from_spec, tree_spec

# On a CPU: pixels that a device computes at a time (more leave its caches), pixels of a call (fewer
# leave the host more to do between calls, more let it wait), and the largest number of images of a
# call.
CPU_PIXELS, CPU_CALL_PIXELS, CPU_LANES = 2**11, 2**20, 32
# On other devices: pixels that keep a device busy, the largest number of images per call (more
# would be padding), the share of the memory that a call may take, and the number of images of the
# program whose memory is looked at.
DEVICE_PIXELS, DEVICE_LANES, MEMORY_SHARE, TRIAL_LANES = 2**20, 1024, 0.25, 8


@runtime_checkable
class HostScore(Protocol):
    """Score function that is not JAX: it is called on the host, with batches of numpy arrays.

    Example:
        >>> class Brightness:
        ...     batch_size, resolution = 4, "float64"
        ...     def score_batch(self, images):
        ...         return images.mean(-1)
        >>> isinstance(Brightness(), HostScore)
        True
    """

    batch_size: int  # largest number of images of one call
    resolution: str  # precision of the scores, "float32" or "float64", whatever is asked for

    def score_batch(self, images: Float[np.ndarray, "k H W C"]) -> Float[np.ndarray, "k H W"]:
        """Compute the scores of up to `batch_size` images.

        Args:
            images: (k, H, W, C), float32 or float64.

        Returns:
            (k, H, W), float64.
        """
        ...


class Functions(NamedTuple):
    """Functions of a localizer; hashable, and equal ones share their programs.

    Example:
        >>> def brightness(params, draws, x):
        ...     return x.mean(-1)
        >>> Functions(brightness, lambda params, draws, x: x, (28, 28, 1)).image_shape
        (28, 28, 1)
    """

    score: Any  # (params, draws, x (H, W, C)) -> (H, W), or a `HostScore`
    reconstruct: Any  # (params, draws, x (H, W, C)) -> (H, W, C)
    image_shape: tuple[int, int, int]  # (H, W, C)


class Evaluated(NamedTuple):
    """Arrays on the devices, perhaps still being computed."""

    score: Array  # (capacity, H, W)
    reconstruction: Array | None  # (capacity, H, W, C), where it was asked for


class _Program(NamedTuple):
    prepare: Any  # parameters and shared draws -> values that need no image
    apply: Any  # (prepared, draws of each image or (), images, used) -> outputs
    lanes: int  # images a device takes in one call
    temporary_bytes: int  # temporary memory of one device


class Evaluator:
    """Evaluator of images, `capacity` at a time, in float32 or in float64.

    Every device computes the same number of images with the same program, whichever tests they
    belong to. The place of an image in a batch, and the other images, change its scores by rounding
    alone: a matrix product may treat the last rows of a block differently from the first.

    A `HostScore` is called on the host with the images of a batch, without padding. Its scores go
    to the first of the devices, where they are judged; there are no reconstructions.

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
        self._devices = chosen_devices(devices)
        self._host = functions.score if isinstance(functions.score, HostScore) else None
        if self._host is not None:
            self._devices = self._devices[:1]  # more would only share out the judging
        self._functions, self._own = functions, own_draws
        self._fixed = (params, () if own_draws else draws)
        self._one_draws = draws
        self._bound: dict[tuple[str, bool], tuple[_Program, Any]] = {}

    def capacity(self, dtype: str) -> int:
        """Return the number of images of one call.

        Args:
            dtype: "float32" or "float64".

        Returns:
            The number, for all devices together.
        """
        if self._host is not None:
            return self._host.batch_size
        return self._program(dtype, False)[0].lanes * len(devices_for(self._devices, dtype))

    @property
    def devices(self) -> tuple[Any, ...]:
        """Devices on which the images are evaluated."""
        return self._devices

    @property
    def own_draws(self) -> bool:
        """Whether every image comes with its own draws."""
        return self._own

    @exact_arithmetic()
    def __call__(
        self,
        images: Float[np.ndarray, "k H W C"] | Float[Array, "k H W C"],
        draws: PyTree,
        dtype: str,
        used: np.ndarray | None = None,
        reconstruct: bool = False,
    ) -> Evaluated:
        """Start the evaluation of up to `capacity` images.

        Args:
            images: (k, H, W, C), k <= capacity; on the devices already with k = capacity.
            draws: Draws with a leading axis k if every image has its own, else unused.
            dtype: "float32" or "float64".
            used: Numbers (devices,) of images of each device that are not padding, the first ones;
                None for all. Outputs of the others mean nothing.
            reconstruct: Whether to return the reconstructions, too; NaN of a `HostScore`.

        Returns:
            The outputs: of the first k rows, and of `used` on each device, they are valid.
        """
        if self._host is not None:
            return self._on_host(self._host, images, None if used is None else int(used[0]))
        own = cast_floats(draws, dtype) if self._own else ()
        capacity, lanes = self.capacity(dtype), self._program(dtype, False)[0].lanes
        if used is None:
            used = np.clip(len(images) - np.arange(0, capacity, lanes), 0, lanes)
        if isinstance(images, np.ndarray):
            own, images = jax.tree.map(lambda v: _pad(v, capacity), (own, images.astype(dtype)))
        found = []
        for kind in (False, True)[: 1 + reconstruct]:
            program, prepared = self._program(dtype, kind)
            found.append(program.apply(prepared, own, images, used.astype(np.int32)))
        return Evaluated(found[0], found[1] if reconstruct else None)

    def _on_host(self, host: HostScore, images: Any, count: int | None) -> Evaluated:
        given = np.asarray(images)[:count]
        score: Any = _pad(host.score_batch(given), len(images))
        if not isinstance(images, np.ndarray):  # the lanes of these devices take the scores
            return Evaluated(jax.device_put(score, self._devices[0]), None)
        nothing: Any = np.broadcast_to(np.nan, images.shape)
        return Evaluated(score, nothing)

    def _program(self, dtype: str, reconstruct: bool) -> tuple[_Program, Any]:
        if (dtype, reconstruct) not in self._bound:
            self._bind(dtype, reconstruct)
        return self._bound[dtype, reconstruct]

    @exact_arithmetic()
    def _bind(self, dtype: str, reconstruct: bool) -> None:
        fixed = cast_floats(self._fixed, dtype)
        devices = devices_for(self._devices, dtype)
        draws = tree_spec(cast_floats(self._one_draws, dtype)) if self._own else None
        program = _program_for(
            self._functions, tree_spec(fixed), draws, dtype, devices, reconstruct
        )
        self._bound[dtype, reconstruct] = program, program.prepare(fixed)


def devices_for(devices: tuple[Any, ...], dtype: str) -> tuple[Any, ...]:
    """Return the devices that compute in a dtype in place of the given ones.

    Args:
        devices: Devices of one kind.
        dtype: "float32" or "float64".

    Returns:
        The devices, or the host's processor if they have no float64.
    """
    if dtype == "float64" and devices[0].platform == "tpu":
        return tuple(jax.local_devices(backend="cpu")[:1])
    return devices


def _pad(values: np.ndarray, count: int) -> np.ndarray:
    if len(values) == count:
        return values
    return np.concatenate(
        [values, np.zeros((count - len(values), *values.shape[1:]), values.dtype)]
    )


@lru_cache(maxsize=128)
def _program_for(
    functions: Functions,
    fixed: Any,
    draws: Any,
    dtype: str,
    devices: tuple[Any, ...],
    reconstruct: bool,
) -> _Program:
    how = functions, fixed, draws, dtype, devices

    def compiled(lanes: int, block: int | None = None) -> _Program:
        return _compile(*traced_evaluation(*how, lanes, reconstruct, block), lanes)

    pixels = int(np.prod(functions.image_shape[:2]))
    if devices[0].platform == "cpu":
        block, lanes = (
            int(np.clip(most // pixels, 1, CPU_LANES)) for most in (CPU_PIXELS, CPU_CALL_PIXELS)
        )
        return compiled(lanes - lanes % block, block)
    if reconstruct:  # the images that are scored
        return compiled(_program_for(*how, False).lanes)
    trial = compiled(TRIAL_LANES)
    memory = memory_of(devices[0])
    return compiled(lanes_within(memory, trial.temporary_bytes / trial.lanes, pixels))


def lanes_within(memory: int, bytes_an_image: float, pixels: int) -> int:
    """Return the number of images that a device other than a CPU takes at a time.

    Args:
        memory: Memory of the device, bytes.
        bytes_an_image: Temporary memory of the compiled program for each image.
        pixels: Number of pixels of an image.
    """
    fitting = MEMORY_SHARE * memory / max(1, bytes_an_image)
    wanted = min(DEVICE_PIXELS // pixels, DEVICE_LANES)
    return 2 ** int(np.log2(np.clip(min(fitting, wanted), 1, DEVICE_LANES)))


def _compile(prepare: Any, traced: Any, lanes: int) -> _Program:
    compiled = traced.lower().compile()
    analysis = compiled.memory_analysis()
    return _Program(prepare, compiled, lanes, getattr(analysis, "temp_size_in_bytes", 0))


def traced_evaluation(
    functions: Functions,
    fixed: Any,
    draws: Any,
    dtype: str,
    devices: tuple[Any, ...],
    lanes: int,
    reconstruct: bool = False,
    block: int | None = None,
) -> tuple[Any, Any]:
    """Trace the scores, or the reconstructions, of up to `lanes` images on each device.

    Args:
        functions: Functions of the localizer.
        fixed: Parameters and shared draws, as `tree_spec` describes them.
        draws: The draws of one image in the same way, where every image has its own, or None.
        dtype: "float32" or "float64".
        devices: Devices, which need not be there.
        lanes: Number of images of a device.
        reconstruct: Whether to trace the reconstructions.
        block: Number of images that a device computes at a time, a divisor of `lanes`: it takes one
            block after the other, and those of padding alone not at all. None: all at once.

    Returns:
        The function that prepares the parameters, and the traced program, not yet compiled.
    """
    function: Any = functions.reconstruct if reconstruct else functions.score

    def evaluate(given: Any, moving: Any) -> Array:
        params, shared = given
        own, images = moving
        axes = (None, None, 0) if draws is None else (None, 0, 0)
        return jax.vmap(function, axes)(params, shared if draws is None else own, images)

    def moving(count: int) -> Any:
        own = () if draws is None else tree_from_spec(draws)
        one = (own, jax.ShapeDtypeStruct(functions.image_shape, np.dtype(dtype)))
        return jax.tree.map(lambda v: jax.ShapeDtypeStruct((count, *v.shape), v.dtype), one)

    # The functions are traced for these devices, not for the default platform: the host computes
    # the float64 of a TPU.
    with jax.default_device(devices[0]):
        shape: Any = jax.eval_shape(evaluate, tree_from_spec(fixed), moving(1)).shape[1:]
        if not reconstruct and shape != functions.image_shape[:2]:
            raise InputError(f"localizer has scores {shape}, expected {functions.image_shape[:2]}")
        prepare, apply = split_known(evaluate, tree_from_spec(fixed), moving(block or lanes))
    mesh = Mesh(np.array(devices), ("lanes",))
    everywhere, apart = NamedSharding(mesh, P()), NamedSharding(mesh, P("lanes"))
    prepare = jax.jit(prepare, out_shardings=everywhere)
    mapped = jax.shard_map(
        partial(_in_blocks, apply, block),
        mesh=mesh,
        in_specs=(P(), P("lanes"), P("lanes"), P("lanes")),
        out_specs=P("lanes"),
        check_vma=False,
    )
    shapes = jax.eval_shape(prepare, tree_from_spec(fixed))
    program = jax.jit(mapped, in_shardings=(everywhere, apart, apart, apart), out_shardings=apart)
    used = jax.ShapeDtypeStruct((len(devices),), np.int32)
    return prepare, program.trace(shapes, *moving(lanes * len(devices)), used)


def _in_blocks(
    apply: Any, block: int | None, known: Any, own: PyTree, images: Array, used: Array
) -> Array:
    """Apply the program of a block to the first `used[0]` images, one block after the other."""
    if block is None or block == len(images):
        return apply(known, (own, images))

    def blocks(values: Array) -> Array:
        return values.reshape(-1, block, *values.shape[1:])

    rows = jax.tree.map(blocks, (own, images))
    found = each_row(lambda *row: apply(known, row), True, -(-used // block), *rows)
    return found.reshape(len(images), *found.shape[2:])
