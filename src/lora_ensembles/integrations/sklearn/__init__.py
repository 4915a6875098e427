"""A LoRA ensemble as a classifier of scikit-learn. Needs the extra `sklearn`, and is imported when it is
first asked for.
"""

from __future__ import annotations

from ...errors import MissingExtraError

try:
    import sklearn  # noqa: F401
except ImportError as error:
    raise MissingExtraError(
        "LoraEnsembleClassifier needs scikit-learn, which is not installed; "
        'run: pip install "lora-ensembles[sklearn]"'
    ) from error

from .classifier import LoraEnsembleClassifier

__all__ = ["LoraEnsembleClassifier"]
