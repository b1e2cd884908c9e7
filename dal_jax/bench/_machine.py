"""The machine in words, and how much of its memory was used."""

import os
import platform
import sys
from typing import Any

import jax

from dal_jax._version import __version__


def memory() -> dict[str, Any]:
    """Peak memory of this process so far, and of its first device where that tells; MiB."""
    try:
        import resource
    except ImportError:  # there is none on Windows
        return {"peak_memory_mb": None}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    out: dict[str, Any] = {"peak_memory_mb": peak / (2**20 if sys.platform == "darwin" else 2**10)}
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        out["peak_device_memory_mb"] = stats["peak_bytes_in_use"] / 2**20
    return out


def machine() -> dict[str, Any]:
    """Describe this machine: cores, memory, devices and versions, without any names.

    Returns:
        Numbers and words by name, ready for JSON.

    Example:
        >>> machine()["cores"] >= 1
        True
    """
    devices = jax.local_devices()
    allowed = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    return {
        "cores": len(allowed),
        "memory_gib": _memory_gib(),
        "processor": platform.machine(),
        "system": platform.system(),
        "device_platform": devices[0].platform,
        "device_kind": devices[0].device_kind,
        "devices": len(devices),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "dal_jax": __version__,
    }


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
