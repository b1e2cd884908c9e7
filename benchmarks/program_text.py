"""What the text of a compiled program tells: transfers to the host, float64, bytes moved."""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

_HOST = re.compile(
    r"(?P<callback>custom_call_target=\"[^\"]*callback[^\"]*\")|(?P<infeed>\binfeed\()"
    r"|(?P<outfeed>\boutfeed\()|(?P<transfer>is_host_transfer=true)"
)
# Operations that only place or convert values, as StableHLO writes them.
_PLACING = re.compile(
    r"\bfunc\.func\b|\breturn\b|\bcall @|sdy\.|^\s*} : \("
    r"|stablehlo\.(convert|constant|broadcast_in_dim|reshape|gather|slice"
    r"|dynamic_slice|custom_call|optimization_barrier)\b"
)
_TYPE = re.compile(r"\b(pred|bf16|[suf](?:4|8|16|32|64)|f8\w+|c64|c128)\[([\d,]*)\](\{[^}]*\})?")
_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128}
_INSTRUCTION = re.compile(r"^\s+(ROOT )?(%[\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$")
_CALLED = re.compile(r"(?:calls|body|to_apply)=(%[\w.\-]+)")
_CONDITION = re.compile(r"condition=(%[\w.\-]+)")
_ON_CHIP = re.compile(r"S\((?!5\))\d+\)")  # 5 is the host's memory
_TURNS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
# No data of their own: names for values, or the second half of a copy.
_FREE = frozenset(
    {
        *("parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all"),
        *("partition-id", "replica-id", "iota", "while", "conditional", "call", "opt-barrier"),
    }
)
_COUNTING = frozenset(
    {"parameter", "constant", "get-tuple-element", "compare", "and", "or", "bitcast-convert"}
)
_PICKING = frozenset({"gather", "dynamic-slice", "slice"})
_WRITING = frozenset({"scatter", "dynamic-update-slice"})


def host_transfers(text: str) -> list[str]:
    """Return the kinds of transfers to the host in a program.

    Args:
        text: Text of the compiled program (HLO).

    Returns:
        Of "callback", "infeed", "outfeed" and "transfer" those that occur, in this order.
    """
    found = {match.lastgroup for match in _HOST.finditer(text)}
    return [kind for kind in ("callback", "infeed", "outfeed", "transfer") if kind in found]


def float64_use(text: str) -> str:
    """Return the use that a program makes of float64.

    The compiled text of a TPU does not tell: float64 arithmetic is pairs of float32 there.

    Args:
        text: Text of the program before it is compiled (StableHLO).

    Returns:
        "none"; "arguments" if values are handed over in float64 and converted; or "arithmetic".
    """
    lines = [line for line in text.splitlines() if re.search(r"[<x]f64\b", line)]
    if not lines:
        return "none"
    return "arguments" if all(map(_PLACING.search, lines)) else "arithmetic"


class _Instruction(NamedTuple):
    name: str
    root: bool
    bytes: int
    op: str
    operands: list[str]
    rest: str


def moved_bytes(text: str) -> int:
    """Return the bytes that the instructions of a program read and write in a device's memory.

    Every instruction reads its operands and writes its result; one that picks rows reads those
    alone, one that writes rows into an array writes those alone, and what lies in on-chip memory
    (`S(1)` on a TPU) costs nothing. The body of a loop counts as often as its number of turns, if
    the text tells, else once.

    Args:
        text: Text of the compiled program (HLO), of one device.
    """
    parts = dict(_computations(text))
    entry = next((name for name in parts if name.startswith("ENTRY")), None)
    return 0 if entry is None else _bytes_of(entry, parts)


def _computations(text: str) -> Iterator[tuple[str, list[_Instruction]]]:
    name, found = "", []
    for line in text.splitlines():
        if line.startswith(("%", "ENTRY")) and line.rstrip().endswith("{"):
            name = line.split("(")[0].strip().split(" ")[-1]
            name, found = ("ENTRY " + name if line.startswith("ENTRY") else name), []
        elif line.startswith("}"):
            yield name, found
        elif match := _INSTRUCTION.match(line):
            root, own, kind, op, rest = match.groups()
            operands = re.findall(r"%[\w.\-]+", rest.split("), ")[0])
            found.append(_Instruction(own, root is not None, _size(kind), op, operands, rest))


def _size(kind: str) -> int:
    total = 0
    for dtype, sides, layout in _TYPE.findall(kind):
        if _ON_CHIP.search(layout):
            continue
        bits = _BITS.get(dtype) or (8 if dtype.startswith("f8") else int(dtype[1:]))
        total += math.prod(int(side) for side in sides.split(",") if side) * bits // 8
    return total


def _bytes_of(name: str, parts: dict[str, list[_Instruction]]) -> int:
    own = parts.get(name, [])
    sizes = {one.name: one.bytes for one in own}
    total = 0
    for one in own:
        if one.op in ("while", "call", "conditional"):
            inner = sum(_bytes_of(called, parts) for called in _CALLED.findall(one.rest))
            total += inner * _turns(one, parts)
        elif one.op not in _FREE and not one.op.endswith("-done"):
            total += _bytes_moved(one, sizes, parts)
    return total


def _turns(loop: _Instruction, parts: dict[str, list[_Instruction]]) -> int:
    """Return the turns of a loop: their known number, or that of a plain counter, else 1."""
    if known := _TURNS.search(loop.rest):
        return int(known.group(1))
    named = _CONDITION.search(loop.rest)
    condition = parts.get(named.group(1), []) if named else []
    if not condition or {one.op for one in condition} - _COUNTING:
        return 1
    values = {one.name: one.rest.split(")")[0] for one in condition if one.op == "constant"}
    limits = [
        int(values[name])
        for one in condition
        if one.op == "compare" and "direction=LT" in one.rest
        for name in one.operands
        if values.get(name, "").isdecimal()
    ]
    return max([1, *limits])


def _bytes_moved(
    one: _Instruction, sizes: dict[str, int], parts: dict[str, list[_Instruction]]
) -> int:
    """Return what one instruction moves, given the sizes of the values around it."""
    if one.op.endswith("-start"):  # the result names both ends of the copy
        return one.bytes
    called = _CALLED.search(one.rest)
    inner = parts.get(called.group(1), []) if called and one.op == "fusion" else []
    read = [sizes.get(name, 0) for name in one.operands]
    if not inner:
        if one.op in _PICKING:
            return 2 * one.bytes
        return _written(one.op, one.bytes, read)
    for number, size in _picked(inner).items():
        if number < len(read):
            read[number] = min(read[number], size)
    ops = {step.op for step in inner if step.root} | {
        step.op for step in inner if step.op in _WRITING
    }
    writing = next(iter(ops & _WRITING), "")
    return _written(writing, one.bytes, read)


def _written(op: str, size: int, read: list[int]) -> int:
    if op in _WRITING and size in read:  # in place
        read = read.copy()
        read.remove(size)
        return 2 * sum(read)
    return size + sum(read)


def _picked(inner: list[_Instruction]) -> dict[int, int]:
    """Return, by number, what is read of the arguments of which only rows are picked."""
    found = {}
    for one in inner:
        if one.op != "parameter":
            continue
        users = [step for step in inner if one.name in step.operands]
        if users and all(step.op in _PICKING and step.operands[0] == one.name for step in users):
            found[int(one.rest.split(")")[0])] = sum(step.bytes for step in users)
    return found
