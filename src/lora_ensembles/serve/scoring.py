"""From the jobs of one batch to their outcomes: one prediction for all of them, cut apart again.

Shapes: M members, N examples, C options.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch

from ..data import Example, encode_examples
from ..ensemble import LoraEnsemble
from ..errors import LoraEnsemblesError
from ..heads import predict_rewards
from ..heads.task.encoding import plain_table
from ..heads.task.head import TaskHead
from ..passes.shared_prefix import context_window
from ..prediction.prediction import Prediction, predict
from ..prediction.uncertainty import split_entropy
from .catalogue import ServedModel
from .jobs import Answered, Job, Outcome, Questions, Scored, Texts
from .rules import Rules


def outcomes(jobs: Sequence[Job], rules: Rules, *, max_rows: int | None) -> list[Outcome | Exception]:
    """The outcome of each job, or its error; the jobs are about models of one ensemble.

    A job that cannot be encoded gets its own error. If the others cannot be predicted together, each is predicted
    alone, so that none fails for a neighbour's fault.
    """
    made: list[Outcome | Exception] = [RuntimeError("not computed")] * len(jobs)
    tokens: dict[int, int] = {}
    for place, job in enumerate(jobs):
        try:
            tokens[place] = num_tokens(job.model.ensemble, job.work)
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to this job
            made[place] = error
    good = list(tokens)
    for group in [good] if len(good) > 1 else [[place] for place in good]:
        try:
            results = _results([jobs[place] for place in group], rules, max_rows=max_rows)
        except Exception as error:  # noqa: BLE001
            results = [error] if len(group) == 1 else _one_by_one([jobs[n] for n in group], rules, max_rows)
        for place, result in zip(group, results, strict=True):
            made[place] = result if isinstance(result, Exception) else Outcome(result, tokens[place])
    return made


Results = list[Answered] | list[Scored]


def _one_by_one(jobs: Sequence[Job], rules: Rules, max_rows: int | None) -> list[Results | Exception]:
    made: list[Results | Exception] = []
    for job in jobs:
        try:
            made += _results([job], rules, max_rows=max_rows)
        except Exception as error:  # noqa: BLE001
            made.append(error)
    return made


def num_tokens(ensemble: LoraEnsemble, work: Questions | Texts) -> int:
    """The tokens of the prompts or texts of a request, as if each was read by itself.

    Raises:
        DataError: one cannot be encoded: it is longer than the window, or holds no token.
    """
    base, tokenizer, overlong = ensemble.base, ensemble.tokenizer, ensemble.info.overlong
    if isinstance(work, Texts):
        table = plain_table(work.texts, base, tokenizer, head=ensemble.info.head, overlong=overlong)
        return int(table.text_lengths.sum())
    if isinstance(ensemble.head, TaskHead):
        return int(ensemble.head.table(ensemble, work.examples).text_lengths.sum())
    window = context_window(base)
    longest = max(work.examples, key=lambda example: len(example.prompt))
    # The longest first: a hundred prompts of which none fits would be tokenised for nothing.
    encode_examples([longest], tokenizer, max_length=window, overlong=overlong)
    encoded = encode_examples(work.examples, tokenizer, max_length=window, overlong=overlong)
    return sum(len(example.prompt_ids) for example in encoded)


def _results(jobs: Sequence[Job], rules: Rules, *, max_rows: int | None) -> list[Results | Exception]:
    ensemble = jobs[0].model.ensemble
    sizes = [len(job.work) for job in jobs]
    if isinstance(jobs[0].work, Texts):
        texts = [text for job in jobs for text in cast(Texts, job.work).texts]
        scores = predict_rewards(ensemble, texts, max_rows=max_rows).member_scores.split(sizes, dim=1)
        return [_scored(job.model, part) for job, part in zip(jobs, scores, strict=True)]
    works = [cast(Questions, job.work) for job in jobs]
    examples = [example for work in works for example in work.examples]
    prediction = predict(ensemble, examples, max_rows=max_rows)
    made: list[Results | Exception] = []
    for job, work, rows in zip(jobs, works, torch.arange(len(examples)).split(sizes), strict=True):
        try:
            made.append(_answered(job.model, work, prediction.take(rows), rules))
        except LoraEnsemblesError as error:  # a promise that cannot be given
            made.append(error)
    return made


def _scored(model: ServedModel, scores: torch.Tensor) -> list[Scored]:
    """Rewards (M, N), of all members or of one."""
    scores = scores if model.member is None else scores[[model.member]]
    std, mean = torch.std_mean(scores, dim=0, correction=0)
    return [
        Scored(mean, std, own)
        for mean, std, own in zip(mean.tolist(), std.tolist(), scores.T.tolist(), strict=True)
    ]


def _answered(model: ServedModel, work: Questions, prediction: Prediction, rules: Rules) -> list[Answered]:
    if model.member is not None:
        prediction = prediction.select([model.member])
        abstain = inside = None
    else:
        abstain, inside = rules.of(model.ensemble, prediction, work.promises)
    members = prediction.member_log_probs.exp().transpose(0, 1).tolist()  # (N, M, C)
    parts = [part.tolist() for part in split_entropy(prediction.member_log_probs)]
    return [
        Answered(
            probs[: _width(example)],
            [own[: _width(example)] for own in members[row]],
            {name: parts[n][row] for n, name in enumerate(("total", "aleatoric", "epistemic"))},
            None if abstain is None else abstain[row],
            None if inside is None else inside[row][: _width(example)],
        )
        for row, (example, probs) in enumerate(zip(work.examples, prediction.probs.tolist(), strict=True))
    ]


def _width(example: Example) -> int:
    return len(example.labels)
