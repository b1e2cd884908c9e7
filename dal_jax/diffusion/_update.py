"""One step of training: a pure function of the state and a batch, compiled once."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from dal_jax._errors import InputError
from dal_jax._typing import Array, PyTree
from dal_jax.diffusion._schedule import Schedule
from dal_jax.models import UNet, UNetConfig, init_unet


@dataclass(frozen=True)
class TrainConfig:
    """How to train; `steps`, `checkpoint_every` and `log_every` count updates of the weights.

    Raises:
        InputError: a number out of range, or another dtype.

    Example:
        >>> TrainConfig(steps=100, ema_decay=0.999).batch_size
        64

    Source: Adam: Kingma and Ba, arXiv 1412.6980; settings: this project.
    """

    steps: int = 2000
    batch_size: int = 64  # images a step
    learning_rate: float = 1e-3  # of Adam
    grad_clip: float = 1.0  # largest global norm of the gradient
    ema_decay: float | None = None  # of the averaged weights, at most; None returns the last ones
    dtype: str = "float32"  # or "bfloat16", of the activations; weights are float32
    seed: int = 0  # of the first weights, batches and noise
    checkpoint_every: int = 500  # steps from one stored state to the next
    log_every: int = 50  # steps from one record of the loss to the next

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
    """All that a run carries from step to step; the rest follows from (seed, step).

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
    optimizer: PyTree  # what Adam keeps of former gradients
    loss_sum: Any  # float32, since the last record of the log


class Batch(NamedTuple):
    """What a step of training is given.

    Example:
        >>> batch = Batch(np.zeros((2, 4, 4, 1), np.float32))
        >>> batch.images.shape, batch.where
        ((2, 4, 4, 1), None)
    """

    images: Any  # (B, H, W, C), float32, normal ones
    where: Any = None  # (B, H, W), bool: pixels of the object, or None: all are
    textures: Any = None  # (T, H, W, C), float32, of other things, the same in every step; or None


class Objective(Protocol):
    """What training minimizes. Frozen and hashable: equal ones share a compiled update.

    A step is a function of the weights, of the batch and of a key that follows from (seed, step).

    Example:
        >>> @dataclass(frozen=True)
        ... class OneNumber:
        ...     def init(self, seed):
        ...         return {"params": {"mean": np.float32(1)}, "batch_stats": {}}
        ...
        ...     def prepare(self, key, batch):
        ...         return batch.images
        ...
        ...     def loss(self, params, stats, prepared, dtype):
        ...         return jnp.mean((prepared - params["mean"]) ** 2), stats
        >>> objective: Objective = OneNumber()
        >>> images = np.full((1, 2, 2, 1), 3.0, np.float32)
        >>> objective.loss(objective.init(0)["params"], {}, images, "float32")[0].item()
        4.0
    """

    def init(self, seed: int) -> PyTree:
        """Draws the first variables {"params": ..., "batch_stats": ...}, numpy float32.

        Args:
            seed: of the random numbers, 0 or above.

        Returns:
            {"params": ..., "batch_stats": ...}, numpy float32.
        """
        ...

    def prepare(self, key: Array, batch: Batch) -> PyTree:
        """Makes what the loss is of from a batch and random numbers.

        Args:
            key: of random numbers.
            batch: the images of the step.

        Returns:
            What `loss` takes.
        """
        ...

    def loss(
        self, params: PyTree, stats: PyTree, prepared: PyTree, dtype: Any
    ) -> tuple[Array, PyTree]:
        """Gives the loss, float32, with activations of a dtype, and the next batch statistics.

        Args:
            params: of the network.
            stats: its batch statistics.
            prepared: from `prepare`.
            dtype: of the activations.

        Returns:
            The loss and the statistics.
        """
        ...


@dataclass(frozen=True)
class NoisePrediction:
    """Least squares `mean |eps - UNet(sqrt(a) x + sqrt(1-a) eps, t)|^2`, `a = alpha_bar[t+1]`.

    `prepare` gives (noised images, levels, targets): an objective of other images or targets
    needs another `prepare` only.

    Example:
        >>> objective = NoisePrediction(UNetConfig(channels=(2,)), Schedule())
        >>> batch = Batch(jnp.ones((2, 4, 4, 1)))
        >>> noised, level, noise = jax.eval_shape(objective.prepare, jax.random.key(0), batch)
        >>> noised.shape, level.shape, noise.shape
        ((2, 4, 4, 1), (2,), (2, 4, 4, 1))

    Source: Ho et al., arXiv 2006.11239, algorithm 1.
    """

    unet: UNetConfig  # the network
    schedule: Schedule  # of the noise

    def init(self, seed: int) -> PyTree:
        """Draws the network's first variables.

        Args:
            seed: of the random numbers, 0 or above.

        Returns:
            {"params": ..., "batch_stats": ...}, numpy float32.
        """
        return init_unet(self.unet, seed)

    def prepare(self, key: Array, batch: Batch) -> tuple[Array, Array, Array]:
        """Noises each image to a level of its own, uniform over the levels.

        Args:
            key: of random numbers.
            batch: with images (B, H, W, C).

        Returns:
            Noised images (B, H, W, C), levels (B,), noise (B, H, W, C).
        """
        level, noise = self.levels_and_noise(key, batch.images.shape)
        share = jnp.asarray(self.schedule.alpha_bar[1:].astype(np.float32))[level]
        share = share[:, None, None, None]
        x = jnp.sqrt(share) * batch.images + jnp.sqrt(jnp.float32(1) - share) * noise
        return x, level, noise

    def levels_and_noise(self, key: Array, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Draws a level for each image (B,) int32, and noise (B, H, W, C) float32.

        Args:
            key: of random numbers.
            shape: (B, H, W, C).

        Returns:
            Levels and noise.
        """
        level_key, noise_key = jax.random.split(key)
        level = jax.random.randint(level_key, shape[:1], 0, self.schedule.num_levels, jnp.int32)
        return level, jax.random.normal(noise_key, shape, jnp.float32)

    def loss(
        self, params: PyTree, stats: PyTree, prepared: tuple[Array, Array, Array], dtype: Any
    ) -> tuple[Array, PyTree]:
        """Gives the mean square of what is between prediction and target.

        Args:
            params: of the network.
            stats: its batch statistics.
            prepared: noised images, levels, targets, from `prepare`.
            dtype: of the activations.

        Returns:
            The loss, float32, and the statistics.

        Raises:
            InputError: the images do not fit the network.
        """
        x, level, target = prepared
        variables = {"params": params, "batch_stats": stats}
        predicted, changed = UNet(self.unet).apply(
            variables, x.astype(dtype), level, train=True, mutable=["batch_stats"]
        )
        error = jnp.asarray(predicted).astype(jnp.float32) - target
        return jnp.mean(jnp.square(error)), changed.get("batch_stats", {})


def initial_state(train_config: TrainConfig, objective: Objective) -> TrainState:
    """Draws the state before the first step.

    Args:
        train_config: with the seed.
        objective: what is minimized.

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
    train_config: TrainConfig, objective: Objective
) -> Callable[[TrainState, Batch], TrainState]:
    """Gives the compiled update, the same one for runs that differ in their lengths only.

    Args:
        train_config: how to train.
        objective: what is minimized.

    Returns:
        A function of the state and a batch, giving the next state.

    Example:
        >>> from dal_jax.models import AutoencoderConfig, Reconstruction
        >>> objective = Reconstruction(AutoencoderConfig(channels=(2,)))
        >>> config, batch = TrainConfig(), Batch(jnp.ones((1, 4, 4, 1)))
        >>> update = update_function(config, objective)
        >>> jax.eval_shape(update, initial_state(config, objective), batch).loss_sum.shape
        ()
        >>> update is update_function(TrainConfig(steps=5), objective)
        True

    Source: Kingma and Ba, arXiv 1412.6980; this project.
    """
    lengths = {"steps": 1, "batch_size": 1, "checkpoint_every": 1, "log_every": 1}
    return _update_function(objective, replace(train_config, **lengths))


@lru_cache(maxsize=8)
def _update_function(
    objective: Objective, train_config: TrainConfig
) -> Callable[[TrainState, Batch], TrainState]:
    optimizer = _optimizer(train_config)
    dtype = jnp.dtype(train_config.dtype)

    def loss_of(params: PyTree, stats: PyTree, prepared: PyTree) -> Any:
        return objective.loss(params, stats, prepared, dtype)

    @jax.jit
    def update(state: TrainState, batch: Batch) -> TrainState:
        key = jax.random.fold_in(jax.random.key(train_config.seed), state.step)
        prepared = objective.prepare(key, batch)
        params, stats = state.variables["params"], state.variables["batch_stats"]
        (loss, stats), slope = jax.value_and_grad(loss_of, has_aux=True)(params, stats, prepared)
        # Optax mixes integers and floats: allowed here, whatever is global.
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

    return update


def _optimizer(train_config: TrainConfig) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(train_config.grad_clip), optax.adam(train_config.learning_rate)
    )
