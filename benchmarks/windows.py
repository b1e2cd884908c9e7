"""Time per window of the exact engines beside the peer program, all from one run on one thread.

python -m benchmarks.windows REFERENCE_FOLDER --peer-python PEER_ENV/bin/python --out FILE.json

REFERENCE_FOLDER holds weights{8,16,32}.npz and cases{8,16,32}.npz. Rounds alternate between the
programs, so that a machine whose speed drifts slows both; the ratio is taken round by round.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.peer_rounds import run_peer
from dal_jax import DalConfig, dal_localizer, dal_test
from dal_jax._files import read_arrays, write_text
from dal_jax.bench import in_process, thread_limits
from dal_jax.models import UNetConfig, import_state_dict

CASES = {8: 3, 16: 2, 32: 0}
OURS = (("sweep", "float64"), ("sweep", "float32"), ("scan", "float64"))
ONE_THREAD = {**thread_limits(1), "JAX_PLATFORMS": "cpu"}


def measure_ours(folder: Path, size: int, engine: str, dtype: str, precision: float) -> Any:
    """Time whole tests of one reference case: the first, with compilation, and later ones.

    Args:
        folder: Folder of the reference cases.
        size: Side of the image, pixels.
        engine: Engine of `dal_test`.
        dtype: Floating-point type of `dal_test`.
        precision: Width of the bounds on p.

    Returns:
        A record with seconds and seconds per window, those of the fastest later test.
    """
    variables = import_state_dict(folder / f"weights{size}.npz", UNetConfig())
    cases = read_arrays(folder / f"cases{size}.npz")
    case = {k: cases[f"case{CASES[size]:02d}_{k}"][..., None] for k in ("x", "x_ref", "noise")}
    threshold = float(cases["lam"])
    localizer = dal_localizer(variables, DalConfig(image_size=size), threshold, case["noise"])
    rows = []
    while len(rows) < 2 or (len(rows) < 4 and rows[-1][0] < 5):  # short tests are repeated more
        cpu = time.process_time()
        result = dal_test(
            localizer,
            case["x"],
            case["x_ref"],
            "iid:1.0",
            engine=engine,
            dtype=dtype,
            precision=precision,
            randomization=0.0,  # the peer's test is the published one
        )
        rows.append((result.seconds, time.process_time() - cpu))
    seconds, cpu_seconds = min(rows[1:])
    return {
        "size": size,
        "engine": engine,
        "dtype": dtype,
        "num_windows": result.num_windows,
        "first_test_seconds": rows[0][0],
        "seconds_per_test": seconds,
        "seconds_per_window": seconds / result.num_windows,
        "cpu_seconds_per_window": cpu_seconds / result.num_windows,
        "p_value": result.p_value,
    }


def compare(options: argparse.Namespace) -> dict[str, Any]:
    """Run all rounds.

    Args:
        options: Options of the command line.

    Returns:
        Every record, and per size and engine the median ratio of the peer's time per window.
    """
    records, ratios = [], []
    for size in options.sizes:
        rounds: dict[tuple[str, str], list[dict[str, float]]] = {key: [] for key in OURS}
        for number in range(options.rounds):
            peer = None
            if options.peer_python:
                inputs = [options.folder / f"{kind}{size}.npz" for kind in ("weights", "cases")]
                limit = options.peer_seconds
                peer = run_peer(options.peer_python, inputs, case=CASES[size], max_seconds=limit)
                records.append({"round": number, "program": "si4onnx", **peer})
            for engine, dtype in OURS:
                if engine == "scan" and (number or not options.scan):
                    continue  # the scan is a check; once is enough
                worker = ["--worker", str(size), engine, dtype]
                command = [sys.executable, "-m", "benchmarks.windows", str(options.folder), *worker]
                ours = in_process([*command, "--precision", str(options.precision)], ONE_THREAD)
                records.append({"round": number, "program": "dal_jax", **ours})
                line = f"size {size} round {number} {engine} {dtype}: "
                if "failure" in ours:
                    print(line + str(ours["failure"]), file=sys.stderr, flush=True)
                    continue
                line += f"{1e3 * ours['seconds_per_window']:.3f} ms a window"
                if peer and not peer.get("failure"):
                    kinds = ("seconds_per_window", "cpu_seconds_per_window")
                    ratio = {kind: peer[kind] / ours[kind] for kind in kinds}
                    rounds[engine, dtype].append(ratio)
                    line += f", peer {1e3 * peer['seconds_per_window']:.1f} ms, ratio "
                    line += " / ".join(f"{v:.1f}" for v in ratio.values()) + " (wall / processor)"
                print(line, file=sys.stderr, flush=True)
        for (engine, dtype), rows in rounds.items():
            if rows:
                median = {k: statistics.median(row[k] for row in rows) for k in rows[0]}
                ratios.append({"size": size, "engine": engine, "dtype": dtype, "ratio": median})
    return {"records": records, "ratios": ratios}


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="Folder of the reference cases.")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[8, 16, 32], help="Sides of the images."
    )
    parser.add_argument("--rounds", type=int, default=3, help="Number of rounds.")
    parser.add_argument("--precision", type=float, default=1e-3, help="Width of bounds on p.")
    parser.add_argument("--peer-python", help="Interpreter of the peer's environment.")
    parser.add_argument("--peer-seconds", type=float, default=30.0, help="Limit of a peer run.")
    parser.add_argument("--scan", action="store_true", help="Time the scan as well, once.")
    parser.add_argument("--out", type=Path, help="File for the whole JSON.")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        size, engine, dtype = options.worker
        record = measure_ours(options.folder, int(size), engine, dtype, options.precision)
        print(json.dumps(record))
        return
    report = compare(options)
    text = json.dumps(report, indent=1)
    if options.out:
        write_text(options.out, text)
    print(json.dumps(report["ratios"], indent=1))


if __name__ == "__main__":
    main()
