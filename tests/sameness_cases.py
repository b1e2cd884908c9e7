"""What `test_sameness.py` compares between processors; as a program it prints its records as JSON.

    python sameness_cases.py FOLDER

FOLDER is for the files of the command line.
"""

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from helpers import published_batch as dal_test_batch
from helpers import published_test as dal_test
from search_cases import dense_localizer, jumping_localizer, pooled_localizer
from test_reference_cases import COUNTS, OWN, REFERENCE, WAYS

from dal_jax import DalConfig, Localizer, TestResult, as_record, dal_localizer
from dal_jax.cli import main
from dal_jax.models import UNetConfig, import_state_dict

NETWORKS = {
    "pooled": pooled_localizer(5, side=6, threshold=1.8),
    "dense": dense_localizer(6),
    "jumping": jumping_localizer(7),
}
IMAGES = 12


def network_records(localizer: Localizer, **options: Any) -> list[dict[str, Any]]:
    """Null images and images with a square, tested side by side."""
    rng = np.random.default_rng(0)
    x, x_ref = rng.normal(size=(2, IMAGES, *localizer.image_shape))
    x[::3, :2, :2] += 2
    return [as_record(r) for r in dal_test_batch(localizer, x, x_ref, "iid:1", **options)]


def reference_records(folder: Path) -> dict[str, dict[str, Any]]:
    """The reference cases of size 8: the two of the repository, and all where they are at hand."""
    with np.load(OWN) as archive:
        own = dict(archive)
    weights = folder / "weights.npz"
    np.savez(weights, **{k[8:]: v for k, v in own.items() if k.startswith("weights/")})
    sets = [("own", weights, own, (3, 5))]
    if (REFERENCE / "cases8.npz").exists():
        with np.load(REFERENCE / "cases8.npz") as archive:
            sets.append(("all", REFERENCE / "weights8.npz", dict(archive), tuple(range(COUNTS[8]))))
    found = {}
    for name, path, cases, numbers in sets:
        variables = import_state_dict(path, UNetConfig())
        for number in numbers:
            prefix = f"case{number:02d}_"
            case = {k.removeprefix(prefix): v for k, v in cases.items() if k.startswith(prefix)}
            draws = case["noise"][..., None]
            config = DalConfig(image_size=8)
            localizer = dal_localizer(variables, config, float(cases["lam"]), draws)
            images = case["x"][..., None], case["x_ref"][..., None]
            for way, options in WAYS.items():
                result = dal_test(localizer, *images, f"iid:{float(cases['sigma'])}", **options)
                found[f"reference {name} {number} {way}"] = as_record(result)
    return found


def command_line_record(folder: Path) -> dict[str, Any]:
    """Imported weights, an image on disk, `dal-jax test --json`: from files to the p-value."""
    with np.load(OWN) as archive:
        x, x_ref, draws = (archive[f"case03_{name}"] for name in ("x", "x_ref", "noise"))
        threshold = float(archive["lam"])
    for name, array in (("x", x), ("y", x_ref), ("draws", draws[..., None])):
        np.save(folder / f"{name}.npy", array)
    here, out = [str(folder / name) for name in ("weights.npz", "model")], io.StringIO()
    test = ["test", "--model", here[1], "--image", str(folder / "x.npy"), "--json"]
    test += ["--reference", str(folder / "y.npy"), "--draws", str(folder / "draws.npy")]
    test += ["--threshold", repr(threshold), "--noise", "iid:1"]
    with contextlib.redirect_stdout(out):
        assert main(["import-weights", *here, "--arch", "dal-unet", "--size", "8"]) == 0
        out.truncate(0)
        assert main(test) == 0
    [record] = json.loads(out.getvalue().strip("\0\n"))["results"]
    fields = (*TestResult._fields, "region_shape", "max_score")
    return {name: record[name] for name in fields if name in record} | {"components": []}


def records(folder: Path) -> dict[str, dict[str, Any]]:
    """Every record by name."""
    found = reference_records(folder)
    found["command line"] = command_line_record(folder)
    for name, localizer in NETWORKS.items():
        for dtype in ("float32", "float64"):
            for number, record in enumerate(network_records(localizer, dtype=dtype)):
                found[f"{name} {dtype} {number}"] = record
    exact = network_records(NETWORKS["dense"], engine="sweep")
    return found | {f"dense sweep {number}": record for number, record in enumerate(exact)}


if __name__ == "__main__":
    print(json.dumps(records(Path(sys.argv[1]))))
