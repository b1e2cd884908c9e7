"""The directory of a run: its description and the records of its finished tasks."""

import contextlib
import dataclasses
import functools
import hashlib
import inspect
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from dal_jax._errors import InputError, RunError
from dal_jax._files import file_errors, read_json
from dal_jax.runs._records import (
    SYNC_SECONDS,
    Entry,
    ShardWriter,
    canonical,
    compact,
    create_shard,
    decode,
    disk_error,
    encode,
    read_shard,
)


def fingerprint(*parts: Any) -> str:
    """Return a hash of nested values, the same in every process and on every machine.

    Every value is reduced to SHA-256(kind, hashes of its parts), so that neither the order of a
    dictionary nor a border between neighbours can hide a difference. A list and a tuple of the same
    parts count as the same; 1, 1.0 and True do not, nor do numpy scalars, which count as arrays.
    Code counts by its name alone: a caller who wants to distinguish versions adds them as parts.

    Args:
        *parts: Arrays of numpy or JAX, dataclasses, named tuples, dictionaries, lists, tuples, str,
            bytes, int, float, bool, None, and functions, classes and methods that can be found by
            their names, or `functools.partial` of them.

    Returns:
        64 hexadecimal digits.

    Raises:
        InputError: A part is of another kind, or a function has no name of its own (a lambda, or
            one made inside another), since two of them could not be distinguished.

    Example:
        >>> fingerprint({"a": 1, "b": 2.0}) == fingerprint({"b": 2.0, "a": 1})
        True
    """
    return _digest(parts).hex()


def _digest(part: Any) -> bytes:
    if part is None:
        return _hash("None")
    if isinstance(part, np.ndarray | np.generic | jax.Array):  # first: np.float64 is a float, too
        return _array(part)
    if isinstance(part, bool):
        return _hash("bool", b"%d" % part)
    if isinstance(part, int):
        return _hash("int", int.__repr__(part).encode())
    if isinstance(part, float):
        return _hash("float", float.__repr__(part).encode())
    if isinstance(part, str):
        return _hash("str", str.encode(part, errors="surrogatepass"))
    if isinstance(part, bytes | bytearray):
        return _hash("bytes", bytes(part))
    names = getattr(part, "_fields", None) if isinstance(part, tuple) else None
    if names is not None:
        return _hash("namedtuple", _name(type(part)), _digest(names), _digest([*part]))
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        fields = {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
        return _hash("dataclass", _name(type(part)), _digest(fields))
    if isinstance(part, Mapping):
        pairs = sorted((_digest(key), _digest(value)) for key, value in part.items())
        return _hash("dict", *(digest for pair in pairs for digest in pair))
    if isinstance(part, list | tuple):
        return _hash("sequence", *map(_digest, part))
    if isinstance(part, functools.partial):
        return _hash("partial", *map(_digest, (part.func, part.args, part.keywords)))
    if inspect.ismethod(part):
        return _hash("method", part.__func__.__name__.encode(), _digest(part.__self__))
    return _hash("callable", _name(part))


def _hash(kind: str, *contents: bytes) -> bytes:
    parts = (hashlib.sha256(content).digest() for content in (kind.encode(), *contents))
    return hashlib.sha256(b"".join(parts)).digest()


def _array(part: Any) -> bytes:
    try:
        array = np.asarray(part)
    except (TypeError, RuntimeError) as error:  # random keys; arrays spread over several hosts
        raise _unsupported(part) from error
    if array.dtype.hasobject:
        raise _unsupported(part)
    if array.dtype.byteorder == ">":
        array = array.astype(array.dtype.newbyteorder("<"))
    # The name tells apart the small floats of JAX, which all say "<V1" or "<V2".
    facts = f"{array.dtype.str} {array.dtype.name} {array.shape}"
    return _hash("array", facts.encode(), array.tobytes())


def _name(part: Callable[..., Any] | type) -> bytes:
    module, name = getattr(part, "__module__", None), getattr(part, "__qualname__", None)
    if not callable(part) or not isinstance(module, str) or not isinstance(name, str):
        raise _unsupported(part)
    if "<lambda>" in name or ("<locals>" in name and not isinstance(part, type)):
        raise InputError(
            f"fingerprint: got the function {module}.{name}, "
            "expected one defined at the top of a module, a frozen dataclass with __call__, or a "
            "name (of from_callable)"
        )
    # A class that has moved goes by the name of its first place.
    own = getattr(part, "__dict__", {}).get("__fingerprint__")
    return (own or f"{module}.{name}").encode()


def _unsupported(part: Any) -> InputError:
    return InputError(
        f"fingerprint: got {type(part).__module__}.{type(part).__qualname__}, "
        "expected arrays, numbers, text, named functions, or dataclasses and containers of them"
    )


# (one record of a task, another) -> the key in which they contradict one another, or None
Contradiction = Callable[[dict[str, Any], dict[str, Any]], str | None]

FORMAT = 1  # of run.json and the shards; raised when an older program could not read a newer run
RECORD, RESULTS = "run.json", "results.jsonl"


def difference(one: dict[str, Any], other: dict[str, Any]) -> str | None:
    """Return the first key except "seconds" in which two records differ, or None."""
    for key in sorted((one.keys() | other.keys()) - {"seconds"}):
        if canonical([one.get(key), key in one]) != canonical([other.get(key), key in other]):
            return key
    return None


class RunDirectory(NamedTuple):
    """A run on disk, opened by `open_run`.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = open_run(folder, "squares", 3, {})
        ...     with run.writer(process=0) as shard:
        ...         shard.append(2, {"square": 4})
        ...     print(run.num_tasks, run.finished())
        3 {2: {'square': 4}}
    """

    path: Path
    fingerprint: str  # of everything that decides the records
    num_tasks: int  # 1 or more
    description: dict[str, Any]  # as the process that created the directory gave it
    contradiction: Contradiction = difference  # between two records of one task
    keys: tuple[str, ...] | None = None  # key of each task on disk; None: its number
    retried: Callable[[dict[str, Any]], bool] | None = None  # see `open_run`

    def finished(self) -> dict[int, dict[str, Any]]:
        """Read the records of all shards.

        Returns:
            Records by task, ascending; if a task has two, the one in the shard whose name comes
            first, but no record that is retried if there is another.

        Raises:
            InputError: A shard is damaged or of another run, or two records of a task contradict
                one another; the message names file and line.
        """
        found: dict[int, Entry] = {}
        keys = None if self.keys is None else {key: task for task, key in enumerate(self.keys)}
        for path in sorted(self.path.glob("shard-*.jsonl")):
            for entry in read_shard(path, self.fingerprint, self.num_tasks, keys):
                former = found.setdefault(entry.task, entry)
                if former is entry:
                    continue
                if self.is_retried(former.record):
                    found[entry.task] = entry
                elif not self.is_retried(entry.record):
                    self._check_same(former, entry)
        return {task: found[task].record for task in sorted(found)}

    def is_retried(self, record: dict[str, Any]) -> bool:
        """Return whether a later call repeats the task of a record."""
        return self.retried is not None and self.retried(record)

    def _check_same(self, former: Entry, entry: Entry) -> None:
        key = self.contradiction(former.record, entry.record)
        if key is not None:
            one, other = (e.record.get(key) for e in (former, entry))
            raise InputError(
                f"{entry.place}: another record of task {entry.task} than {former.place}: "
                f"{key} is {other!r} and {one!r}"
            )

    def writer(self, process: int, sync_seconds: float = SYNC_SECONDS) -> ShardWriter:
        """Create a new shard for this process; other files are never written.

        Args:
            process: Index of the process, 0 or more; two writers of one index do not disturb each
                other.
            sync_seconds: Shortest time in seconds between two syncs of the file to the disk
                (fsync).

        Returns:
            A context manager with `append`.

        Raises:
            InputError: A negative index.
            RunError: The file cannot be created.
        """
        facts = (process, self.fingerprint, self.num_tasks, sync_seconds)
        return create_shard(self.path, *facts, self.keys)

    def collect(
        self,
        path: str | Path | None = None,
        *,
        partial: bool = False,
        records: Mapping[int, dict[str, Any]] | None = None,
    ) -> Path:
        """Write all records in the order of their tasks to one file, whole or not at all.

        A line is the record with the key "task" in front, with floats as `encode` writes them.

        Args:
            path: Path of the file; None stands for results.jsonl in the directory.
            partial: Whether to write the finished tasks if others are missing.
            records: Records by task, if they are in memory; None to read them from the shards.

        Returns:
            The path of the file.

        Raises:
            InputError: A shard is damaged or contradictory, as in `finished`, or a record has a key
                "task".
            RunError: Tasks are missing, or the file cannot be written.
        """
        records = self.finished() if records is None else records
        missing = self.num_tasks - len(records)
        if missing and not partial:
            first = next(task for task in range(self.num_tasks) if task not in records)
            raise RunError(
                f"{self.path}: {missing} of {self.num_tasks} tasks are not finished (the first is "
                f"{first}); the same command resumes them"
            )
        target = self.path / RESULTS if path is None else Path(path)
        try:
            with _temporary(target) as temporary:
                _write(temporary, (_result(task, records[task]) for task in sorted(records)))
                os.replace(temporary, target)
        except OSError as error:
            raise disk_error(target, error) from error
        return target


def open_run(
    path: str | Path,
    run_fingerprint: str,
    num_tasks: int,
    description: dict[str, Any],
    contradiction: Contradiction = difference,
    keys: Sequence[str] | None = None,
    retried: Callable[[dict[str, Any]], bool] | None = None,
) -> RunDirectory:
    """Create the directory of a run, or open it if it belongs to the same run.

    Several processes may do so at the same moment; the description of the first one stays.

    Args:
        path: New or empty directory, or one that this function created.
        run_fingerprint: Fingerprint of everything that decides the records; see `fingerprint`.
        num_tasks: Number of tasks, 1 or more.
        description: Description of the run for readers, as `encode` accepts it.
        contradiction: Function of two records of one task that returns the key in which they
            contradict one another, or None; by default records must be equal except for "seconds".
        keys: Key of each task, under which its record is stored. A later call may then have other
            tasks: it finds the records of those that are the same. None: the tasks are the same in
            every call.
        retried: Function of a record that returns whether a later call repeats its task, such as
            that of a file that could not be read; None: none is repeated.

    Returns:
        The run.

    Raises:
        InputError: The directory holds another run or other files, or cannot be created or read;
            there are no tasks, or two have one key.

    Example:
        >>> import tempfile
        >>> from dal_jax.runs import fingerprint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     run = open_run(folder, fingerprint("squares"), 3, {})
        ...     with run.writer(process=0) as shard:
        ...         for task in sorted(set(range(3)) - run.finished().keys()):
        ...             shard.append(task, {"square": task**2})
        ...     print(run.collect().read_text().splitlines()[-1])
        {"task":2,"square":4}
    """
    if num_tasks < 1:
        raise InputError(f"num_tasks: got {num_tasks}, expected 1 or more")
    if keys is not None and len(set(keys)) != num_tasks:
        raise InputError(f"keys: {len(set(keys))} different ones for {num_tasks} tasks")
    path = Path(path)
    entries = {
        "format": FORMAT,
        "fingerprint": run_fingerprint,
        "num_tasks": int(num_tasks),
        "description": encode(description),
    }
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not (path / RECORD).exists():
            _check_empty(path)
            _publish(path / RECORD, json.dumps(entries, indent=1, allow_nan=False))
    except OSError as error:
        raise InputError(
            f"run directory {str(path)!r}: cannot be used: {error.strerror or error}"
        ) from error
    run = _read(path)
    for name in ("num_tasks", "fingerprint") if keys is None else ("fingerprint",):
        held, expected = getattr(run, name), entries[name]
        if held != expected:
            raise InputError(
                f"run directory {str(path)!r}: holds another run: {name} {held}, expected "
                f"{expected}"
            )
    return run._replace(
        num_tasks=int(num_tasks),
        contradiction=contradiction,
        keys=None if keys is None else tuple(keys),
        retried=retried,
    )


def _check_empty(path: Path) -> None:
    # Hidden files may be another process's run.json in the making, or a file system's own.
    others = sorted(p.name for p in path.iterdir() if not p.name.startswith("."))
    # That process may have finished between the two checks.
    if others and not (path / RECORD).exists():
        raise InputError(
            f"run directory {str(path)!r}: holds {others[0]!r} and no {RECORD}, expected an empty "
            "directory or one of this run"
        )


def _publish(path: Path, text: str) -> None:
    """Publish a file unless it exists; of several processes the first one wins."""
    with _temporary(path) as temporary:
        _write(temporary, [text])
        try:
            os.link(temporary, path)
        except FileExistsError:
            return
        except OSError:  # a file system without hard links
            os.replace(temporary, path)


def _read(path: Path) -> RunDirectory:
    with file_errors(path / RECORD, "run"):
        entries = read_json(path / RECORD, "run")
        if entries["format"] != FORMAT:
            raise InputError(
                f"run directory {str(path)!r}: format {entries['format']}, expected {FORMAT}"
            )
        facts = (str(entries["fingerprint"]), int(entries["num_tasks"]))
        return RunDirectory(path, *facts, decode(dict(entries["description"])))


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """Yield a hidden and unique path beside a file; remove it in the end."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _write(path: Path, lines: Iterable[str]) -> None:
    with open(path, "x", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())


def _result(task: int, record: dict[str, Any]) -> str:
    if "task" in record:
        raise InputError(f'record: task {task} has a key "task", which results have already')
    return compact({"task": task, **record})
