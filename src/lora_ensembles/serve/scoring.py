"""From the jobs of one batch to their outcomes: one prediction for all of them, cut apart again.

Shapes: M members, N examples, C options.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import cast

import torch

from ..data import Example, encode_examples
from ..data.tokens.questions import leading_ids, tokenise
from ..ensemble import LoraEnsemble
from ..errors import LoraEnsemblesError
from ..heads import predict_rewards
from ..heads.lm.head import LMHead
from ..heads.task.encoding import plain_table
from ..heads.task.head import TaskHead
from ..passes.shared_prefix import context_window
from ..prediction.prediction import Prediction, predict
from ..prediction.rewards import RewardPrediction
from ..prediction.uncertainty import split_entropy
from .catalogue import ServedModel
from .jobs import Answered, Job, Outcome, Questions, Scored, Texts
from .rules import Rules

Results = list[Answered] | list[Scored]


def outcomes(jobs: Sequence[Job], rules: Rules, *, max_rows: int | None) -> list[Outcome | Exception]:
    """The outcome of each job, or its error; the jobs are about models of one ensemble.

    If they cannot be predicted together, those that cannot be encoded get their own error and the others are
    tried again; if these fail too, each is predicted alone, so that none fails for a neighbour's fault.
    """
    made = _together(jobs, rules, max_rows=max_rows)
    if not isinstance(made, Exception):
        return made
    if len(jobs) == 1:
        return [made]
    mistakes = [_mistake(job) for job in jobs]
    good = [job for job, mistake in zip(jobs, mistakes, strict=True) if mistake is None]
    again = _together(good, rules, max_rows=max_rows) if 0 < len(good) < len(jobs) else made
    if isinstance(again, Exception):
        again = [outcomes([job], rules, max_rows=max_rows)[0] for job in good]
    rest = iter(again)
    return [next(rest) if mistake is None else mistake for mistake in mistakes]


def _together(
    jobs: Sequence[Job], rules: Rules, *, max_rows: int | None
) -> list[Outcome | Exception] | Exception:
    """The outcomes of one prediction of all jobs, or the error that it ended with."""
    ensemble, works = jobs[0].model.ensemble, [job.work for job in jobs]
    try:
        for work in works:
            check_longest(ensemble, work)
        tokens = num_tokens(ensemble, works)
        results = _results(jobs, rules, max_rows=max_rows)
    except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to one of the jobs
        return error
    return [
        result if isinstance(result, Exception) else Outcome(result, count)
        for result, count in zip(results, tokens, strict=True)
    ]


def _mistake(job: Job) -> Exception | None:
    """The error with which a job cannot be encoded."""
    ensemble = job.model.ensemble
    try:
        if isinstance(job.work, Questions) and isinstance(ensemble.head, LMHead):
            _encode(ensemble, job.work.examples)
        else:
            num_tokens(ensemble, [job.work])
    except Exception as error:  # noqa: BLE001
        return error
    return None


def check_longest(ensemble: LoraEnsemble, work: Questions | Texts) -> None:
    """Refuse questions of which the longest does not fit the window, before all of them are tokenised.

    Raises:
        DataError: it does not fit.
    """
    window = context_window(ensemble.base)
    if isinstance(work, Questions) and isinstance(ensemble.head, LMHead) and window is not None:
        longest = max(work.examples, key=lambda example: len(example.prompt))
        if len(longest.prompt) > window:  # a token has a character or more
            _encode(ensemble, [longest])


def num_tokens(ensemble: LoraEnsemble, works: Sequence[Questions | Texts]) -> list[int]:
    """The tokens of the prompts or texts of each request, as if each text was read by itself; of those that
    are cut to the window, the window.

    Raises:
        DataError: a text is longer than the window, or holds no token.
    """
    base, tokenizer, info = ensemble.base, ensemble.tokenizer, ensemble.info
    if isinstance(ensemble.head, TaskHead):
        if isinstance(works[0], Texts):
            texts = [text for work in works for text in cast(Texts, work).texts]
            table = plain_table(texts, base, tokenizer, head=info.head, overlong=info.overlong)
        else:
            table = ensemble.head.table(ensemble, _examples(works))
        lengths = torch.zeros(len(table), dtype=torch.int64).index_add(0, table.owner, table.text_lengths)
    else:
        texts = [example.prompt for example in _examples(works)]
        prompts = tokenise(tokenizer, texts)
        before, window = len(leading_ids(tokenizer, texts[0], prompts[0])), context_window(base)
        lengths = torch.tensor([min(before + len(ids), window or sys.maxsize) for ids in prompts])
    return [int(part.sum()) for part in lengths.split([len(work) for work in works])]


def _examples(works: Sequence[Questions | Texts]) -> list[Example]:
    return [example for work in works for example in cast(Questions, work).examples]


def _encode(ensemble: LoraEnsemble, examples: Sequence[Example]) -> None:
    """Tokenise examples, and refuse what cannot be."""
    window, overlong = context_window(ensemble.base), ensemble.info.overlong
    encode_examples(examples, ensemble.tokenizer, max_length=window, overlong=overlong)


def _results(jobs: Sequence[Job], rules: Rules, *, max_rows: int | None) -> list[Results | Exception]:
    ensemble = jobs[0].model.ensemble
    sizes = [len(job.work) for job in jobs]
    if isinstance(jobs[0].work, Texts):
        texts = [text for job in jobs for text in cast(Texts, job.work).texts]
        scores = predict_rewards(ensemble, texts, max_rows=max_rows).member_scores.split(sizes, dim=1)
        return [_scored(job.model, part) for job, part in zip(jobs, scores, strict=True)]
    works = [cast(Questions, job.work) for job in jobs]
    examples = _examples(works)
    prediction = predict(ensemble, examples, max_rows=max_rows)
    made: list[Results | Exception] = []
    for job, work, rows in zip(jobs, works, torch.arange(len(examples)).split(sizes), strict=True):
        try:
            made.append(_answered(job.model, work, prediction.take(rows), rules))
        except LoraEnsemblesError as error:  # a guarantee that cannot be given
            made.append(error)
    return made


def _scored(model: ServedModel, scores: torch.Tensor) -> list[Scored]:
    """Rewards (M, N), of all members or of one."""
    rewards = RewardPrediction(scores if model.member is None else scores[[model.member]])
    values = zip(rewards.mean.tolist(), rewards.std.tolist(), rewards.member_scores.T.tolist(), strict=True)
    return [Scored(*value) for value in values]


def _answered(model: ServedModel, work: Questions, prediction: Prediction, rules: Rules) -> list[Answered]:
    if model.member is not None:
        return answers_of(prediction.select([model.member]), work.examples)
    abstain, inside = rules.of(model.ensemble, prediction, work.guarantees)
    return answers_of(prediction, work.examples, abstain=abstain, inside=inside)


def answers_of(
    prediction: Prediction,
    examples: Sequence[Example],
    *,
    abstain: Sequence[bool] | None = None,
    inside: Sequence[list[bool]] | None = None,
) -> list[Answered]:
    """The answers that a prediction of M members gives to its N examples; `abstain` and `inside` as
    `Rules.of` gives them.
    """
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
        for row, (example, probs) in enumerate(zip(examples, prediction.probs.tolist(), strict=True))
    ]


def _width(example: Example) -> int:
    return len(example.labels)
