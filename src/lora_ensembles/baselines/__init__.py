"""Baselines of a LoRA ensemble; each is a `Predictor`."""

from __future__ import annotations

from ..calibration.held_out import held_out_split
from ..calibration.temperature import TemperatureScaled
from .batch_ensemble import BatchEnsemble
from .few_shot import FewShot
from .last_layer import LastLayerEnsemble
from .last_layer_heads import LastLayerHeads
from .mc_dropout import MCDropout
from .single_member import SingleMember, num_trained_parameters

__all__ = [
    "BatchEnsemble",
    "FewShot",
    "LastLayerEnsemble",
    "LastLayerHeads",
    "MCDropout",
    "SingleMember",
    "TemperatureScaled",
    "held_out_split",
    "num_trained_parameters",
]
