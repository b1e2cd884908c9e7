"""Noise schedule, deterministic reverse process, training and checkpoints."""

from dal_jax.diffusion._checkpoint import load_checkpoint as load_checkpoint
from dal_jax.diffusion._checkpoint import save_checkpoint as save_checkpoint
from dal_jax.diffusion._config import DalConfig as DalConfig
from dal_jax.diffusion._config import LocalizerConfig as LocalizerConfig
from dal_jax.diffusion._objective import AnomalyRemoval as AnomalyRemoval
from dal_jax.diffusion._objective import Batch as Batch
from dal_jax.diffusion._objective import NoisePrediction as NoisePrediction
from dal_jax.diffusion._objective import Objective as Objective
from dal_jax.diffusion._objective import Synthesis as Synthesis
from dal_jax.diffusion._objective import glad_pair as glad_pair
from dal_jax.diffusion._objective import synthesize as synthesize
from dal_jax.diffusion._reverse import Coefficients as Coefficients
from dal_jax.diffusion._reverse import ReverseConfig as ReverseConfig
from dal_jax.diffusion._reverse import Schedule as Schedule
from dal_jax.diffusion._reverse import reverse_process as reverse_process
from dal_jax.diffusion._training import Progress as Progress
from dal_jax.diffusion._training import TrainConfig as TrainConfig
from dal_jax.diffusion._training import TrainState as TrainState
from dal_jax.diffusion._training import batch_indices as batch_indices
from dal_jax.diffusion._training import initial_state as initial_state
from dal_jax.diffusion._training import train as train
from dal_jax.diffusion._training import update_function as update_function
