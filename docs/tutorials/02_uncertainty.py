# %% [markdown]
# # Aleatoric and epistemic: what the split tells, and what it does not
#
# You learn to read both parts of an ensemble's uncertainty, and to measure whether they find wrong answers
# and out-of-distribution questions, and where they do not.
#
# It takes about two minutes on two CPU cores and needs no network.
#
# [Open in Colab](https://colab.research.google.com/github/lora-ensembles/lora-ensembles/blob/main/docs/tutorials/02_uncertainty.ipynb)

# %% tags=["colab", "skip-execution"]
# Only on Colab: install the release. Elsewhere, skip this cell.
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
# Before any training, here are three questions with two options each, and three members whose probabilities
# we write down by hand. The mean over the members is 0.5 for the first two questions, but for different
# reasons:
#
# 1. Every member predicts 0.5. They agree that the answer is open.
# 2. Two members are nearly certain of opposite options, and the third is undecided. They contradict each
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
# All uncertainties are in nats; 0.693 is the entropy of a fair coin.
#
# - *Total*: the entropy of the mean. It is the same for the first two questions.
# - *Aleatoric*: the mean of the members' entropies, that is, how unsure each member is by itself.
# - *Epistemic*: the difference of the two, which is the mutual information between the answer and the member.
#   It is zero if all members predict the same, however unsure they are.
#
# The names are an interpretation, not a proof. Members that are all wrong in the same way have no epistemic
# uncertainty. A member that learnt little is unsure by itself, and this counts as aleatoric although more
# data would help. The [glossary](../glossary.md#uncertainty-and-calibration) has the definitions.

# %% [markdown]
# ## An ensemble
#
# The embedded base was pre-trained on texts about a generated world. The questions of `world-cqa` are about
# its people, in wordings that the questions of the pre-training did not use. Members learn from questions
# about some people and are tested on questions about others.

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
# The ensemble has the lower NLL. Note that the mean of the members' entropies *is* the aleatoric part. So the
# uncertainty that the ensemble adds to that of a single member is exactly the epistemic part. This is why an
# ensemble is less overconfident than its members.

# %%
single = sum(total_entropy(prediction.member(m)).mean().item() for m in range(members)) / members
print(f"mean entropy of a single member:        {single:.3f}")
print(f"aleatoric part of the ensemble:         {ours.expected_entropy:.3f}")
print(f"total entropy minus the epistemic part: {ours.total_entropy - ours.mutual_information:.3f}")

# %% [markdown]
# ## Does uncertainty find the wrong answers?
#
# If it does, wrong answers have more uncertainty than right ones. The AUROC is the probability that a wrong
# answer has more uncertainty than a right one: 1 is perfect, 0.5 is chance.


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
# All scores are well above chance. None is clearly ahead: with about fifty wrong answers, an AUROC is known
# to about six points either way. For finding errors on in-distribution questions, total entropy is a good
# default.
#
# The risk-coverage curve shows the benefit: the error rate on the answered questions, against their share.

# %% tags=["plot"]
from lora_ensembles import plots

plots.risk_coverage({"one member": prediction.member(0), "ensemble": prediction})

# %% [markdown]
# Votes are the simplest form of disagreement. If all members choose the same option, they are right far more
# often:

# %% tags=["plot"]
plots.agreement(prediction)

# %% [markdown]
# ## Does it find questions out of distribution?
#
# We use three sets:
#
# - *invented people*: the test questions, with the person's name replaced by a name that occurs in no
#   document. Nothing can be known about these people.
# - *creatures and objects*: `world-mmlu-stem`, whose questions are about other kinds of things than the
#   training questions, and have fewer options.
# - *world-mmlu*: facts about people, creatures and objects that the base read in pre-training, in the same
#   form as the training questions. This is the library's out-of-distribution set for `world-cqa`.

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
# The last column is `ood_auroc`, the measure of the library and of the paper. It uses the confidence,
# that is, the largest probability.
#
# Read the rows from top to bottom. For invented people uncertainty is higher, and the set is detected fairly
# well. For the other two sets every score is not far from chance, 0.5. To see why, look at how well the
# questions are answered:

# %%
for name, answered in {"test questions": prediction, **outside}.items():
    if answered.targets is not None:
        interval = bootstrap_interval(accuracy, answered)
        print(f"{name:<23} accuracy {interval}, mean confidence {answered.confidence.mean():.3f}")

# %% [markdown]
# There are two reasons.
#
# - On the out-of-distribution questions the ensemble is right far more often than by guessing, which gives a
#   fifth or a quarter. The base read about those things too, and fine-tuning taught it to choose the option
#   that it knows, which carries over. "Out of distribution" is about where a question comes from; uncertainty
#   is about whether it can be answered. To detect such questions you need another method.
# - But it is right less often than on the test questions, and its confidence falls less than its accuracy.
#   So it is overconfident there, and splitting the uncertainty does not repair that.
#
# Mutual information is not the best detector either, although it is called epistemic. If the base does not
# know a name, *every* member spreads its probability in the same way, and this counts as aleatoric.

# %% [markdown]
# ## Does the epistemic part fall with more data?
#
# Textbooks say that with more data the epistemic part falls and the aleatoric part stays. We train a second
# ensemble on fewer questions, for twice as many epochs, and compare.

# %%
few = LoraEnsemble(*load_base(base_name), num_members=members, seed=0)
train(few, task.train[:few_questions], TrainConfig(epochs=2 * epochs, learning_rate=2e-3), progress=False)

print(f"{'questions':>9}{'accuracy':>10}{'NLL':>8}{'total':>8}{'aleatoric':>11}{'epistemic':>11}")
for count, metrics in ((few_questions, evaluate(predict(few, test))), (train_questions, ours)):
    print(f"{count:>9}{metrics.accuracy:>10.3f}{metrics.nll:>8.3f}{metrics.total_entropy:>8.3f}", end="")
    print(f"{metrics.expected_entropy:>11.3f}{metrics.mutual_information:>11.3f}")

# %% [markdown]
# Look at the last two columns. With more questions the ensemble is better and more confident, and nearly all
# of the change is in the aleatoric part; the epistemic part hardly changed. The members of a LoRA ensemble
# share their base. With few questions each member stays close to the base and is unsure in the same way as
# the others, so they do not disagree. The textbook's rule is about an ensemble whose members cover every
# answer that the data leave open, and fine-tuned members on one base do not. To find out whether more data
# would help, train on a part of your data, as here, and compare.
#
# ## In short
#
# | question | look at |
# |---|---|
# | Is this answer likely wrong? | total entropy, confidence or disagreement: all of them find errors |
# | On which questions do members contradict each other? | mutual information |
# | Would more data help? | the curve over the number of training questions, not the split |
# | Is the question out of distribution? | none of these is reliable |
#
# ## Read on
#
# - [Statistics](../statistics.md): intervals for all these values.
# - [Reproduction](../reproduction.md): OOD AUROC on real data, with several seeds.
# - [Tutorial 3](03_chat_that_knows.ipynb): the same split for each token of a generated answer.
