"""LoRA ensembles: fine-tune a language model into an ensemble of adapters on one frozen base, and know what it does not know."""

from __future__ import annotations

from .adapters import default_adapter_config
from .baselines import FewShot
from .config import TrainConfig
from .embedded import load_base, resolve_base
from .ensemble import LoraEnsemble, MemberSeeds, member_seeds
from .errors import (
    AdapterError,
    CheckpointError,
    ConfigError,
    DataError,
    LoraEnsemblesError,
    MissingExtraError,
    TrainingError,
)
from .intervals import Interval, bootstrap_interval, paired_difference
from .lora import StackedLoraLinear, fold_members, unfold_members
from .metrics import (
    Metrics,
    accuracy,
    accuracy_coverage,
    brier,
    coverage_area,
    ece,
    evaluate,
    evaluate_members,
    nll,
    ood_auroc,
    reliability_bins,
    single_member,
)
from .prediction import Prediction, Predictor, predict
from .presets import preset
from .records import prediction_records
from .tasks import ColumnMapping, Example, Task, load_file, load_ood, load_task, task_from_files, task_names
from .training import TrainResult, train
from .uncertainty import disagreement, expected_entropy, mutual_information, total_entropy, variation_ratio

__all__ = [
    "AdapterError",
    "CheckpointError",
    "ColumnMapping",
    "ConfigError",
    "DataError",
    "Example",
    "FewShot",
    "Interval",
    "LoraEnsemble",
    "LoraEnsemblesError",
    "MemberSeeds",
    "Metrics",
    "MissingExtraError",
    "Prediction",
    "Predictor",
    "StackedLoraLinear",
    "Task",
    "TrainConfig",
    "TrainResult",
    "TrainingError",
    "accuracy",
    "accuracy_coverage",
    "bootstrap_interval",
    "brier",
    "coverage_area",
    "default_adapter_config",
    "disagreement",
    "ece",
    "evaluate",
    "evaluate_members",
    "expected_entropy",
    "fold_members",
    "load_base",
    "load_file",
    "load_ood",
    "load_task",
    "member_seeds",
    "mutual_information",
    "nll",
    "ood_auroc",
    "paired_difference",
    "predict",
    "prediction_records",
    "preset",
    "reliability_bins",
    "resolve_base",
    "single_member",
    "task_from_files",
    "task_names",
    "total_entropy",
    "train",
    "unfold_members",
    "variation_ratio",
]
