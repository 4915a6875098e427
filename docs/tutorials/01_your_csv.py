# %% [markdown]
# # From your csv to probabilities, and what to do with them
#
# At the end you can train an ensemble on a csv of texts and classes, say how good it is and how sure you are
# of that, classify new texts, and leave those to a person about which the ensemble is unsure.
#
# About two minutes on two CPU cores, no network.
#
# [Open in Colab](https://colab.research.google.com/github/lora-ensembles/lora-ensembles/blob/main/docs/tutorials/01_your_csv.ipynb)

# %% tags=["colab", "skip-execution"]
# Only on Colab: install the release. Elsewhere pass this cell over.
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
# The sizes of this tutorial. `embedded` is a very small language model inside the package, which needs no
# download. For real work put the name of a model of the hub in its place, a classifier such as
# `answerdotai/ModernBERT-base` or any causal language model.

# %% tags=["parameters"]
base_name = "embedded"
rows = 560
epochs = 12
members = 5
command_epochs = 6

# %% [markdown]
# ## A csv
#
# Your file needs a column of texts and a column of classes. We make one: support tickets of four classes. The
# wordings of a class are many and the rows few, as they usually are.
#
# One ticket in five is vague. "There is no invoice." may be a bug or a wish, and the person who labelled it
# had to decide. No model can do better than guess there. Such noise is in most labelled files.

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
# `task_from_files` reads the file and holds out a share of it, of each class alike. Members learn from
# `train`; `validation` is kept to judge them. We hold out nearly half: with a dozen rows held out, one lucky
# answer more moves the accuracy by eight points.

# %%
classes = sorted(WORDINGS)
task = task_from_files(folder / "tickets.csv", labels=classes, validation_share=0.45)
print(f"{len(task.train)} rows to learn from, {len(task.validation)} to judge by")

# %% [markdown]
# ## Train
#
# A classifier has one output for each class. Each [member](../glossary.md#ensembles) of the ensemble has
# adapters and a head of its own on the one frozen base, starts from its own seed and reads the rows in its
# own order. All are trained in one pass.

# %%
base, tokenizer = load_base(base_name, head="sequence-classification", num_labels=len(classes))
ensemble = LoraEnsemble(base, tokenizer, num_members=members, seed=0)
config = TrainConfig(epochs=epochs, batch_size=16, learning_rate=2e-3)
result = train(ensemble, task.train, config, progress=False)
for epoch, row in enumerate(result.history, start=1):
    print(f"epoch {epoch}: training loss of the members", *(f"{loss:.2f}" for loss in row["train_loss"]))

# %% [markdown]
# The step size of 2e-3 suits the small embedded base. For a model of the hub begin with
# `TrainConfig.preset("default")`.
#
# ## How good is it?
#
# `predict` gives a `Prediction`: the probabilities of every member for every row. The ensemble's answer is
# the mean of them. `evaluate` scores that mean, `evaluate_members` each member alone.

# %%
prediction = predict(ensemble, task.validation)
ours, alone = evaluate(prediction), evaluate_members(prediction)
print(f"{'':<10}{'one member':>18}{'ensemble':>12}")
for name in ("accuracy", "nll", "ece", "brier"):
    print(f"{name:<10}{alone[name]!s:>18}{getattr(ours, name):>12.4f}")

# %% [markdown]
# One member stands here with its mean and standard deviation over the members. Accuracy should be high; the
# other three should be low. [NLL](../glossary.md#uncertainty-and-calibration) punishes those who are sure and
# wrong, and that is where the ensemble gains most. ECE says how far confidence is from accuracy.
#
# No figure of a sample is exact. An interval says where the value may lie if we had asked all tickets in the
# world:

# %%
for metric in (accuracy, nll):
    print(f"{metric.__name__:<10}", bootstrap_interval(metric, prediction))
print("NLL of the ensemble minus NLL of member 0:", paired_difference(nll, prediction, prediction.member(0)))

# %% [markdown]
# The interval of the accuracy is wide: a few hundred rows say no more. The difference of two models on the
# same rows is known better than either by itself, because hard rows are hard for both. Where its interval
# holds no zero, the two can be told apart.

# %% [markdown]
# ## Is a probability of 0.8 right in 8 cases of 10?

# %% tags=["plot"]
from lora_ensembles import plots

plots.reliability({"one member": prediction.member(0), "ensemble": prediction})

# %% [markdown]
# On the diagonal a model is right as often as it says. Below it, it is overconfident. The grey band is what
# chance alone would explain; with so few rows it is broad, so do not read much into a single point.

# %% [markdown]
# ## New texts
#
# The ensemble remembers its classes, so texts are enough. The first two are plain. The third could be two
# things. The last has nothing to do with support.

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
# - *Aleatoric* uncertainty (expected entropy, in nats) is what every member feels alike. More data does not
#   remove it: the ticket is vague.
# - *Epistemic* uncertainty (mutual information, in nats) is what the members contradict each other about.
#   More data like this row would settle it.
# - *Disagreement* is the share of pairs of members that would choose different classes.
#
# Look at the last line with care. A classifier has no answer "none of these". Whatever the text, the
# probabilities sum to one over the four classes, and an ensemble that has never seen such a text may still be
# rather sure. [Tutorial 2](02_uncertainty.ipynb) goes into what uncertainty finds and what it does not.
#
# A csv with new rows, with or without a label column, is read by `ensemble.read("new.csv")`.

# %% [markdown]
# ## Leave the doubtful ones to a person
#
# *Selective prediction*: answer only where the total entropy is below a threshold. The threshold must not be
# chosen on the rows by which it is judged. So half of the held-out rows choose it, and the other half say
# what it is worth.

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
# We asked for 95 % on the first half. On the second it will be near that, not exact: the threshold was chosen
# on about a hundred rows. If a promise matters, choose it on more.
#
# The curve below shows every threshold at once: the error on the share that is answered.

# %% tags=["plot"]
plots.risk_coverage({"one member": prediction.member(0), "ensemble": prediction})

# %% [markdown]
# ## Save and load
#
# Each member is a PEFT adapter folder; `ensemble.json` says which base they belong to, and how texts are
# read.

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
# A notebook is no shell, so here the same program is called from Python with the same words. It sees that the
# file holds texts and classes, and holds a fifth of it out.

# %%
from lora_ensembles.cli import main as lora_ensembles

words = f"train {folder}/tickets.csv --members 3 --epochs {command_epochs} --out {folder}/runs/by-command"
assert lora_ensembles(words.split()) == 0

# %% [markdown]
# `predict` writes one row for each new text, with everything that we printed by hand above. Here we look at
# the first columns of two rows.

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
# - [Statistics](../statistics.md): what the intervals are, and how often they hold.
# - [Tutorial 2](02_uncertainty.ipynb): what the two kinds of uncertainty tell.
