"""Records as lines of JSON with checksums, and the shards that hold them.

A shard is a file to which one process appends finished tasks; it survives a loss of power at any
byte.
"""

import contextlib
import errno
import json
import math
import os
import re
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from dal_jax._errors import InputError, RunError

SYNC_SECONDS = 5.0

FLOAT = "$float"  # key of the dictionary that stands for a float which JSON lacks
_CHECKED = re.compile(rb'\{"crc32":"([0-9a-f]{8})",(.*)', re.DOTALL)


def encode(value: Any) -> Any:
    """Convert a value to plain types that standard JSON holds without loss.

    NaN and the infinities become `{"$float": "nan"}`, `"inf"` and `"-inf"`; every other float is
    written with enough digits to restore the same bits.

    Args:
        value: None, bool, int, float, str, scalars of numpy or JAX of these kinds, lists, tuples
            (which come back as lists) and dictionaries with str keys other than "$float".

    Returns:
        The same value in plain Python types.

    Raises:
        InputError: Another type or key.

    Example:
        >>> encode({"p": float("nan"), "sides": (32, 32)})
        {'p': {'$float': 'nan'}, 'sides': [32, 32]}
    """
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, str):
        return str.__str__(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {FLOAT: float.__repr__(value)}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str) or key == FLOAT:
                raise InputError(f"record: got the key {key!r}, expected str other than {FLOAT!r}")
        return {str.__str__(key): encode(item) for key, item in value.items()}
    raise InputError(
        f"record: got a value of {type(value).__module__}.{type(value).__qualname__}, "
        "expected None, bool, int, float, str, or lists and dictionaries of them"
    )


def decode(value: Any) -> Any:
    """Convert an encoded value back.

    Args:
        value: Result of `json.loads`.

    Returns:
        The value, with NaN and infinities as floats.

    Example:
        >>> decode(json.loads('{"p": {"$float": "inf"}, "k": 3}'))
        {'p': inf, 'k': 3}
    """
    if isinstance(value, list):
        return [decode(item) for item in value]
    if isinstance(value, dict):
        if list(value) == [FLOAT]:
            return float(value[FLOAT])
        return {key: decode(item) for key, item in value.items()}
    return value


def compact(value: Any) -> str:
    """Write a value without loss on one line, with dictionaries in insertion order."""
    return json.dumps(encode(value), allow_nan=False, separators=(",", ":"))


def canonical(value: Any) -> str:
    """Write a value so that equal values, including NaN, give equal text."""
    return json.dumps(encode(value), allow_nan=False, sort_keys=True)


def to_line(fields: dict[str, Any]) -> bytes:
    """Write fields as a line with a checksum.

    Args:
        fields: Fields to write, at least one.

    Returns:
        `{"crc32":"HHHHHHHH",...}` and a newline, all ASCII; the CRC-32 is that of the bytes behind
        the comma that follows it, newline excluded.

    Raises:
        InputError: The value cannot be encoded; see `encode`.
    """
    rest = compact(fields).encode("ascii")[1:]
    return b'{"crc32":"%08x",%s\n' % (zlib.crc32(rest), rest)


def from_line(line: bytes) -> dict[str, Any] | None:
    """Read a line of `to_line`.

    Args:
        line: Line with its newline.

    Returns:
        The fields, or None if the line is incomplete or its checksum is wrong.
    """
    found = _CHECKED.fullmatch(line.removesuffix(b"\n"))
    if not line.endswith(b"\n") or found is None:
        return None
    checksum, rest = found.groups()
    if int(checksum, 16) != zlib.crc32(rest):
        return None
    return decode(json.loads(b"{" + rest))


class ShardWriter:
    """Writer of records to a file that belongs to it alone; a context manager.

    Each line is written by one `os.write`, so that a killed process leaves at most one incomplete
    last line, which the reader drops.

    Example:
        >>> import tempfile
        >>> from dal_jax.runs import open_run
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with open_run(folder, "squares", 3, {}).writer(process=0) as shard:
        ...         shard.append(2, {"square": 4})
        ...     print(shard.path.name)
        shard-00000-000.jsonl
    """

    def __init__(
        self,
        path: Path,
        descriptor: int,
        num_tasks: int,
        sync_seconds: float = SYNC_SECONDS,
        keys: Sequence[str] | None = None,
    ):
        self.path = path
        self._descriptor: int | None = descriptor
        self._num_tasks, self._sync_seconds, self._keys = num_tasks, sync_seconds, keys
        self._size, self._synced = 0, time.monotonic()

    def append(self, task: int, record: dict[str, Any]) -> None:
        """Write the record of a finished task.

        Args:
            task: Number of the task, 0, ..., num_tasks - 1.
            record: Record that `encode` accepts.

        Raises:
            InputError: No such task, or a record that JSON cannot hold; nothing is written.
            RunError: The disk is full or fails; the lines before this one are kept.
        """
        if not 0 <= task < self._num_tasks:
            raise InputError(f"task: got {task}, expected 0 to {self._num_tasks - 1}")
        if not isinstance(record, dict):
            raise InputError(f"record: got a {type(record).__name__}, expected a dictionary")
        name = int(task) if self._keys is None else self._keys[task]
        self.write({"task": name, "record": record})

    def write(self, fields: dict[str, Any]) -> None:
        """Write one line, and sync the file to disk if the last sync is long enough ago.

        Args:
            fields: Fields that `encode` accepts, at least one.

        Raises:
            InputError: Fields that JSON cannot hold; nothing is written.
            RunError: The writer is closed, or the disk is full or fails; the lines before this one
                are kept.
        """
        line = to_line(fields)
        if self._descriptor is None:
            raise RunError(f"{self.path}: closed, cannot take another record")
        try:
            written = os.write(self._descriptor, line)
            if written < len(line):  # a nearly full disk accepts a part of the line
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self._size += written
            if time.monotonic() - self._synced >= self._sync_seconds:
                os.fsync(self._descriptor)
                self._synced = time.monotonic()
        except OSError as error:
            self._abandon()
            raise disk_error(self.path, error) from error

    def close(self) -> None:
        """Sync the file to disk and close it; a second call does nothing.

        Raises:
            RunError: The disk is full or fails.
        """
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is None:
            return
        try:
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise disk_error(self.path, error) from error

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _abandon(self) -> None:
        """Cut off an incomplete line and close the file: a line behind it would read as damage."""
        descriptor, self._descriptor = self._descriptor, None
        assert descriptor is not None
        with contextlib.suppress(OSError):
            os.ftruncate(descriptor, self._size)
        with contextlib.suppress(OSError):
            os.close(descriptor)


def disk_error(path: Path, error: OSError) -> RunError:
    """Return the error for a failing disk, in one line."""
    return RunError(
        f"cannot write {str(path)!r}: {error.strerror or error}; finished tasks are kept, "
        "the same command resumes"
    )


def create_shard(
    directory: Path,
    process: int,
    run: str,
    num_tasks: int,
    sync_seconds: float,
    keys: Sequence[str] | None = None,
) -> ShardWriter:
    """Create a new shard `shard-PROCESS-ATTEMPT.jsonl`, also while other processes do so.

    Args:
        directory: Folder of the run.
        process: Index of this process, 0 or more.
        run: Fingerprint of the run, written on the first line.
        num_tasks: Number of tasks of the run.
        sync_seconds: Shortest time between two fsyncs, in seconds.
        keys: Keys of the tasks, which stand for their numbers in the file; None for the numbers.

    Returns:
        The writer.

    Raises:
        InputError: A negative process.
        RunError: The file cannot be created.
    """
    if process < 0:
        raise InputError(f"process: got {process}, expected 0 or more")
    attempt, flags = 0, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
    while True:
        path = directory / f"shard-{process:05d}-{attempt:03d}.jsonl"
        try:
            descriptor = os.open(path, flags, 0o666)
        except FileExistsError:
            attempt += 1
        except OSError as error:
            raise disk_error(path, error) from error
        else:
            writer = ShardWriter(path, descriptor, num_tasks, sync_seconds, keys)
            writer.write({"run": run, "process": process, "attempt": attempt})
            return writer


class Entry(NamedTuple):
    """A record and its place in the shards."""

    task: int
    record: dict[str, Any]
    place: str  # file:line


def read_shard(
    path: Path, run: str, num_tasks: int, keys: Mapping[str, int] | None = None
) -> Iterator[Entry]:
    """Read the complete lines of a shard.

    An incomplete last line is dropped: its process was killed, or the machine lost power, while it
    was written.

    Args:
        path: Path of the shard.
        run: Fingerprint of the run, which the first line must bear.
        num_tasks: Number of tasks of the run.
        keys: Number of each task by its key; None if the file has numbers.

    Yields:
        One entry for each line after the first, except those of other keys.

    Raises:
        InputError: The file is unreadable, of another run, damaged before its last line, or holds a
            task that the run does not have; the message names file and line.
    """
    damaged = ""
    try:
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                place = f"{path}:{number}"
                if damaged:
                    raise InputError(
                        f"{damaged}: damaged line; cut the file before it (tasks from there on "
                        "run again) or restore it"
                    )
                fields = from_line(line)
                if fields is None:
                    damaged = place
                elif number == 1:
                    if fields.get("run") != run:
                        owner = fields.get("run")
                        raise InputError(f"{place}: shard of the run {owner}, expected {run}")
                elif keys is None or fields.get("task") in keys:
                    yield _entry(fields, num_tasks, keys, place)
    except OSError as error:
        raise InputError(f"cannot read {str(path)!r}: {error.strerror or error}") from error


def _entry(
    fields: dict[str, Any], num_tasks: int, keys: Mapping[str, int] | None, place: str
) -> Entry:
    task, record = fields.get("task"), fields.get("record")
    task = task if keys is None or not isinstance(task, str) else keys[task]
    if not isinstance(task, int) or not 0 <= task < num_tasks or not isinstance(record, dict):
        raise InputError(f"{place}: record of task {task}, expected 0 to {num_tasks - 1}")
    return Entry(task, record, place)
