"""LoRA ensembles: fine-tune a language model into an ensemble of adapters on one frozen base, and know what it does not know."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .baselines import (
        BatchEnsemble,
        FewShot,
        LastLayerEnsemble,
        LastLayerHeads,
        MCDropout,
        SingleMember,
        TemperatureScaled,
    )
    from .data import (
        ColumnMapping,
        Completion,
        CompletionTask,
        Example,
        Message,
        Task,
        completions_from_files,
        found_classes,
        load_completions,
        load_file,
        load_ood,
        load_preferences,
        load_task,
        preference,
        preferences_from_files,
        task_from_files,
        task_names,
    )
    from .embedded import load_base
    from .ensemble import LoraEnsemble
    from .errors import (
        AdapterError,
        CheckpointError,
        ConfigError,
        DataError,
        LoraEnsemblesError,
        MissingExtraError,
        TrainingError,
    )
    from .generation.text import (
        GeneratedText,
        TokenUncertainty,
        UncertaintyStreamer,
        generate_text,
        token_uncertainty,
    )
    from .heads import HeadConfig, RewardPrediction, predict_rewards
    from .heads.lm.completions import score_completions
    from .prediction.completions import (
        CompletionMetrics,
        CompletionScores,
        evaluate_completion_members,
        evaluate_completions,
    )
    from .prediction.intervals import Interval, bootstrap_interval, paired_difference
    from .prediction.metrics import (
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
    from .prediction.prediction import Prediction, Predictor, predict
    from .prediction.rows import prediction_records
    from .prediction.uncertainty import (
        disagreement,
        expected_entropy,
        mutual_information,
        total_entropy,
        variation_ratio,
    )
    from .stack.adapters import default_adapter_config
    from .stack.lora import StackedLoraLinear, fold_members, unfold_members
    from .stack.seeds import MemberSeeds, member_seeds
    from .training.adapters import train
    from .training.config import TrainConfig
    from .training.trainee import TrainResult

__all__ = [
    "AdapterError",
    "BatchEnsemble",
    "CheckpointError",
    "ColumnMapping",
    "Completion",
    "CompletionMetrics",
    "CompletionScores",
    "CompletionTask",
    "ConfigError",
    "DataError",
    "Example",
    "FewShot",
    "GeneratedText",
    "HeadConfig",
    "Interval",
    "LastLayerEnsemble",
    "LastLayerHeads",
    "LoraEnsemble",
    "LoraEnsemblesError",
    "MCDropout",
    "MemberSeeds",
    "Message",
    "Metrics",
    "MissingExtraError",
    "Prediction",
    "Predictor",
    "RewardPrediction",
    "SingleMember",
    "StackedLoraLinear",
    "Task",
    "TemperatureScaled",
    "TokenUncertainty",
    "TrainConfig",
    "TrainResult",
    "TrainingError",
    "UncertaintyStreamer",
    "accuracy",
    "accuracy_coverage",
    "bootstrap_interval",
    "brier",
    "completions_from_files",
    "coverage_area",
    "default_adapter_config",
    "disagreement",
    "ece",
    "evaluate",
    "evaluate_completion_members",
    "evaluate_completions",
    "evaluate_members",
    "expected_entropy",
    "fold_members",
    "found_classes",
    "generate_text",
    "load_base",
    "load_completions",
    "load_file",
    "load_ood",
    "load_preferences",
    "load_task",
    "member_seeds",
    "mutual_information",
    "nll",
    "ood_auroc",
    "paired_difference",
    "predict",
    "predict_rewards",
    "prediction_records",
    "preference",
    "preferences_from_files",
    "reliability_bins",
    "score_completions",
    "single_member",
    "task_from_files",
    "task_names",
    "token_uncertainty",
    "total_entropy",
    "train",
    "unfold_members",
    "variation_ratio",
]

# The imports above once more, for the running program: a name is loaded when it is first used. torch and transformers take seconds, which
# `lora-ensembles --help` or an error in a flag should not wait for. tests/integration/test_cli_usage.py holds that the three lists agree.
_HOMES = {
    "stack.adapters": "default_adapter_config",
    "baselines": "BatchEnsemble FewShot LastLayerEnsemble LastLayerHeads MCDropout SingleMember",
    "calibration.temperature": "TemperatureScaled",
    "prediction.completions": "CompletionMetrics CompletionScores evaluate_completion_members evaluate_completions",
    "heads.lm.completions": "score_completions",
    "training.config": "TrainConfig",
    "embedded": "load_base",
    "ensemble": "LoraEnsemble",
    "errors": "AdapterError CheckpointError ConfigError DataError LoraEnsemblesError MissingExtraError TrainingError",
    "generation.text": "GeneratedText TokenUncertainty UncertaintyStreamer generate_text token_uncertainty",
    "heads": "HeadConfig RewardPrediction predict_rewards",
    "prediction.intervals": "Interval bootstrap_interval paired_difference",
    "stack.lora": "StackedLoraLinear fold_members unfold_members",
    "prediction.metrics": "Metrics accuracy accuracy_coverage brier coverage_area ece "
    "evaluate evaluate_members nll ood_auroc reliability_bins single_member",
    "prediction.prediction": "Prediction Predictor predict",
    "prediction.rows": "prediction_records",
    "stack.seeds": "MemberSeeds member_seeds",
    "data": "ColumnMapping Completion CompletionTask Example Message Task completions_from_files found_classes load_completions "
    "load_file load_ood load_preferences load_task preference preferences_from_files task_from_files task_names",
    "training.adapters": "train",
    "training.trainee": "TrainResult",
    "prediction.uncertainty": "disagreement expected_entropy mutual_information total_entropy variation_ratio",
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
