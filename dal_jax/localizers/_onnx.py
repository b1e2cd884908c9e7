"""Networks in ONNX files as localizers, run by onnxruntime on the host."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dal_jax._errors import InputError
from dal_jax._files import file_errors
from dal_jax._typing import Float
from dal_jax.localizers._callable import BATCH_SIZE, from_callable
from dal_jax.localizers._localizer import Localizer

# Channels' axis by the name of the order of an input's axes.
LAYOUTS = {"NCHW": 1, "NHWC": 3}
_TYPES = {"tensor(float)": "float32", "tensor(double)": "float64"}
# Output of a network exported by anomalib.
_MAP = "anomaly_map"


class _Network(NamedTuple):
    """A session, and how images enter it and scores leave it; (B, H, W, C) -> (B, H, W)."""

    session: Any
    input: str
    output: str
    channels_axis: int  # of the input
    channels: int  # of the input: those of the images, or more, each a copy of a grey one
    count: int | None  # images of one call; None for any number

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if images.shape[3] < self.channels:
            images = np.repeat(images, self.channels, axis=3)
        images = np.moveaxis(images, 3, self.channels_axis)
        step = self.count or len(images)
        starts = range(0, len(images), step)
        return np.concatenate([self._run(images[k : k + step], step) for k in starts])

    def _run(self, images: np.ndarray, step: int) -> np.ndarray:
        filled = np.concatenate([images, np.repeat(images[-1:], step - len(images), axis=0)])
        given = {self.input: np.ascontiguousarray(filled)}
        found = np.asarray(self.session.run([self.output], given)[0])[: len(images)]
        if found.ndim == 4:
            axis = 1 if found.shape[1] == 1 else 3
            found = found.squeeze(axis) if found.shape[axis] == 1 else found
        return found


def from_onnx(
    file: str | Path,
    image_shape: tuple[int, ...],
    threshold: float,
    *,
    output: str | None = None,
    layout: str | None = None,
    batch_size: int = BATCH_SIZE,
    example: Float[np.ndarray, "H W C"] | None = None,
) -> Localizer:
    """Wrap a network in an ONNX file as a localizer: an image in, a map of scores out.

    It is run by onnxruntime (extra `onnx`) on the processor, in the precision of its input, by way
    of `from_callable`. A network for one image at a time is called with one after the other; grey
    images are given to a network for three channels as three equal ones.

    Args:
        file: ONNX file with its weights in it.
        image_shape: Shape (H, W, C) of the images, the size that the network takes.
        threshold: Threshold, positive, in units of the score; `dal_jax.inspection.threshold_of`
            learns it from normal images.
        output: Name of the output with the scores (N, H, W), (N, 1, H, W) or (N, H, W, 1); None for
            the only one of this form, or "anomaly_map".
        layout: Order of the input's axes, "NCHW" or "NHWC"; None for the one that fits, the first
            if both do.
        batch_size: Largest number of images of one call.
        example: Image (H, W, C) with which it is checked, as in `from_callable`.

    Returns:
        The localizer. A run directory knows it by the name and the digest of the file.

    Raises:
        InputError: onnxruntime is missing, the file cannot be used, the images or the scores do not
            fit, or the scores are not a function of one image.

    Example:
        >>> localizer = from_onnx("detector.onnx", (256, 256, 3), 0.5)  # doctest: +SKIP
        >>> localizer.region(np.zeros((256, 256, 3))).shape  # doctest: +SKIP
        (256, 256)
    """
    path = Path(file)
    with file_errors(path, "onnx"):
        data = path.read_bytes()
    session = _session(data, path)
    network, dtype = _network(session, path, image_shape, output, layout)
    digest = hashlib.sha256(data).hexdigest()
    return from_callable(
        network,
        image_shape,
        threshold,
        dtype=dtype,
        batch_size=batch_size,
        name=f"{path.name}, output {network.output}, sha256 {digest}",
        example=example,
    )


def _session(data: bytes, path: Path) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError('onnx: needs onnxruntime: pip install "dal-jax[onnx]"') from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.use_deterministic_compute = True
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of many kinds: damaged, unknown operators, weights elsewhere
        told = " ".join(str(error).split())[:200]
        if "External data" in told:
            told = "weights in another file, expected inside: onnx.save(onnx.load(FILE), FILE)"
        raise InputError(f"onnx {str(path)!r}: cannot be run ({told})") from error


def _network(
    session: Any, path: Path, image_shape: tuple[int, ...], output: str | None, layout: str | None
) -> tuple[_Network, str]:
    """Return the network and the type of its input."""
    if layout is not None and layout not in LAYOUTS:
        raise InputError(f"layout: got {layout!r}, expected one of {', '.join(LAYOUTS)}")
    if len(image_shape) != 3:
        raise InputError(f"image_shape: got {image_shape}, expected (H, W, C)")
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in _TYPES:
        told = ", ".join(f"{own.name} {own.type}" for own in inputs) or "none"
        raise InputError(f"onnx {str(path)!r}: inputs {told}, expected one of float or double")
    (own,) = inputs
    shape, channels = list(own.shape), image_shape[2]
    for axis in [LAYOUTS[layout]] if layout else LAYOUTS.values():
        sides = [*shape[1:axis], *shape[axis + 1 :]]
        if len(shape) != 4 or not all(map(_fits, sides, image_shape[:2])):
            continue
        if _fits(shape[axis], channels) or (channels == 1 and shape[axis] == 3):
            taken = shape[axis] if isinstance(shape[axis], int) else channels
            count = shape[0] if isinstance(shape[0], int) else None
            name = _output(session, path, image_shape, output)
            return _Network(session, own.name, name, axis, taken, count), _TYPES[own.type]
    expected = f"images {tuple(image_shape)} as {layout or ' or '.join(LAYOUTS)}"
    raise InputError(f"onnx {str(path)!r}: input {own.name} takes {shape}, expected {expected}")


def _output(session: Any, path: Path, image_shape: tuple[int, ...], wanted: str | None) -> str:
    """Return the name of the output with the scores."""
    shapes = {own.name: list(own.shape) for own in session.get_outputs()}
    floats = {own.name for own in session.get_outputs() if own.type in _TYPES}
    if wanted is not None:
        fitting = [name for name in shapes if name == wanted]
    else:
        fitting = [n for n, shape in shapes.items() if n in floats and _is_map(shape, image_shape)]
        fitting = [_MAP] if _MAP in fitting else fitting
    if len(fitting) == 1:
        return fitting[0]
    told = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
    expected = f"{wanted!r} among them" if wanted else "one map of scores, or its name as output"
    raise InputError(f"onnx {str(path)!r}: outputs {told}, expected {expected}")


def _is_map(shape: list[Any], image_shape: tuple[int, ...]) -> bool:
    forms = [shape[1:]] if len(shape) == 3 else []
    if len(shape) == 4:
        channels = ((shape[1], shape[2:]), (shape[3], shape[1:3]))
        forms = [form for number, form in channels if _fits(number, 1)]
    return any(all(map(_fits, form, image_shape[:2])) for form in forms)


def _fits(own: Any, wanted: int) -> bool:
    return own == wanted or not isinstance(own, int)  # other sizes have names, or none
