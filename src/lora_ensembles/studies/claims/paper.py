"""The paper's claims C1 to C11, and the clauses of each."""

from __future__ import annotations

from collections.abc import Callable

from .contrasts import Contrast
from .ensembles import c4, c5, c6, c7, c8, c11
from .regularisers import c1, c2, c3, c9, c10
from .views import View

CLAIMS: tuple[tuple[str, str, Callable[[View], list[Contrast]]], ...] = (
    (
        "C1",
        "Ensembling raises accuracy and lowers ECE (and NLL, which is added here) over the single member, "
        "with or without a regulariser.",
        c1,
    ),
    ("C2", "Regularisers lower ECE; their effect on accuracy goes either way.", c2),
    (
        "C3",
        "Without strong decay NLL grows over the epochs, and ensembling alone does not stop it; decay does; "
        "both give the best NLL.",
        c3,
    ),
    (
        "C4",
        "MC dropout gains little over one member, trained without dropout; the ensemble of the same size "
        "gains "
        "much more.",
        c4,
    ),
    ("C5", "Last-layer ensembles underfit: they are clearly less accurate.", c5),
    (
        "C6",
        "Out of distribution, ensembling improves NLL and ECE; AUROC stays near 0.5 where the model "
        "generalises.",
        c6,
    ),
    ("C7", "More members help every metric, less and less.", c7),
    (
        "C8",
        "Either source of randomness alone works; data order alone gives more than initialisation alone, "
        "with "
        "decay and without.",
        c8,
    ),
    ("C9", "Decay of B alone is best: of A alone it leaves NLL high, of both it costs accuracy.", c9),
    ("C10", "Strong KL or early stopping shrinks the ensemble's gain; decay shrinks it least.", c10),
    (
        "C11",
        "The few-shot base is calibrated but less accurate; the single member is confidently wrong; the "
        "ensemble with strong decay less so.",
        c11,
    ),
)
