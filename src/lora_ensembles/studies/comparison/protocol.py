"""The protocol that papers on Bayesian LoRA share: its sets of other distributions, and the one setting of
each method.

LoRA of rank 8 and alpha 16, AdamW at 1e-4 with a linear rise over 6 % of the steps and a linear fall, 5,000
steps of 4 rows, 10 samples, ensembles of 3, three seeds; judged by validation parts, ECE with 15 bins.
Source: arXiv:2406.11675, its scripts in Wang-ML-Lab/bayesian-peft @bc6a4a7; arXiv:2607.02182 for the tables.

`Differs:` adapters are on q_proj and v_proj, not on lm_head; each member has its own order of the questions,
and probabilities are averaged, not logits; the short batch at an epoch's end is trained on and no question is
left out of a metric; prompts are this library's (docs/data.md) and are not cut at 300 tokens; AdamW's decay
is 0.01, which takes 0.25 % of a weight in 5,000 steps, where that code has 0 or 1e-5.
"""

from __future__ import annotations

from ..arms import DECAY_PER_STEP, PLAIN_DECAY
from .budget import Settings
from .measure import ProtocolConfig

RATE = 1e-4
ELSEWHERE = (
    ("obqa-dev", ("arcc-dev", "arce-dev", "mmlu-college-chemistry", "mmlu-college-physics")),
)  # what that code names MMLU-chem and MMLU-phy are the two college subjects alone
_PLAIN = RATE * PLAIN_DECAY
# Each method's own setting, as `METHODS` names it: the paper's where the protocol has one, else the default
# of its class.
_OWN = {
    "single member": _PLAIN,
    "single member, decay of B": DECAY_PER_STEP[0],
    "ensemble": _PLAIN,
    "ensemble, decay of B": DECAY_PER_STEP[0],
    "MC dropout": 0.1,
    "last-layer Laplace": 0.0,  # the prior precision by the evidence
    "TFB": 0.01,
    "IVON": 1e7,
    "BLoB": 0.2,
    "ScalaBL": 1.0,
    "rank mask": 0.5,
}
PROTOCOL = ProtocolConfig(chosen={name: Settings(RATE, 0, own).to_dict() for name, own in _OWN.items()})
