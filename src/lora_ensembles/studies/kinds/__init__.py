"""Kinds of records, one per file; a study makes them in this order."""

KINDS = (
    "sweep",
    "randomness",
    "pool",
    "few_shot",
    "last_layer",
    "methods",
    "initialisation",
    "rank",
    "strength",
)
