"""The DAL-Test, which joins localizer, line, search and p-value; public names are in `dal_jax`."""

from dal_jax._dal_test._inputs import DTYPES as DTYPES
from dal_jax._dal_test._inputs import ENGINES as ENGINES
from dal_jax._dal_test._inputs import GAMMA as GAMMA
from dal_jax._dal_test._inputs import ImageToTest as ImageToTest
from dal_jax._dal_test._inputs import TestOptions as TestOptions
from dal_jax._dal_test._inputs import check_randomization as check_randomization
from dal_jax._dal_test._inputs import covariance_of as covariance_of
from dal_jax._dal_test._inputs import randomization as randomization
from dal_jax._dal_test._many_tests import dal_test as dal_test
from dal_jax._dal_test._many_tests import dal_test_batch as dal_test_batch
from dal_jax._dal_test._many_tests import evaluator_of as evaluator_of
from dal_jax._dal_test._many_tests import stream_tests as stream_tests
from dal_jax._dal_test._result import MAPS as MAPS
from dal_jax._dal_test._result import TOLERANCE as TOLERANCE
from dal_jax._dal_test._result import TestResult as TestResult
from dal_jax._dal_test._result import as_record as as_record
from dal_jax._dal_test._result import contradiction as contradiction
from dal_jax._dal_test._result import parts_of_record as parts_of_record
from dal_jax._dal_test._result import region_of as region_of
from dal_jax._dal_test._result import run_lengths as run_lengths
from dal_jax._dal_test._stored_runs import QueuedImage as QueuedImage
from dal_jax._dal_test._stored_runs import run_tests as run_tests
from dal_jax._dal_test._thinning import Thinned as Thinned
from dal_jax._dal_test._thinning import ThinnedTest as ThinnedTest
from dal_jax._dal_test._thinning import thinned as thinned
from dal_jax._dal_test._thinning import thinned_test as thinned_test
