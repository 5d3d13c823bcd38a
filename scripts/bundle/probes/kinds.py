"""All kinds of reports, in the order in which the page shows them."""

from .footprint import FootprintReport
from .gemm import GemmReport
from .layer import LayerReport
from .precision import PrecisionReport
from .roofline import RooflineReport
from .stages import StageReport
from .verification import VerificationReport

KINDS = (
    LayerReport,
    StageReport,
    GemmReport,
    PrecisionReport,
    VerificationReport,
    FootprintReport,
    RooflineReport,
)
