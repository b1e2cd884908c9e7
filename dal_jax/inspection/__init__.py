"""From a folder of images to decisions: profile, calibration, tests of every view."""

from dal_jax.inspection._calibrate import Calibrated as Calibrated
from dal_jax.inspection._calibrate import CalibrateOptions as CalibrateOptions
from dal_jax.inspection._calibrate import calibrate as calibrate
from dal_jax.inspection._calibrate import keep as keep
from dal_jax.inspection._calibrate import runner as runner
from dal_jax.inspection._calibration import METHODS as METHODS
from dal_jax.inspection._calibration import Calibration as Calibration
from dal_jax.inspection._calibration import load_calibration as load_calibration
from dal_jax.inspection._inspect import Inspected as Inspected
from dal_jax.inspection._inspect import InspectOptions as InspectOptions
from dal_jax.inspection._inspect import inspected as inspected
from dal_jax.inspection._inspect import rows_of as rows_of
from dal_jax.inspection._inspect import test_samples as test_samples
from dal_jax.inspection._inspect import write_rows as write_rows
from dal_jax.inspection._items import Reader as Reader
from dal_jax.inspection._learn import LearnOptions as LearnOptions
from dal_jax.inspection._measures import Measures as Measures
from dal_jax.inspection._profile import Profile as Profile
from dal_jax.inspection._profile import Source as Source
from dal_jax.inspection._profile import load_profile as load_profile
from dal_jax.inspection._profile import open_model as open_model
from dal_jax.inspection._profile import save_profile as save_profile
from dal_jax.inspection._train import Learned as Learned
from dal_jax.inspection._train import learn as learn
