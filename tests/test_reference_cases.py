"""Agreement with cases computed by an independent implementation (PyTorch, float64).

Two cases of size 8 lie in tests/data; the others are used where DAL_JAX_REFERENCE names the folder
that holds weights{8,16,32}.npz and cases{8,16,32}.npz, or ../shared/golden beside the repository.
"""

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import REFERENCE
from helpers import published_test as dal_test

from dal_jax import DalConfig, Status, TestResult, dal_localizer
from dal_jax.inference import intersect
from dal_jax.models import UNetConfig, import_state_dict

OWN = Path(__file__).parent / "data" / "reference8.npz"
COUNTS = {8: 9, 16: 3, 32: 1}
WAYS = {
    "float64": {"engine": "sweep"},
    "float32": {"engine": "sweep", "dtype": "float32"},
    "adaptive": {"engine": "adaptive"},
}


def _outside() -> list[Any]:
    if not (REFERENCE / "cases8.npz").exists():
        return []
    rows = [(s, c, w) for s, n in COUNTS.items() for c in range(n) for w in WAYS]
    # Those above size 8 and the programs of the sweeps take most of the time.
    return [
        pytest.param(*row, marks=() if row[0] == 8 and row[2] == "adaptive" else pytest.mark.slow)
        for row in rows
    ]


@lru_cache
def _own() -> dict[str, np.ndarray]:
    with np.load(OWN) as archive:
        return dict(archive)


@lru_cache
def _cases(size: int) -> dict[str, np.ndarray]:
    with np.load(REFERENCE / f"cases{size}.npz") as archive:
        return dict(archive)


@lru_cache
def _variables(path: Path) -> Any:
    return import_state_dict(path, UNetConfig())


@pytest.fixture(scope="module")
def own_variables(tmp_path_factory) -> Any:
    path = tmp_path_factory.mktemp("weights") / "weights.npz"
    np.savez(path, **{k[8:]: v for k, v in _own().items() if k.startswith("weights/")})
    return import_state_dict(path, UNetConfig())


def _check(cases: dict[str, np.ndarray], variables: Any, size: int, number: int, **options: Any):
    case = {k.split("_", 1)[1]: v for k, v in cases.items() if k.startswith(f"case{number:02d}_")}
    draws = case["noise"][..., None]
    localizer = dal_localizer(variables, DalConfig(image_size=size), float(cases["lam"]), draws)
    images = case["x"][..., None], case["x_ref"][..., None]
    result = dal_test(localizer, *images, f"iid:{float(cases['sigma'])}", **options)
    _agrees(result, case)
    return result, case


def _agrees(result: TestResult, case: dict[str, np.ndarray]) -> None:
    # Two float64 forward passes in different orders of summation.
    np.testing.assert_allclose(result.reconstruction[..., 0], case["recon"], atol=1e-8)
    np.testing.assert_array_equal(result.region, case["M"])
    assert result.status is Status.OK
    sd = float(case["sd_T"])
    assert result.sd == pytest.approx(sd, rel=1e-14)
    assert result.statistic / sd == pytest.approx(float(case["z_obs"]), abs=1e-12)
    if result.engine != "adaptive":
        # The acceptance limit is 1e-6 sd; both are float64, so far less is expected.
        np.testing.assert_allclose(result.window / sd, case["oc_interval"][0], atol=1e-9)
        assert result.over_conditioned_p == pytest.approx(float(case["oc_p"]), abs=1e-8)
    assert result.naive_p == pytest.approx(float(case["naive_p"]), rel=1e-12)


def _same_set(result: TestResult, case: dict[str, np.ndarray], name: str) -> None:
    """The same truncation set, where both searches looked."""
    found, expected = result.truncation / result.sd, case[f"{name}_intervals"]
    spans = result.searched / result.sd, case[f"{name}_searched"]
    both = np.array([[max(s[0, 0] for s in spans), min(s[-1, 1] for s in spans)]])
    # Polished float32 and float64 sweeps end in float64 arithmetic; the adaptive search ends with
    # secants between points 1e-6 apart, and has 1e-5 to keep.
    limit = 1e-6 if result.engine == "adaptive" else 1e-9
    np.testing.assert_allclose(intersect(found, both), intersect(expected, both), atol=limit)


def _p_within_bounds(result: TestResult, case: dict[str, np.ndarray]) -> None:
    # The acceptance limit of the adaptive engine is 1e-3.
    slack = 1e-5 if result.engine == "adaptive" else 1e-9
    assert case["pp_inf_p"] - slack <= result.p_value <= case["pp_sup_p"] + slack


@pytest.mark.parametrize(
    "way", [pytest.param(w, marks=() if w == "adaptive" else pytest.mark.slow) for w in WAYS]
)
@pytest.mark.parametrize("number", [3, pytest.param(5, marks=pytest.mark.slow)])
def test_own_copy(own_variables, number, way):
    result, case = _check(_own(), own_variables, 8, number, **WAYS[way])
    _same_set(result, case, "pp")
    _p_within_bounds(result, case)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["sweep", "scan"])
def test_whole_line(own_variables, engine):
    """The case that the reference searched exhaustively: the p-value is right to rounding."""
    result, case = _check(_own(), own_variables, 8, 3, engine=engine, precision=0.0)
    _same_set(result, case, "ex")
    # The acceptance limit is 1e-6.
    assert result.p_value == pytest.approx(float(case["ex_p"]), abs=1e-10)
    assert result.p_high - result.p_low < 1e-12
    if engine == "sweep":  # the scan counts windows again at the ends of its segments
        assert result.num_windows == int(case["ex_count"])


@pytest.mark.parametrize(("size", "number", "way"), _outside())
def test_outside_copy(size, number, way):
    variables = _variables(REFERENCE / f"weights{size}.npz")
    result, case = _check(_cases(size), variables, size, number, **WAYS[way])
    _same_set(result, case, "pp")
    _p_within_bounds(result, case)
