"""Training of networks; a resumed run continues from the exact state of the interrupted one."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from dal_jax._arrays import chosen_devices
from dal_jax._config import option
from dal_jax._errors import CheckpointError, DalJaxError, InputError
from dal_jax._files import write_text
from dal_jax._typing import PyTree
from dal_jax.diffusion._checkpoint import (
    Config,
    fetch,
    read_record,
    save_checkpoint,
    store,
    unwritable,
)
from dal_jax.diffusion._objective import Batch, Objective

_RECORD = "training.json"
_LOG = "loss.jsonl"

_PRESET = " The localizer's preset may have a default of its own."

Progress = Callable[[int, int, float], None]  # step, steps, mean loss


@dataclass(frozen=True)
class TrainConfig:
    """Settings of training; `steps`, `checkpoint_every` and `log_every` count updates.

    Raises:
        InputError: A number is out of range, or the dtype is unknown.

    Example:
        >>> TrainConfig(steps=100, ema_decay=0.999).batch_size
        64

    Source: Kingma and Ba, arXiv 1412.6980 (Adam).
    """

    steps: int = option(2000, f"Number of updates of the weights.{_PRESET}")
    batch_size: int = option(64, f"Number of images in an update.{_PRESET}", name="--batch")
    learning_rate: float = option(1e-3, f"Learning rate of Adam.{_PRESET}", name="--lr")
    grad_clip: float = option(1.0, "Largest global norm of the gradient.", name="--clip")
    ema_decay: float | None = option(
        None, "Decay of averaged weights; by default weights are not averaged.", name="--ema"
    )
    dtype: Literal["float32", "bfloat16"] = option(
        "float32",
        "Type in which the network computes; its weights, their updates and the loss are float32.",
        choices=("float32", "bfloat16"),
    )
    seed: int = 0  # of the first weights, batches and noise
    checkpoint_every: int = option(500, "Number of updates between stored states.")
    log_every: int = option(50, "Number of updates between entries of the loss log.")

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "checkpoint_every", "log_every"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, expected a positive number")
        for name in ("learning_rate", "grad_clip"):
            if not 0.0 < getattr(self, name) < np.inf:
                raise InputError(f"{name}: got {getattr(self, name)}, expected a positive number")
        if self.ema_decay is not None and not 0.0 <= self.ema_decay < 1.0:
            raise InputError(f"ema_decay: got {self.ema_decay}, expected 0 <= ema_decay < 1")
        if self.dtype not in ("float32", "bfloat16"):
            raise InputError(f"dtype: got {self.dtype!r}, expected 'float32' or 'bfloat16'")
        if self.seed < 0:
            raise InputError(f"seed: got {self.seed}, expected 0 or above")


class TrainState(NamedTuple):
    """State that a run carries from step to step; the rest follows from (seed, step).

    Example:
        >>> from dal_jax.models import AutoencoderConfig, Reconstruction
        >>> objective = Reconstruction(AutoencoderConfig(channels=(2,)))
        >>> state = initial_state(TrainConfig(), objective)
        >>> state.step.item(), state.averaged
        (0, {})
    """

    step: Any  # int32, updates done
    variables: PyTree  # {"params": ..., "batch_stats": ...}
    averaged: PyTree  # the same, averaged over steps; empty without ema_decay
    optimizer: PyTree  # Adam's averages of former gradients
    loss_sum: Any  # float32, since the last record of the log


def initial_state(train_config: TrainConfig, objective: Objective) -> TrainState:
    """Draw the state before the first step.

    Args:
        train_config: Settings of the training, with the seed.
        objective: Objective that the training minimizes.

    Returns:
        The state.

    Example:
        >>> from dal_jax.models import AutoencoderConfig, Reconstruction
        >>> objective = Reconstruction(AutoencoderConfig(channels=(2,)))
        >>> state = initial_state(TrainConfig(seed=1), objective)
        >>> state.variables["params"]["down1"]["kernel"].shape
        (3, 3, 1, 2)
    """
    variables = objective.init(train_config.seed)
    optimizer = jax.jit(_optimizer(train_config).init)(variables["params"])
    averaged = {} if train_config.ema_decay is None else variables
    return TrainState(np.int32(0), variables, averaged, optimizer, np.float32(0))


def update_function(
    train_config: TrainConfig, objective: Objective, devices: Sequence[Any] | None = None
) -> Callable[[TrainState, Batch], TrainState]:
    """Return the compiled update, the same one for runs that differ only in their lengths.

    With several devices each computes an equal share of the batch; gradient, loss and batch
    statistics are those of the whole batch, to rounding.

    Args:
        train_config: Settings of the training.
        objective: Objective that the training minimizes.
        devices: JAX devices, whose number divides the batch size; None is the default device.

    Returns:
        Function of the state and a batch that returns the next state, with a copy on each device.

    Example:
        >>> from dal_jax.models import AutoencoderConfig, Reconstruction
        >>> objective = Reconstruction(AutoencoderConfig(channels=(2,)))
        >>> config, batch = TrainConfig(), Batch(jnp.ones((1, 4, 4, 1)))
        >>> update = update_function(config, objective)
        >>> jax.eval_shape(update, initial_state(config, objective), batch).loss_sum.shape
        ()
        >>> update is update_function(TrainConfig(steps=5), objective)
        True

    Source: Kingma and Ba, arXiv 1412.6980.
    """
    lengths = {"steps": 1, "batch_size": 1, "checkpoint_every": 1, "log_every": 1}
    used = None if devices is None else tuple(devices)
    return _update_function(objective, replace(train_config, **lengths), used)


@lru_cache(maxsize=8)
def _update_function(
    objective: Objective, train_config: TrainConfig, devices: tuple[Any, ...] | None
) -> Callable[[TrainState, Batch], TrainState]:
    optimizer = _optimizer(train_config)
    dtype = jnp.dtype(train_config.dtype)

    def loss_of(params: PyTree, stats: PyTree, prepared: PyTree) -> Any:
        return objective.loss(params, stats, prepared, dtype)

    def update(state: TrainState, batch: Batch) -> TrainState:
        key = jax.random.fold_in(jax.random.key(train_config.seed), state.step)
        prepared = objective.prepare(key, batch)
        params, stats = state.variables["params"], state.variables["batch_stats"]
        (loss, stats), slope = jax.value_and_grad(loss_of, has_aux=True)(params, stats, prepared)
        # Optax mixes integers and floats: allowed here, whatever the global setting is.
        with jax.numpy_dtype_promotion("standard"):
            change, optimizer_state = optimizer.update(slope, state.optimizer, params)
        variables = {"params": optax.apply_updates(params, change), "batch_stats": stats}
        averaged = state.averaged
        if train_config.ema_decay is not None:
            # Early on the average forgets faster, or the first random weights would linger in it.
            done = state.step.astype(jnp.float32)
            early = (done + jnp.float32(1)) / (done + jnp.float32(10))
            keep = jnp.minimum(early, jnp.float32(train_config.ema_decay))
            averaged = jax.tree.map(
                lambda old, new: keep * old + (jnp.float32(1) - keep) * new, averaged, variables
            )
        step = state.step + jnp.int32(1)
        return TrainState(step, variables, averaged, optimizer_state, state.loss_sum + loss)

    if devices is None:
        return jax.jit(update)
    everywhere, apart = _placements(devices)
    placed = (everywhere, Batch(apart, apart, everywhere))
    return jax.jit(update, in_shardings=placed, out_shardings=everywhere)


def _placements(devices: tuple[Any, ...]) -> tuple[NamedSharding, NamedSharding]:
    """Return the placement of what every device holds, and that of what is divided among them."""
    mesh = Mesh(np.array(devices), ("batch",))
    return NamedSharding(mesh, P()), NamedSharding(mesh, P("batch"))


def _devices_for(devices: Sequence[Any] | int | None, batch_size: int) -> tuple[Any, ...] | None:
    """Return the devices among which a batch is divided; None for the default device alone."""
    used = chosen_devices(devices)
    if devices is None:
        count = max(k for k in range(1, len(used) + 1) if batch_size % k == 0)
        return used[:count] if count > 1 else None
    if batch_size % len(used):
        raise InputError(
            f"batch_size: got {batch_size}, expected a multiple of {len(used)}, the number of "
            "devices"
        )
    return used


def _optimizer(train_config: TrainConfig) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(train_config.grad_clip), optax.adam(train_config.learning_rate)
    )


class Trainable(Config, Protocol):
    """Configuration of a localizer as training needs it, such as `DalConfig`."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (H, W, C) of an image."""
        ...

    @property
    def objective(self) -> Objective:
        """Default objective of training."""
        ...


def train(
    images: np.ndarray,
    config: Trainable,
    train_config: TrainConfig,
    directory: str | Path | None = None,
    progress: Progress | None = None,
    resume: bool = True,
    objective: Objective | None = None,
    where: np.ndarray | None = None,
    textures: np.ndarray | None = None,
    finish: Callable[[PyTree], Config] | None = None,
    devices: Sequence[Any] | int | None = None,
) -> PyTree:
    """Train the network of a localizer on normal images.

    `DalConfig`, `MdpsConfig`: least squares `mean |eps - UNet(sqrt(a) x + sqrt(1-a) eps, t)|^2`,
    `a = alpha_bar[t+1]`, t uniform over the levels; `GladConfig`: the same with synthetic
    anomalies to be removed; an autoencoder: `mean |AE(x) - x|^2`. Adam with the gradient clipped
    to a global norm.

    Batches and random numbers are functions of (seed, step). A directory gets `loss.jsonl` (mean
    loss of every `log_every` steps), the state every `checkpoint_every` steps, and at the end a
    checkpoint for `load_checkpoint`. A run that was stopped continues from its last state, and ends
    as if it had not been stopped; so does a finished run with more steps. (On a GPU only with
    XLA's flag `--xla_gpu_deterministic_ops=true`.) Each batch is divided among the devices of this
    process. Their number is no part of a run: it changes the weights by rounding alone, and a run
    may continue on another number.

    Args:
        images: (N, H, W, C) finite normal images; converted to float32.
        config: Network, schedule and image size.
        train_config: Settings of the training.
        directory: Folder of log, state and checkpoint; None keeps nothing.
        progress: Function (step, steps, mean loss) that is called whenever the log is written, and
            at the end.
        resume: False starts over, whatever the directory holds.
        objective: Objective to minimize, a frozen dataclass of plain values; None stands for the
            above.
        where: (N, H, W) bool, pixels of the object, where anomalies may be put; None stands for
            all.
        textures: (T, H, W, C) finite images of other things, sources of anomalies, on the device
            all the time. None: The images' own parts are the sources.
        finish: Function (variables) -> configuration to be stored, with constants learned from
            them.
        devices: JAX devices of this process, or their number; it must divide the batch size. None
            is the largest number of them that does.

    Returns:
        {"params": ..., "batch_stats": ...}, numpy float32; the averaged ones with `ema_decay`.

    Raises:
        InputError: The images or the devices do not fit, or the directory holds a run with other
            settings or images.
        CheckpointError: The state in the directory is damaged.
        DalJaxError: The loss is no longer finite.
        RunError: The disk is full; the last stored state is kept.

    Example:
        >>> from dal_jax import DalConfig
        >>> from dal_jax.models import UNetConfig
        >>> config = DalConfig(UNetConfig(channels=(8, 16)), image_size=16)
        >>> images = np.random.default_rng(0).normal(size=(64, 16, 16, 1))
        >>> variables = train(images, config, TrainConfig(steps=200), "model")  # doctest: +SKIP

    Source: Ho et al., arXiv 2006.11239, algorithm 1.
    """
    data = _check_batch(images, where, textures, config)
    used = _devices_for(devices, train_config.batch_size)
    folder = None if directory is None else Path(directory)
    facts = _facts(data, config, train_config, objective)
    objective = config.objective if objective is None else objective
    state = initial_state(train_config, objective)
    if folder is not None:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"directory: {folder} is a file")
        if resume and (folder / _RECORD).is_file():
            state = _restore(folder, facts, state, train_config.steps)
        _cut_log(folder / _LOG, int(state.step))
    update = update_function(train_config, objective, used)
    if data.textures is not None:  # once, not in every step
        everywhere = None if used is None else _placements(used)[0]
        data = data._replace(textures=jax.device_put(data.textures, everywhere))
    try:
        # What depends on the platform depends on that of these devices.
        with contextlib.nullcontext() if used is None else jax.default_device(used[0]):
            state = _run(state, update, data, train_config, folder, facts, progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_kept(folder)) from None
    final = state.variables if train_config.ema_decay is None else state.averaged
    variables = jax.tree.map(np.asarray, final)
    if folder is not None:
        save_checkpoint(folder, variables, finish(variables) if finish else config)
    return variables


def batch_indices(seed: int, step: int, batch_size: int, count: int) -> np.ndarray:
    """Select the images of a step: each epoch is a permutation of its own.

    Args:
        seed: Seed of the run.
        step: Number of the step, from 0.
        batch_size: Number of images of a step.
        count: Number of all images.

    Returns:
        (batch_size,) indices below `count`.

    Example:
        >>> sorted(batch_indices(seed=0, step=0, batch_size=4, count=4).tolist())
        [0, 1, 2, 3]
    """
    place = np.arange(step * batch_size, (step + 1) * batch_size)
    epochs = range(int(place[0]) // count, int(place[-1]) // count + 1)
    order = np.concatenate([_permutation(seed, epoch, count) for epoch in epochs])
    return order[place - epochs[0] * count]


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    return np.random.default_rng((seed, epoch)).permutation(count)


def _run(
    state: TrainState,
    update: Callable[[TrainState, Batch], TrainState],
    data: Batch,
    train_config: TrainConfig,
    folder: Path | None,
    facts: dict[str, Any],
    progress: Progress | None,
) -> TrainState:
    total, every, count = train_config.steps, train_config.log_every, len(data.images)
    for step in range(int(state.step) + 1, total + 1):
        chosen = batch_indices(train_config.seed, step - 1, train_config.batch_size, count)
        where = None if data.where is None else data.where[chosen]
        state = update(state, Batch(data.images[chosen], where, data.textures))
        if step % every == 0 or step == total:
            loss = float(state.loss_sum) / ((step - 1) % every + 1)
            if not np.isfinite(loss):
                raise DalJaxError(f"training: loss is {loss} at step {step}: lower learning_rate")
            if step % every == 0:
                state = state._replace(loss_sum=np.float32(0))
                if folder is not None:
                    _append_log(folder, {"step": step, "loss": loss})
            if progress is not None:
                progress(step, total, loss)
        if folder is not None and (step % train_config.checkpoint_every == 0 or step == total):
            store(folder, _RECORD, "state", state, {**facts, "step": step})
    return state


def _append_log(folder: Path, entry: dict[str, Any]) -> None:
    try:
        with (folder / _LOG).open("a") as log:
            log.write(json.dumps(entry) + "\n")
    except OSError as error:
        raise unwritable(folder, error) from error


def _kept(folder: Path | None) -> str:
    """Return what an interrupted training has stored, in words."""
    if folder is None or not (folder / _RECORD).is_file():
        return "no state was stored yet"
    step = read_record(folder, _RECORD)["step"]
    return f"the state of step {step} is kept in {folder}, the same command goes on from it"


def _check_batch(images: Any, where: Any, textures: Any, config: Trainable) -> Batch:
    """Return the checked images, masks and textures, in the dtypes of training."""
    pixels = _check_images("images", images, config)
    if where is not None:
        where = np.asarray(where, bool)
        if where.shape != pixels.shape[:3]:
            raise InputError(f"where: got shape {where.shape}, expected {pixels.shape[:3]}")
    if textures is not None:
        textures = _check_images("textures", textures, config)
    return Batch(pixels, where, textures)


def _check_images(name: str, images: Any, config: Trainable) -> np.ndarray:
    pixels = np.asarray(images, np.float32)
    if pixels.ndim != 4 or len(pixels) == 0 or pixels.shape[1:] != config.image_shape:
        height, width, channels = config.image_shape
        raise InputError(
            f"{name}: got shape {pixels.shape}, expected (N, {height}, {width}, {channels})"
        )
    bad = np.flatnonzero(~np.isfinite(pixels).all(axis=(1, 2, 3)))
    if bad.size:
        raise InputError(f"{name}: number {bad[0]} has pixels that are not finite, expected none")
    return pixels


def _facts(
    data: Batch, config: Trainable, train_config: TrainConfig, objective: Objective | None
) -> dict[str, Any]:
    """Return the settings and digests, as JSON values, that must agree for a run to be resumed."""
    settings = asdict(train_config)
    for name in ("steps", "checkpoint_every"):
        del settings[name]
    facts: dict[str, Any] = {"config": config.to_dict(), "train": settings}
    for name, array in data._asdict().items():
        if array is not None:
            facts[name] = hashlib.sha256(array.tobytes()).hexdigest()
    if objective is not None and objective != config.objective:
        facts["objective"] = repr(objective)
    return json.loads(json.dumps(facts))


def _restore(folder: Path, facts: dict[str, Any], like: TrainState, steps: int) -> TrainState:
    entries = read_record(folder, _RECORD)
    for name in ("config", "train", *Batch._fields, "objective"):
        if entries.get(name) != facts.get(name):
            raise InputError(
                f"directory: {folder} holds a run with another {name}: choose another or start over"
            )
    if int(entries.get("step", 0)) > steps:
        raise InputError(
            f"steps: got {steps}, expected at least the {entries['step']} already done"
        )
    state = fetch(folder, entries, like)
    if int(state.step) != entries.get("step"):
        raise CheckpointError(f"checkpoint: {folder / _RECORD} does not fit its state")
    return state


def _cut_log(path: Path, step: int) -> None:
    """Drop the records after a step, which a resumed run writes again."""
    lines = path.read_text().splitlines() if path.is_file() else []
    kept = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # a line cut short when the run was stopped
            break
        if record["step"] > step:
            break
        kept.append(line + "\n")
    write_text(path, "".join(kept))
