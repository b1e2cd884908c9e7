"""Records of measurements as tables to be read or pasted into a document."""

from collections.abc import Mapping, Sequence
from typing import Any

ENGINES = (
    "size",
    "engine",
    "dtype",
    "tests",
    "s a test",
    "evaluations: median",
    "mean",
    "max",
    "windows a s",
    "search / bare forward",
    "batches full",
    "compile, s",
    "peak, MiB",
)
SPEEDS = ("size", "dtype", "devices", "tests under way", "tests a s", "batches full")
PEERS = ("size", "threads", "s a test", "peer, s a test", "ratio", "peer's tests")


def align_rows(rows: Sequence[Sequence[str]]) -> str:
    """Align rows as a table; the first row holds the titles.

    Args:
        rows: Cells, the same number in each row.

    Returns:
        A Markdown table.

    Example:
        >>> print(align_rows([["size", "s"], ["8", "0.12"]]))
        | size | s    |
        |------|------|
        | 8    | 0.12 |
    """
    widths = [max(3, *map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_line(row, widths) for row in rows]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def tables(records: Sequence[Mapping[str, Any]]) -> str:
    """Return tables of the engines, of batch sizes and devices, and of the peer, where present.

    Args:
        records: Records of a bench run; failures among them are shown in their rows.

    Returns:
        The tables, separated by an empty line.

    Example:
        >>> record = {"size": 8, "engine": "sweep", "dtype": "float64", "failure": "out of memory"}
        >>> print(tables([record]).splitlines()[-1])
        size 8 sweep float64: out of memory
    """
    found = []
    for kind, titles, cells in (
        ("engine", ENGINES, _engine),
        ("speed", SPEEDS, _speed),
        ("peer", PEERS, _peer),
    ):
        rows = [r for r in records if r.get("kind", "engine") == kind]
        if rows:
            found.append(align_rows([titles, *(cells(row) for row in rows)]))
    failures = [r for r in records if r.get("failure")]
    if failures:
        named = [
            f"size {r.get('size')} {r.get('engine', '')} {r.get('dtype', '')}" for r in failures
        ]
        lines = [f"{n.strip()}: {r['failure']}" for n, r in zip(named, failures, strict=True)]
        found.append("Failures\n" + "\n".join(lines))
    return "\n\n".join(found)


def number(value: Any, digits: int = 3) -> str:
    """Return a number rounded to significant digits; a missing one is a dash.

    Args:
        value: Number, or None if it is missing. Whole numbers are written in full.
        digits: Number of significant digits of a float, 1 or more; all before the point are
            written.

    Returns:
        The text.

    Example:
        >>> number(0.012345), number(1234.5), number(None)
        ('0.0123', '1234', '-')
    """
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:.0f}"
    return f"{value:.{digits}g}"


def _line(row: Sequence[str], widths: Sequence[int]) -> str:
    cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
    return "| " + " | ".join(cells) + " |"


def _engine(row: Mapping[str, Any]) -> list[str]:
    told = [str(row["size"]), row["engine"], row["dtype"]]
    if row.get("failure"):
        return [*told, "-", "failed", *["-"] * (len(ENGINES) - 5)]
    counts = row["evaluations_per_test"]
    return [
        *told,
        str(row["tests"]),
        number(row["seconds_per_test"]),
        *(number(counts[key]) for key in ("median", "mean", "max")),
        number(row["windows_per_second"]),
        number(row["overhead_over_forward"]),
        _percent(row.get("batch_fill")),
        number(row["compile_seconds"]),
        number(row["peak_memory_mb"]),
    ]


def _speed(row: Mapping[str, Any]) -> list[str]:
    told = [str(row["size"]), row["dtype"], str(row["devices"])]
    if row.get("failure"):
        return [*told, "-", "failed", "-"]
    under_way = row["batch_size"]
    return [
        *told,
        "default" if under_way is None else str(under_way),
        number(row["tests_per_second"]),
        _percent(row["batch_fill"]),
    ]


def _peer(row: Mapping[str, Any]) -> list[str]:
    told = [str(row["size"]), str(row["threads"])]
    if row.get("failure"):
        return [*told, "failed", "-", "-", "-"]
    kind = "finished" if not row["extrapolated"] else f"{row['extrapolated']} extrapolated"
    return [
        *told,
        number(row["seconds_per_test"]),
        number(row["peer_seconds_per_test"]),
        number(row["ratio"]),
        f"{row['peer_tests']}, {kind}",
    ]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}%"
