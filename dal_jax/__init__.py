"""Valid p-values for regions flagged by a diffusion model (selective inference, DAL-Test)."""

from ._dal_test import dal_test as dal_test
from ._dal_test import dal_test_batch as dal_test_batch
from ._errors import CheckpointError as CheckpointError
from ._errors import DalJaxError as DalJaxError
from ._errors import InputError as InputError
from ._errors import NotPiecewiseAffineError as NotPiecewiseAffineError
from ._one_test import Case as Case
from ._options import TestOptions as TestOptions
from ._result import TestResult as TestResult
from ._test_run import Item as Item
from ._test_run import run_tests as run_tests
from ._version import __version__ as __version__
from .affine import AffinePiece as AffinePiece
from .affine import PieceStatus as PieceStatus
from .affine import affine_piece as affine_piece
from .localizers import DalConfig as DalConfig
from .localizers import Localizer as Localizer
from .localizers import dal_localizer as dal_localizer
from .localizers import from_score as from_score
from .localizers import load_localizer as load_localizer
from .localizers import make_localizer as make_localizer
from .search import AdaptiveOptions as AdaptiveOptions
from .search import Status as Status
