"""Cost of a search compared with its floor, each measurement in a fresh process."""

from dal_jax.bench._measure import NOISE as NOISE
from dal_jax.bench._measure import adaptive_records as adaptive_records
from dal_jax.bench._measure import bare_seconds as bare_seconds
from dal_jax.bench._measure import counted_calls as counted_calls
from dal_jax.bench._measure import exact_record as exact_record
from dal_jax.bench._measure import machine as machine
from dal_jax.bench._run import BenchSettings as BenchSettings
from dal_jax.bench._run import Beside as Beside
from dal_jax.bench._run import Prepared as Prepared
from dal_jax.bench._run import in_process as in_process
from dal_jax.bench._run import measure as measure
from dal_jax.bench._run import thread_limits as thread_limits
from dal_jax.bench._run import work as work
from dal_jax.bench._subject import Inputs as Inputs
from dal_jax.bench._subject import Subject as Subject
from dal_jax.bench._subject import choose_inputs as choose_inputs
from dal_jax.bench._subject import load_inputs as load_inputs
from dal_jax.bench._subject import open_subject as open_subject
from dal_jax.bench._subject import save_inputs as save_inputs
from dal_jax.bench._table import align_rows as align_rows
from dal_jax.bench._table import number as number
from dal_jax.bench._table import tables as tables
