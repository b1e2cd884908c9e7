"""The processes of a run: connection, division of the tasks, and waiting."""

import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from dal_jax import _compat
from dal_jax._errors import InputError, RunError

COORDINATOR, NUM_PROCESSES, PROCESS_ID = (
    "DAL_JAX_COORDINATOR",
    "DAL_JAX_NUM_PROCESSES",
    "DAL_JAX_PROCESS_ID",
)
# Numbers of processes of other launchers, by which alone processes cannot find one another.
OTHER_LAUNCHERS = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
JOIN_SECONDS = 300.0
WAIT_SECONDS = 30 * 86400.0  # the slowest process may have hours to go
_barriers = itertools.count()


class Host(NamedTuple):
    """One process among those of a run.

    Example:
        >>> host = Host(index=1, count=4)
        >>> share(range(10), host)
        [1, 5, 9]
    """

    index: int  # 0, ..., count - 1
    count: int  # of processes, 1 or more


def join_hosts(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    seconds: float = JOIN_SECONDS,
) -> Host:
    """Connect to the other processes of the run, if there are any, before any computation.

    Missing arguments are read from DAL_JAX_COORDINATOR, DAL_JAX_NUM_PROCESSES and
    DAL_JAX_PROCESS_ID. If these are not set either, `jax.distributed.initialize` looks for Slurm,
    Open MPI (4) and TPU pods. A run of one process starts nothing.

    Args:
        coordinator: HOST:PORT of process 0, with a free port.
        num_processes: Number of processes, 1 or more; 1 needs no coordinator.
        process_id: Index 0, ..., num_processes - 1, different in each process.
        seconds: Time in seconds within which all processes must connect.

    Returns:
        Index and number of processes.

    Raises:
        InputError: Arguments or variables are incomplete or do not fit, or a launcher started
            several processes that JAX cannot connect.
        RunError: The processes did not find one another. (If one is missing when the time is up,
            JAX itself ends the others, with its own message.)

    Example:
        >>> join_hosts(num_processes=1)  # alone: nothing is started
        Host(index=0, count=1)
    """
    given = _read_settings(coordinator, num_processes, process_id, os.environ)
    if jax.distributed.is_initialized():
        return Host(jax.process_index(), jax.process_count())
    if given is None:
        if _count_launched(os.environ) == 1:
            return Host(0, 1)
        return _start({}, seconds)
    address, host = given
    if host.count == 1:
        return host
    return _start(
        {
            "coordinator_address": address,
            "num_processes": host.count,
            "process_id": host.index,
            "cluster_detection_method": "deactivate",
        },
        seconds,
    )


def share(tasks: Sequence[int], host: Host) -> list[int]:
    """Return every count-th task, beginning with the index-th.

    Every process must see the same tasks: on resuming, all processes read the finished tasks and
    call `wait_for_hosts` before any of them writes.

    Args:
        tasks: Numbers of the tasks, the same in all processes.
        host: This process.

    Returns:
        The tasks of this process; those of all processes together are `tasks`, each once.

    Example:
        >>> share([3, 4, 5, 6, 7], Host(1, 2))
        [4, 6]
    """
    return list(tasks[host.index :: host.count])


def wait_for_hosts(name: str, *, seconds: float = WAIT_SECONDS) -> None:
    """Wait until all processes have reached this call; a single process does not wait.

    Every process must make the same calls with the same names.

    Args:
        name: Name of the place, for the error message.
        seconds: Longest wait, in seconds.

    Raises:
        RunError: A process was lost, or did not come in time.

    Example:
        >>> wait_for_hosts("all have read the finished tasks")  # one process does not wait
    """
    if not jax.distributed.is_initialized():
        return
    try:
        _compat.wait_at_barrier(f"dal_jax/{next(_barriers)}/{name}", seconds)
    except RuntimeError as error:
        raise RunError(
            f"{name}: another process was lost or late; finished tasks are kept, the same command "
            f"resumes ({_short(error)})"
        ) from error


def leave_hosts() -> None:
    """Close the connection to the other processes, if there is one.

    The call waits for the others for some minutes only, so that `wait_for_hosts` should come first.

    Raises:
        RunError: Another process was lost.

    Example:
        >>> leave_hosts()  # nothing to do: there is one process
    """
    try:
        jax.distributed.shutdown()
    except RuntimeError as error:
        raise RunError(f"another process was lost before the end ({_short(error)})") from error


def _start(arguments: dict[str, Any], seconds: float) -> Host:
    try:
        _compat.start_distributed(**arguments, initialization_timeout=int(seconds))
        # Devices of all processes are listed together: a process that does so later, since it has
        # no task left, would keep the others waiting until they give up.
        jax.local_devices()
    except (RuntimeError, ValueError, KeyError) as error:
        raise RunError(f"the processes did not find one another: {_short(error)}") from error
    return Host(jax.process_index(), jax.process_count())


def _read_settings(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    environ: Mapping[str, str],
) -> tuple[str, Host] | None:
    """Return the checked settings from arguments or variables, or None if there are neither."""
    if coordinator is None:
        coordinator = environ.get(COORDINATOR)
    count = _whole("num_processes", num_processes, NUM_PROCESSES, environ)
    index = _whole("process_id", process_id, PROCESS_ID, environ)
    if coordinator is None and count is None and index is None:
        return None
    if coordinator is not None:
        _check_address(coordinator)
    if count is not None and count < 1:
        raise InputError(f"num_processes: got {count}, expected 1 or more")
    if index is None and count == 1:
        index = 0
    if count is None or index is None or (coordinator is None and count > 1):
        raise InputError(
            f"coordinator, num_processes, process_id: got {coordinator}, {count}, {index}, "
            "expected all three or none"
        )
    if not 0 <= index < count:
        raise InputError(f"process_id: got {index}, expected 0 to {count - 1}")
    return coordinator or "", Host(index, count)


def _whole(name: str, value: Any, variable: str, environ: Mapping[str, str]) -> int | None:
    if value is None:
        name, value = variable, environ.get(variable)
        if value is None:
            return None
        if not value.strip().isdecimal():
            raise InputError(f"{name}: got {value!r}, expected a whole number")
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(f"{name}: got {value!r}, expected a whole number")
    return value


def _check_address(coordinator: str) -> None:
    host, colon, port = coordinator.rpartition(":")
    if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
        raise InputError(f"coordinator: got {coordinator!r}, expected HOST:PORT")


def _count_launched(environ: Mapping[str, str]) -> int:
    try:
        count = _compat.launched_processes()
    except (RuntimeError, ImportError, KeyError, ValueError) as error:
        raise InputError(f"{_hint('a cluster')}: {_short(error)}") from error
    if count is None:
        for variable in OTHER_LAUNCHERS:
            if environ.get(variable, "1") not in ("", "0", "1"):
                raise InputError(_hint(f"{variable}={environ[variable]}"))
        return 1
    return count


def _hint(found: str) -> str:
    return (
        f"found {found}, but not how its processes reach one another; set {COORDINATOR} "
        f"(HOST:PORT), {NUM_PROCESSES} and {PROCESS_ID}, or {NUM_PROCESSES}=1 to run alone"
    )


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
