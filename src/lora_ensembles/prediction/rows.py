"""A prediction as one plain dictionary an example, ready for a line of JSON or a row of CSV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ..errors import ConfigError
from .orders import order_flips
from .uncertainty import disagreement, expected_entropy, mutual_information, total_entropy

if TYPE_CHECKING:
    from ..data import Example
    from .prediction import Prediction

UNCERTAINTIES = {
    "total_entropy": total_entropy,
    "expected_entropy": expected_entropy,
    "mutual_information": mutual_information,
    "disagreement": disagreement,
}


def prediction_records(prediction: Prediction, examples: Sequence[Example]) -> Iterator[dict[str, object]]:
    """One JSON-able dictionary an example, in order.

    Keys: `id`; `prediction`, the most probable label; `answer`, the text of that option, or None;
    `confidence`, its probability; `probs`, label to probability, absent options left out; `target`, the right
    label or None; `votes`, each member's label; and `total_entropy`, `expected_entropy`, `mutual_information`
    (nats) and `disagreement` (0 to 1). Labels are shown without the spaces around them.

    Raises:
        ConfigError: `examples` are not those of the prediction, in its order. Raised by the call, before the
            first record.

    Example:
        >>> import torch
        >>> from types import SimpleNamespace
        >>> from lora_ensembles.prediction.prediction import Prediction
        >>> question = SimpleNamespace(id="q1", labels=("a", "b"), options=("no", "yes"), target=1)
        >>> prediction = Prediction(torch.tensor([[[0.25, 0.75]]]).log(), ids=("q1",))
        >>> record = next(prediction_records(prediction, [question]))
        >>> record["prediction"], record["answer"], record["target"], record["votes"]
        ('b', 'yes', 'b', ['b'])
    """
    if tuple(example.id for example in examples) != prediction.ids:
        raise ConfigError(
            f"the {len(examples)} examples are not the {prediction.num_examples} of the prediction, "
            "in order; pass those it was made for"
        )
    return _records(prediction, examples)


def _records(prediction: Prediction, examples: Sequence[Example]) -> Iterator[dict[str, object]]:
    probs = prediction.probs.tolist()
    choices = prediction.choices.tolist()
    votes = prediction.member_choices.T.tolist()
    uncertainties = {name: function(prediction).tolist() for name, function in UNCERTAINTIES.items()}
    orders = prediction.order_choices
    flips = None if orders is None else order_flips(orders).tolist()
    for row, example in enumerate(examples):
        labels = [label.strip() for label in example.labels]
        yield {
            "id": example.id,
            "prediction": labels[choices[row]],
            "answer": example.options[choices[row]] if example.options else None,
            "confidence": probs[row][choices[row]],
            "probs": dict(
                zip(labels, probs[row], strict=False)
            ),  # a row is as long as the longest example's labels
            "target": None if example.target is None else labels[example.target],
            "votes": [labels[choice] for choice in votes[row]],
            **{name: values[row] for name, values in uncertainties.items()},
            **({} if flips is None else {"order_flips": flips[row]}),
        }
