"""The last layer at the one token that a head reads gives what the whole pass gives, on every architecture
with a head.
"""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from lora_ensembles import HeadConfig, LastLayerHeads, LoraEnsemble, TrainConfig, predict, train
from lora_ensembles.heads.task.head import TaskHead
from lora_ensembles.passes.decoder import model_layers
from lora_ensembles.passes.texts import text_scores
from lora_ensembles.passes.token_probe import token_read
from tiny_heads import ENCODERS, KINDS, TRIED, build, build_ensemble, examples_for, tokenizer

TOLERANCE = dict(
    atol=1e-5, rtol=1e-5
)  # fp32 sums of some dozen terms, of which another number of rows may change the order
FIRST_OF_MLP = ("intermediate", "ffn", "mlp")
every_head = pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in TRIED for kind in KINDS])


@every_head
def test_encoders_read_their_first_token_and_decoders_their_last(name: str, kind: str) -> None:
    assert token_read(build(name, kind)) == ("first" if name in ENCODERS else "last")


def test_a_head_that_reads_every_token_is_known_for_it() -> None:
    model = build("bert", "reward")
    model.bert.pooler.forward = lambda states: states.mean(dim=1)
    assert token_read(model) is None


@every_head
def test_scores_and_gradients_are_those_of_the_whole_pass(name: str, kind: str) -> None:
    ensemble = build_ensemble(name, kind, members=2, random_b=True)
    head = ensemble.head
    assert isinstance(head, TaskHead)
    table = head.table(ensemble, examples_for(kind))
    texts = table.texts(torch.arange(6)).repeated(2)
    stack, seen = ensemble.stack, []
    token = ensemble.token_read  # found by passes of its own, which are not to be counted below
    mlp = next(
        part for child, part in model_layers(ensemble.base)[-1].named_children() if child in FIRST_OF_MLP
    )
    handle = mlp.register_forward_hook(
        lambda _module, arguments, _result: seen.append(arguments[0].shape[:-1].numel())
    )
    parameters = [stack.layers[0].lora_a, stack.layers[0].lora_b, stack.layers[-1].lora_b]

    def scores_and_gradients(*, whole: bool) -> tuple[torch.Tensor, ...]:
        with stack.running(rows=len(texts.ids), tokens=texts.ids.numel()):
            scores = text_scores(ensemble.base, texts, token=None if whole else token)
        return scores.detach(), *torch.autograd.grad(scores.square().sum(), parameters)

    expected = scores_and_gradients(whole=True)
    found = scores_and_gradients(whole=False)
    handle.remove()
    torch.testing.assert_close(found[0], expected[0], **TOLERANCE)
    for one, other in zip(found[1:], expected[1:], strict=True):
        torch.testing.assert_close(one, other, atol=1e-4 * float(other.abs().max()), rtol=1e-4)
    assert seen == [texts.ids.numel(), len(texts.ids)]


def test_a_text_is_read_at_its_own_end() -> None:
    """Padding of other lengths moves the last token, and the scores stay those of each text alone."""
    ensemble = build_ensemble("llama", "reward", members=2, random_b=True)
    head = ensemble.head
    assert isinstance(head, TaskHead)
    table = head.table(ensemble, examples_for("reward"))
    together = head.scores(ensemble, table, max_rows=None)
    alone = [
        head.scores(ensemble, head.table(ensemble, [example]), max_rows=None)
        for example in examples_for("reward")
    ]
    torch.testing.assert_close(together, torch.cat(alone, dim=1), **TOLERANCE)


@pytest.mark.parametrize("kind", ["sequence-classification", "reward"])
def test_a_text_that_ends_in_the_padding_token_is_read_where_transformers_reads_it(kind: str) -> None:
    """As chats end where the token of their end pads as well: the head reads the token before."""
    base = build("llama", kind)
    base.config.pad_token_id = tokenizer().sep_token_id  # every text ends in it
    assert token_read(base) == "last"
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"])
    ensemble = LoraEnsemble(
        base, tokenizer(), num_members=1, adapter=config, head=HeadConfig(kind, init="base")
    )  # type: ignore[arg-type]
    head, examples = ensemble.head, examples_for(kind)
    assert isinstance(head, TaskHead)
    table = head.table(ensemble, examples)
    found = head.scores(ensemble, table, max_rows=4)[
        0
    ]  # B begins at zero, so the member says what the base does
    last_layer = LastLayerHeads(
        build("llama", kind), tokenizer(), num_members=1, head=HeadConfig(kind, init="base")
    )  # type: ignore[arg-type]
    last_layer.base.config.pad_token_id = tokenizer().sep_token_id
    predicted = predict(last_layer, examples).member_log_probs
    ensemble.unload()
    alone = [
        torch.tensor([table.ids[number, : table.text_lengths[number]].tolist()])
        for number in range(len(table.text_lengths))
    ]
    with torch.no_grad():
        expected = torch.cat([base(input_ids=ids, use_cache=False).logits for ids in alone])
    assert all(ids[0, -1] == base.config.pad_token_id for ids in alone)
    torch.testing.assert_close(found, expected, **TOLERANCE)
    torch.testing.assert_close(
        predicted[0], table.per_example(expected[None]).log_softmax(-1)[0], **TOLERANCE
    )


@pytest.mark.parametrize("kind", KINDS)
def test_above_a_trunk_the_token_is_found_before_its_layers_are_skipped(kind: str) -> None:
    config = LoraConfig(r=4, target_modules=["query", "value"], layers_to_transform=[1])
    ensemble = LoraEnsemble(build("bert", kind), tokenizer(), num_members=2, adapter=config, head=kind)
    assert ensemble.trunk is not None
    train(ensemble, examples_for(kind), TrainConfig(epochs=1, batch_size=4), progress=False)
    assert ensemble.token_read == "first"
