"""An ensemble on disk: the round trip, PEFT's view of it, and every way in which a folder can be wrong."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from lora_ensembles.ensemble import LoraEnsemble
from lora_ensembles.errors import AdapterError, CheckpointError, ConfigError, DataError, LoraEnsemblesError
from lora_ensembles.prediction.prediction import predict
from lora_ensembles.storage.model_card import render_model_card
from tiny_ensembles import (
    adapter,
    ensemble,
    files_below,
    largest_file,
    llama,
    questions,
    same_state,
    state,
    tokenizer,
)

IDS = torch.tensor([[1, 5, 7, 9], [1, 8, 4, 0]])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A trained ensemble of three members on disk."""
    ensemble(members=3, trained=True).save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def load(path: Path, *, members: list[int] | None = None) -> LoraEnsemble:
    return LoraEnsemble.from_pretrained(path, base=llama(), tokenizer=tokenizer(), members=members)


def change_description(path: Path, change: Callable[[dict], None]) -> None:
    content = json.loads((path / "ensemble.json").read_text())
    change(content)
    (path / "ensemble.json").write_text(json.dumps(content))


def peft_adapter(
    folder: Path, *, base: str = "tiny/llama", rank: int = 2, targets: tuple[str, ...] = ("q_proj", "v_proj")
) -> Path:
    """An adapter made and saved by PEFT alone."""
    model = get_peft_model(llama(), adapter(rank=rank, alpha=8, targets=targets))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


@torch.no_grad()
def test_saved_ensemble_comes_back_with_the_same_weights_seeds_and_answers(saved: Path) -> None:
    made, loaded = ensemble(members=3, trained=True), load(saved)

    assert loaded.info == made.info
    assert torch.equal(loaded.stack.a, made.stack.a)
    assert torch.equal(loaded.stack.b, made.stack.b)
    assert loaded.stack.scaling == made.stack.scaling
    assert torch.equal(loaded(IDS), made(IDS))


def test_loaded_ensemble_grows_by_the_members_that_the_first_would_have_got(saved: Path) -> None:
    loaded, whole = load(saved), ensemble(members=5)
    loaded.add_members(2)

    assert loaded.info.seeds == whole.info.seeds
    assert torch.equal(loaded.stack.a[3:], whole.stack.a[3:])


@torch.no_grad()
def test_members_can_be_loaded_alone_and_in_another_order(saved: Path) -> None:
    whole, some = load(saved), load(saved, members=[2, 0])

    assert some.num_members == 2
    assert some.info.seeds == (whole.info.seeds[2], whole.info.seeds[0])
    assert torch.equal(some(IDS), whole(IDS)[[2, 0]])


@pytest.mark.parametrize("members", [[3], [-1], [], [0, 0]])
def test_members_that_are_not_there_or_come_twice_are_refused(saved: Path, members: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"it holds members 0 to 2: pass some of them, none twice"):
        load(saved, members=members)


def test_what_an_ensemble_knows_of_its_task_and_prompts_is_kept(tmp_path: Path) -> None:
    made = ensemble()
    made.info = dataclasses.replace(
        made.info, task={"name": "obqa", "metrics": {"accuracy": 0.5}}, overlong="left"
    )
    made.save_pretrained(tmp_path / "saved")

    assert load(tmp_path / "saved").info == made.info


@torch.no_grad()
def test_every_member_folder_opens_in_peft_with_the_same_logits(saved: Path) -> None:
    logits = load(saved)(IDS)

    for member in range(3):
        model = PeftModel.from_pretrained(llama(), str(saved / f"member_{member:03d}"))
        torch.testing.assert_close(
            model(IDS).logits, logits[member], rtol=0, atol=1e-5
        )  # fp32 sums in another order


def test_saved_folder_holds_plain_adapters_a_card_and_nothing_pickled(saved: Path) -> None:
    members = {
        f"member_00{m}/{name}"
        for m in range(3)
        for name in ("adapter_config.json", "adapter_model.safetensors")
    }

    assert files_below(saved) == {
        "ensemble.json",
        "README.md",
        *members,
        *(f"member_00{m}" for m in range(3)),
    }


def test_adapters_can_be_saved_in_half_the_bytes(tmp_path: Path) -> None:
    made = ensemble(members=1, trained=True)
    made.save_pretrained(tmp_path / "half", dtype=torch.bfloat16)

    assert {
        tensor.dtype
        for tensor in load_file(tmp_path / "half" / "member_000" / "adapter_model.safetensors").values()
    } == {torch.bfloat16}
    assert torch.equal(load(tmp_path / "half").stack.b, made.stack.b.bfloat16().float())


def test_existing_folder_is_refused_and_left_alone(saved: Path) -> None:
    before = (saved / "ensemble.json").read_bytes()

    with pytest.raises(CheckpointError, match=r"saved exists already; choose another folder"):
        ensemble().save_pretrained(saved)
    assert (saved / "ensemble.json").read_bytes() == before


@pytest.mark.parametrize(
    "size", [10, 700, 2000]
)  # ensemble.json, a config and the weights are the first that do not fit
def test_no_space_while_saving_leaves_nothing_behind(tmp_path: Path, size: int) -> None:
    made = ensemble(members=2, base=llama(hidden=128))

    with pytest.raises(CheckpointError, match=r"no space left to write .*saved"), largest_file(size):
        made.save_pretrained(tmp_path / "saved")
    assert files_below(tmp_path) == set()


def test_missing_folder_and_folder_without_an_ensemble_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone is no folder; pass the one that `save_pretrained`"):
        load(tmp_path / "gone")
    with pytest.raises(
        CheckpointError,
        match=r"holds no ensemble\.json; PEFT adapters trained elsewhere are read by .*from_adapters",
    ):
        load(tmp_path)


@pytest.mark.parametrize("text", ["", '{"format_version": 1, "base"', "\x00\xff"])
def test_description_that_is_no_json_is_refused(saved: Path, text: str) -> None:
    (saved / "ensemble.json").write_bytes(text.encode("latin-1"))

    with pytest.raises(CheckpointError, match=r"ensemble\.json is not JSON .*corrupt or cut short"):
        load(saved)


@pytest.mark.parametrize("version", [2, None, "1"])
def test_other_format_version_is_refused_with_both_versions(saved: Path, version: object) -> None:
    change_description(saved, lambda content: content.update(format_version=version))

    with pytest.raises(
        CheckpointError, match=rf"has format version {version}, this library reads 1; update lora-ensembles"
    ):
        load(saved)


@pytest.mark.parametrize("key", ["members", "base", "seed", "next_index"])
def test_description_that_lacks_something_is_refused_by_its_name(saved: Path, key: str) -> None:
    change_description(saved, lambda content: content.pop(key))

    with pytest.raises(CheckpointError, match=rf"ensemble\.json: {key} is missing; correct it"):
        load(saved)


def test_description_that_is_a_list_is_refused(saved: Path) -> None:
    (saved / "ensemble.json").write_text("[]")

    with pytest.raises(CheckpointError, match="format version None"):
        load(saved)


def test_missing_member_folder_is_named(saved: Path) -> None:
    (saved / "member_001").rename(saved.parent / "elsewhere")

    with pytest.raises(
        CheckpointError, match=r"member_001 is no PEFT adapter folder: it has no adapter_config\.json"
    ):
        load(saved)
    assert load(saved, members=[0, 2]).num_members == 2


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.99])
def test_weights_that_are_cut_short_are_refused(saved: Path, share: float) -> None:
    path = saved / "member_001" / "adapter_model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])

    with pytest.raises(
        CheckpointError, match=r"member_001.adapter_model\.safetensors is corrupt or cut short"
    ):
        load(saved)


def test_corrupt_weights_are_refused(saved: Path) -> None:
    (saved / "member_000" / "adapter_model.safetensors").write_bytes(b"not weights at all" * 100)

    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is corrupt or cut short"):
        load(saved)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[1, 2]", r": the file is \[1, 2\]; it has to be an object"),
        ('{"peft_type": "NONSENSE"}', "cannot be read"),
        ('{"peft_type": "LORA", "r": "x"}', ": r is 'x'; it has to be a whole number from 1"),
        ('{"peft_type": "LORA", "lora_alpha": null}', ": lora_alpha is None; it has to be a number"),
        ('{"peft_type": "LORA", "rank_pattern": {"(": 2}}', r": a name in rank_pattern is '\('.* no regular"),
    ],
)
def test_adapter_config_that_cannot_be_read_is_refused(saved: Path, text: str, message: str) -> None:
    (saved / "member_000" / "adapter_config.json").write_text(text)

    with pytest.raises(CheckpointError, match=rf"member_000.adapter_config\.json( |){message}"):
        load(saved)


@pytest.mark.filterwarnings("ignore")  # PEFT warns of some of them before it gives up
def test_options_within_an_option_that_peft_does_not_know_never_end_in_a_foreign_error(saved: Path) -> None:
    """PEFT tries some such configs again and again, until Python has no room left."""
    path = saved / "member_000" / "adapter_config.json"
    content, refused = json.loads(path.read_text()), set()
    for name in [name for name in content if name.endswith("_config")]:
        path.write_text(json.dumps(content | {name: {"unknown": 1}}))
        try:
            load(saved)
        except (CheckpointError, AdapterError):
            refused.add(name)

    assert {"megatron_config", "eva_config"} <= refused


def test_initialisation_whose_package_may_be_missing_is_refused(saved: Path) -> None:
    path = saved / "member_000" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": "loftq"}))

    with pytest.raises((CheckpointError, AdapterError), match=r"cannot be read|cannot be stacked"):
        load(saved)


def test_weights_in_a_pickle_are_never_read(saved: Path) -> None:
    path = saved / "member_000" / "adapter_model.safetensors"
    torch.save(load_file(path), path.with_name("adapter_model.bin"))
    path.unlink()

    with pytest.raises(
        CheckpointError, match=r"has no adapter_model\.safetensors; adapters saved as pickle are not read"
    ):
        load(saved)
    with pytest.raises(CheckpointError, match="adapters saved as pickle are not read"):
        LoraEnsemble.from_adapters(llama(), tokenizer(), [path.parent])


def test_base_of_other_weights_is_refused_unless_it_is_meant(saved: Path) -> None:
    with pytest.raises(
        AdapterError,
        match=r"trained on base 'tiny/llama' \(fingerprint [\w-]+\), the base given "
        r"is 'tiny/other'.*check_base=False",
    ):
        LoraEnsemble.from_pretrained(saved, base=llama(seed=1, name="tiny/other"), tokenizer=tokenizer())
    LoraEnsemble.from_pretrained(saved, base=llama(seed=1), tokenizer=tokenizer(), check_base=False)


def test_base_into_which_an_adapter_was_merged_is_another_base(saved: Path) -> None:
    base = llama()
    with torch.no_grad():
        base.model.layers[0].self_attn.q_proj.weight += 0.5

    with pytest.raises(AdapterError, match="load the right base"):
        LoraEnsemble.from_pretrained(saved, base=base, tokenizer=tokenizer())


def test_base_in_lower_precision_or_under_another_name_is_the_same_base(saved: Path) -> None:
    for base in (llama(name="folder/copy"), llama().bfloat16()):
        assert LoraEnsemble.from_pretrained(saved, base=base, tokenizer=tokenizer()).num_members == 3


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (
            {"hidden": 32, "layers": 2},
            "maps 32 to 32 features, the adapter 16 to 16; it was trained on another base",
        ),
        ({}, "does not have; is this its base"),
    ],
    ids=["other width", "fewer layers"],
)
def test_base_of_another_shape_is_refused_by_the_layer_even_without_the_check(
    tmp_path: Path, base: dict, message: str
) -> None:
    ensemble(members=1, base=llama(layers=2)).save_pretrained(tmp_path / "saved")
    given = llama(**base)
    before = state(given)

    with pytest.raises(AdapterError, match=rf"layer.*'model\.layers\.\d\..*{message}"):
        LoraEnsemble.from_pretrained(tmp_path / "saved", base=given, tokenizer=tokenizer(), check_base=False)
    assert same_state(given, before)


def test_base_without_a_name_must_be_passed(tmp_path: Path) -> None:
    ensemble(base=llama(name="")).save_pretrained(tmp_path / "saved")

    with pytest.raises(
        DataError, match=r"base was built in code and has no name to load it by; pass base= and tokenizer="
    ):
        LoraEnsemble.from_pretrained(tmp_path / "saved")


def test_base_that_is_gone_is_named(saved: Path) -> None:
    with pytest.raises(DataError, match="base model 'tiny/llama' cannot be loaded"):
        LoraEnsemble.from_pretrained(saved)


def test_base_is_found_by_the_name_that_was_recorded(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path / "base")
    tokenizer().save_pretrained(tmp_path / "base")
    ensemble(trained=True, base=llama(name=str(tmp_path / "base"))).save_pretrained(tmp_path / "saved")

    loaded = LoraEnsemble.from_pretrained(tmp_path / "saved")

    expected = predict(ensemble(trained=True), questions(3)).member_log_probs
    torch.testing.assert_close(predict(loaded, questions(3)).member_log_probs, expected, rtol=0, atol=1e-6)


@torch.no_grad()
def test_adapters_of_other_ranks_trained_by_peft_answer_as_in_peft(tmp_path: Path) -> None:
    paths = [peft_adapter(tmp_path / f"rank{rank}", rank=rank) for rank in (2, 5)]
    made = LoraEnsemble.from_adapters(llama(), tokenizer(), paths)

    for member, path in enumerate(paths):
        torch.testing.assert_close(
            made(IDS)[member], PeftModel.from_pretrained(llama(), str(path))(IDS).logits, rtol=0, atol=1e-5
        )


@torch.no_grad()
def test_ensemble_of_adapters_of_other_ranks_survives_a_round_trip(tmp_path: Path) -> None:
    made = LoraEnsemble.from_adapters(
        llama(), tokenizer(), [peft_adapter(tmp_path / f"rank{rank}", rank=rank) for rank in (2, 5)]
    )
    made.save_pretrained(tmp_path / "saved")

    assert torch.equal(load(tmp_path / "saved")(IDS), made(IDS))
    for member in range(2):
        model = PeftModel.from_pretrained(llama(), str(tmp_path / "saved" / f"member_{member:03d}"))
        torch.testing.assert_close(model(IDS).logits, made(IDS)[member], rtol=0, atol=1e-5)


def test_same_folder_twice_or_none_is_refused(tmp_path: Path) -> None:
    path = peft_adapter(tmp_path / "one")

    for paths in ([path, tmp_path / "one" / ".." / "one"], []):
        with pytest.raises(ConfigError, match="pass at least one adapter folder, and none twice"):
            LoraEnsemble.from_adapters(llama(), tokenizer(), paths)


def test_adapter_that_names_another_base_is_refused_unless_it_is_meant(tmp_path: Path) -> None:
    paths = [peft_adapter(tmp_path / "one"), peft_adapter(tmp_path / "two", base="other/gpt")]

    with pytest.raises(
        AdapterError,
        match=r"two was trained on base 'other/gpt', the base given is 'tiny/llama'; .*check_base=False",
    ):
        LoraEnsemble.from_adapters(llama(), tokenizer(), paths)
    assert LoraEnsemble.from_adapters(llama(), tokenizer(), paths, check_base=False).num_members == 2


def test_folder_and_hub_name_of_one_base_are_the_same(tmp_path: Path) -> None:
    path = peft_adapter(tmp_path / "one", base="/models/llama/")

    assert LoraEnsemble.from_adapters(llama(name="tiny/llama"), tokenizer(), [path]).num_members == 1


@pytest.mark.parametrize("targets", [("q_proj",), ("q_proj", "v_proj", "k_proj")])
def test_adapters_of_other_target_modules_do_not_make_an_ensemble(
    tmp_path: Path, targets: tuple[str, ...]
) -> None:
    paths = [peft_adapter(tmp_path / "one"), peft_adapter(tmp_path / "two", targets=targets)]
    base = llama()
    before = state(base)

    with pytest.raises(
        AdapterError,
        match="the members adapt different layers; an ensemble needs the same target modules in every member",
    ):
        LoraEnsemble.from_adapters(base, tokenizer(), paths)
    assert same_state(base, before)


def test_adapter_for_a_layer_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = peft_adapter(tmp_path / "one", targets=("down_proj",))
    base = llama()
    base.model.layers[0].mlp.down_proj = torch.nn.Identity()

    with pytest.raises(
        AdapterError, match=r"layer 'model\.layers\.0\.mlp\.down_proj', which is a Identity in this base"
    ):
        LoraEnsemble.from_adapters(base, tokenizer(), [path])


def test_adapter_that_cannot_be_stacked_is_refused_by_its_option(tmp_path: Path) -> None:
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj"], use_dora=True))
    model.peft_config["default"].base_model_name_or_path = "tiny/llama"
    model.save_pretrained(str(tmp_path / "dora"), save_embedding_layers=False)

    with pytest.raises(AdapterError, match=r"LoraConfig\(use_dora=True\) cannot be stacked: DoRA rescales"):
        LoraEnsemble.from_adapters(llama(), tokenizer(), [tmp_path / "dora"])


def test_model_card_states_base_members_task_metrics_and_how_to_load(tmp_path: Path) -> None:
    made = ensemble(members=3)
    made.info = dataclasses.replace(
        made.info, task={"name": "obqa", "metrics": {"accuracy": 0.85, "nll": 0.5812345, "ood_auroc": None}}
    )
    made.save_pretrained(tmp_path / "saved")
    card = (tmp_path / "saved" / "README.md").read_text()

    header = card.split("---\n")[1]
    assert "base_model: tiny/llama\n" in header
    assert "library_name: peft\n" in header
    for words in (
        "3 members on tiny/llama",
        "Task: obqa.",
        "| accuracy | 0.85 |",
        "| nll | 0.5812 |",
        "LoraEnsemble.from_pretrained(",
        "PeftModel",
    ):
        assert words in card
    assert "ood_auroc" not in card


@pytest.mark.parametrize("base", ["", "/models/llama", "./llama", "a/b/c"])
def test_model_card_names_no_base_that_the_hub_could_not_have(base: str) -> None:
    """The hub refuses a card whose `base_model` is no repository name."""
    assert "base_model" not in render_model_card(base, members=2, task={}).split("---\n")[1]


def test_upload_without_a_network_is_an_error_that_says_so() -> None:
    with pytest.raises(
        LoraEnsemblesError,
        match=r"upload to 'me/ensemble' failed: .*offline mode.*is there a network, "
        r"and a token that may write",
    ):
        ensemble().push_to_hub("me/ensemble")


def test_upload_to_a_server_that_does_not_answer_is_an_error_that_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        constants, "ENDPOINT", "http://127.0.0.1:9"
    )  # the discard port: nothing listens there

    with pytest.raises(LoraEnsemblesError, match=r"upload to 'me/ensemble' failed: .*is there a network"):
        ensemble().push_to_hub("me/ensemble", token="hf_none")


@pytest.mark.parametrize("name", ["a/b/c", "-bad-/name", "two words"])
def test_upload_to_a_name_that_cannot_be_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"'{name}' is no repository name"):
        ensemble().push_to_hub(name)
