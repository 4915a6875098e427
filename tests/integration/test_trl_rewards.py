"""An ensemble of reward models as a reward function:
what it returns, and a run of TRL's own trainer on it.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny_ensembles
import tiny_heads
from lora_ensembles import ConfigError, DataError, LoraEnsemble, load_base, predict_rewards
from lora_ensembles.data import load_preferences
from lora_ensembles.integrations.trl import reward_function

CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def rewards() -> LoraEnsemble:
    base, tokenizer = load_base("embedded", head="sequence-classification", num_labels=1)
    made = LoraEnsemble(base, tokenizer, num_members=3)
    made.stack.b.copy_(0.1 * torch.randn(made.stack.b.shape, generator=torch.Generator().manual_seed(0)))
    return made


def test_the_reward_is_the_mean_less_a_multiple_of_the_spread() -> None:
    ensemble = rewards()
    prompts, completions = ["Otters live in", "The sun is"], [" lakes.", " a star."]
    scores = predict_rewards(ensemble, ["Otters live in lakes.", "The sun is a star."]).member_scores
    for k in (0.0, 1.0, 2.5):
        found = reward_function(ensemble, k=k)(
            prompts=prompts, completions=completions, completion_ids=[[1], [2]]
        )
        expected = scores.mean(dim=0) - k * scores.std(dim=0, correction=0)
        assert found == pytest.approx(expected.tolist(), abs=1e-5)


def test_completions_of_one_prompt_are_centred_for_each_member() -> None:
    ensemble = rewards()
    prompts, completions = ["A", "B", "A", "C"], [" lake", " sea", " moor", " star"]
    scores = predict_rewards(
        ensemble, [a + b for a, b in zip(prompts, completions, strict=True)]
    ).member_scores
    pair = scores[:, [0, 2]] - scores[:, [0, 2]].mean(dim=1, keepdim=True)
    expected = pair.mean(dim=0) - pair.std(dim=0, correction=0)
    found = reward_function(ensemble, centred=True)(prompts=prompts, completions=completions)
    assert [found[0], found[2]] == pytest.approx(expected.tolist(), abs=1e-5)
    assert [found[1], found[3]] == [0.0, 0.0]


def test_chats_are_rendered_as_the_pairs_of_the_training_are(tmp_path: Path) -> None:
    ensemble = rewards()
    prompt, answer = [{"role": "user", "content": "Hi"}], [{"role": "assistant", "content": "Hello."}]
    with pytest.raises(DataError, match="no chat template"):
        reward_function(ensemble)(prompts=[prompt], completions=[answer])
    ensemble.tokenizer.chat_template = CHAT
    found = reward_function(ensemble, k=0.0)(prompts=[prompt], completions=[answer])
    (tmp_path / "pairs.jsonl").write_text(
        json.dumps(
            {"prompt": prompt, "chosen": answer, "rejected": [{"role": "assistant", "content": "No."}]}
        )
    )
    (pair,) = load_preferences(tmp_path / "pairs.jsonl", tokenizer=ensemble.tokenizer)
    assert (
        pair.prompt + pair.options[0] == "user: Hi\nassistant: Hello.\n"
    )  # the tokenizer writes the beginning
    expected = predict_rewards(ensemble, pair.prompt + pair.options[0]).mean
    assert found == pytest.approx(expected.tolist(), abs=1e-6)
    with pytest.raises(DataError, match="the assistant's message at its end"):
        reward_function(ensemble)(prompts=[prompt], completions=[prompt])
    with pytest.raises(DataError, match="both texts, or both lists"):
        reward_function(ensemble)(prompts=["Hi"], completions=[answer])


def test_members_without_rewards_are_refused() -> None:
    with pytest.raises(ConfigError, match="multiple-choice heads give no rewards"):
        reward_function(tiny_heads.build_ensemble())


@pytest.mark.skipif(importlib.util.find_spec("trl") is None, reason="TRL is not installed")
@pytest.mark.filterwarnings("ignore")  # those of the trainer are its own
def test_grpo_takes_two_steps_on_the_lower_bound(tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    seen: list[list[float]] = []
    reward = reward_function(rewards(), k=1.0)

    def watched(**given: Any) -> list[float]:
        seen.append(reward(**given))
        return seen[-1]

    policy, tokenizer = load_base()
    settings = GRPOConfig(
        output_dir=str(tmp_path),
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=8,
        max_steps=2,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=policy,
        reward_funcs=watched,
        args=settings,
        train_dataset=Dataset.from_list(
            [{"prompt": f"Where does the {name} live"} for name in tiny_ensembles.NAMES]
        ),
        processing_class=tokenizer,
    )
    trainer.train()
    assert len(seen) == 2
    assert all(len(batch) == 4 for batch in seen)
    logged = [row["reward"] for row in trainer.state.log_history if "reward" in row]
    means = [sum(batch) / 4 for batch in seen]
    assert logged  # of each step, or of both together
    assert min(abs(logged[-1] - mean) for mean in [*means, sum(means) / 2]) < 1e-3
