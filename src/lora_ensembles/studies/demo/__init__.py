"""The whole method on the embedded base in a few minutes: few-shot, members, ensembles, one report."""

from .comparison import NAMES, Arm, Comparison, DemoSettings, compare, twice
from .page import option_texts, vote_table
from .run import DemoResult, check_ready, run_demo

__all__ = [
    "NAMES",
    "Arm",
    "Comparison",
    "DemoResult",
    "DemoSettings",
    "check_ready",
    "compare",
    "option_texts",
    "run_demo",
    "twice",
    "vote_table",
]
