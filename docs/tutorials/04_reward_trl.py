# %% [markdown]
# # A reward ensemble in TRL
#
# You learn to train an ensemble of reward models on preference data in TRL's format, to use its lower bound
# to pick the best of several answers or as a reward function of a TRL trainer, and to load reward adapters
# that TRL trained as one ensemble.
#
# It takes about three minutes on two CPU cores and needs no network. It needs the package `trl`.
#
# [Open in Colab](https://colab.research.google.com/github/lora-ensembles/lora-ensembles/blob/main/docs/tutorials/04_reward_trl.ipynb)

# %% tags=["colab", "skip-execution"]
# Only on Colab: install the release. Elsewhere, skip this cell.
# !pip install -q "lora-ensembles[plots]" trl

# %%
import json
import random
import tempfile
import warnings
from pathlib import Path

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig
from transformers.utils import logging
from trl import RewardConfig, RewardTrainer

from lora_ensembles import (
    LoraEnsemble,
    TrainConfig,
    evaluate,
    evaluate_members,
    load_base,
    load_preferences,
    load_task,
    predict,
    predict_rewards,
    train,
)

# %% tags=["parameters"]
base_name = "embedded"
train_questions = 300
test_questions = 200
epochs = 8
members = 4
trl_members = 2
trl_epochs = 6

# %% [markdown]
# ## Preferences
#
# A row is a prompt with a chosen and a rejected answer, in the columns `prompt`, `chosen` and `rejected`. We
# make such rows from questions about the embedded base's own world: the right answer is chosen, a wrong
# answer rejected.
#
# `task.validation` is about other entities than `task.train`, so a reward model that memorises single answers
# gains nothing there. It must use what the base knows.

# %%
task = load_task("world-obqa")


def preferences(examples, seed):
    """A row for each question; which wrong option is rejected, is drawn."""
    rng = random.Random(seed)
    for example in examples:
        right = example.options[example.target]
        wrong = rng.choice([option for option in example.options if option != right])
        yield {"prompt": example.question, "chosen": f" {right}.", "rejected": f" {wrong}."}


folder = Path(tempfile.mkdtemp(prefix="rewards-"))
train_rows = list(preferences(task.train[:train_questions], seed=0))
test_rows = list(preferences(task.validation[:test_questions], seed=1))
for name, rows in (("train", train_rows), ("test", test_rows)):
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
print(json.dumps(train_rows[0], indent=1))

# %% [markdown]
# ## Train all members in one pass
#
# A reward model is a sequence classifier with one output. Each [member](../glossary.md#ensembles) has its own
# adapters and its own output layer. The loss is the Bradley-Terry loss, as in TRL: -log sigmoid(score of the
# chosen answer - score of the rejected answer).

# %%
base, tokenizer = load_base(base_name, head="sequence-classification", num_labels=1)
ensemble = LoraEnsemble(base, tokenizer, num_members=members, seed=0)
pairs = load_preferences(folder / "train.jsonl")
train(ensemble, pairs, TrainConfig(epochs=epochs, learning_rate=2e-3), progress=False)

judged = load_preferences(folder / "test.jsonl")
prediction = predict(ensemble, judged)
ours, alone = evaluate(prediction), evaluate_members(prediction)
print(f"{'on test pairs':<14}{'one member':>18}{'ensemble':>10}")
for name in ("accuracy", "nll", "ece"):
    print(f"{name:<14}{alone[name]!s:>18}{getattr(ours, name):>10.4f}")

# %% [markdown]
# Accuracy is the share of pairs in which the chosen answer gets the higher score. Guessing has an accuracy of
# 0.5 and an NLL of 0.69.

# %% tags=["plot"]
from lora_ensembles import plots

plots.reliability({"one member": prediction.member(0), "ensemble": prediction})

# %% [markdown]
# ## Mean, spread, lower bound
#
# `predict_rewards` scores texts. The mean is the ensemble's reward. The standard deviation measures how much
# the members disagree. The lower bound, mean - k * std, is a cautious reward: it is low if members disagree.
#
# Pairs teach only differences of scores, so each member's scores have an arbitrary offset. Compare texts that
# answer the same prompt, and first subtract each member's mean over these texts, with `centred()`.

# %%
question = task.validation[0]
candidates = [f"{question.question} {option}." for option in question.options]
scores = predict_rewards(ensemble, candidates).centred()
print(f"{'mean':>7}{'std':>7}{'bound':>7}")
columns = (scores.mean, scores.std, scores.lower_bound(1.0))
for text, *numbers in zip(candidates, *(column.tolist() for column in columns), strict=True):
    print("".join(f"{number:>7.2f}" for number in numbers), "", text)
print("right:", question.options[question.target])

# %% [markdown]
# ## Best of n
#
# A model writes n answers and the reward picks one. Here the n answers are the options of a question, so we
# know which answer is the best.


# %%
def best_of(examples, reward):
    """The share of questions whose best-rewarded option is the right one."""
    texts = [f"{example.question} {option}." for example in examples for option in example.options]
    scores = predict_rewards(ensemble, texts).member_scores
    n = len(examples[0].options)
    scores = scores.reshape(len(scores), -1, n)
    scores = scores - scores.mean(dim=2, keepdim=True)  # as `centred` does, prompt by prompt
    picked = reward(scores).argmax(dim=1)
    return (picked == torch.tensor([example.target for example in examples])).float().mean().item()


test = task.validation[:test_questions]
singles = [best_of(test, lambda scores, m=m: scores[m]) for m in range(members)]
print(
    f"one member:  {sum(singles) / members:.3f} (mean over members; {min(singles):.3f} to {max(singles):.3f})"
)
print(f"mean:        {best_of(test, lambda scores: scores.mean(dim=0)):.3f}")
print(
    f"lower bound: {best_of(test, lambda scores: scores.mean(dim=0) - scores.std(dim=0, correction=0)):.3f}"
)

# %% [markdown]
# The mean should be better than the average member, because errors that members do not share cancel out. The
# lower bound picks slightly worse than the mean here: caution has a cost if the candidates do not exploit the
# reward. Its use is elsewhere. When a policy is *trained* against a reward, it finds texts that a single
# reward model overrates. Different members rarely overrate the same texts; if they differ, the bound is low.
#
# ## As a reward function of TRL
#
# TRL's trainers take a function of prompts and completions:


# %%
def cautious_reward(prompts, completions, **_):
    """The lower bound of the ensemble's reward for each completion."""
    texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    return predict_rewards(ensemble, texts).lower_bound(1.0).tolist()


for row in test_rows[:3]:
    rewards = cautious_reward([row["prompt"]] * 2, [row["chosen"], row["rejected"]])
    print(f"{rewards[0]:>6.2f} for{row['chosen']} {rewards[1]:>6.2f} for{row['rejected']}", row["prompt"])

# %% [markdown]
# ```python
# from trl import GRPOTrainer
#
# GRPOTrainer(model="your/policy", reward_funcs=cautious_reward, train_dataset=prompts, args=...)
# ```
#
# GRPO compares completions of the same prompt, so the members' offsets shift the mean of all completions by
# the same amount. The standard deviation also includes the offsets. If that matters, centre each member over
# the completions of a prompt, as `best_of` does above.
#
# The bound does not detect nonsense. A text unlike all training pairs can get a high score from every member.
# Keep the policy near its start, as TRL's KL penalty does.
#
# `ensemble.as_reward_model()` returns a Hugging Face classifier with one label that predicts the mean, for
# code that needs a model.
#
# ## Adapters that TRL trained
#
# You may already have reward adapters that TRL trained. With `modules_to_save=["score"]` in `peft_config`,
# each adapter has its own output layer. We train one run per seed:

# %%
logging.set_verbosity_error()
disable_progress_bars()
warnings.simplefilter("ignore", FutureWarning)  # of transformers and PEFT, about their own parts
paths = [folder / f"trl-{seed}" for seed in range(trl_members)]
for seed, path in enumerate(paths):
    model, tokenizer = load_base(base_name, head="sequence-classification", num_labels=1)
    trainer = RewardTrainer(
        model=model,
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(train_rows),
        args=RewardConfig(
            output_dir=str(folder / "trainer"),
            num_train_epochs=trl_epochs,
            per_device_train_batch_size=16,
            learning_rate=2e-3,
            seed=seed,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=not torch.cuda.is_available(),
            bf16=False,
            gradient_checkpointing=False,
        ),
        peft_config=LoraConfig(
            task_type="SEQ_CLS",
            r=8,
            lora_alpha=32,
            target_modules=["q_proj", "v_proj"],
            modules_to_save=["score"],
        ),
    )
    trainer.train()
    trainer.save_model(str(path))
print(*sorted(file.name for file in paths[0].iterdir()), sep="\n")

# %% [markdown]
# `from_adapters` loads the folders as one ensemble.
#
# Note that TRL appends the tokenizer's end-of-sequence token to texts that are not chats before it trains on
# them. Score such a model on texts that end in the same way.

# %%
base, tokenizer = load_base(base_name, head="sequence-classification", num_labels=1)
from_trl = LoraEnsemble.from_adapters(base, tokenizer, paths)
print(from_trl)

ended = [
    {**row, "chosen": row["chosen"] + tokenizer.eos_token, "rejected": row["rejected"] + tokenizer.eos_token}
    for row in test_rows
]
(folder / "ended.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ended), encoding="utf-8")
theirs = predict(from_trl, load_preferences(folder / "ended.jsonl"))
print(f"{'on test pairs':<14}{'one member':>18}{'ensemble':>10}")
for name in ("accuracy", "nll"):
    print(f"{name:<14}{evaluate_members(theirs)[name]!s:>18}{getattr(evaluate(theirs), name):>10.4f}")

# %% [markdown]
# TRL trained these members one after another; the ensemble above was trained in one run. From here on there
# is no difference: both are ensembles with a mean, a standard deviation and a lower bound.
#
# ## Read on
#
# - [Heads](../heads.md#rewards): all about rewards, and a measurement on a public encoder. There the standard
#   deviation alone does not find the wrong pairs; divided by the absolute mean difference it does.
# - From a shell: `lora-ensembles train --head reward --train pairs.jsonl`.
