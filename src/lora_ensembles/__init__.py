"""LoRA ensembles: fine-tune a language model into an ensemble of adapters on one frozen base, and know what it does not know."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .adapters import default_adapter_config
    from .baselines import (
        BatchEnsemble,
        FewShot,
        LastLayerEnsemble,
        LastLayerHeads,
        MCDropout,
        SingleMember,
        TemperatureScaled,
    )
    from .completion_metrics import (
        CompletionMetrics,
        CompletionScores,
        evaluate_completion_members,
        evaluate_completions,
    )
    from .completion_scores import score_completions
    from .config import TrainConfig
    from .embedded import load_base, resolve_base
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
    from .generated_text import (
        GeneratedText,
        TokenUncertainty,
        UncertaintyStreamer,
        generate_text,
        token_uncertainty,
    )
    from .heads import HeadConfig, RewardPrediction, predict_rewards
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
    from .seeds import MemberSeeds, member_seeds
    from .tasks import (
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
    from .training import TrainResult, train
    from .uncertainty import (
        disagreement,
        expected_entropy,
        mutual_information,
        total_entropy,
        variation_ratio,
    )

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
    "preset",
    "reliability_bins",
    "resolve_base",
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
# `lora-ensembles --help` or an error in a flag should not wait for. tests/unit/test_front_door.py holds that the three lists agree.
_HOMES = {
    "adapters": "default_adapter_config",
    "baselines": "BatchEnsemble FewShot LastLayerEnsemble LastLayerHeads MCDropout SingleMember TemperatureScaled",
    "completion_metrics": "CompletionMetrics CompletionScores evaluate_completion_members evaluate_completions",
    "completion_scores": "score_completions",
    "config": "TrainConfig",
    "embedded": "load_base resolve_base",
    "ensemble": "LoraEnsemble",
    "errors": "AdapterError CheckpointError ConfigError DataError LoraEnsemblesError MissingExtraError TrainingError",
    "generated_text": "GeneratedText TokenUncertainty UncertaintyStreamer generate_text token_uncertainty",
    "heads": "HeadConfig RewardPrediction predict_rewards",
    "intervals": "Interval bootstrap_interval paired_difference",
    "lora": "StackedLoraLinear fold_members unfold_members",
    "metrics": "Metrics accuracy accuracy_coverage brier coverage_area ece "
    "evaluate evaluate_members nll ood_auroc reliability_bins single_member",
    "prediction": "Prediction Predictor predict",
    "presets": "preset",
    "records": "prediction_records",
    "seeds": "MemberSeeds member_seeds",
    "tasks": "ColumnMapping Completion CompletionTask Example Message Task completions_from_files found_classes load_completions "
    "load_file load_ood load_preferences load_task preference preferences_from_files task_from_files task_names",
    "training": "TrainResult train",
    "uncertainty": "disagreement expected_entropy mutual_information total_entropy variation_ratio",
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
