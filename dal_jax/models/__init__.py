"""Networks in Flax, piecewise-linear activations, and weights from elsewhere."""

from dal_jax.models._activations import activation as activation
from dal_jax.models._activations import hinge_table as hinge_table
from dal_jax.models._autoencoder import Autoencoder as Autoencoder
from dal_jax.models._autoencoder import AutoencoderConfig as AutoencoderConfig
from dal_jax.models._autoencoder import Reconstruction as Reconstruction
from dal_jax.models._autoencoder import autoencode as autoencode
from dal_jax.models._autoencoder import autoencoder_shapes as autoencoder_shapes
from dal_jax.models._autoencoder import init_autoencoder as init_autoencoder
from dal_jax.models._convolve import mean_pool as mean_pool
from dal_jax.models._convolve import upsample as upsample
from dal_jax.models._extractors import ResNetExtractor as ResNetExtractor
from dal_jax.models._extractors import ViTExtractor as ViTExtractor
from dal_jax.models._extractors import load_extractor as load_extractor
from dal_jax.models._features import Extractor as Extractor
from dal_jax.models._features import UNetEncoder as UNetEncoder
from dal_jax.models._fold import denoiser as denoiser
from dal_jax.models._fold import fold_norm as fold_norm
from dal_jax.models._import_weights import import_state_dict as import_state_dict
from dal_jax.models._import_weights import infer_unet_config as infer_unet_config
from dal_jax.models._import_weights import read_state_dict as read_state_dict
from dal_jax.models._unet import UNet as UNet
from dal_jax.models._unet import UNetConfig as UNetConfig
from dal_jax.models._unet import init_unet as init_unet
from dal_jax.models._unet import time_code as time_code
from dal_jax.models._unet import unet_shapes as unet_shapes
