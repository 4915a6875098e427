# %% [markdown]
# # From your csv to probabilities, and what to do with them
#
# You learn to train an ensemble on a csv of texts and classes, to measure how good it is and how certain that
# measurement is, to classify new texts, and to leave texts on which the ensemble is unsure to a person.
#
# It takes about two minutes on two CPU cores and needs no network.
#
# [Open in Colab](https://colab.research.google.com/github/lora-ensembles/lora-ensembles/blob/main/docs/tutorials/01_your_csv.ipynb)

# %% tags=["colab", "skip-execution"]
# Only on Colab: install the release. Elsewhere, skip this cell.
# !pip install -q "lora-ensembles[plots]"

# %%
import csv
import random
import tempfile
from pathlib import Path

import torch

from lora_ensembles import (
    LoraEnsemble,
    TrainConfig,
    accuracy,
    bootstrap_interval,
    disagreement,
    evaluate,
    evaluate_members,
    expected_entropy,
    load_base,
    mutual_information,
    nll,
    paired_difference,
    predict,
    task_from_files,
    total_entropy,
    train,
)

# %% [markdown]
# These are the sizes of this tutorial. `embedded` is a very small language model inside the package, which
# needs no download. For real work, use the name of a model on the hub instead: an encoder such as
# `answerdotai/ModernBERT-base`, or any causal language model.

# %% tags=["parameters"]
base_name = "embedded"
rows = 560
epochs = 12
members = 5
command_epochs = 6

# %% [markdown]
# ## A csv
#
# Your file needs a column of texts and a column of classes. We make one with support tickets of four classes.
# As in most real files, each class has many wordings and there are few rows.
#
# One ticket in five is vague. "There is no invoice." may be a bug report or a feature request, and the person
# who labelled it had to decide. No model can do better than guess there. Most labelled files have such noise.

# %%
THINGS = (
    "invoice receipt payment password profile dashboard report calendar export search filter table".split()
)
WORDINGS = {
    "account": [
        "Please change the name on my {}.",
        "I cannot get into my {} any more.",
        "How do I delete my {}?",
        "Somebody else uses my {}.",
        "I lost access to the {}.",
        "Please move my {} to another address.",
        "Who can see my {}?",
    ],
    "billing": [
        "I was charged twice for the {}.",
        "Please refund the {}.",
        "The amount on the {} is too high.",
        "Why does the {} cost more this month?",
        "My card was declined at the {}.",
        "Can I pay for the {} by bank transfer?",
        "The discount is missing from the {}.",
    ],
    "bug": [
        "The {} crashes when I open it.",
        "The {} stays empty.",
        "I get an error in the {}.",
        "The {} shows the wrong numbers.",
        "Nothing happens when I click on the {}.",
        "The {} is broken since the update.",
        "The {} loads for ever.",
    ],
    "feature": [
        "It would be nice to have a dark {}.",
        "Could you add a second {}?",
        "I miss a button for the {}.",
        "Please let us sort the {}.",
        "A shortcut to the {} would help.",
        "Will there be a {} for phones?",
        "I wish the {} were larger.",
    ],
}
VAGUE = [
    ("The {} is wrong.", ("billing", "bug")),
    ("I cannot see the {}.", ("account", "bug")),
    ("There is no {}.", ("feature", "bug")),
    ("Please cancel the {}.", ("account", "billing")),
    ("How do I share the {}?", ("account", "feature")),
]
OPENINGS = ["", "Hello. ", "Hi team, ", "Good morning. ", "Urgent! ", "As I wrote before: "]
CLOSINGS = [
    "",
    " Thanks.",
    " Please help.",
    " Regards",
    " It is the third time.",
    " We are on the large plan.",
]


def ticket(rng):
    """A text and its class."""
    if rng.random() < 0.2:
        wording, could_be = rng.choice(VAGUE)
        label = rng.choice(could_be)
    else:
        label = rng.choice(list(WORDINGS))
        wording = rng.choice(WORDINGS[label])
    return rng.choice(OPENINGS) + wording.format(rng.choice(THINGS)) + rng.choice(CLOSINGS), label


folder = Path(tempfile.mkdtemp(prefix="tickets-"))
rng = random.Random(0)
tickets = {}
while len(tickets) < rows:  # every text once
    text, label = ticket(rng)
    tickets.setdefault(text, label)
with (folder / "tickets.csv").open("w", newline="", encoding="utf-8") as file:
    writer = csv.writer(file)
    writer.writerow(["text", "label"])
    writer.writerows(tickets.items())

print("".join((folder / "tickets.csv").read_text(encoding="utf-8").splitlines(keepends=True)[:6]))

# %% [markdown]
# `task_from_files` reads the file and holds out a validation split, stratified by class. Members learn from
# `train`; `validation` is kept for evaluation. We hold out nearly half of the rows: with only a dozen rows
# for validation, one more lucky answer would change the accuracy by eight points.

# %%
classes = sorted(WORDINGS)
task = task_from_files(folder / "tickets.csv", labels=classes, validation_share=0.45)
print(f"{len(task.train)} rows to learn from, {len(task.validation)} to evaluate on")

# %% [markdown]
# ## Train
#
# A classifier has one output per class. All [members](../glossary.md#ensembles) of the ensemble share one
# frozen base. Each member has its own adapters and head, starts from its own seed and reads the rows in its
# own order. All members are trained in the same forward and backward passes.

# %%
base, tokenizer = load_base(base_name, head="sequence-classification", num_labels=len(classes))
ensemble = LoraEnsemble(base, tokenizer, num_members=members, seed=0)
config = TrainConfig(epochs=epochs, batch_size=16, learning_rate=2e-3)
result = train(ensemble, task.train, config, progress=False)
for epoch, row in enumerate(result.history, start=1):
    print(f"epoch {epoch}: training loss of the members", *(f"{loss:.2f}" for loss in row["train_loss"]))

# %% [markdown]
# The learning rate of 2e-3 suits the small embedded base. For a model from the hub, start with
# `TrainConfig.preset("default")`.
#
# ## How good is it?
#
# `predict` returns a `Prediction`: the probabilities of every member for every row. The ensemble predicts
# their mean over members. `evaluate` scores that mean, and `evaluate_members` scores each member alone.

# %%
prediction = predict(ensemble, task.validation)
ours, alone = evaluate(prediction), evaluate_members(prediction)
print(f"{'':<10}{'one member':>18}{'ensemble':>12}")
for name in ("accuracy", "nll", "ece", "brier"):
    print(f"{name:<10}{alone[name]!s:>18}{getattr(ours, name):>12.4f}")

# %% [markdown]
# The column "one member" shows the mean and standard deviation over the members. Accuracy should be high; the
# other three should be low. [NLL](../glossary.md#uncertainty-and-calibration) punishes answers that are
# confident and wrong, and there the ensemble gains most. ECE measures how far confidence is from accuracy.
#
# No value measured on a sample is exact. An interval shows where the value could be if we had measured it on
# all tickets of this kind:

# %%
for metric in (accuracy, nll):
    print(f"{metric.__name__:<10}", bootstrap_interval(metric, prediction))
print("NLL of the ensemble minus NLL of member 0:", paired_difference(nll, prediction, prediction.member(0)))

# %% [markdown]
# The interval of the accuracy is wide, because a few hundred rows do not allow more precision. The difference
# between two models on the same rows is known more precisely than each value alone, because hard rows are
# hard for both. If the interval of the difference does not contain zero, these rows show a difference.

# %% [markdown]
# ## Is a probability of 0.8 right in 8 cases of 10?

# %% tags=["plot"]
from lora_ensembles import plots

plots.reliability({"one member": prediction.member(0), "ensemble": prediction})

# %% [markdown]
# On the diagonal a model is right as often as its confidence says. Below the diagonal it is overconfident.
# The grey band shows deviations that chance alone would explain. With so few rows it is broad, so do not read
# much into a single point.

# %% [markdown]
# ## New texts
#
# The ensemble remembers its classes, so texts are enough. The first two are clear. The third fits two
# classes, bug and feature. The last has nothing to do with support.

# %%
new = [
    "Hello. I was charged twice for the dashboard.",
    "The calendar crashes when I open it.",
    "There is no invoice.",
    "The moon is made of old cheese, and nobody lives there.",
]


def show(prediction, texts):
    """One line for each text."""
    columns = zip(
        texts,
        prediction.choices.tolist(),
        prediction.confidence.tolist(),
        expected_entropy(prediction).tolist(),
        mutual_information(prediction).tolist(),
        disagreement(prediction).tolist(),
        strict=True,
    )
    print(f"{'class':<9}{'p':>5}{'aleatoric':>11}{'epistemic':>11}{'disagree':>10}  text")
    for text, choice, *numbers in columns:
        p, shared, contradicted, votes = numbers
        print(f"{classes[choice]:<9}{p:>5.2f}{shared:>11.3f}{contradicted:>11.3f}{votes:>10.2f}  {text[:50]}")


show(predict(ensemble, new), new)

# %% [markdown]
# - *Aleatoric* uncertainty (expected entropy, in nats) is how unsure each member is by itself. It is high
#   where a ticket is vague, and more data does not remove it.
# - *Epistemic* uncertainty (mutual information, in nats) is how much the members disagree. More data like
#   this row would reduce it.
# - *Disagreement* is the share of pairs of members that choose different classes.
#
# Read the last line with care. A classifier cannot answer "none of these". Whatever the text, the
# probabilities of the four classes sum to one, and an ensemble that has never seen such a text may still be
# rather confident. [Tutorial 2](02_uncertainty.ipynb) shows what uncertainty finds and what it does not.
#
# `ensemble.read("new.csv")` reads a csv with new rows, with or without a label column.

# %% [markdown]
# ## Leave the uncertain ones to a person
#
# *Selective prediction* means that the model answers only if the total entropy is below a threshold. The
# threshold must not be chosen on the rows on which it is evaluated. So we choose it on one half of the
# held-out rows and evaluate it on the other half.

# %%
shuffled = torch.randperm(prediction.num_examples, generator=torch.Generator().manual_seed(0))
half = prediction.num_examples // 2
chooses, judges = prediction.take(shuffled[:half]), prediction.take(shuffled[half:])


def threshold_for(prediction, wanted):
    """The largest entropy up to which at least the wanted share of the answers is right."""
    entropy, order = total_entropy(prediction).sort()
    right = (prediction.choices == prediction.targets)[order].float()
    share = right.cumsum(0) / torch.arange(1, len(right) + 1)
    good = (share >= wanted).nonzero()
    return entropy[good[-1]].item() if len(good) else 0.0


threshold = threshold_for(chooses, wanted=0.95)
answered = total_entropy(judges) <= threshold
print(f"answer where the entropy is at most {threshold:.2f} nats")
print(f"answered: {answered.float().mean():.0%} of the other half")
print(f"accuracy if everything is answered: {bootstrap_interval(accuracy, judges)}")
if answered.any():
    kept = judges.take(answered.nonzero()[:, 0])
    print(f"accuracy on what is answered:       {bootstrap_interval(accuracy, kept)}")

# %% [markdown]
# We chose the threshold for 95 % on the first half. On the second half the accuracy will be close to that but
# not equal, because the threshold was chosen on about a hundred rows. If you must keep such a promise, choose
# the threshold on more rows.
#
# The curve below shows every threshold at once: the error rate on the answered rows, against their share.

# %% tags=["plot"]
plots.risk_coverage({"one member": prediction.member(0), "ensemble": prediction})

# %% [markdown]
# ## Save and load
#
# Each member is saved as a PEFT adapter folder; `ensemble.json` names the base that the adapters belong to,
# and stores the classes and the columns, so that new files are read in the same way.

# %%
ensemble.save_pretrained(folder / "runs" / "tickets")
print(*sorted(path.name for path in (folder / "runs" / "tickets").iterdir()), sep="\n")

again = LoraEnsemble.from_pretrained(folder / "runs" / "tickets")
torch.testing.assert_close(predict(again, new).probs, predict(ensemble, new).probs)
print("the loaded ensemble says the same")

# %% [markdown]
# ## The same from the command line
#
# ```sh
# lora-ensembles train tickets.csv --members 3 --epochs 6 --out runs/by-command
# lora-ensembles evaluate runs/by-command --intervals
# lora-ensembles predict runs/by-command --in new.csv --keep-columns all --out answers.csv
# ```
#
# A notebook is not a shell, so here we call the same program from Python with the same arguments. It
# recognises that the file has texts and classes, and holds out a fifth of the rows.

# %%
from lora_ensembles.cli import main as lora_ensembles

words = f"train {folder}/tickets.csv --members 3 --epochs {command_epochs} --out {folder}/runs/by-command"
assert lora_ensembles(words.split()) == 0

# %% [markdown]
# `predict` writes one row for each new text, with all the values that we printed above. Here we print four of
# its columns for the first two rows.

# %%
with (folder / "new.csv").open("w", newline="", encoding="utf-8") as file:
    csv.writer(file).writerows([["text"], *([text] for text in new)])
words = f"predict {folder}/runs/by-command --in {folder}/new.csv --out {folder}/answers.csv"
assert lora_ensembles(words.split()) == 0

with (folder / "answers.csv").open(newline="", encoding="utf-8") as file:
    for row in list(csv.DictReader(file))[:2]:
        print({name: row[name] for name in ("row", "prediction", "confidence", "mutual_information")})

# %% [markdown]
# ## Read on
#
# - [Data](../data.md): other columns, other file types, questions with options.
# - [Statistics](../statistics.md): how the intervals are computed, and how often they contain the true value.
# - [Tutorial 2](02_uncertainty.ipynb): what the two kinds of uncertainty tell you.
