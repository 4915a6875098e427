"""Running less of a decoder gives what running all of it gives: the last layer at the answers only, on every
architecture.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lora_ensembles.passes.answer_positions import logits_at
from lora_ensembles.passes.decoder import Places, decoder_layers, last_layer_at
from lora_ensembles.stack.lora import fold_members
from tiny_models import LLAMA_LIKE, TRIED, build, build_ensemble, pad, random_rows

# fp32 sums of some dozen terms, of which oneDNN or another number of rows may change the order.
TOLERANCE = dict(atol=1e-5, rtol=1e-5)
PLACES = Places(torch.tensor([0, 1, 2, 3, 3]), torch.tensor([12, 6, 8, 5, 11]))
# Their last part is routed, or carries adapters: it is left whole.
WHOLE_MLP = {"mixtral", "qwen3_moe", "qwen2_moe_shared_expert", "gpt_oss", "llama_all_linear", "opt"}
every_architecture = pytest.mark.parametrize("name", TRIED)


def batch() -> Tensor:
    return torch.stack([pad(random_rows([13, 7], seed=m))[0] for m in range(2)])


@every_architecture
def test_the_layers_of_every_architecture_are_found(name: str) -> None:
    assert len(decoder_layers(build(name))) == LLAMA_LIKE["num_hidden_layers"]


def test_a_model_of_another_build_has_no_known_layers() -> None:
    model = build("llama")
    model.config.num_hidden_layers = 3  # a list of two is then not all of the layers
    assert decoder_layers(model) == decoder_layers(nn.Linear(2, 2)) == []


@every_architecture
def test_the_last_layer_at_the_answers_gives_the_logits_and_gradients_of_the_whole_pass(name: str) -> None:
    ensemble = build_ensemble(name, members=2, random_b=True)
    ids = batch()
    with ensemble.stack.running(rows=4, tokens=ids.numel()):
        narrow = logits_at(ensemble.base, fold_members(ids), PLACES)
    whole = fold_members(ensemble(ids))[PLACES.rows, PLACES.positions]
    torch.testing.assert_close(narrow, whole, **TOLERANCE)
    parameters = [
        ensemble.stack.layers[0].lora_a,
        ensemble.stack.layers[0].lora_b,
        ensemble.stack.layers[-1].lora_b,
    ]
    found, expected = (torch.autograd.grad(logits.square().sum(), parameters) for logits in (narrow, whole))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(
            one, other, atol=1e-4 * float(other.abs().max()), rtol=1e-4
        )  # sums over 5 logits of 50 words


@every_architecture
def test_the_mlp_of_the_last_layer_sees_the_answers_only(name: str) -> None:
    ensemble = build_ensemble(name, members=2)
    ids = fold_members(batch())
    seen: list[int] = []
    mlp = next(
        (
            part
            for child, part in decoder_layers(ensemble.base)[-1].named_children()
            if child in ("mlp", "ffn", "fc1")
        )
    )
    mlp.register_forward_hook(
        lambda _module, arguments, _result: seen.append(arguments[0].numel() // arguments[0].shape[-1])
    )
    with torch.no_grad(), ensemble.stack.running(rows=4, tokens=ids.numel()):
        logits_at(ensemble.base, ids, PLACES)
    assert seen == [ids.numel() if name in WHOLE_MLP else len(PLACES.rows)]


def test_a_pass_that_fails_leaves_no_hook_behind() -> None:
    model = build("llama")
    with pytest.raises(RuntimeError, match="stop"), last_layer_at(model, PLACES, (4, 13)):
        raise RuntimeError("stop")
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
