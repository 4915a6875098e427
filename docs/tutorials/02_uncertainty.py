# %% [markdown]
# # Aleatoric and epistemic: what the split tells, and what it does not
#
# At the end you can read both parts of an ensemble's uncertainty, measure whether they find wrong answers and
# questions out of distribution, and say where they do not.
#
# About two minutes on two CPU cores, no network.
#
# [Open in Colab](https://colab.research.google.com/github/lora-ensembles/lora-ensembles/blob/main/docs/tutorials/02_uncertainty.ipynb)

# %% tags=["colab", "skip-execution"]
# Only on Colab: install the release. Elsewhere pass this cell over.
# !pip install -q "lora-ensembles[plots]"

# %%
import dataclasses
import re

import torch

from lora_ensembles import (
    LoraEnsemble,
    Prediction,
    TrainConfig,
    accuracy,
    bootstrap_interval,
    disagreement,
    evaluate,
    evaluate_members,
    expected_entropy,
    load_base,
    load_ood,
    load_task,
    mutual_information,
    ood_auroc,
    predict,
    total_entropy,
    train,
)
from lora_ensembles.prediction.selective import error_auroc

# %% tags=["parameters"]
base_name = "embedded"
train_questions = 400
few_questions = 100
test_questions = 250
epochs = 8
members = 5

# %% [markdown]
# ## The split, by hand
#
# Before any training, three questions with two options each, and three members whose probabilities we write
# down ourselves. The mean over the members is 0.5 for the first two questions. But they are not alike:
#
# 1. Every member says 0.5. They agree that it is open.
# 2. Each member is nearly certain, but of different things, or undecided in the middle. They contradict each
#    other.
# 3. Every member is sure of the same option.

# %%
by_hand = torch.tensor(
    [
        [[0.5, 0.5], [0.98, 0.02], [0.95, 0.05]],
        [[0.5, 0.5], [0.50, 0.50], [0.97, 0.03]],
        [[0.5, 0.5], [0.02, 0.98], [0.96, 0.04]],
    ]
)
toy = Prediction(by_hand.log())
print(f"{'mean p':>7}{'total':>8}{'aleatoric':>11}{'epistemic':>11}")
for p, total, shared, contradicted in zip(
    toy.probs[:, 0].tolist(),
    total_entropy(toy).tolist(),
    expected_entropy(toy).tolist(),
    mutual_information(toy).tolist(),
    strict=True,
):
    print(f"{p:>7.2f}{total:>8.3f}{shared:>11.3f}{contradicted:>11.3f}")

# %% [markdown]
# All are in nats; 0.693 is the entropy of a fair coin.
#
# - *Total*: the entropy of the mean. It cannot tell the first two questions apart.
# - *Aleatoric*: the mean of the members' own entropies, what each of them finds open by itself.
# - *Epistemic*: the difference of the two, the mutual information between the answer and the member. It is
#   zero where members agree, however unsure they are.
#
# The names are a reading, not a proof. Members that are all wrong in the same way have no epistemic
# uncertainty, and a member that learnt little is unsure by itself: that is counted as aleatoric although more
# data would help. The [glossary](../glossary.md#uncertainty-and-calibration) has the definitions.

# %% [markdown]
# ## An ensemble
#
# The embedded base has read about a generated world. `world-cqa` asks about its people, in wordings that the
# base was never asked with. Members learn from questions about some people and are tested on others.

# %%
task = load_task("world-cqa")
test = task.validation[:test_questions]
print(test[0].prompt)

ensemble = LoraEnsemble(*load_base(base_name), num_members=members, seed=0)
config = TrainConfig(epochs=epochs, learning_rate=2e-3)
train(ensemble, task.train[:train_questions], config, progress=False)

prediction = predict(ensemble, test)
ours, alone = evaluate(prediction), evaluate_members(prediction)
print(f"\n{'':<10}{'one member':>18}{'ensemble':>10}")
for name in ("accuracy", "nll", "ece"):
    print(f"{name:<10}{alone[name]!s:>18}{getattr(ours, name):>10.4f}")

# %% [markdown]
# The ensemble has the lower NLL. Here is a fact worth knowing: the mean of the members' entropies *is* the
# aleatoric part, so what the ensemble adds to a single member's uncertainty is exactly the epistemic part. It
# is the reason that an ensemble is less overconfident than its members.

# %%
single = sum(total_entropy(prediction.member(m)).mean().item() for m in range(members)) / members
print(f"mean entropy of a single member:        {single:.3f}")
print(f"aleatoric part of the ensemble:         {ours.expected_entropy:.3f}")
print(f"total entropy minus the epistemic part: {ours.total_entropy - ours.mutual_information:.3f}")

# %% [markdown]
# ## Does uncertainty find the wrong answers?
#
# If it does, wrong answers have more of it than right ones. The AUROC is the probability that a wrong answer
# has more than a right one: 1 is perfect, 0.5 is chance.


# %%
SCORES = {
    "total": total_entropy,
    "aleatoric": expected_entropy,
    "epistemic": mutual_information,
    "disagreement": disagreement,
}
right = prediction.choices == prediction.targets
print(f"{int((~right).sum())} wrong answers of {len(right)}\n")
print(f"{'':<14}{'right':>7}{'wrong':>7}{'AUROC':>7}")
for name, score in SCORES.items():
    values = score(prediction)
    means = values[right].mean(), values[~right].mean()
    print(f"{name:<14}{means[0]:>7.3f}{means[1]:>7.3f}{error_auroc(values, right):>7.2f}")

# %% [markdown]
# All of them work, and well above chance. None is clearly ahead: with some fifty wrong answers an AUROC is
# known to about six points either way. For finding errors on questions of the kind that was learnt, the total
# is a good default.
#
# What it buys is seen in the risk-coverage curve: the error on the share of questions that is answered.

# %% tags=["plot"]
from lora_ensembles import plots

plots.risk_coverage({"one member": prediction.member(0), "ensemble": prediction})

# %% [markdown]
# Votes are the plainest form of disagreement. Where all members choose the same, they are right far more
# often:

# %% tags=["plot"]
plots.agreement(prediction)

# %% [markdown]
# ## Does it find questions out of distribution?
#
# Three sets:
#
# - *invented people*: the test questions, with the person's name replaced by one that no document has. There
#   is nothing to know.
# - *creatures and objects*: `world-mmlu-stem`, other kinds of things than members were trained on, and fewer
#   options.
# - *world-mmlu*: facts about people, creatures and objects that the base read in pre-training, in the same
#   form as the training questions. This is the set that the library pairs with `world-cqa`.

# %%
INVENTED = ["Zorblax", "Quimby", "Vexa", "Tolmir", "Ossy", "Drendel", "Plick", "Umbero", "Yashka", "Kolbin"]


def about_nobody(example, number):
    """The question with an invented name in place of the person's, and without an answer."""
    name = re.findall(r"[A-Z]\w+", example.question[1:])[-1]  # the first letter is the sentence's
    new = INVENTED[number % len(INVENTED)]
    return dataclasses.replace(
        example,
        prompt=example.prompt.replace(name, new),
        question=example.question.replace(name, new),
        target=None,
    )


sets = {
    "invented people": [about_nobody(example, number) for number, example in enumerate(test)],
    "creatures and objects": list(load_ood("world-mmlu-stem"))[:test_questions],
    "world-mmlu": list(load_ood("world-mmlu"))[:test_questions],
}
for name, questions in sets.items():
    print(f"{name:<23}{questions[0].question}")

# %%
outside = {name: predict(ensemble, questions) for name, questions in sets.items()}
print(f"{'AUROC':<23}" + "".join(f"{name:>14}" for name in SCORES) + f"{'confidence':>14}")
for name, ood in outside.items():
    own = torch.arange(len(test) + ood.num_examples) < len(test)
    cells = [error_auroc(torch.cat([score(prediction), score(ood)]), own) for score in SCORES.values()]
    print(f"{name:<23}" + "".join(f"{value:>14.2f}" for value in (*cells, ood_auroc(prediction, ood))))

# %% [markdown]
# `ood_auroc` is the library's measure and that of the paper: by the confidence, the largest probability.
#
# Read the rows from above to below. Where there is nothing to know, uncertainty is up, and the set is told
# apart fairly well. The other two are not far from chance, 0.5, by every score. Why? Look at how well those
# questions are answered:

# %%
for name, answered in {"test questions": prediction, **outside}.items():
    if answered.targets is not None:
        interval = bootstrap_interval(accuracy, answered)
        print(f"{name:<23} accuracy {interval}, mean confidence {answered.confidence.mean():.3f}")

# %% [markdown]
# Two things come together.
#
# - The ensemble answers far more of the foreign questions than guessing would, which is a fifth or a quarter.
#   The base read about those things too, and what fine-tuning taught, to name the option that one knows,
#   carries over. "Out of distribution" is a matter of where a question comes from; uncertainty is a matter of
#   whether it can be answered. A detector of foreign questions needs something else.
# - Yet it answers fewer of them than of the test questions, and its confidence falls less than its accuracy
#   does. So it is overconfident there, and no split of the uncertainty repairs that.
#
# Mutual information is not the best detector either, for all that its name says "epistemic". A base that does
# not know a name spreads its probability in *every* member alike, and that is counted as aleatoric.

# %% [markdown]
# ## Does the epistemic part fall with more data?
#
# The textbook says: with more data the epistemic part falls and the aleatoric part stays. We train a second
# ensemble on a part of the questions, for twice as many epochs, and compare.

# %%
few = LoraEnsemble(*load_base(base_name), num_members=members, seed=0)
train(few, task.train[:few_questions], TrainConfig(epochs=2 * epochs, learning_rate=2e-3), progress=False)

print(f"{'questions':>9}{'accuracy':>10}{'NLL':>8}{'total':>8}{'aleatoric':>11}{'epistemic':>11}")
for count, metrics in ((few_questions, evaluate(predict(few, test))), (train_questions, ours)):
    print(f"{count:>9}{metrics.accuracy:>10.3f}{metrics.nll:>8.3f}{metrics.total_entropy:>8.3f}", end="")
    print(f"{metrics.expected_entropy:>11.3f}{metrics.mutual_information:>11.3f}")

# %% [markdown]
# Look at the last two columns. More questions made the ensemble better and surer, and nearly all that was
# gained is in the part called aleatoric; the epistemic part hardly moved. Members of a LoRA ensemble share
# their base. With few questions each stays close to it and is unsure in the same way as the others, which no
# disagreement shows. So the textbook's sentence holds for an ensemble whose members span all that the data
# leave open, and fine-tuned members on one base do not. If you want to know whether more data would help,
# train on a part of it, as here, and see.
#
# ## In short
#
# | question | look at |
# |---|---|
# | Is this answer likely wrong? | total entropy, confidence or disagreement: all of them find errors |
# | On which questions do members contradict each other? | mutual information |
# | Would more data help? | the curve over the number of training questions, not the split |
# | Is the question foreign? | none of these can promise it |
#
# ## Read on
#
# - [Statistics](../statistics.md): intervals of all these figures.
# - [Reproduction](../reproduction.md): OOD AUROC on real data, with several seeds.
# - [Tutorial 3](03_chat_that_knows.ipynb): the same split for each word of a written answer.
