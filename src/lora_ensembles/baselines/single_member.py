"""One member of anything that predicts, and what a member costs to train.

Shapes: M members, N examples, C options.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import Example
from ..ensemble import LoraEnsemble
from ..errors import ConfigError
from ..heads import TextHead, Texts, states_above_trunk, texts_log_probs
from ..heads.lm.scored import score_members
from ..passes.decoder import in_place_of_trunk
from ..passes.stacked_model import num_trained_parameters
from ..passes.texts import text_scores
from ..prediction.prediction import Predictor


@dataclass(frozen=True)
class SingleMember:
    """A `Predictor` that is one member of another: the paper's "LoRA (M = 1)", an MC-dropout pass, a few-shot draw.

    A member of a `LoraEnsemble` is computed alone, at the cost of one model; of any other predictor all members are computed and one is
    kept. The paper's M = 1 numbers are the mean over members of each one's own metrics (`evaluate_members`), not those of one of them.

    Raises:
        ConfigError: a `LoraEnsemble` has no such member; of other predictors this is known only once they predict.

    Example:
        >>> from lora_ensembles.embedded import load_base
        >>> from lora_ensembles.data import load_task
        >>> one = SingleMember(LoraEnsemble(*load_base(), members=3), 2)
        >>> one.member_log_probs(load_task("world-cqa").validation[:4]).shape
        torch.Size([1, 4, 5])
    """

    predictor: Predictor
    index: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.predictor, LoraEnsemble):
            check_member(self.index, self.predictor.num_members)

    @property
    def num_trained_parameters(self) -> int:
        """Parameters trained for this member."""
        return num_trained_parameters(self.predictor, self.index)

    @torch.no_grad()
    def member_log_probs(self, examples: Sequence[Example], *, max_rows: int | None = None) -> Tensor:
        """log p of each label (1, N, C), float32; see `Predictor`.

        Raises:
            ConfigError: there is no such member, or memory ran out.
            DataError: a prompt or a label cannot be used.
        """
        if not isinstance(self.predictor, LoraEnsemble):
            found = self.predictor.member_log_probs(examples, max_rows=max_rows)
            check_member(self.index, found.shape[0])
            return found[self.index : self.index + 1]
        ensemble, only = self.predictor, slice(self.index, self.index + 1)
        check_member(self.index, ensemble.num_members)  # members may have been dropped since
        if isinstance(ensemble.head, TextHead):
            return self._score_texts(ensemble, ensemble.head, examples, max_rows=max_rows)
        return score_members(
            examples,
            lambda ids, positions: ensemble.answer_logits(ids[None], positions[None], members=only),
            base=ensemble.base,
            tokenizer=ensemble.tokenizer,
            copies=1,
            max_rows=1 if ensemble.stack.by_batch else max_rows,
            overlong=ensemble.info.overlong,
            label_score=ensemble.info.label_score,
        )

    def _score_texts(
        self, ensemble: LoraEnsemble, head: TextHead, examples: Sequence[Example], *, max_rows: int | None
    ) -> Tensor:
        table, only, token = (
            head.table(ensemble, examples),
            slice(self.index, self.index + 1),
            ensemble.token_read,
        )
        states = states_above_trunk(ensemble, table)

        def read(texts: Texts) -> Tensor:
            running = ensemble.stack.running(rows=len(texts.ids), tokens=texts.ids.numel(), members=only)
            with in_place_of_trunk(ensemble.trunk, states(texts), 1), running:
                return text_scores(ensemble.base, texts, token=token)[None]

        rows = 1 if ensemble.stack.by_batch else max_rows
        return texts_log_probs(table, read, copies=1, max_rows=rows, padded=not ensemble.padding_is_read)


def check_member(index: int, members: int) -> None:
    """Refuse a member that is not there.

    Raises:
        ConfigError: as it says.
    """
    if index not in range(members):
        raise ConfigError(f"there is no member {index!r}; name one of 0 to {members - 1}")
