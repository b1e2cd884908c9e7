"""Uses of the parts of JAX that change between releases, collected in one file.

The continuous integration script tests it on the oldest and the newest supported release.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import source_info_util
from jax.extend import core


@contextlib.contextmanager
def enable_x64() -> Iterator[None]:
    """Compute in float64 within the block, leaving JAX's global configuration unchanged."""
    with jax.enable_x64(True):
        yield


def trace(f: Callable[..., Any], *args: Any) -> tuple[core.ClosedJaxpr, Any]:
    """Return the jaxpr of `f` at `args` and the tree of its output shapes."""
    return jax.make_jaxpr(f, return_shape=True)(*args)


def is_literal(atom: Any) -> bool:
    """Return whether an operand of an equation is a constant written into the jaxpr."""
    return isinstance(atom, core.Literal)


def literal_value(atom: Any) -> np.ndarray:
    """Return the value of a literal, with the dtype that the jaxpr gives it."""
    return np.asarray(atom.val, dtype=atom.aval.dtype)


def bind(eqn: core.JaxprEqn, *args: Any) -> list[Any]:
    """Evaluate one equation of a jaxpr unchanged; the result is always a list of outputs."""
    out = eqn.primitive.bind(*args, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]


def inner_jaxpr(eqn: core.JaxprEqn) -> tuple[core.Jaxpr, list[Any]]:
    """Return jaxpr and constants of a call-like equation (jit, custom_jvp, remat, scan, ...)."""
    for name in ("call_jaxpr", "jaxpr", "fun_jaxpr"):
        found = eqn.params.get(name)
        if found is not None:
            return open_jaxpr(found)
    raise KeyError(f"{eqn.primitive.name} carries no jaxpr")


def open_jaxpr(found: core.Jaxpr | core.ClosedJaxpr) -> tuple[core.Jaxpr, list[Any]]:
    """Return a jaxpr and its constants, whether it is closed over them or not."""
    if isinstance(found, core.ClosedJaxpr):
        return found.jaxpr, list(found.consts)
    return found, []


def scan_counts(eqn: core.JaxprEqn) -> tuple[int, int]:
    """Return the numbers of constants and of carried values among the operands of a scan."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].unpack()  # JAX 0.12 and above
    return len(consts), len(carry)


def is_extended(dtype: Any) -> bool:
    """Return whether a dtype has no numpy counterpart (random keys)."""
    return jnp.issubdtype(dtype, jax.dtypes.extended)


def source_line(eqn: core.JaxprEqn) -> str:
    """Return `file:line:column (function)` of the user's code that made an equation."""
    return source_info_util.summarize(eqn.source_info)


@contextlib.contextmanager
def exact_arithmetic() -> Iterator[None]:
    """Compute in float64, and without matrix products of reduced precision, within the block.

    Detection and inference must round alike: tensor-float products would move the region.
    """
    with enable_x64(), jax.default_matmul_precision("highest"):
        yield


@lru_cache(maxsize=1)
def quick_cpu_compilation() -> dict[str, Any]:
    """Return compiler options for programs of many small operations on a processor.

    Without fused loops of XLA's newer kind they compile about twice as fast, and need the same time
    to run. A version of XLA that does not have the option compiles as it likes.
    """
    options = {"xla_cpu_use_fusion_emitters": False}
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            jax.jit(jnp.zeros, static_argnums=0, compiler_options=options).lower(()).compile()
    except jax.errors.JaxRuntimeError:
        return {}
    return options


def target_platform() -> str:
    """Return the platform that a function is traced for: that of `jax.default_device`, if set."""
    device = jax.config.jax_default_device  # pyright: ignore
    if device is None:
        return jax.default_backend()
    return device.split(":")[0] if isinstance(device, str) else device.platform


def launched_processes() -> int | None:
    """Return the number of processes that the launcher started; None if JAX knows no launcher.

    JAX's own detection covers Slurm, Open MPI and TPU pods; Kubernetes is left out because JAX asks
    the network there.
    """
    from jax._src.clusters import ClusterEnv

    for env in ClusterEnv._cluster_types:
        if env.name in ("ompi", "slurm", "gcetpu", "gketpu") and env.is_env_present():
            return env.get_process_count()
    return None


def start_distributed(**arguments: Any) -> None:
    """Call `jax.distributed.initialize`, leaving SIGTERM to end the process as usual.

    JAX's preemption service would catch the signal for a checkpoint at the next step of a training.
    """
    former = jax.config.jax_enable_preemption_service  # pyright: ignore
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**arguments)
    finally:
        jax.config.update("jax_enable_preemption_service", former)


def wait_at_barrier(name: str, seconds: float) -> None:
    """Wait until every process of `jax.distributed` has reached the barrier of this name.

    The public barrier of JAX runs on the devices, which may all be busy for hours before it.
    """
    from jax._src.distributed import global_state

    if global_state.client is not None:
        global_state.client.wait_at_barrier(name, int(1000 * seconds))


def split_known(
    f: Callable[..., Any], fixed: Any, moving: Any
) -> tuple[Callable[[Any], list[Any]], Callable[[list[Any], Any], Any]]:
    """Split `f(fixed, moving)` into the part that depends on `fixed` alone, and the rest.

    The result is `(prepare, apply)` with `apply(prepare(fixed), moving) == f(fixed, moving)`; the
    part of a loop's body that does not depend on `moving` is computed by `prepare`, too. The
    arguments here are arrays or their shapes.
    """
    from jax._src.interpreters import partial_eval

    fixed_leaves, fixed_tree = jax.tree.flatten(fixed)
    leaves, tree = jax.tree.flatten(moving)

    def flat(*args: Any) -> list[Any]:
        first, rest = args[: len(fixed_leaves)], args[len(fixed_leaves) :]
        return jax.tree.leaves(f(fixed_tree.unflatten(first), tree.unflatten(rest)))

    closed = jax.make_jaxpr(flat)(*fixed_leaves, *leaves)
    is_moving = [False] * len(fixed_leaves) + [True] * len(leaves)
    known, unknown, _, _ = partial_eval.partial_eval_jaxpr_nounits(closed, is_moving, True)
    out_tree = jax.tree.structure(jax.eval_shape(f, fixed, moving))

    def prepare(values: Any) -> list[Any]:
        return core.jaxpr_as_fun(known)(*jax.tree.leaves(values))

    def apply(residuals: list[Any], values: Any) -> Any:
        return out_tree.unflatten(core.jaxpr_as_fun(unknown)(*residuals, *jax.tree.leaves(values)))

    return prepare, apply
