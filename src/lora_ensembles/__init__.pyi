"""The public names, and where each is defined; `__init__.py` loads one when it is first used."""

from .baselines import (
    BatchEnsemble as BatchEnsemble,
)
from .baselines import (
    FewShot as FewShot,
)
from .baselines import (
    LastLayerEnsemble as LastLayerEnsemble,
)
from .baselines import (
    LastLayerHeads as LastLayerHeads,
)
from .baselines import (
    MCDropout as MCDropout,
)
from .baselines import (
    SingleMember as SingleMember,
)
from .calibration.temperature import TemperatureScaled as TemperatureScaled
from .data import (
    ColumnMapping as ColumnMapping,
)
from .data import (
    Completion as Completion,
)
from .data import (
    CompletionTask as CompletionTask,
)
from .data import (
    Example as Example,
)
from .data import (
    Message as Message,
)
from .data import (
    Task as Task,
)
from .data import (
    completions_from_files as completions_from_files,
)
from .data import (
    load_completions as load_completions,
)
from .data import (
    load_file as load_file,
)
from .data import (
    load_ood as load_ood,
)
from .data import (
    load_preferences as load_preferences,
)
from .data import (
    load_task as load_task,
)
from .data import (
    preference as preference,
)
from .data import (
    preferences_from_files as preferences_from_files,
)
from .data import (
    task_from_files as task_from_files,
)
from .data import (
    task_names as task_names,
)
from .embedded import load_base as load_base
from .ensemble import LoraEnsemble as LoraEnsemble
from .errors import (
    AdapterError as AdapterError,
)
from .errors import (
    CheckpointError as CheckpointError,
)
from .errors import (
    ConfigError as ConfigError,
)
from .errors import (
    DataError as DataError,
)
from .errors import (
    LoraEnsemblesError as LoraEnsemblesError,
)
from .errors import (
    MissingExtraError as MissingExtraError,
)
from .errors import (
    TrainingError as TrainingError,
)
from .generation.text import GeneratedText as GeneratedText
from .generation.text import generate_text as generate_text
from .heads import (
    HeadConfig as HeadConfig,
)
from .heads import (
    RewardPrediction as RewardPrediction,
)
from .heads import (
    predict_rewards as predict_rewards,
)
from .heads.lm.completions import score_completions as score_completions
from .prediction.completions import (
    CompletionMetrics as CompletionMetrics,
)
from .prediction.completions import (
    CompletionScores as CompletionScores,
)
from .prediction.evaluation import evaluate as evaluate
from .prediction.evaluation import evaluate_members as evaluate_members
from .prediction.intervals import (
    Interval as Interval,
)
from .prediction.intervals import (
    bootstrap_interval as bootstrap_interval,
)
from .prediction.intervals import (
    paired_difference as paired_difference,
)
from .prediction.metrics import (
    Metrics as Metrics,
)
from .prediction.metrics import (
    accuracy as accuracy,
)
from .prediction.metrics import (
    brier as brier,
)
from .prediction.metrics import (
    coverage_area as coverage_area,
)
from .prediction.metrics import (
    ece as ece,
)
from .prediction.metrics import (
    nll as nll,
)
from .prediction.metrics import (
    ood_auroc as ood_auroc,
)
from .prediction.prediction import Prediction as Prediction
from .prediction.prediction import Predictor as Predictor
from .prediction.prediction import predict as predict
from .prediction.uncertainty import (
    disagreement as disagreement,
)
from .prediction.uncertainty import (
    expected_entropy as expected_entropy,
)
from .prediction.uncertainty import (
    mutual_information as mutual_information,
)
from .prediction.uncertainty import (
    total_entropy as total_entropy,
)
from .stack.seeds import member_seeds as member_seeds
from .training.adapters import train as train
from .training.config import TrainConfig as TrainConfig
from .training.trainee import TrainResult as TrainResult
