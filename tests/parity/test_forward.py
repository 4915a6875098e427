"""The stacked forward pass against PEFT's, one PEFT model a member, on every architecture.

Tolerance 1e-5 on logits of size 1 to 5: fp32 sums of some dozen terms, in another order (a batched product in
place of a plain one).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from lora_ensembles import LoraEnsemble, TrainConfig, train
from lora_ensembles.errors import AdapterError
from lora_ensembles.passes.answer_positions import Places, head_logits, hidden_at, logits_at
from tiny_models import (
    TRIED,
    adapter_config,
    build,
    build_ensemble,
    letter_examples,
    pad,
    parameters_of,
    random_rows,
    tokenizer,
)

TOLERANCE = dict(atol=1e-5, rtol=1e-5)
MEMBERS = 3
every_architecture = pytest.mark.parametrize("name", TRIED)


@torch.no_grad()
def masked_logits(model: torch.nn.Module, rows: list[list[int]]) -> list[Tensor]:
    """Logits (T_row, V) of each row, by the model's own forward with an attention mask."""
    ids, mask = pad(rows)
    logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    return [logits[n, : len(row)] for n, row in enumerate(rows)]


@every_architecture
def test_stacked_forward_equals_peft_models_opened_from_the_member_folders(name: str, tmp_path: Path) -> None:
    ensemble = build_ensemble(name, members=MEMBERS, random_b=True)
    rows = [
        random_rows([13, 7, 9], seed=m) for m in range(MEMBERS)
    ]  # other rows for every member: a row must meet its own adapter
    with torch.no_grad():
        logits = ensemble(torch.stack([pad(member_rows)[0] for member_rows in rows]))
    ensemble.save_pretrained(tmp_path / "saved")
    for m, member_rows in enumerate(rows):
        reference = PeftModel.from_pretrained(build(name), str(tmp_path / "saved" / f"member_{m:03d}"))
        for b, expected in enumerate(masked_logits(reference, member_rows)):
            torch.testing.assert_close(logits[m, b, : len(expected)], expected, **TOLERANCE)


@every_architecture
def test_members_start_with_the_weights_that_peft_gives_for_their_seed(name: str) -> None:
    ensemble = build_ensemble(name, members=2)
    assert ensemble.info.seeds[0].init != ensemble.info.seeds[1].init
    for m, seeds in enumerate(ensemble.info.seeds):
        torch.manual_seed(seeds.init)
        state = get_peft_model(build(name), adapter_config(name)).state_dict()
        expected = {key: value for key, value in state.items() if ".lora_" in key}
        member = ensemble.stack.member(m)
        found = {f"base_model.model.{site}.lora_A.default.weight": a for site, a in member.a.items()}
        found |= {f"base_model.model.{site}.lora_B.default.weight": b for site, b in member.b.items()}
        assert found.keys() == expected.keys()
        assert all(
            torch.equal(found[key], expected[key]) for key in expected
        )  # no tolerance: the same random numbers


@pytest.mark.parametrize("init", [True, "gaussian", "orthogonal"])
def test_every_stackable_initialisation_is_pefts_own(init: bool | str) -> None:
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights=init)
    ensemble = build_ensemble(members=1, adapter=config)
    torch.manual_seed(ensemble.info.seeds[0].init)
    state = get_peft_model(build("llama"), config).state_dict()
    for site, a in ensemble.stack.member(0).a.items():
        assert torch.equal(a, state[f"base_model.model.{site}.lora_A.default.weight"])


@every_architecture
def test_padded_rows_give_the_logits_of_unpadded_ones(name: str) -> None:
    ensemble = build_ensemble(name, members=2, random_b=True)
    rows = random_rows([13, 7, 9])
    with torch.no_grad():
        padded = ensemble(pad(rows, length=16)[0])
        for b, row in enumerate(rows):
            torch.testing.assert_close(
                padded[:, b, : len(row)], ensemble(torch.tensor([row]))[:, 0], **TOLERANCE
            )


@every_architecture
def test_logits_at_chosen_positions_are_those_of_the_whole_pass(name: str) -> None:
    ensemble = build_ensemble(name, members=2, random_b=True)
    ids = pad(random_rows([13, 7, 9]))[0].expand(2, -1, -1)
    positions = torch.tensor([[[12, 3], [6, 0], [8, 8]], [[1, 2], [5, 6], [0, 7]]])
    with torch.no_grad():
        whole, chosen = ensemble(ids), ensemble.answer_logits(ids, positions)
    torch.testing.assert_close(
        chosen, whole.gather(2, positions[..., None].expand(-1, -1, -1, whole.shape[-1])), **TOLERANCE
    )


@every_architecture
def test_cached_hidden_states_of_the_base_give_its_live_logits(name: str) -> None:
    ensemble = build_ensemble(name, members=2, random_b=True)
    rows = random_rows([13, 7, 9])
    ids, places = pad(rows)[0], Places(torch.tensor([0, 1, 2]), torch.tensor([12, 6, 8]))
    live = torch.stack([logits[-1] for logits in masked_logits(build(name), rows)])
    with torch.no_grad():
        with ensemble.base_only() as base:
            cached = hidden_at(base, ids, places)
            torch.testing.assert_close(head_logits(base, cached), live, **TOLERANCE)
        with ensemble.stack.running(rows=3, tokens=ids.numel(), members=slice(0, 1)):
            both = logits_at(ensemble.base, ids, places, extra_hidden=cached)
            alone = logits_at(ensemble.base, ids, places)
    torch.testing.assert_close(both[1], live, **TOLERANCE)
    torch.testing.assert_close(both[0], alone, **TOLERANCE)


@every_architecture
def test_head_on_given_states_passes_the_gradient_of_the_whole_pass_on(name: str) -> None:
    base = build(name).requires_grad_(False)
    ids, places = pad(random_rows([13, 7]))[0], Places(torch.tensor([0, 0, 1]), torch.tensor([3, 12, 5]))
    with torch.no_grad():
        hidden = hidden_at(base, ids, places)
    weights = torch.randn(3, len(tokenizer()))
    given, extra = hidden.clone().requires_grad_(), hidden.clone().requires_grad_()
    (head_logits(base, given) * weights).sum().backward()
    (logits_at(base, ids, places, extra_hidden=extra)[1] * weights).sum().backward()
    torch.testing.assert_close(given.grad, extra.grad, **TOLERANCE)
    assert float(given.grad.abs().max()) > 1e-3


@every_architecture
def test_training_leaves_the_base_bit_identical(name: str) -> None:
    base = build(name)
    before, names = parameters_of(base), [module for module, _ in base.named_modules()]
    rows = random_rows([13, 7, 9])
    expected = masked_logits(base, rows)
    ensemble = LoraEnsemble(base, tokenizer(), num_members=2, adapter=adapter_config(name))
    train(
        ensemble,
        letter_examples()[:4],
        TrainConfig(epochs=1, batch_size=2, learning_rate=1e-2),
        progress=False,
    )
    with ensemble.base_only() as untouched:
        inside = masked_logits(untouched, rows)
    with torch.no_grad():
        assert not torch.allclose(
            ensemble(torch.tensor([rows[0]]))[0, 0], expected[0], atol=1e-3
        )  # so the members did change
    unloaded = ensemble.unload()
    assert [module for module, _ in unloaded.named_modules()] == names
    assert parameters_of(unloaded).keys() == before.keys()
    assert all(torch.equal(tensor, before[key]) for key, tensor in parameters_of(unloaded).items())
    for logits in (inside, masked_logits(unloaded, rows)):
        assert all(torch.equal(one, other) for one, other in zip(logits, expected, strict=True))


@pytest.mark.parametrize("use_rslora", [False, True])
def test_ranks_and_alphas_by_pattern_scale_as_in_peft(use_rslora: bool, tmp_path: Path) -> None:
    config = LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "v_proj"],
        use_rslora=use_rslora,
        rank_pattern={"v_proj": 2, "layers.1.self_attn.q_proj": 6},
        alpha_pattern={"v_proj": 5},
        layers_to_transform=[1],
    )
    ensemble = build_ensemble(members=2, adapter=config, random_b=True)
    assert {site.rank for site in ensemble.stack.sites} == {2, 6}
    rows = random_rows([13, 7])
    ensemble.save_pretrained(tmp_path / "saved")
    with torch.no_grad():
        logits = ensemble(pad(rows)[0])
    for m in range(2):
        reference = PeftModel.from_pretrained(build("llama"), str(tmp_path / "saved" / f"member_{m:03d}"))
        for b, expected in enumerate(masked_logits(reference, rows)):
            torch.testing.assert_close(logits[m, b, : len(expected)], expected, **TOLERANCE)


def test_routed_experts_cannot_be_targets() -> None:
    # In transformers 5 the experts of a layer are one bare parameter, which PEFT reaches by target_parameters
    # only.
    config = LoraConfig(target_modules=["q_proj"], target_parameters=["mlp.experts.down_proj"])
    with pytest.raises(
        AdapterError, match=r"target_parameters=.*do not see one row per token of every member"
    ):
        LoraEnsemble(build("mixtral"), tokenizer(), adapter=config)


class RoutedLinear(torch.nn.Module):
    """An expert that sees only the tokens routed to it, as in models that keep their experts as modules."""

    def __init__(self, features: int):
        super().__init__()
        self.expert = torch.nn.Linear(features, features)

    def forward(self, hidden: Tensor) -> Tensor:
        result = torch.zeros_like(hidden)
        chosen = hidden[..., 0] > 0
        result[chosen] = self.expert(hidden[chosen])
        return result


def test_a_layer_that_sees_only_some_tokens_is_refused_when_the_ensemble_is_made() -> None:
    base = build("llama")
    base.model.layers[0].mlp = RoutedLinear(32)
    with pytest.raises(
        AdapterError, match=r"'model.layers.0.mlp.expert' got \d+ token vectors where the batch has 30"
    ):
        LoraEnsemble(base, tokenizer(), num_members=2, adapter=LoraConfig(target_modules=["expert"]))
    assert type(base.model.layers[0].mlp.expert) is torch.nn.Linear  # the base has its own layers back


class HeadlessLanguageModel(torch.nn.Module):
    """A body whose logits come from a product that no layer makes."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.model.get_output_embeddings()

    def forward(self, input_ids: Tensor, use_cache: bool) -> CausalLMOutputWithPast:
        hidden = self.model.model(input_ids=input_ids, use_cache=use_cache)[0]
        return CausalLMOutputWithPast(logits=hidden @ self.get_output_embeddings().weight.T)


@pytest.mark.parametrize("function", [logits_at, hidden_at])
def test_a_model_that_does_not_call_its_head_is_refused(
    function: Callable[[torch.nn.Module, Tensor, Places], Tensor],
) -> None:
    model = HeadlessLanguageModel(build("llama"))
    with pytest.raises(AdapterError, match="HeadlessLanguageModel calls its output head 0 times"):
        function(model, torch.tensor([[4, 5, 6]]), Places(torch.tensor([0]), torch.tensor([2])))
