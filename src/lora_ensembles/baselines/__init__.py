"""Baselines of a LoRA ensemble; each is a `Predictor`."""

from __future__ import annotations

from ..calibration.held_out import held_out_split
from ..calibration.temperature import TemperatureScaled
from .batch_ensemble import BatchEnsemble
from .few_shot import FewShot
from .laplace import LastLayerLaplace
from .last_layer import LastLayerEnsemble
from .last_layer_heads import LastLayerHeads
from .mc_dropout import MCDropout
from .posterior.base import WeightPosterior
from .posterior.blob import BLoB
from .posterior.ivon import IVON
from .posterior.rank_mask import RankMask
from .posterior.scalabl import ScalaBL
from .posterior.snapshot import SnapshotEnsemble
from .posterior.swag import SWAG
from .posterior.tfb import TFB
from .posterior.trainee import Family
from .single_member import SingleMember, num_trained_parameters
from .soup import Soup

__all__ = [
    "IVON",
    "SWAG",
    "TFB",
    "BLoB",
    "BatchEnsemble",
    "Family",
    "FewShot",
    "LastLayerEnsemble",
    "LastLayerHeads",
    "LastLayerLaplace",
    "MCDropout",
    "RankMask",
    "ScalaBL",
    "SingleMember",
    "SnapshotEnsemble",
    "Soup",
    "TemperatureScaled",
    "WeightPosterior",
    "held_out_split",
    "num_trained_parameters",
]
