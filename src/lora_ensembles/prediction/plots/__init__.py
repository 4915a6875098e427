"""Figures of predictions: `from lora_ensembles import plots`.

Needs the extra `plots`; matplotlib is imported when a figure is drawn and not before. Every function returns
a `matplotlib.figure.Figure`, which `savefig` writes; `dark=True` draws it for a dark page.
"""

from .calibration import reliability, wrong_confidence
from .members import agreement, diversity_gain
from .selective import risk_coverage
from .sizes import size_curve
from .tokens import token_uncertainty

__all__ = [
    "agreement",
    "diversity_gain",
    "reliability",
    "risk_coverage",
    "size_curve",
    "token_uncertainty",
    "wrong_confidence",
]
