"""Measure the published program si4onnx on one selective test and print one JSON object.

The diffusion localizer (U-Net, schedule, fixed draws) becomes an ONNX graph, and si4onnx walks the
line of the test through it window by window. Runs in an environment of its own, described in
`peer_requirements.txt`; it imports nothing of dal_jax. Usage and fields: `benchmarks/README.md`.
"""

# ruff: noqa: E402 - the limits on threads must stand before the imports that read them.

import argparse
import importlib.metadata
import json
import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

# Thread pools read these once, when the libraries below are loaded.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"

import numpy as np
import onnx
import si4onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from si4onnx.operators import AverageFilter, InputDiff, L1Norm
from sicore import InfiniteLoopError, RealSubset

Arrays = Mapping[str, np.ndarray]

OPSET = 18
TIME_CODE_LENGTH = 100
STEP = 1e-6  # how far past a window's end the next point lies; the default of sicore
CASE_ARRAYS = ("x", "x_ref", "noise", "lam", "alpha_bar", "t_seq", "t_next", "eta", "bn_eps")


class InputError(ValueError):
    """The input file lacks an array or holds one of a wrong shape."""


class Window(NamedTuple):
    """One evaluation of the network by si4onnx: its window and its cost."""

    low: float  # standardized z
    high: float  # standardized z
    seconds: float  # wall clock, network and post-processing


def read_inputs(paths: Sequence[str], case: int | None = None) -> dict[str, np.ndarray]:
    """Read weights and case arrays from one .npz file or from several, merged in order.

    Args:
        paths: Files holding the weights under PyTorch state_dict names (a prefix `unet.` is
            dropped) and the arrays named in CASE_ARRAYS; `sigma` is optional.
        case: Number of a case in a file of many: arrays named `caseNN_*` lose that prefix.

    Returns:
        All arrays by name.

    Raises:
        InputError: A file cannot be read, or an array is missing.
    """
    arrays: dict[str, np.ndarray] = {}
    for path in paths:
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays |= {name.removeprefix("unet."): archive[name] for name in archive.files}
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"cannot read {path}: {error}") from error
    if case is not None:
        prefix = f"case{case:02d}_"
        arrays |= {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}
    wanted = (*CASE_ARRAYS, "down1.convs.0.weight", "out.weight")
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise InputError(f"missing arrays: {', '.join(missing)}")
    return arrays


def to_nchw(image: np.ndarray) -> np.ndarray:
    """Lay out an image (H, W) or (H, W, C) as (1, C, H, W) in float64."""
    image = np.asarray(image, dtype=np.float64)
    image = image[..., None] if image.ndim == 2 else image
    return np.ascontiguousarray(image.transpose(2, 0, 1)[None])


def time_code(level: int) -> np.ndarray:
    """Return the code of a level t: v_i = sin(t/d_i) for even i, cos for odd, d_i = 1e4^(i/100)."""
    index = np.arange(TIME_CODE_LENGTH)
    angle = level / np.exp(index / TIME_CODE_LENGTH * math.log(1e4))
    return np.where(index % 2 == 0, np.sin(angle), np.cos(angle))


class GraphBuilder:
    """Collection of ONNX nodes and float64 constants for `localizer_graph`."""

    def __init__(self, weights: Arrays, bn_eps: float) -> None:
        self.weights = weights
        self.bn_eps = bn_eps
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: Any) -> str:
        """Store a float64 constant under a name, once, and return the name."""
        if name not in self.constants:
            array = np.ascontiguousarray(value, dtype=np.float64)
            self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def node(self, operation: str, *inputs: str, **attributes: Any) -> str:
        """Append a node and return the name of its output."""
        output = f"{operation}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operation, list(inputs), [output], **attributes))
        return output

    def array(self, name: str) -> np.ndarray:
        """Look up a weight in float64; raise an error if it is missing."""
        if name not in self.weights:
            raise InputError(f"missing arrays: {name}")
        return np.asarray(self.weights[name], dtype=np.float64)

    def block(self, name: str, x: str, level: int) -> str:
        """Append relu(BN(conv3x3(x + h(level)))), batch norm folded into the convolution."""
        w1, b1 = self.array(f"{name}.mlp.0.weight"), self.array(f"{name}.mlp.0.bias")
        w2, b2 = self.array(f"{name}.mlp.2.weight"), self.array(f"{name}.mlp.2.bias")
        shift = w2 @ np.maximum(w1 @ time_code(level) + b1, 0.0) + b2
        mean, var = (self.array(f"{name}.convs.1.running_{k}") for k in ("mean", "var"))
        gain = self.array(f"{name}.convs.1.weight") / np.sqrt(var + self.bn_eps)
        kernel = self.array(f"{name}.convs.0.weight") * gain[:, None, None, None]
        bias = (self.array(f"{name}.convs.0.bias") - mean) * gain
        bias += self.array(f"{name}.convs.1.bias")
        x = self.node("Add", x, self.constant(f"{name}.shift{level}", shift.reshape(1, -1, 1, 1)))
        kernel_name = self.constant(f"{name}.kernel", kernel)
        x = self.node("Conv", x, kernel_name, self.constant(f"{name}.bias", bias), pads=[1] * 4)
        return self.node("Relu", x)

    def unet(self, x: str, level: int) -> str:
        """Append the U-Net at one level and return its noise prediction."""
        depth = sum(f"down{i}.convs.0.weight" in self.weights for i in range(1, 10))
        skips = []
        for i in range(1, depth + 1):
            skips.append(self.block(f"down{i}", x, level))
            # Left out, count_include_pad (of no effect here) reaches torch from si4onnx as an int.
            pool = {"kernel_shape": [2, 2], "strides": [2, 2], "count_include_pad": 1}
            x = self.node("AveragePool", skips[-1], **pool)
        x = self.block("bot1", x, level)
        scales = self.constant("scales", [1, 1, 2, 2])
        for i in range(depth, 0, -1):
            mode = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
            x = self.node("Resize", x, "", scales, **mode)
            x = self.node("Concat", x, skips[i - 1], axis=1)
            x = self.block(f"up{i}", x, level)
        kernel = self.constant("out.kernel", self.array("out.weight"))
        return self.node("Conv", x, kernel, self.constant("out.bias", self.array("out.bias")))


def localizer_graph(arrays: Arrays) -> onnx.ModelProto:
    """Write the deterministic reverse process x -> D(x) as an ONNX graph in float64.

    A step from level a to n: x0 = (x - sqrt(1-a) eps)/sqrt(a), c1 = eta sqrt((1-a/n)(1-n)/(1-a)),
    c2 = sqrt(1-n-c1^2), x <- sqrt(n) x0 + c1 draw + c2 eps, with a, n from alpha_bar.

    Args:
        arrays: Result of `read_inputs`.

    Returns:
        The graph, input `image` and output `reconstruction`, both (1, C, H, W).

    Raises:
        InputError: An array is missing or misshapen.
    """
    graph = GraphBuilder(arrays, float(arrays["bn_eps"]))
    shape = to_nchw(arrays["x"]).shape
    draws = [to_nchw(draw) for draw in arrays["noise"]]
    levels, following = arrays["t_seq"].astype(int), arrays["t_next"].astype(int)
    if len(draws) != 1 + len(levels) or draws[0].shape != shape:
        raise InputError(f"noise must hold {1 + len(levels)} draws of the shape of x")
    alpha_bar = np.asarray(arrays["alpha_bar"], dtype=np.float64)
    start = alpha_bar[levels[0] + 1]
    x = graph.node("Mul", "image", graph.constant("start_gain", np.sqrt(start)))
    x = graph.node("Add", x, graph.constant("start_draw", np.sqrt(1 - start) * draws[0]))
    for k, (level, after) in enumerate(zip(levels, following, strict=True)):
        a, n = alpha_bar[level + 1], alpha_bar[after + 1]
        c1 = float(arrays["eta"]) * np.sqrt((1 - a / n) * (1 - n) / (1 - a))
        c2 = np.sqrt(max(1 - n - c1**2, 0.0))
        # si4onnx resumes after the last node whose window still holds z, and takes every earlier
        # node as valid: so all nodes below must depend on the prediction, none on x alone.
        predicted = graph.unet(x, int(level))
        noise = graph.node("Mul", predicted, graph.constant(f"noise_gain{k}", np.sqrt(1 - a)))
        clean = graph.node("Sub", x, noise)
        clean = graph.node("Div", clean, graph.constant(f"signal_gain{k}", np.sqrt(a)))
        x = graph.node("Mul", clean, graph.constant(f"next_gain{k}", np.sqrt(n)))
        x = graph.node("Add", x, graph.constant(f"draw{k}", c1 * draws[k + 1]))
        direction = graph.node("Mul", predicted, graph.constant(f"direction_gain{k}", c2))
        x = graph.node("Add", x, direction)
    graph.nodes[-1].output[0] = "reconstruction"
    ends = [
        helper.make_tensor_value_info(name, TensorProto.DOUBLE, list(shape))
        for name in ("image", "reconstruction")
    ]
    made = helper.make_graph(
        graph.nodes, "localizer", ends[:1], ends[1:], list(graph.constants.values())
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)])


class RecordedMeanDiff(si4onnx.ReferenceMeanDiff):
    """The hypothesis of si4onnx, keeping each window and its time; the computation is untouched."""

    def __init__(self, threshold: float) -> None:
        post_process = [InputDiff(), AverageFilter(), L1Norm()]
        super().__init__(threshold=threshold, post_process=post_process)
        self.windows: list[Window] = []

    def algorithm(self, si_model: Any, a: Any, b: Any, z: Any) -> tuple[Any, list[float]]:
        """Evaluate one window through si4onnx and record it."""
        begin = time.perf_counter()
        region, ends = super().algorithm(si_model, a, b, z)
        self.windows.append(Window(ends[0], ends[1], time.perf_counter() - begin))
        return region, ends


class StopRule:
    """Decision after each window whether the search ends, with its reason.

    The precision is checked by sicore's own criterion, so that its cost counts as it would without
    this class; this adds a limit on seconds and a range to cover.
    """

    def __init__(
        self,
        model: Any,
        max_seconds: float,
        exhaustive: bool,
        z_range: tuple[float, float] | None,
    ) -> None:
        self.model, self.exhaustive, self.z_range = model, exhaustive, z_range
        self.deadline = time.perf_counter() + max_seconds
        self.reason = "none"
        self.precise: Callable[[Any, Any], Any] = self._first

    def __call__(self, searched: Any, truncated: Any) -> bool:
        """Return True when the search is complete, precise enough, or out of time."""
        calculator = self.model.si_calculator
        target = RealSubset([list(self.z_range)]) if self.z_range else calculator.limits
        if (self.exhaustive or self.z_range) and target <= searched:
            self.reason = "range"
        elif not self.exhaustive and self.precise(searched, truncated) == 1.0:
            self.reason = "precision"
        elif time.perf_counter() > self.deadline:
            self.reason = "time"
        return self.reason != "none"

    def _first(self, searched: Any, truncated: Any) -> Any:
        # The calculator exists only once the search has begun.
        calculator = self.model.si_calculator
        self.precise = calculator._create_termination_criterion("parametric", "precision")
        return self.precise(searched, truncated)


def range_strategy(model: Any, z_range: tuple[float, float]) -> Callable[[Any], float]:
    """Make a search order that starts at the observed z and then stays within a range.

    Args:
        model: The si4onnx model under test.
        z_range: Ends of the range, standardized z.

    Returns:
        A function from the set searched so far to the next point: just inside the end of an
        unsearched gap of the range, the end nearest to zero first.
    """
    whole = RealSubset([list(z_range)])

    def next_point(searched: Any) -> float:
        if searched.is_empty():
            return model.si_calculator.stat
        gaps = (whole - searched).tolist()
        steps = [(low, high, min(STEP, (high - low) / 2)) for low, high in gaps]
        return min((z for low, high, s in steps for z in (low + s, high - s)), key=abs)

    return next_point


def union_of(windows: Sequence[Window]) -> list[list[float]]:
    """Merge windows into disjoint intervals by sicore's rule (gaps under 1e-10 close)."""
    return RealSubset([[w.low, w.high] for w in windows]).tolist() if windows else []


def finite(value: Any) -> Any:
    """Replace each number that JSON cannot hold by None, through nested lists."""
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return float(value) if math.isfinite(value) else None


def measure(
    arrays: Arrays,
    *,
    precision: float = 1e-3,
    exhaustive: bool = False,
    max_seconds: float = math.inf,
    z_range: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Run one selective test through si4onnx and report its result and its cost.

    Args:
        arrays: Result of `read_inputs`.
        precision: Width of the bounds on p at which the search stops, in (0, 1).
        exhaustive: Search a whole range, si4onnx's own +-(10 + |z_obs|) unless z_range is given,
            and ignore precision.
        max_seconds: Stop after the window during which this many seconds have passed.
        z_range: Search only this range of standardized z.

    Returns:
        The record described in `benchmarks/README.md`; a search that si4onnx broke off with an
        error is reported under `failure`, with the windows up to there.

    Raises:
        InputError: An array is missing or misshapen, or the flagged region is empty.
    """
    begin = time.perf_counter()
    hypothesis = RecordedMeanDiff(float(arrays["lam"]))
    model = si4onnx.load(model=localizer_graph(arrays), hypothesis=hypothesis)
    image, reference = (torch.from_numpy(to_nchw(arrays[name])) for name in ("x", "x_ref"))
    variance = float(arrays.get("sigma", np.ones(()))) ** 2
    common = {"input": (image, reference), "var": variance}
    reconstruction = model.forward(image)
    if not bool((hypothesis_score(hypothesis, reconstruction, image) > hypothesis.thrshold).any()):
        raise InputError("the flagged region is empty: there is nothing to test")
    # Warms the compiled pieces of si4onnx, as the published experiment does before its clock.
    for _ in range(3):
        single = model.inference(**common, inference_mode="over_conditioning")
    forward_seconds = median_seconds(lambda: model.forward(image), 5)
    setup_seconds = time.perf_counter() - begin

    hypothesis.windows.clear()
    stop = StopRule(model, max_seconds, exhaustive, z_range)
    search = range_strategy(model, z_range) if z_range else "pi3"
    wall, cpu = time.perf_counter(), time.process_time()
    result, failure = None, None
    try:
        result = model.inference(
            **common,
            search_strategy=search,
            termination_criterion=stop,
            precision=precision,
            step=STEP,
            max_iter=sys.maxsize,
        )
    except (InfiniteLoopError, AssertionError, ValueError, IndexError) as error:
        failure = f"{type(error).__name__}: {error}".strip(": ")
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu

    windows = hypothesis.windows
    count = len(windows)
    region = np.asarray(model.roi.detach()).reshape(image.shape)[0, 0].astype(bool)
    eta_var = 2.0 * variance / (region.sum() * image.shape[1])
    record: dict[str, Any] = {
        "engine": "si4onnx",
        "size": int(image.shape[-2]),
        "shape": [int(image.shape[2]), int(image.shape[3]), int(image.shape[1])],
        "dtype": "float64",
        "threads": torch.get_num_threads(),
        "threshold": float(hypothesis.thrshold),
        "num_windows": count,
        "seconds": seconds,
        "seconds_per_window": seconds / count if count else None,
        "cpu_seconds_per_window": cpu_seconds / count if count else None,
        "network_seconds_per_window": statistics.fmean(w.seconds for w in windows),
        "median_network_seconds_per_window": statistics.median(w.seconds for w in windows),
        "forward_seconds": forward_seconds,
        "setup_seconds": setup_seconds,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "stopped_by": "failure" if failure else stop.reason,
        "failure": failure,
        "z_obs": float(single.stat),
        "sd": math.sqrt(eta_var),
        "region_pixels": int(region.sum()),
        "over_conditioned_interval": finite(single.truncated_intervals),
        "over_conditioned_p": finite(single.p_value),
        "searched": finite(result.searched_intervals if result else union_of(windows)),
        "truncation": finite(result.truncated_intervals) if result else None,
        "num_windows_selected": int(result.detect_count) if result else None,
        "p_value": finite(result.p_value) if result else None,
        "p_low": finite(result.inf_p) if result else None,
        "p_high": finite(result.sup_p) if result else None,
        "versions": {n: importlib.metadata.version(n) for n in ("si4onnx", "sicore", "torch")},
    }
    if "recon" in arrays:
        gap = np.abs(reconstruction.numpy() - to_nchw(arrays["recon"])).max()
        record["reconstruction_error"] = float(gap)
    return record


def hypothesis_score(hypothesis: RecordedMeanDiff, reconstruction: Any, image: Any) -> Any:
    """Compute the score map by the post-processing that the test will use."""
    difference, average, norm = hypothesis.post_process
    return norm.forward(average.forward(difference.forward(reconstruction, image)))


def median_seconds(function: Callable[[], Any], repeats: int) -> float:
    """Return the median wall-clock seconds of a call."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "inputs", nargs="+", metavar="FILE.npz", help="Files of weights and case arrays."
    )
    parser.add_argument("--case", type=int, help="Number of a case, for arrays named caseNN_*.")
    parser.add_argument("--precision", type=float, default=1e-3, help="Width of the bounds on p.")
    parser.add_argument("--exhaustive", action="store_true", help="Search the whole range.")
    parser.add_argument("--max-seconds", type=float, default=math.inf, help="Limit of the search.")
    parser.add_argument(
        "--z-range",
        type=float,
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="Search only this range of standardized z.",
    )
    parser.add_argument("--output", help="File for the JSON; default: standard output.")
    options = parser.parse_args(arguments)
    if options.z_range and not options.z_range[0] < options.z_range[1]:
        parser.error("--z-range: LOW must be below HIGH")
    if not options.max_seconds > 0:
        parser.error("--max-seconds must be above 0")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 for a record, 2 for bad input."""
    options = parse_arguments(arguments)
    torch.set_num_threads(1)
    torch.set_num_interop_threads(1)
    try:
        record = measure(
            read_inputs(options.inputs, options.case),
            precision=options.precision,
            exhaustive=options.exhaustive,
            max_seconds=options.max_seconds,
            z_range=tuple(options.z_range) if options.z_range else None,
        )
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    text = json.dumps(record, allow_nan=False)
    if options.output:
        with open(options.output, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    else:
        print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
