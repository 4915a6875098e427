"""The whole method in plain lines, to read first: a LoRA ensemble trained and used with nothing but torch,
PEFT and transformers.

The library does the same for all members in one stacked pass; a test holds that both give the same weights.
Here members are trained one after another, each a plain PEFT model:

    python examples/flat_loop.py

1. Member m starts from PEFT's own initial weights for its own seed, and reads the data in its own order.
2. It minimises -log p(answer | prompt) over the full vocabulary, at the answer (Eq. 3 of arXiv:2310.00035),
   plus, where beta > 0, the divergence from the base at the same place (Eq. 4). B decays strongly where that
   is asked for (Eq. 5).
3. The ensemble's probabilities are the mean of the members' probabilities over the labels (Eq. 1 and 2),
   never of their logits.
"""

from __future__ import annotations

import math

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from torch.nn import functional as F

from lora_ensembles import load_base, load_task
from lora_ensembles.data import EncodedExample, Example, encode_examples
from lora_ensembles.stack.seeds import member_seeds
from lora_ensembles.training.orders import epoch_order

MEMBERS, EPOCHS, BATCH, RATE = 3, 2, 16, 2e-3
DECAY_A, DECAY_B, BETA = 0.01, 20.0, 0.0


def adapter_config() -> LoraConfig:
    return LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")


def pad(rows: list[tuple[int, ...]]) -> Tensor:
    """Token ids (B, T), padded on the right, where a causal model never looks."""
    length = max(map(len, rows))
    return torch.tensor([list(row) + [0] * (length - len(row)) for row in rows])


def answer_logits(model: torch.nn.Module, rows: list[EncodedExample]) -> Tensor:
    """Next-token logits (B, V) behind each prompt."""
    last = torch.tensor([len(row.prompt_ids) - 1 for row in rows])
    logits = model(input_ids=pad([row.prompt_ids for row in rows]), use_cache=False).logits
    return logits[torch.arange(len(rows)), last].float()


def loss_of(model: PeftModel, rows: list[EncodedExample]) -> Tensor:
    """The mean over a member's own rows of Eq. 3 plus beta times Eq. 4, in nats."""
    answers = torch.tensor([row.label_ids[row.target or 0][0] for row in rows])
    logits = answer_logits(model, rows)
    loss = F.cross_entropy(logits, answers)
    if BETA > 0:
        with torch.no_grad(), model.disable_adapter():
            base = answer_logits(model, rows).log_softmax(dim=-1)
        tuned = logits.log_softmax(dim=-1)
        loss = loss + BETA * (tuned.exp() * (tuned - base)).sum(dim=-1).mean()
    return loss


def train_member(index: int, rows: list[EncodedExample], *, epochs: int = EPOCHS) -> PeftModel:
    """One member: its own initial weights, its own order of the data, its own optimiser."""
    seeds = member_seeds(0, index)
    torch.manual_seed(seeds.init)
    model = get_peft_model(load_base()[0], adapter_config()).eval()  # eval: the base's own dropout stays off
    named = list(model.named_parameters())
    matrices = {
        letter: [parameter for name, parameter in named if f"lora_{letter}" in name] for letter in "AB"
    }
    groups = [
        {"params": matrices["A"], "weight_decay": DECAY_A},
        {"params": matrices["B"], "weight_decay": DECAY_B},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    for epoch in range(epochs):
        order = epoch_order(seeds.order, epoch, len(rows)).tolist()
        for start in range(0, len(rows), BATCH):
            loss = loss_of(model, [rows[n] for n in order[start : start + BATCH]])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"member {index}, epoch {epoch + 1}: loss of the last batch {loss.item():.3f}")
    return model


@torch.no_grad()
def label_log_probs(model: PeftModel, rows: list[EncodedExample]) -> Tensor:
    """log p(label | prompt) over an example's labels (N, C): Eq. 1."""
    parts = []
    for start in range(0, len(rows), 64):
        batch = rows[start : start + 64]
        labels = torch.tensor([[label[0] for label in row.label_ids] for row in batch])
        parts.append(answer_logits(model, batch).gather(1, labels).log_softmax(dim=-1))
    return torch.cat(parts)


def encode(examples: tuple[Example, ...]) -> list[EncodedExample]:
    return encode_examples(examples, load_base()[1], single_token=True)


def main() -> None:
    task = load_task("world-cqa")
    train, validation = encode(task.train), encode(task.validation)
    targets = torch.tensor([row.target for row in validation])
    members = torch.stack(
        [label_log_probs(train_member(index, train), validation) for index in range(MEMBERS)]
    )  # (M, N, C)
    ensemble = members.logsumexp(dim=0) - math.log(MEMBERS)  # the mean of probabilities: Eq. 2
    for name, log_probs in [
        *((f"member {index}", member) for index, member in enumerate(members)),
        ("ensemble", ensemble),
    ]:
        accuracy = (log_probs.argmax(dim=-1) == targets).float().mean()
        print(f"{name}: accuracy {accuracy:.3f}, NLL {F.nll_loss(log_probs, targets):.3f}")


if __name__ == "__main__":
    main()
