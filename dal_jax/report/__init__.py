"""Presentation of results: figures, overlays, a text table, and the words for decisions."""

from dal_jax.report._calibration_figure import calibration_figure as calibration_figure
from dal_jax.report._calibration_figure import calibration_picture as calibration_picture
from dal_jax.report._figure import blank_page as blank_page
from dal_jax.report._figure import figure as figure
from dal_jax.report._outcome import NO_REGION as NO_REGION
from dal_jax.report._outcome import NOT_SIGNIFICANT as NOT_SIGNIFICANT
from dal_jax.report._outcome import NOT_VALID as NOT_VALID
from dal_jax.report._outcome import SIGNIFICANT as SIGNIFICANT
from dal_jax.report._outcome import UNDECIDED as UNDECIDED
from dal_jax.report._outcome import Maps as Maps
from dal_jax.report._outcome import Result as Result
from dal_jax.report._outcome import format_difference as format_difference
from dal_jax.report._outcome import format_p as format_p
from dal_jax.report._outcome import outcome as outcome
from dal_jax.report._outcome import table as table
from dal_jax.report._overlay import outline as outline
from dal_jax.report._overlay import overlay as overlay
from dal_jax.report._plan_figure import plan_picture as plan_picture
