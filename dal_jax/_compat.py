"""Everything that touches parts of JAX which change between releases: the one file to mend.

Tried on the oldest and the newest supported release by the continuous integration script.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import source_info_util
from jax.extend import core


@contextlib.contextmanager
def enable_x64() -> Iterator[None]:
    """Computes in float64 within the block, leaving JAX's global configuration as it was."""
    with jax.enable_x64(True):
        yield


def trace(f: Callable[..., Any], *args: Any) -> tuple[core.ClosedJaxpr, Any]:
    """The jaxpr of `f` at `args` and the tree of its output shapes."""
    return jax.make_jaxpr(f, return_shape=True)(*args)


def is_literal(atom: Any) -> bool:
    """Whether an operand of an equation is a constant written into the jaxpr."""
    return isinstance(atom, core.Literal)


def literal_value(atom: Any) -> np.ndarray:
    """The value of a literal, with the dtype that the jaxpr gives it."""
    return np.asarray(atom.val, dtype=atom.aval.dtype)


def bind(eqn: core.JaxprEqn, *args: Any) -> list[Any]:
    """Evaluates one equation of a jaxpr as it stands; always a list of outputs."""
    out = eqn.primitive.bind(*args, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]


def inner_jaxpr(eqn: core.JaxprEqn) -> tuple[core.Jaxpr, list[Any]]:
    """The jaxpr and constants of a call-like equation (jit, custom_jvp, remat, scan, ...)."""
    for name in ("call_jaxpr", "jaxpr", "fun_jaxpr"):
        found = eqn.params.get(name)
        if found is not None:
            return open_jaxpr(found)
    raise KeyError(f"{eqn.primitive.name} carries no jaxpr")


def open_jaxpr(found: core.Jaxpr | core.ClosedJaxpr) -> tuple[core.Jaxpr, list[Any]]:
    """A jaxpr and its constants, whether they came closed over or not."""
    if isinstance(found, core.ClosedJaxpr):
        return found.jaxpr, list(found.consts)
    return found, []


def scan_counts(eqn: core.JaxprEqn) -> tuple[int, int]:
    """How many of a scan's operands are constants, and how many are carried."""
    if "num_consts" in eqn.params:
        return eqn.params["num_consts"], eqn.params["num_carry"]
    consts, carry, _ = eqn.params["ft_in"].unpack()  # JAX 0.12 and above
    return len(consts), len(carry)


def is_extended(dtype: Any) -> bool:
    """Whether a dtype has no numpy counterpart (random keys)."""
    return jnp.issubdtype(dtype, jax.dtypes.extended)


def source_line(eqn: core.JaxprEqn) -> str:
    """`file:line:column (function)` of the user's code that made an equation."""
    return source_info_util.summarize(eqn.source_info)


@contextlib.contextmanager
def exact_arithmetic() -> Iterator[None]:
    """float64, and no reduced-precision matrix products, within the block.

    Detection and inference must round alike: tensor-float products would move the region.
    """
    with enable_x64(), jax.default_matmul_precision("highest"):
        yield


def launched_processes() -> int | None:
    """How many processes the launcher around this one started; None if JAX knows no launcher.

    Slurm, Open MPI and TPU pods, by JAX's own detection; Kubernetes is left out since JAX asks the
    network there.
    """
    from jax._src.clusters import ClusterEnv

    for env in ClusterEnv._cluster_types:
        if env.name in ("ompi", "slurm", "gcetpu", "gketpu") and env.is_env_present():
            return env.get_process_count()
    return None


def start_distributed(**arguments: Any) -> None:
    """Calls `jax.distributed.initialize`, leaving SIGTERM to end the process as it always does.

    JAX's preemption service would catch the signal for a checkpoint at the next step of a training.
    """
    former = jax.config.jax_enable_preemption_service  # pyright: ignore
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**arguments)
    finally:
        jax.config.update("jax_enable_preemption_service", former)


def wait_at_barrier(name: str, seconds: float) -> None:
    """Waits until every process of `jax.distributed` has come to the barrier of this name.

    The public barrier of JAX runs on the devices, which may all be busy for hours before it.
    """
    from jax._src.distributed import global_state

    if global_state.client is not None:
        global_state.client.wait_at_barrier(name, int(1000 * seconds))


def split_known(
    f: Callable[..., Any], fixed: Any, moving: Any
) -> tuple[Callable[[Any], list[Any]], Callable[[list[Any], Any], Any]]:
    """Splits `f(fixed, moving)` into what `fixed` alone decides and the rest.

    Returns `(prepare, apply)` with `apply(prepare(fixed), moving) == f(fixed, moving)`; what of a
    loop's body does not depend on `moving` is computed by `prepare`, too. The arguments here are
    arrays or their shapes.
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
