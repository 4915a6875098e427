# %% [markdown]
# # From ten PEFT adapters you already have to an ensemble
#
# You learn to load LoRA adapters that were trained elsewhere as one ensemble, to find out how many of them
# are worth using, and to save the result.
#
# It takes about three minutes on two CPU cores, nearly all of it to train the ten adapters, and needs no
# network.
#
# [Open in Colab](https://colab.research.google.com/github/lora-ensembles/lora-ensembles/blob/main/docs/tutorials/06_from_peft_adapters.ipynb)

# %% tags=["colab", "skip-execution"]
# Only on Colab: install the release. Elsewhere, skip this cell.
# !pip install -q "lora-ensembles[plots]"

# %%
import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional as F

from lora_ensembles import LoraEnsemble, evaluate, load_base, load_task, nll, paired_difference, predict

# %% tags=["parameters"]
base_name = "embedded"
task_name = "world-arcc"
train_questions = 200
test_questions = 250
epochs = 6
adapters = 10

# %% [markdown]
# ## Ten adapters
#
# You may have such adapters from runs with several seeds, from colleagues, or from the hub. If so, continue
# with the next section. Here we train some with only PEFT and PyTorch; the training loop uses nothing from
# this library.
#
# A question is given with lettered options, and the model learns to write the letter of the right option.

# %%
task = load_task(task_name)
print(task.train[0].prompt, task.train[0].labels[task.train[0].target], sep="")

# %%
base, tokenizer = load_base(base_name)


def encoded(example):
    """The tokens of a question with its answer; the last one is the letter to learn."""
    return torch.tensor(tokenizer(example.prompt + example.labels[example.target])["input_ids"])


def train_adapter(seed, rank, folder):
    """One LoRA adapter, trained in the usual way and saved as PEFT saves it."""
    torch.manual_seed(seed)
    model, _ = load_base(base_name)
    config = LoraConfig(
        r=rank, lora_alpha=4 * rank, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    model = get_peft_model(model, config)
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=2e-3)
    rows = [encoded(example) for example in task.train[:train_questions]]
    for _ in range(epochs):
        order = torch.randperm(len(rows)).tolist()
        for start in range(0, len(rows), 16):
            batch = [rows[index] for index in order[start : start + 16]]
            ids = torch.nn.utils.rnn.pad_sequence(batch, batch_first=True)
            ends = torch.tensor([len(row) - 1 for row in batch])  # where the letter stands
            logits = model(input_ids=ids).logits[torch.arange(len(batch)), ends - 1]
            loss = F.cross_entropy(logits.float(), ids[torch.arange(len(batch)), ends])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    model.save_pretrained(folder, save_embedding_layers=False)  # the adapter alone
    return loss.item()


# %% [markdown]
# The first half of the adapters has rank 8 and the second half rank 4. Adapters of an ensemble need the same
# target modules; ranks and scalings may differ.

# %%
folder = Path(tempfile.mkdtemp(prefix="adapters-"))
paths = [folder / f"adapter-{index}" for index in range(adapters)]
for index, path in enumerate(paths):
    last = train_adapter(seed=index, rank=8 if index < adapters / 2 else 4, folder=path)
    print(f"{path.name}: loss of the last batch {last:.3f}")
print(*sorted(file.name for file in paths[0].iterdir()), sep="\n")

# %% [markdown]
# ## One ensemble
#
# `from_adapters` reads the folders. Each folder becomes a [member](../glossary.md#ensembles), and one stacked
# forward pass computes all of them. Adapters that cannot form one ensemble raise an error with the reason:
# another base, other targets, or a kind of adapter that is not LoRA.

# %%
ensemble = LoraEnsemble.from_adapters(base, tokenizer, paths)
print(ensemble)
prediction = predict(ensemble, task.validation[:test_questions])
print(prediction)

# %% [markdown]
# A member gives the same predictions as PEFT with the same adapter. Let us check it once:

# %%
example = task.validation[0]
plain = PeftModel.from_pretrained(load_base(base_name)[0], paths[0]).eval()
with torch.no_grad():
    logits = plain(**tokenizer(example.prompt, return_tensors="pt")).logits[0, -1].float()
letters = [tokenizer(example.prompt + label)["input_ids"][-1] for label in example.labels]
print("PEFT  ", *(f"{p:.4f}" for p in logits[letters].softmax(dim=-1).tolist()))
print("member", *(f"{p:.4f}" for p in prediction.member_log_probs[0, 0].exp().tolist()))
torch.testing.assert_close(
    logits[letters].log_softmax(dim=-1), prediction.member_log_probs[0, 0], atol=1e-4, rtol=0
)

# %% [markdown]
# ## How many members are worth using?
#
# A prediction keeps every member's probabilities, so we can evaluate smaller ensembles at no extra cost:
# `select` takes some of the members.

# %%
print(f"{'members':>7}{'accuracy':>10}{'NLL':>8}{'ECE':>8}")
for size in range(1, adapters + 1):
    metrics = evaluate(prediction.select(range(size)))
    print(f"{size:>7}{metrics.accuracy:>10.3f}{metrics.nll:>8.3f}{metrics.ece:>8.3f}")

# %% [markdown]
# The table uses the first member, the first two members, and so on; another order gives other values. The
# figure shows means over subsets instead, and its band shows the best and the worst subset. The first few
# members bring most of the gain.

# %% tags=["plot"]
from lora_ensembles import plots

plots.size_curve(prediction)

# %% [markdown]
# The test questions are also a sample. Is the ensemble's gain over its first member more than chance? It is
# if the whole interval of the difference is below zero:

# %%
print("NLL of the ensemble minus NLL of member 0:", paired_difference(nll, prediction, prediction.member(0)))

# %% [markdown]
# If you drop members because they do badly on these questions, you can no longer measure the remaining
# ensemble on them. Choose members on some questions and evaluate on others.

# %% [markdown]
# ## Where members disagree

# %% tags=["plot"]
plots.agreement(prediction)

# %% [markdown]
# ## Save it
#
# A saved ensemble is again a folder of PEFT adapters, with a file that describes the ensemble. You can add
# members, drop members, and continue to train them with `train`.

# %%
ensemble.drop_members([adapters - 1])
ensemble.save_pretrained(folder / "ensemble")
again = LoraEnsemble.from_pretrained(folder / "ensemble")
print(again)
again.load_members(paths[-1])
print(again.num_members, "members after one was added")

# %% [markdown]
# ## Read on
#
# - [Models](../models.md): which architectures and adapters can be stacked.
# - [Tutorial 4](04_reward_trl.ipynb): adapters that TRL trained.
