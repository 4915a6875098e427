"""Adapters that PEFT trained and saved, as one ensemble; and members of an ensemble, opened by PEFT.

Tolerance 1e-5 on logits of size 1 to 5: fp32 sums of some dozen terms in another order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor

from lora_ensembles import LoraEnsemble, TrainConfig, train
from lora_ensembles.errors import AdapterError, ConfigError
from tiny_models import (
    adapter_config,
    build,
    build_ensemble,
    letter_examples,
    pad,
    random_rows,
    randomise_b,
    tokenizer,
)

Q_V = ["q_proj", "v_proj"]
ROWS = [13, 7, 9]
TOLERANCE = dict(atol=1e-5, rtol=1e-5)
FAMILIES: dict[str, list[dict[str, Any]]] = {
    "equal": [dict(r=4, lora_alpha=8), dict(r=4, lora_alpha=8)],
    "ranks": [dict(r=2, lora_alpha=8), dict(r=6, lora_alpha=8), dict(r=1, lora_alpha=8)],
    "alphas": [dict(r=4, lora_alpha=1), dict(r=4, lora_alpha=32)],
    "rslora_and_plain": [
        dict(r=4, lora_alpha=8, use_rslora=True),
        dict(r=4, lora_alpha=8),
        dict(r=3, lora_alpha=7, use_rslora=True),
    ],
    "pattern_in_the_second": [
        dict(r=4, lora_alpha=8),
        dict(r=4, lora_alpha=8, rank_pattern={"v_proj": 2}, alpha_pattern={"q_proj": 3}),
    ],
    "pattern_in_the_first": [
        dict(r=4, lora_alpha=8, rank_pattern={"layers.1.self_attn.q_proj": 6}, alpha_pattern={"v_proj": 5}),
        dict(r=5, lora_alpha=10),
        dict(r=4, lora_alpha=8),
    ],
    "patterns_with_rslora": [
        dict(r=4, lora_alpha=8, use_rslora=True, rank_pattern={"v_proj": 2}),
        dict(r=2, lora_alpha=6, alpha_pattern={r"layers\.0\..*v_proj": 9}),
    ],
    "targets_written_in_two_ways": [
        dict(r=4, lora_alpha=8),
        dict(r=4, lora_alpha=8, target_modules=r".*\.self_attn\.(q|v)_proj"),
    ],
    "some_layers_only": [
        dict(r=2, lora_alpha=4, layers_to_transform=[1]),
        dict(r=4, lora_alpha=4, layers_to_transform=[1]),
    ],
    "dropout": [dict(r=4, lora_alpha=8, lora_dropout=0.5), dict(r=4, lora_alpha=8)],
}


def save_by_peft(folder: Path, settings: dict[str, Any], *, name: str = "llama", seed: int) -> Path:
    """An adapter as PEFT saves it, with a B that is not zero."""
    torch.manual_seed(seed)
    model = get_peft_model(
        build(name), LoraConfig(**({"target_modules": Q_V, "task_type": "CAUSAL_LM"} | settings))
    )
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if ".lora_B." in key:
                parameter.normal_(std=0.2)
    path = folder / f"adapter_{seed}"
    model.save_pretrained(str(path))
    return path


@torch.no_grad()
def peft_logits(path: Path, *, name: str = "llama") -> list[Tensor]:
    rows = random_rows(ROWS)
    ids, mask = pad(rows)
    logits = (
        PeftModel.from_pretrained(build(name), str(path)).eval()(input_ids=ids, attention_mask=mask).logits
    )
    return [logits[n, : len(row)] for n, row in enumerate(rows)]


def assert_gives_pefts_logits(ensemble: LoraEnsemble, paths: list[Path], *, name: str = "llama") -> None:
    with torch.no_grad():
        logits = ensemble(pad(random_rows(ROWS))[0])
    assert len(logits) == len(paths)
    for m, path in enumerate(paths):
        for b, expected in enumerate(peft_logits(path, name=name)):
            torch.testing.assert_close(logits[m, b, : len(expected)], expected, **TOLERANCE)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_of_peft_become_an_ensemble_whose_members_peft_opens_again(
    family: str, tmp_path: Path
) -> None:
    paths = [save_by_peft(tmp_path, settings, seed=seed) for seed, settings in enumerate(FAMILIES[family])]
    ensemble = LoraEnsemble.from_adapters(build("llama"), tokenizer(), paths)
    assert_gives_pefts_logits(ensemble, paths)
    ensemble.save_pretrained(tmp_path / "saved")
    members = [tmp_path / "saved" / f"member_{m:03d}" for m in range(len(paths))]
    assert_gives_pefts_logits(ensemble, members)
    loaded = LoraEnsemble.from_pretrained(tmp_path / "saved", base=build("llama"), tokenizer=tokenizer())
    assert_gives_pefts_logits(loaded, members)


@pytest.mark.parametrize("name", ["gpt2", "phi3", "gpt_neox", "mixtral"])
def test_adapters_of_other_architectures_load_and_save(name: str, tmp_path: Path) -> None:
    shape = adapter_config(name)
    common = dict(target_modules=list(shape.target_modules or ()), fan_in_fan_out=shape.fan_in_fan_out)
    paths = [
        save_by_peft(tmp_path, common | dict(r=rank, lora_alpha=5), name=name, seed=rank) for rank in (2, 3)
    ]
    ensemble = LoraEnsemble.from_adapters(build(name), tokenizer(), paths)
    assert_gives_pefts_logits(ensemble, paths, name=name)
    ensemble.save_pretrained(tmp_path / "saved")
    assert_gives_pefts_logits(ensemble, [tmp_path / "saved" / f"member_{m:03d}" for m in range(2)], name=name)


def test_transposed_weights_of_gpt2_keep_their_flag_on_disk(tmp_path: Path) -> None:
    # Without fan_in_fan_out, PEFT would multiply the wrong way where it merges, and warns where it loads.
    build_ensemble("gpt2", members=1, random_b=True).save_pretrained(tmp_path / "saved")
    opened = PeftModel.from_pretrained(build("gpt2"), str(tmp_path / "saved" / "member_000"))
    assert opened.peft_config["default"].fan_in_fan_out is True
    ids = torch.tensor(random_rows([9]))
    with torch.no_grad():
        expected = opened(input_ids=ids).logits
        torch.testing.assert_close(opened.merge_and_unload()(input_ids=ids).logits, expected, **TOLERANCE)


def test_only_lora_weights_are_on_disk_and_none_is_named_default(tmp_path: Path) -> None:
    ensemble = build_ensemble(members=2, random_b=True)
    ensemble.save_pretrained(tmp_path / "saved")
    names = {str(path.relative_to(tmp_path / "saved")) for path in (tmp_path / "saved").rglob("*")}
    folders = {f"member_{m:03d}" for m in range(2)}
    files = {
        f"{folder}/{file}"
        for folder in folders
        for file in ("adapter_config.json", "adapter_model.safetensors")
    }
    assert folders | files <= names
    assert names - folders - files == {"ensemble.json", "README.md"}


def test_an_ensemble_saved_in_bf16_opens_in_peft_with_rounded_weights(tmp_path: Path) -> None:
    ensemble = build_ensemble(members=2, random_b=True)
    ensemble.save_pretrained(tmp_path / "saved", dtype=torch.bfloat16)
    for flat in (ensemble.stack.a, ensemble.stack.b):
        flat.copy_(flat.bfloat16())  # the reference is the ensemble of the rounded weights
    assert_gives_pefts_logits(ensemble, [tmp_path / "saved" / f"member_{m:03d}" for m in range(2)])


def test_members_of_mixed_ranks_stay_inside_their_ranks_while_they_train(tmp_path: Path) -> None:
    # The smaller member is padded with zeros; weight there would be lost on disk.
    paths = [save_by_peft(tmp_path, dict(r=rank, lora_alpha=8), seed=rank) for rank in (2, 6)]
    ensemble = LoraEnsemble.from_adapters(build("llama"), tokenizer(), paths)
    train(
        ensemble, letter_examples(), TrainConfig(epochs=2, batch_size=4, learning_rate=3e-3), progress=False
    )
    for site in ensemble.stack.sites:
        assert not site.view_a(ensemble.stack.a)[0, 2:].any()
        assert not site.view_b(ensemble.stack.b)[0, :, 2:].any()
    ensemble.save_pretrained(tmp_path / "saved")
    assert_gives_pefts_logits(ensemble, [tmp_path / "saved" / f"member_{m:03d}" for m in range(2)])


def test_one_adapter_path_loaded_into_every_member_is_refused(tmp_path: Path) -> None:
    path = save_by_peft(tmp_path, FAMILIES["equal"][0], seed=0)
    (tmp_path / "link").symlink_to(path)
    for again in (path, tmp_path / "link", path / ".." / path.name):
        with pytest.raises(ConfigError, match="none twice"):
            LoraEnsemble.from_adapters(build("llama"), tokenizer(), [path, again])


def test_a_saved_ensemble_reloads_with_every_member_of_its_own(tmp_path: Path) -> None:
    ensemble = build_ensemble(members=4, random_b=True)
    ensemble.save_pretrained(tmp_path / "saved")
    loaded = LoraEnsemble.from_pretrained(
        tmp_path / "saved", base=build("llama"), tokenizer=tokenizer(), members=[3, 1]
    )
    ids = torch.tensor(random_rows([9]))
    with torch.no_grad():
        expected, found = ensemble(ids), loaded(ids)
    torch.testing.assert_close(found, expected[[3, 1]], **TOLERANCE)
    assert not torch.allclose(found[0], found[1], atol=1e-2)


def test_adapters_of_other_targets_or_another_base_do_not_stack(tmp_path: Path) -> None:
    path = save_by_peft(tmp_path, dict(r=4), seed=0)
    other = save_by_peft(tmp_path, dict(r=4, target_modules=["q_proj"]), seed=1)
    with pytest.raises(AdapterError, match="adapt different layers"):
        LoraEnsemble.from_adapters(build("llama"), tokenizer(), [path, other])
    with pytest.raises(AdapterError, match="which the base model does not have"):
        LoraEnsemble.from_adapters(build("gpt2"), tokenizer(), [path])


def test_randomised_members_differ() -> None:
    # The fixture itself: parity on members that equal the base would show nothing.
    ensemble = build_ensemble(members=2)
    randomise_b(ensemble)
    with torch.no_grad():
        logits = ensemble(torch.tensor(random_rows([9])))
    assert not torch.allclose(logits[0], logits[1], atol=0.1)
