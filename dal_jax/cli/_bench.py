"""`dal-jax bench`: cost of a test on this machine, beside its floor and an optional peer."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from dal_jax import TestOptions
from dal_jax._errors import InputError
from dal_jax._files import dumps
from dal_jax.bench import Beside, Plan, measure, tables
from dal_jax.cli import _options as options
from dal_jax.cli._repository import import_beside
from dal_jax.images import write_text

Sizes = Annotated[str, typer.Option("--sizes", help="Sides of the images, pixels: 8,16,32.")]
Tests = Annotated[
    str,
    typer.Option(
        "--tests",
        help="Null images with a region, tested side by side; one number, or one for each size.",
    ),
]
ExactTests = Annotated[
    str, typer.Option("--exact-tests", help="How many of them the exact engine tests; likewise.")
]
Engines = Annotated[
    str,
    typer.Option(
        "--engines", help="adaptive, sweep or scan, with a dtype: adaptive,sweep:float32."
    ),
]
Weights = Annotated[
    list[str],
    typer.Option(
        "--weights",
        metavar="FILE",
        help="Weights as for import-weights; may be repeated, one for each size, the last for all "
        "sizes left. Without them, or --model, the network is untrained.",
    ),
]
Models = Annotated[
    list[str], typer.Option("--model", metavar="DIR", help="Checkpoint instead; likewise.")
]
Threshold = Annotated[
    float | None,
    typer.Option(
        "--threshold", metavar="L", help="Of the score; by default half of null images are flagged."
    ),
]
Devices = Annotated[
    str,
    typer.Option(
        "--devices", help="Also tests per second on so many devices each: 1,2 (cores, on a CPU)."
    ),
]
BatchSizes = Annotated[
    str, typer.Option("--batch-sizes", help="Also tests per second with so many under way: 1,8,64.")
]
Repeats = Annotated[int, typer.Option("--repeats", help="Runs of which the median is taken.")]
Threads = Annotated[int, typer.Option("--threads", help="1, or 0 for all cores.")]
Limit = Annotated[
    float, typer.Option("--limit-seconds", help="One measurement may take so long, else it failed.")
]
Peer = Annotated[
    bool, typer.Option("--peer", help="Measure si4onnx too (needs the repository's benchmarks).")
]
PeerPython = Annotated[
    str | None,
    typer.Option("--peer-python", metavar="PY", help="Interpreter with si4onnx; implies --peer."),
]
PeerTests = Annotated[
    int, typer.Option("--peer-tests", help="Images that the peer tests in a round.")
]
PeerSeconds = Annotated[
    float, typer.Option("--peer-seconds", help="It may search one for so long, else extrapolated.")
]
Rounds = Annotated[int, typer.Option("--rounds", help="Rounds that alternate with the peer.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE.json", help="Write settings and records there."),
]


@options.declared(TestOptions, "precision")
def bench(
    sizes: Sizes = "8,16,32",
    tests: Tests = "64",
    exact_tests: ExactTests = "2",
    engines: Engines = "adaptive,sweep",
    weights: Weights = [],  # noqa: B006 (typer copies it)
    model: Models = [],  # noqa: B006
    localizer: options.Use = None,
    threshold: Threshold = None,
    devices: Devices = "",
    batch_sizes: BatchSizes = "",
    precision: float = Plan.precision,
    repeats: Repeats = 3,
    threads: Threads = 0,
    limit_seconds: Limit = 1800.0,
    peer: Peer = False,
    peer_python: PeerPython = None,
    peer_tests: PeerTests = 2,
    peer_seconds: PeerSeconds = 60.0,
    rounds: Rounds = 2,
    out: Out = None,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    """Measures seconds, evaluations, windows, memory and compilation of tests on null images.

    Each measurement runs in a process of its own. What fails is recorded and shown as failed.
    """
    plan = Plan(
        sizes=_numbers("--sizes", sizes),
        tests=_numbers("--tests", tests),
        exact_tests=_numbers("--exact-tests", exact_tests),
        engines=tuple(engine.strip() for engine in engines.split(",") if engine.strip()),
        weights=tuple(weights),
        models=tuple(model),
        threshold=threshold,
        devices=_numbers("--devices", devices),
        batch_sizes=_numbers("--batch-sizes", batch_sizes),
        precision=precision,
        repeats=repeats,
        threads=threads,
        limit_seconds=limit_seconds,
        seed=seed,
        localizer=localizer,
    )
    beside = None
    if peer or peer_python is not None:
        settings = {"tests": peer_tests, "seconds": peer_seconds, "rounds": rounds}
        beside = _peer(peer_python or sys.executable, settings)
    records: list[dict[str, Any]] = []
    for record in measure(plan, beside):
        records.append(record)
        print(_progress(record), file=sys.stderr, flush=True)
        if out is not None:
            write_text(out, dumps({"settings": asdict(plan), "records": records}) + "\n")
    if json:
        typer.echo(dumps({"settings": asdict(plan), "records": records}))
        return
    for record in records:
        if record["kind"] == "images" and "failure" not in record:
            typer.echo(_images(record))
    typer.echo("\n" + tables([r for r in records if r["kind"] != "images" or "failure" in r]))


def _numbers(option: str, text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not all(part.isdecimal() for part in parts):
        raise InputError(f"{option}: got {text!r}, expected whole numbers with commas between them")
    return tuple(int(part) for part in parts)


def _peer(python: str, settings: dict[str, Any]) -> Beside:
    """Return the peer's side of the measurement, from the repository, since it is not installed."""
    return import_beside("benchmarks.peer_rounds", "--peer").beside(python, **settings)


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
