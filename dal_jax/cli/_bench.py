"""`dal-jax bench`: cost of a test on this machine, beside its floor and an optional peer."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from dal_jax._files import dumps
from dal_jax.bench import BenchSettings, Beside, measure, tables
from dal_jax.cli import _options as options
from dal_jax.cli._repository import import_beside
from dal_jax.images import write_text

Peer = Annotated[
    bool,
    typer.Option(
        "--peer", help="Also measure si4onnx; this requires the repository's folder benchmarks."
    ),
]
PeerPython = Annotated[
    str | None,
    typer.Option(
        "--peer-python", metavar="PY", help="Python interpreter with si4onnx; implies --peer."
    ),
]
PeerTests = Annotated[
    int, typer.Option("--peer-tests", help="Number of images that the peer tests in a round.")
]
PeerSeconds = Annotated[
    float,
    typer.Option(
        "--peer-seconds",
        help="Time limit of the peer for one image in seconds; longer times are extrapolated.",
    ),
]
Rounds = Annotated[
    int, typer.Option("--rounds", help="Number of rounds that alternate between the two programs.")
]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE.json", help="File for the settings and records."),
]


@options.with_fields(BenchSettings, "settings", {})
def bench(
    settings: BenchSettings = BenchSettings(),  # noqa: B008 (a constant)
    peer: Peer = False,
    peer_python: PeerPython = None,
    peer_tests: PeerTests = 2,
    peer_seconds: PeerSeconds = 60.0,
    rounds: Rounds = 2,
    out: Out = None,
    json: options.Json = False,
) -> None:
    """Measures seconds, evaluations, windows, memory and compilation of tests on null images.

    Each measurement runs in a process of its own. Failed measurements are recorded as such.
    """
    beside = None
    if peer or peer_python is not None:
        limits = {"tests": peer_tests, "seconds": peer_seconds, "rounds": rounds}
        beside = _peer(peer_python or sys.executable, limits)
    records: list[dict[str, Any]] = []
    for record in measure(settings, beside):
        records.append(record)
        print(_progress(record), file=sys.stderr, flush=True)
        if out is not None:
            write_text(out, dumps({"settings": asdict(settings), "records": records}) + "\n")
    if json:
        typer.echo(dumps({"settings": asdict(settings), "records": records}))
        return
    for record in records:
        if record["kind"] == "images" and "failure" not in record:
            typer.echo(_images(record))
    typer.echo("\n" + tables([r for r in records if r["kind"] != "images" or "failure" in r]))


def _peer(python: str, limits: dict[str, Any]) -> Beside:
    """Return the peer's side of the measurement, from the repository, since it is not installed."""
    return import_beside("benchmarks.peer_rounds", "--peer").beside(python, **limits)


def _images(record: dict[str, Any]) -> str:
    machine = record["machine"]
    return (
        f"size {record['size']}: weights: {record['weights']}; threshold "
        f"{record['threshold']:.4g}, flags {record['flagged_null_images']} null images; "
        f"{machine['device_kind']} x {machine['devices']}, {machine['cores']} cores, "
        f"{machine['memory_gib']} GiB, JAX {machine['jax']}"
    )


def _progress(record: dict[str, Any]) -> str:
    named = [str(record.get(key, "")) for key in ("kind", "size", "engine", "dtype")]
    what = record.get("failure") or {
        key: record[key] for key in ("seconds_per_test", "ratio") if key in record
    }
    return f"{' '.join(part for part in named if part)}: {what or 'chosen'}"
