"""Every row of docs/errors.md: the real mistake is made, and class and message are those that the
table says.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file as load_tensors, save_file as save_tensors
from transformers import BertForMultipleChoice, GenerationConfig

import tiny_heads as heads
import tiny_models as models
from lora_ensembles import errors
from lora_ensembles.baselines import BatchEnsemble
from lora_ensembles.cli import main
from lora_ensembles.cli.program import VERBS, parse
from lora_ensembles.data import (
    Completion,
    Example,
    Task,
    encode_completions,
    load_completions,
    load_file,
    load_preferences,
    load_task,
)
from lora_ensembles.disk.claimed import FolderLock
from lora_ensembles.embedded import load_base
from lora_ensembles.ensemble import LoraEnsemble
from lora_ensembles.generation.text import generate_text
from lora_ensembles.heads import HeadConfig, predict_rewards
from lora_ensembles.prediction.plots import reliability
from lora_ensembles.prediction.prediction import Prediction, predict
from lora_ensembles.training.adapters import train
from lora_ensembles.training.config import TrainConfig
from tiny_ensembles import (
    WINDOW,
    adapter,
    ensemble,
    largest_file,
    llama,
    no_memory_left,
    questions,
    tokenizer,
)

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "errors.md"
GOOD = {"question": "The sun is a", "options": ["planet", "star", "moon"], "answer": "star"}
OPEN = {"id": "1", "prompt": "Q: Where do otters live?\nA:", "completion": " In rivers."}
CHAT = {
    "id": "1",
    "messages": [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi!"}],
}
FEW_TOKENS = GenerationConfig(max_new_tokens=4)
SHORT = TrainConfig(epochs=1, batch_size=4, learning_rate=1e-2)


@dataclass(frozen=True)
class Row:
    """One row of the table."""

    error: type[Exception]
    message: str
    advice: str

    @property
    def pattern(self) -> str:
        """The message with `...` for any text."""
        return ".*".join(map(re.escape, self.message.split("...")))


def documented() -> dict[str, Row]:
    """The rows of all tables, by their id."""
    found: dict[str, Row] = {}
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not line.startswith("|") or len(cells) != 5 or cells[0] in ("id", "---"):
            continue
        name, _given, error, message, advice = cells
        assert name not in found, f"{name} stands in the table twice"
        found[name] = Row(getattr(errors, error), message.removeprefix("`").removesuffix("`"), advice)
    return found


PROVOKERS: dict[str, Callable[[Path], object]] = {}


def provokes(name: str) -> Callable[[Callable[[Path], object]], Callable[[Path], object]]:
    """Register the mistake that a row is about; it gets an empty folder."""

    def register(function: Callable[[Path], object]) -> Callable[[Path], object]:
        PROVOKERS[name] = function
        return function

    return register


def write_lines(folder: Path, *lines: object) -> Path:
    path = folder / "data.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def run_verb(words: list[str]) -> object:
    args = parse(words)
    return VERBS[args.verb].run(args)


def saved(folder: Path, *, members: int = 2) -> Path:
    ensemble(members=members).save_pretrained(folder / "saved")
    return folder / "saved"


def load(path: Path, *, base: torch.nn.Module | None = None, check_base: bool = True) -> LoraEnsemble:
    return LoraEnsemble.from_pretrained(
        path, base=base or llama(), tokenizer=tokenizer(), check_base=check_base
    )


def made(config: LoraConfig, *, members: int = 2, seed: object = 0) -> LoraEnsemble:
    return LoraEnsemble(
        llama(),
        tokenizer(),
        num_members=members,
        adapter=config,
        seed=seed,  # type: ignore[arg-type]
    )


def peft_adapter(
    folder: Path, *, base: str = "tiny/llama", targets: tuple[str, ...] = ("q_proj", "v_proj")
) -> Path:
    model = get_peft_model(llama(), adapter(targets=targets))
    model.peft_config["default"].base_model_name_or_path = base
    model.save_pretrained(str(folder), save_embedding_layers=False)
    return folder


def trained(
    config: TrainConfig = SHORT,
    *,
    on: LoraEnsemble | None = None,
    out: Path | None = None,
    resume: bool = False,
) -> object:
    return train(on or ensemble(), questions(8), config, out=out, resume=resume, progress=False)


# Tasks, models and data

provokes("unknown-task")(lambda folder: load_task("obqaa"))
provokes("unknown-model")(lambda folder: load_base("tiny/lama"))
provokes("unknown-column")(
    lambda folder: load_file(write_lines(folder, {"qestion": "?", "options": ["a", "b"], "answer": "a"}))
)
provokes("missing-file")(lambda folder: load_file(folder / "gone.jsonl"))
provokes("empty-file")(lambda folder: load_file(write_lines(folder)))
provokes("bad-line")(lambda folder: load_file(write_lines(folder, GOOD, '{"question": "cut')))
provokes("duplicate-option")(
    lambda folder: load_file(write_lines(folder, GOOD, {**GOOD, "options": ["star", "moon", "star"]}))
)
provokes("duplicate-label")(lambda folder: load_file(write_lines(folder, GOOD), labels=["yes", "no", "yes"]))
provokes("label-not-in-options")(
    lambda folder: load_file(write_lines(folder, GOOD, {**GOOD, "answer": "sun"}))
)
provokes("no-examples")(lambda folder: train(ensemble(), [], SHORT, progress=False))


@provokes("unreadable-file")
def _unreadable(folder: Path) -> object:
    path = write_lines(folder, GOOD)
    path.write_bytes(path.read_bytes() + '{"question": "café'.encode("latin-1"))
    return load_file(path)


@provokes("overlong-prompt")
def _overlong(folder: Path) -> object:
    long = Example("long", "otter " * WINDOW + questions(1)[0].prompt, ("a", "b"), 0)
    return train(ensemble(), [long], SHORT, progress=False)


@provokes("unlabelled-example")
def _unlabelled(folder: Path) -> object:
    examples = questions(4)
    return train(
        ensemble(), [*examples[:2], dataclasses.replace(examples[2], target=None)], SHORT, progress=False
    )


provokes("empty-completion")(
    lambda folder: load_completions(write_lines(folder, OPEN, {**OPEN, "completion": " "}))
)
provokes("unanswered-chat")(
    lambda folder: load_completions(write_lines(folder, CHAT, {"messages": CHAT["messages"][:1]}))
)
provokes("no-chat-template")(
    lambda folder: encode_completions(load_completions(write_lines(folder, CHAT)), load_base()[1])
)
provokes("no-end-token")(
    lambda folder: train(ensemble(), load_completions(write_lines(folder, OPEN)), SHORT, progress=False)
)
provokes("merged-completion")(
    lambda folder: encode_completions([Completion("1", "It lives in ", "rivers")], load_base()[1])
)
provokes("unknown-completion")(
    lambda folder: encode_completions([Completion("1", "It lives in", None)], load_base()[1])
)


@provokes("mixed-examples")
def _mixed(folder: Path) -> object:
    return train(
        ensemble(), [*questions(2), Completion("1", "It lives in", " rivers")], SHORT, progress=False
    )  # type: ignore[list-item]


# Settings


@provokes("options-of-open-answers")
def _options_of_open_answers(folder: Path) -> object:
    return run_verb(
        [
            "train",
            "--train",
            str(write_lines(folder, OPEN)),
            "--labels",
            "yes,no",
            "--out",
            str(folder / "out"),
        ]
    )


@provokes("predict-open-answers")
def _predict_open_answers(folder: Path) -> object:
    made = ensemble()
    made.info = dataclasses.replace(made.info, task={"source": {"train": "data.jsonl", "open_ended": True}})
    made.save_pretrained(folder / "saved")
    return run_verb(["predict", str(folder / "saved"), "--in", str(write_lines(folder, OPEN))])


provokes("task-for-examples")(
    lambda folder: predict(ensemble(), Task("animals", tuple(questions(2)), tuple(questions(2))))
)
provokes("texts-without-classes")(lambda folder: predict(ensemble(), ["otter"]))
provokes("too-many-members")(lambda folder: made(adapter(), members=10**10))
provokes("wrong-seed")(lambda folder: made(adapter(), seed="a"))
provokes("wrong-scaling")(lambda folder: made(adapter(alpha=0)))
provokes("rank-too-large")(lambda folder: made(adapter(rank=100_000)))
provokes("no-tokenizer")(
    lambda folder: LoraEnsemble(llama(), None, adapter=adapter())  # type: ignore[arg-type]
)
provokes("wrong-decoding")(
    lambda folder: generate_text(ensemble(), "otter", GenerationConfig(do_sample=True, top_p=2.0))
)
provokes("probabilities")(lambda folder: Prediction(torch.full((1, 2, 2), 0.5)))


@provokes("other-kind-of-base")
def _other_kind(folder: Path) -> object:
    heads.build_ensemble("llama", "sequence-classification", members=1).save_pretrained(folder / "saved")
    return load(folder / "saved", base=llama())


provokes("no-members")(lambda folder: made(adapter(), members=0))
provokes("decay-too-large")(lambda folder: TrainConfig(learning_rate=1e-3, weight_decay_b=1e3))
provokes("wrong-count")(lambda folder: TrainConfig(batch_size=0))
provokes("wrong-number")(lambda folder: TrainConfig(kl_weight=-0.1))
provokes("text-for-number")(lambda folder: TrainConfig(learning_rate="1e-3"))  # type: ignore[arg-type]
provokes("wrong-length")(lambda folder: trained(TrainConfig(kl_weight=[0.1, 0.2, 0.3])))
provokes("unknown-loss")(lambda folder: TrainConfig(loss="letters"))  # type: ignore[arg-type]
provokes("labels-of-open-answers")(
    lambda folder: train(
        models.build_ensemble(), models.open_examples(), TrainConfig(loss="labels"), progress=False
    )
)
provokes("loss-of-baseline")(
    lambda folder: BatchEnsemble(llama(), tokenizer(), num_members=2).fit(
        questions(2), TrainConfig(loss="labels")
    )
)
provokes("unknown-preset")(lambda folder: TrainConfig.preset("papers"))
provokes("no-paper-settings")(lambda folder: TrainConfig.preset("paper", task="my-task"))

# Adapters and base models

provokes("unstackable-option")(lambda folder: made(LoraConfig(target_modules=["q_proj"], use_dora=True)))
provokes("unstackable-init")(
    lambda folder: made(LoraConfig(target_modules=["q_proj"], init_lora_weights="pissa"))
)
provokes("unstackable-target")(lambda folder: made(adapter(targets=["q_proj", "embed_tokens"])))
provokes("no-quantiser")(lambda folder: load_base(quantization={"quant_method": "hqq"}))
provokes("head-as-target")(lambda folder: made(adapter(targets=["q_proj", "lm_head"])))
provokes("unknown-target")(lambda folder: made(adapter(targets=["c_attn"])))
provokes("base-in-use")(lambda folder: ensemble(base=ensemble().base))
provokes("base-called")(lambda folder: ensemble().base(torch.ones(1, 2, dtype=torch.int64)))
provokes("other-base")(lambda folder: load(saved(folder), base=llama(seed=1, name="tiny/other")))
provokes("other-shape")(lambda folder: load(saved(folder), base=llama(hidden=32), check_base=False))


@provokes("base-wrapped")
def _wrapped(folder: Path) -> object:
    wrapped = get_peft_model(llama(), adapter())
    return LoraEnsemble(wrapped, tokenizer(), adapter=adapter())  # type: ignore[arg-type]


@provokes("adapter-of-other-base")
def _other_base(folder: Path) -> object:
    paths = [peft_adapter(folder / "one"), peft_adapter(folder / "two", base="other/gpt")]
    return LoraEnsemble.from_adapters(llama(), tokenizer(), paths)


@provokes("other-targets")
def _other_targets(folder: Path) -> object:
    paths = [peft_adapter(folder / "one"), peft_adapter(folder / "two", targets=("q_proj",))]
    return LoraEnsemble.from_adapters(llama(), tokenizer(), paths)


# Files and checkpoints

provokes("existing-output")(lambda folder: ensemble().save_pretrained(saved(folder)))
provokes("no-ensemble")(lambda folder: load(folder / "gone"))
provokes("wrong-folder")(load)


@provokes("existing-run")
def _existing_run(folder: Path) -> object:
    trained(out=folder / "out")
    return trained(out=folder / "out")


@provokes("other-run")
def _other_run(folder: Path) -> object:
    trained(out=folder / "out")
    return trained(dataclasses.replace(SHORT, learning_rate=2e-2), out=folder / "out", resume=True)


@provokes("foreign-files")
def _foreign_files(folder: Path) -> object:
    trained(out=folder / "out")
    (folder / "out" / "notes.txt").write_text("mine")
    return train(ensemble(), questions(8), SHORT, out=folder / "out", overwrite=True, progress=False)


@provokes("live-run")
def _live_run(folder: Path) -> object:
    (folder / "out").mkdir()
    lock = FolderLock(folder / "out")
    try:
        return trained(out=folder / "out")
    finally:
        lock.release()


@provokes("corrupt-log")
def _corrupt_log(folder: Path) -> object:
    trained(out=folder / "out")
    (folder / "out" / "training" / "log.jsonl").write_text("broken\n")
    return trained(out=folder / "out", resume=True)


def changed_description(folder: Path, old: str, new: str) -> object:
    path = saved(folder) / "ensemble.json"
    path.write_text(path.read_text().replace(old, new, 1))
    return load(path.parent)


provokes("outside-member")(lambda folder: changed_description(folder, '"member_000"', '"../outside"'))
provokes("wrong-value")(
    lambda folder: changed_description(folder, '"vary": [\n    "init",\n    "order"\n  ]', '"vary": 3')
)


@provokes("weights-not-finite")
def _not_finite(folder: Path) -> object:
    path = saved(folder) / "member_001" / "adapter_model.safetensors"
    save_tensors({name: tensor * math.nan for name, tensor in load_tensors(path).items()}, path)
    return load(folder / "saved")


def predicted_to(folder: Path, out: Path) -> object:
    rows = write_lines(folder, GOOD)
    return run_verb(["predict", str(saved(folder)), "--in", str(rows), "--out", str(out)])


provokes("output-is-input")(lambda folder: predicted_to(folder, folder / "data.jsonl"))
provokes("unknown-suffix")(lambda folder: predicted_to(folder, folder / "x.xlsx"))
provokes("no-place")(lambda folder: predicted_to(folder, folder / "data.jsonl" / "a.jsonl"))


def resumed(folder: Path, *, flags: Sequence[str]) -> object:
    """A call of `predict` after one that was stopped by a row that is too long for the base."""
    rows = write_lines(folder, *[GOOD] * 300, {**GOOD, "question": "otter " * 500})
    words = ["predict", str(saved(folder)), "--in", str(rows), "--out", str(folder / "answers.jsonl")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lora_ensembles.cli.predict.load_ensemble", lambda args: load(args.ensemble))
        with pytest.raises(errors.DataError, match="256 rows are kept"):
            run_verb([*words, "--max-rows", "4", "--no-progress"])
        return run_verb([*words, *flags])


provokes("stopped-prediction")(lambda folder: resumed(folder, flags=["--max-rows", "4"]))
provokes("other-prediction")(lambda folder: resumed(folder, flags=["--resume", "--max-rows", "8"]))


@provokes("newer-format")
def _newer(folder: Path) -> object:
    path = saved(folder) / "ensemble.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 2'))
    return load(path.parent)


@provokes("corrupt-weights")
def _corrupt(folder: Path) -> object:
    path = saved(folder) / "member_001" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    return load(folder / "saved")


@provokes("pickled-weights")
def _pickled(folder: Path) -> object:
    path = saved(folder) / "member_000" / "adapter_model.safetensors"
    torch.save(load_tensors(path), path.with_name("adapter_model.bin"))
    path.unlink()
    return load(folder / "saved")


@provokes("corrupt-checkpoint")
def _corrupt_checkpoint(folder: Path) -> object:
    trained(out=folder / "out")
    path = folder / "out" / "training" / "checkpoint" / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    return trained(out=folder / "out", resume=True)


@provokes("no-space")
def _no_space(folder: Path) -> object:
    with largest_file(100):
        return saved(folder)


# While it runs


@provokes("empty-prompt")
def _empty_prompt(folder: Path) -> object:
    return generate_text(ensemble(), ["otter", ""], FEW_TOKENS)


@provokes("no-room-for-text")
def _no_room_for_text(folder: Path) -> object:
    return generate_text(ensemble(), ["otter"], GenerationConfig(max_new_tokens=WINDOW))


@provokes("decoding-settings")
def _decoding_settings(folder: Path) -> object:
    config = GenerationConfig(max_new_tokens=2)
    config.num_return_sequences = 2
    return generate_text(ensemble(), ["otter"], config)


@provokes("listener-for-several")
def _listener_for_several(folder: Path) -> object:
    return generate_text(ensemble(), ["otter", "heron"], FEW_TOKENS, on_token=lambda *_: None)


@provokes("saved-view")
def _saved_view(folder: Path) -> object:
    return ensemble().as_causal_lm().save_pretrained(folder)


@provokes("out-of-memory")
def _memory(folder: Path) -> object:
    own = ensemble()
    with no_memory_left():
        return train(own, questions(8) * 256, TrainConfig(epochs=1, batch_size=2048), progress=False)


@provokes("out-of-memory-predicting")
def _memory_predicting(folder: Path) -> object:
    own = ensemble()
    with no_memory_left():
        return predict(own, questions(8) * 256, max_rows=4096)


@provokes("loss-not-finite")
def _blown_up(folder: Path) -> object:
    return trained(TrainConfig(batch_size=4, learning_rate=[1e-3, 1e38], weight_decay_a=0, weight_decay_b=0))


@provokes("base-not-finite")
def _poisoned(folder: Path) -> object:
    base = llama()
    base.model.norm.weight.data[0] = math.nan
    return trained(on=ensemble(base=base))


@provokes("missing-extra")
def _missing_extra(folder: Path) -> object:
    with pytest.MonkeyPatch.context() as patch:
        for name in (
            "matplotlib",
            "matplotlib.figure",
        ):  # what Python itself records for a package that must not be imported
            patch.setitem(sys.modules, name, None)
        return reliability({"arm": Prediction(torch.full((1, 2, 2), 0.5).log(), torch.tensor([0, 1]))})


# Heads

provokes("unknown-head")(lambda folder: HeadConfig("multichoice"))  # type: ignore[arg-type]
provokes("divergence-of-fresh-heads")(
    lambda folder: train(
        heads.build_ensemble(members=1), heads.choice_examples(), TrainConfig(kl_weight=0.1), progress=False
    )
)
provokes("no-options")(
    lambda folder: predict(heads.build_ensemble(members=1), [Example("bare", "the fox", ("a", "b"), 0)])
)
provokes("not-causal")(lambda folder: generate_text(heads.build_ensemble(members=1), ["the fox"]))
provokes("no-reward-model")(lambda folder: predict_rewards(heads.build_ensemble(members=1), ["the fox"]))
provokes("same-pair")(
    lambda folder: load_preferences(write_lines(folder, {"chosen": " 4", "rejected": " 4"}))
)
provokes("pair-of-chats")(
    lambda folder: load_preferences(
        write_lines(folder, {"chosen": CHAT["messages"], "rejected": CHAT["messages"]})
    )
)


@provokes("vocabulary-of-heads")
def _vocabulary_of_heads(folder: Path) -> object:
    made, config = heads.build_ensemble("bert", "multiple-choice"), TrainConfig(loss="vocabulary")
    return train(made, heads.examples_for("multiple-choice"), config, progress=False)


@provokes("wrong-head")
def _wrong_head(folder: Path) -> object:
    return LoraEnsemble(heads.build("bert", "sequence-classification"), heads.tokenizer(), head="reward")


@provokes("no-padding-token")
def _no_padding(folder: Path) -> object:
    base = heads.build("llama", "reward")
    base.config.pad_token_id = None
    return LoraEnsemble(base, heads.tokenizer())


@provokes("untrained-base-head")
def _untrained_head(folder: Path) -> object:
    heads.build().bert.save_pretrained(folder)
    base = BertForMultipleChoice.from_pretrained(folder)
    return LoraEnsemble(base, heads.tokenizer(), head=HeadConfig(init="base"))


@provokes("body-not-loaded")
def _body_of_another(folder: Path) -> object:
    heads.build().bert.save_pretrained(folder)
    heads.tokenizer().save_pretrained(folder)
    weights = {
        f"elsewhere.{name}": tensor for name, tensor in load_tensors(folder / "model.safetensors").items()
    }
    save_tensors(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return load_base(str(folder), head="multiple-choice")


def _with_forward(change: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]) -> LoraEnsemble:
    """An ensemble on a base with a layer whose forward pass a library replaced."""
    base = llama()
    layer = base.model.layers[0].mlp.down_proj
    plain = type(layer).forward
    layer.forward = lambda x: plain(layer, change(layer, x))
    return ensemble(base=base)


@provokes("no-gradient")
def _no_gradient(folder: Path) -> object:
    return train(_with_forward(lambda layer, x: x.detach()), questions(4), SHORT, progress=False)


@provokes("rows-together")
def _rows_together(folder: Path) -> object:
    return _with_forward(lambda layer, x: (x / x.abs().max() * 7).round() * x.abs().max() / 7)


@provokes("quantised-already")
def _quantised_already(folder: Path) -> object:
    config = llama().config.to_dict() | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    (folder / "config.json").write_text(json.dumps(config))
    return run_verb(["plan", "--base", str(folder), "--quantize", "nf4"])


@provokes("unstackable-head")
def _normed_head(folder: Path) -> object:
    base = heads.build("bert", "sequence-classification")
    base.classifier = torch.nn.Sequential(torch.nn.LayerNorm(32), torch.nn.Linear(32, 3))
    adapter = heads.adapter_config()
    adapter.modules_to_save = ["classifier"]
    return LoraEnsemble(base, heads.tokenizer(), adapter=adapter)


@provokes("other-head")
def _other_head(folder: Path) -> object:
    heads.build_ensemble("bert", "reward", members=1).save_pretrained(folder / "saved")
    return heads.build_ensemble("bert", "sequence-classification", members=1).load_members(
        [folder / "saved" / "member_000"]
    )


@provokes("wrong-classes")
def _wrong_classes(folder: Path) -> object:
    return predict(
        heads.build_ensemble("bert", "sequence-classification"), [Example("two", "the fox", ("yes", "no"), 0)]
    )


@provokes("other-classes")
def _other_classes(folder: Path) -> object:
    classifier = heads.build_ensemble("bert", "sequence-classification", members=1)
    train(classifier, heads.class_examples(), SHORT, progress=False)
    return predict(
        classifier, [dataclasses.replace(heads.class_examples()[0], labels=("one", "three", "two"))]
    )


@provokes("overlong-text")
def _overlong_text(folder: Path) -> object:
    question = "the red fox saw a small bird near"
    short = LoraEnsemble(
        heads.build(),
        heads.tokenizer(),
        num_members=1,
        adapter=heads.adapter_config(),
        head=HeadConfig(max_length=8),
    )
    return predict(short, [Example("long", question, ("a", "b"), 0, question, ("home", "an old river"))])


provokes("bad-repository")(lambda folder: ensemble().push_to_hub("two words"))
provokes("no-network")(lambda folder: ensemble().push_to_hub("me/ensemble"))


def test_every_row_of_the_document_is_provoked_and_every_mistake_is_in_the_document() -> None:
    assert documented().keys() == PROVOKERS.keys()


@pytest.mark.parametrize("name", sorted(PROVOKERS))
def test_documented_error_is_the_one_that_is_raised(name: str, tmp_path: Path) -> None:
    row = documented()[name]

    with pytest.raises(errors.LoraEnsemblesError) as caught:
        PROVOKERS[name](tmp_path)

    assert type(caught.value) is row.error
    assert re.fullmatch(row.pattern, str(caught.value), flags=re.DOTALL), (
        f"documented: {row.message}\nraised: {caught.value}"
    )
    assert row.advice
    again = pickle.loads(pickle.dumps(caught.value))
    assert (type(again), str(again)) == (type(caught.value), str(caught.value))


def test_documented_classes_are_value_errors_or_runtime_errors_as_the_document_says() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    sentence = next(line for line in text.split(". ") if "ValueError" in line.replace("`", ""))
    for kind in (errors.ConfigError, errors.DataError, errors.AdapterError, errors.CheckpointError):
        assert issubclass(kind, ValueError)
        assert kind.__name__ in sentence
    for kind in (errors.TrainingError, errors.MissingExtraError):
        assert issubclass(kind, RuntimeError)
        assert kind.__name__ in sentence


@pytest.mark.parametrize(
    ("command", "row"),
    [
        (["train", "--task", "obqaa", "--out", "out"], "unknown-task"),
        (["evaluate", "gone"], "no-ensemble"),
    ],
)
def test_command_line_says_it_in_one_line_with_exit_code_2(
    command: list[str],
    row: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)

    assert main(command) == 2
    shown = capsys.readouterr().err
    assert re.fullmatch(rf"lora-ensembles: error: {documented()[row].pattern}\n", shown), shown
    assert list(tmp_path.iterdir()) == []
