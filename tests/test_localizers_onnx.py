"""Networks in ONNX files as localizers. Without onnxruntime, only what needs none is tested."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dal_jax import InputError, Status, dal_test_batch, from_callable, from_onnx
from dal_jax.inspection import threshold_of

SIDE = 8
KERNEL = np.random.default_rng(0).normal(size=(3, 3)).astype(np.float32) / 3
SHAPE = (SIDE, SIDE, 1)


@pytest.fixture(scope="module")
def onnx() -> Any:
    pytest.importorskip("onnxruntime")
    return pytest.importorskip("onnx")


def write(onnx: Any, path: Path, **changes: Any) -> Path:
    """Writes a network: the absolute value of a convolution, averaged over the channels."""
    how = {"batch": "N", "channels": 1, "sides": (SIDE, SIDE), "last": False, "type": "FLOAT"}
    how |= {"form": (0, 1, 2, 3), "more": (), "rated": False} | changes
    helper, kind = onnx.helper, getattr(onnx.TensorProto, how["type"])
    channels = how["channels"]
    kernel = np.repeat(KERNEL[None, None], channels, axis=1) / channels
    kernel = kernel.astype(np.float16) if how["type"] == "FLOAT16" else kernel
    sides = list(how["sides"])
    shape = [how["batch"], *sides, channels] if how["last"] else [how["batch"], channels, *sides]
    nodes = [
        helper.make_node(
            "Transpose", ["image"], ["first"], perm=[0, 3, 1, 2] if how["last"] else [0, 1, 2, 3]
        ),
        helper.make_node("Conv", ["first", "kernel"], ["moved"], pads=[1, 1, 1, 1]),
        helper.make_node("Abs", ["moved"], ["score"]),
        helper.make_node("Transpose", ["score"], ["anomaly_map"], perm=how["form"]),
    ]
    maps = ["anomaly_map", *how["more"]]
    nodes += [helper.make_node("Neg", ["score"], [name]) for name in how["more"]]
    ends = [helper.make_tensor_value_info(name, kind, [None] * 4) for name in maps]
    if how["rated"]:
        nodes.append(helper.make_node("ReduceMax", ["score"], ["rate"], axes=[1, 2, 3], keepdims=0))
        ends.insert(0, helper.make_tensor_value_info("rate", kind, ["N"]))
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("image", kind, shape)],
        ends,
        [onnx.numpy_helper.from_array(kernel, "kernel")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


def test_a_network_of_float64_gets_float64(onnx, tmp_path):
    helper = onnx.helper
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, ["N", SIDE, SIDE, 1])
        for name in ("image", "score")
    ]
    nodes = [helper.make_node("Abs", ["image"], ["score"])]
    graph = helper.make_graph(nodes, "detector", ends[:1], ends[1:])
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), tmp_path / "a.onnx")
    localizer = from_onnx(tmp_path / "a.onnx", SHAPE, 0.7)
    assert localizer.score_fn.resolution == localizer.score_fn.dtype == "float64"
    x = np.random.default_rng(1).normal(size=SHAPE)
    np.testing.assert_array_equal(localizer.score(x), abs(x[..., 0]))


def expected_score(x: np.ndarray) -> np.ndarray:
    padded = np.pad(x.mean(axis=-1), ((0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))
    return np.abs((windows * KERNEL).sum(axis=(-2, -1)))


CASES: dict[str, dict[str, Any]] = {
    "any batch": {},
    "one image": {"batch": 1},
    "three images": {"batch": 3},
    "channels last": {"last": True},
    "any size": {"sides": ("H", "W")},
    "three channels": {"channels": 3},
    "map with channels last": {"form": (0, 2, 3, 1)},
    "several outputs": {"more": ("score_2", "mask")},
    "a score for each image, as of anomalib": {"rated": True},
}


@pytest.mark.parametrize("name", CASES)
def test_scores_are_those_of_the_network(onnx, tmp_path, name):
    localizer = from_onnx(write(onnx, tmp_path / "a.onnx", **CASES[name]), SHAPE, 0.7)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(5, *SHAPE))
    found = localizer.score_fn.score_batch(x)
    np.testing.assert_allclose(found, expected_score(x), atol=1e-6)
    assert localizer.score_fn.resolution == "float32"
    if name == "three channels":
        colour = from_onnx(tmp_path / "a.onnx", (SIDE, SIDE, 3), 0.7)
        x = rng.normal(size=(5, SIDE, SIDE, 3))
        np.testing.assert_allclose(colour.score_fn.score_batch(x), expected_score(x), atol=1e-6)


def test_tests_are_those_of_the_same_score_on_numpy_arrays(onnx, tmp_path):
    localizer = from_onnx(write(onnx, tmp_path / "a.onnx"), SHAPE, 0.7)
    rng = np.random.default_rng(2)
    threshold = threshold_of(localizer, rng.normal(size=(16, *SHAPE)), 0.05)
    localizer = localizer.with_threshold(threshold)
    same = from_callable(expected_score, SHAPE, threshold)
    x, refs = rng.normal(size=(2, 8, *SHAPE))
    for one, other in zip(
        dal_test_batch(localizer, x, refs, "iid:1", region="peak"),
        dal_test_batch(same, x, refs, "iid:1", region="peak"),
        strict=True,
    ):
        assert one.status is other.status
        np.testing.assert_array_equal(one.region, other.region)
        # Rounding of float32 over the slopes of the score.
        np.testing.assert_allclose(one.p_value, other.p_value, atol=1e-4)
    assert one.status in (Status.OK, Status.NO_REGION)


def test_wrong_files_and_images_are_refused_in_one_line(onnx, tmp_path):
    good = write(onnx, tmp_path / "a.onnx")
    two = write(onnx, tmp_path / "two.onnx", channels=2)
    (tmp_path / "bad.onnx").write_bytes(b"not a network")
    half = write(onnx, tmp_path / "half.onnx", type="FLOAT16")
    beside = {"save_as_external_data": True, "location": "weights", "size_threshold": 0}
    onnx.save(onnx.load(good), tmp_path / "apart.onnx", **beside)
    for file, shape, changes, message in (
        (tmp_path / "none.onnx", SHAPE, {}, "none.onnx': no such file"),
        (tmp_path / "bad.onnx", SHAPE, {}, r"bad.onnx': cannot be run \("),
        (tmp_path / "apart.onnx", SHAPE, {}, r"\(weights in another file, expected inside: onnx"),
        (
            good,
            (4, 4, 1),
            {},
            r"takes \['N', 1, 8, 8\], expected images \(4, 4, 1\) as NCHW or NHWC",
        ),
        (two, SHAPE, {}, r"input image takes \['N', 2, 8, 8\], expected images \(8, 8, 1\)"),
        (half, SHAPE, {}, r"inputs image tensor\(float16\), expected one of float or double"),
        (good, SHAPE, {"output": "heat"}, r"outputs anomaly_map .*, expected 'heat' among them"),
        (good, SHAPE, {"layout": "HWC"}, "layout: got 'HWC', expected one of NCHW, NHWC"),
        (good, SHAPE, {"layout": "NHWC"}, r"expected images \(8, 8, 1\) as NHWC"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            from_onnx(file, shape, 0.5, **changes)
        assert "\n" not in str(caught.value)


def test_without_onnxruntime_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "a.onnx").write_bytes(b"")
    with pytest.raises(InputError, match=r'needs onnxruntime: pip install "dal-jax\[onnx\]"'):
        from_onnx(tmp_path / "a.onnx", SHAPE, 0.5)
