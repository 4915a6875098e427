"""The public names, and where each is defined; `__init__.py` loads one when it is first used."""

from .baselines import (
    BatchEnsemble as BatchEnsemble,
    FewShot as FewShot,
    LastLayerEnsemble as LastLayerEnsemble,
    LastLayerHeads as LastLayerHeads,
    MCDropout as MCDropout,
    SingleMember as SingleMember,
)
from .calibration.calibrated import calibrate as calibrate
from .calibration.conformal import conformal_sets as conformal_sets
from .calibration.risk import risk_threshold as risk_threshold
from .calibration.scores import rank as rank
from .calibration.temperature import TemperatureScaled as TemperatureScaled
from .data import (
    ColumnMapping as ColumnMapping,
    Completion as Completion,
    Example as Example,
    Task as Task,
    completions_from_files as completions_from_files,
    load_completions as load_completions,
    load_file as load_file,
    load_ood as load_ood,
    load_preferences as load_preferences,
    load_task as load_task,
    preferences_from_files as preferences_from_files,
    task_from_files as task_from_files,
    task_names as task_names,
)
from .embedded import load_base as load_base
from .ensemble import LoraEnsemble as LoraEnsemble
from .errors import (
    AdapterError as AdapterError,
    CheckpointError as CheckpointError,
    ConfigError as ConfigError,
    DataError as DataError,
    LoraEnsemblesError as LoraEnsemblesError,
    MissingExtraError as MissingExtraError,
    TrainingError as TrainingError,
)
from .generation.text import GeneratedText as GeneratedText, generate_text as generate_text
from .heads import (
    HeadConfig as HeadConfig,
    label_mass as label_mass,
    predict_rewards as predict_rewards,
)
from .heads.lm.completions import score_completions as score_completions
from .integrations.sklearn import LoraEnsembleClassifier as LoraEnsembleClassifier
from .prediction import plots as plots
from .prediction.completions import (
    CompletionScores as CompletionScores,
)
from .prediction.confidence import confidence as confidence
from .prediction.evaluation import evaluate as evaluate, evaluate_members as evaluate_members
from .prediction.intervals import (
    bootstrap_interval as bootstrap_interval,
    paired_difference as paired_difference,
)
from .prediction.metrics import (
    accuracy as accuracy,
    brier as brier,
    coverage_area as coverage_area,
    ece as ece,
    kl_from_targets as kl_from_targets,
    nll as nll,
    ood_auroc as ood_auroc,
)
from .prediction.prediction import Prediction as Prediction, Predictor as Predictor, predict as predict
from .prediction.uncertainty import (
    disagreement as disagreement,
    expected_entropy as expected_entropy,
    mutual_information as mutual_information,
    total_entropy as total_entropy,
)
from .training.adapters import train as train
from .training.config import TrainConfig as TrainConfig
from .training.distill import distill as distill
from .training.trainee import TrainResult as TrainResult
