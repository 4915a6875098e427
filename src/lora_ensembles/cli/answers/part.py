"""The records of one part of the rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ...data.cells import row_id
from ...errors import DataError
from ..common import Arguments
from ..flags import heads
from ..flags.asked import Part
from ..flags.guarantees import Guarantees
from ..screen.rows import bad_record, joined

if TYPE_CHECKING:
    from ...data import Example
    from ...ensemble import LoraEnsemble
    from ...prediction.prediction import Prediction


def answered(
    args: Arguments, ensemble: LoraEnsemble, part: Part, keep: Sequence[str], guarantees: Guarantees
) -> list[dict[str, Any]]:
    """A record for each row of a part, in the order of the file."""
    records = {bad.number: bad_record(bad, keep) for bad in part.bad}
    answers = _records(args, ensemble, part, range(len(part.rows)), guarantees) if part.rows else []
    for place, row, record in zip(part.numbers, part.rows, answers, strict=True):
        records[place] = joined(record, place, row, keep)
    return [records[place] for place in sorted(records)]


def _records(
    args: Arguments, ensemble: LoraEnsemble, part: Part, places: range, guarantees: Guarantees
) -> list[dict[str, Any]]:
    """The records of some rows; with --skip-bad-rows, a row that cannot be encoded gets an error, and the
    others are asked without it.
    """
    from ...prediction.prediction import predict
    from ...prediction.rows import prediction_records

    rows = slice(places.start, places.stop)
    try:
        examples = [example for example in part.examples[rows] if example is not None]
        if not examples:
            return heads.reward_records(ensemble, part.rows[rows], args)
        # Without targets: nothing is scored here, and rows that served to calibrate may be answered.
        unlabelled = [dataclasses.replace(example, target=None, target_probs=None) for example in examples]
        prediction = predict(ensemble, unlabelled, max_rows=args.max_rows, order_passes=args.order_passes)
        columns = guarantees.columns(prediction, examples)
        second = _second_confidence(args, ensemble, prediction, unlabelled)
        return [
            record | more | beside
            for record, more, beside in zip(
                prediction_records(prediction, examples), columns, second, strict=True
            )
        ]
    except DataError as error:
        if not args.skip_bad_rows:
            raise
        if len(places) == 1:
            return [{"id": row_id(part.rows[places.start]), "error": str(error)}]
    half = len(places) // 2
    return [
        record
        for some in (places[:half], places[half:])
        for record in _records(args, ensemble, part, some, guarantees)
    ]


def _second_confidence(
    args: Arguments, ensemble: LoraEnsemble, prediction: Prediction, examples: Sequence[Example]
) -> list[dict[str, float]]:
    """The column of --confidence, for each row."""
    from ...heads import label_mass
    from ...prediction.confidence import confidence

    if args.confidence is None:
        return [{} for _ in examples]
    mass = label_mass(ensemble, examples, max_rows=args.max_rows) if args.confidence == "mass" else None
    values = confidence(prediction, kind=args.confidence, label_mass=mass)
    return [{f"confidence_{args.confidence}": value} for value in values.tolist()]
