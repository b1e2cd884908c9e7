"""Localizers, which turn an image into a score map: diffusion models, or any function."""

from dal_jax._arrays import cast_floats as cast_floats
from dal_jax.diffusion import DalConfig as DalConfig
from dal_jax.localizers._autoencoder import (
    AutoencoderLocalizerConfig as AutoencoderLocalizerConfig,
)
from dal_jax.localizers._autoencoder import AutoencoderReconstruct as AutoencoderReconstruct
from dal_jax.localizers._autoencoder import AutoencoderScore as AutoencoderScore
from dal_jax.localizers._autoencoder import autoencoder_localizer as autoencoder_localizer
from dal_jax.localizers._callable import CallableScore as CallableScore
from dal_jax.localizers._callable import from_callable as from_callable
from dal_jax.localizers._dal import DalReconstruct as DalReconstruct
from dal_jax.localizers._dal import DalScore as DalScore
from dal_jax.localizers._dal import dal_localizer as dal_localizer
from dal_jax.localizers._detectors import DetectorConfig as DetectorConfig
from dal_jax.localizers._detectors import is_detector as is_detector
from dal_jax.localizers._detectors import load_detector as load_detector
from dal_jax.localizers._detectors import parse_detector as parse_detector
from dal_jax.localizers._detectors import save_detector as save_detector
from dal_jax.localizers._glad import GladConfig as GladConfig
from dal_jax.localizers._glad import GladReconstruct as GladReconstruct
from dal_jax.localizers._glad import GladScore as GladScore
from dal_jax.localizers._glad import glad_localizer as glad_localizer
from dal_jax.localizers._load import CONFIGS as CONFIGS
from dal_jax.localizers._load import DETECTOR_FORM as DETECTOR_FORM
from dal_jax.localizers._load import FORM as FORM
from dal_jax.localizers._load import ExtractorFile as ExtractorFile
from dal_jax.localizers._load import Preset as Preset
from dal_jax.localizers._load import as_kind as as_kind
from dal_jax.localizers._load import detector_named as detector_named
from dal_jax.localizers._load import load_localizer as load_localizer
from dal_jax.localizers._load import localizer_preset as localizer_preset
from dal_jax.localizers._load import make_localizer as make_localizer
from dal_jax.localizers._load import preset_names as preset_names
from dal_jax.localizers._load import read_checkpoint as read_checkpoint
from dal_jax.localizers._load import save_extractor as save_extractor
from dal_jax.localizers._localizer import THRESHOLD as THRESHOLD
from dal_jax.localizers._localizer import Localizer as Localizer
from dal_jax.localizers._localizer import average_filter as average_filter
from dal_jax.localizers._localizer import check_draws as check_draws
from dal_jax.localizers._localizer import check_threshold as check_threshold
from dal_jax.localizers._localizer import from_score as from_score
from dal_jax.localizers._localizer import gaussian_filter as gaussian_filter
from dal_jax.localizers._localizer import with_rescaling as with_rescaling
from dal_jax.localizers._mdps import MdpsConfig as MdpsConfig
from dal_jax.localizers._mdps import MdpsReconstruct as MdpsReconstruct
from dal_jax.localizers._mdps import MdpsScore as MdpsScore
from dal_jax.localizers._mdps import mdps_localizer as mdps_localizer
from dal_jax.localizers._onnx import from_onnx as from_onnx
from dal_jax.localizers._perceptual import PerceptualConfig as PerceptualConfig
from dal_jax.localizers._perceptual import check_extractor as check_extractor
from dal_jax.localizers._scales import learn_scales as learn_scales
