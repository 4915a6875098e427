# %% [markdown]
# # A chat model that says when it is guessing
#
# You learn to fine-tune an ensemble on chats, to generate answers with it, to see for each token whether the
# members disagree, and to let the model say when it is guessing.
#
# It takes about three minutes on two CPU cores and needs no network.
#
# [Open in Colab](https://colab.research.google.com/github/lora-ensembles/lora-ensembles/blob/main/docs/tutorials/03_chat_that_knows.ipynb)

# %% tags=["colab", "skip-execution"]
# Only on Colab: install the release. Elsewhere, skip this cell.
# !pip install -q "lora-ensembles[plots]"

# %%
import torch
from transformers import GenerationConfig

from lora_ensembles import LoraEnsemble, TrainConfig, generate_text, load_base, train
from lora_ensembles.embedded import load_embedded_completions
from lora_ensembles.prediction.selective import error_auroc

# %% [markdown]
# `embedded` is a very small language model inside the package. It was pre-trained only on texts about a
# generated world of towns, creatures and tools, and it cannot hold a conversation. It shows the method, in
# minutes. For real use, run the same code with `base_name = "smollm2"`, a pre-trained chat model of 135
# million parameters, or with any chat model on the hub, on your own chats and with a smaller learning rate;
# this takes a few hours.

# %% tags=["parameters"]
base_name = "embedded"
train_questions = 400
test_questions = 200
epochs = 10
members = 5

# %% [markdown]
# ## Chats
#
# A row is a list of messages; the last one is by the assistant and is the text to learn. Some of the facts
# behind these questions occurred often in the pre-training of the base, some hardly at all. So it knows some
# answers and has to guess others, and that is what we want to observe.

# %%
task = load_embedded_completions()


def chat(example):
    """A question and its answer as two messages."""
    question = example.prompt.removeprefix("Q: ").removesuffix("\nA:")
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": example.completion.strip()},
    ]


train_chats = [chat(example) for example in task.train[:train_questions]]
test_chats = [chat(example) for example in task.validation[:test_questions]]
for messages in train_chats[:3]:
    print(messages[0]["content"], "->", messages[1]["content"])

# %% [markdown]
# A chat model has a chat template, which turns messages into text. The embedded base is not a chat model and
# has no template, so we write one. The template of a real chat model stays as it is.

# %%
base, tokenizer = load_base(base_name)
if tokenizer.chat_template is None:
    tokenizer.chat_template = (
        "{% for message in messages %}"
        "{% if message.role == 'user' %}Q: {{ message.content }}\nA:"
        "{% else %} {{ message.content }}{{ eos_token }}{% endif %}"
        "{% endfor %}"
    )
print(tokenizer.apply_chat_template(train_chats[0], tokenize=False))

# %% [markdown]
# ## Train
#
# Rows can be dictionaries, a `datasets.Dataset` or a file ([data](../data.md#open-answers)). Only the
# assistant's last message is learnt; the prompt is masked.

# %%
ensemble = LoraEnsemble(base, tokenizer, num_members=members, seed=0)
rows = [{"messages": messages} for messages in train_chats]
result = train(ensemble, rows, TrainConfig(epochs=epochs, learning_rate=2e-3), progress=False)
print("training loss of the members, nats an answer")
for epoch in (1, epochs):
    print(f"epoch {epoch}:", *(f"{loss:.2f}" for loss in result.history[epoch - 1]["train_loss"]))

# %% [markdown]
# ## Generate answers
#
# To `generate`, the ensemble is one model: at each step it predicts the mean of its members' probabilities.
# So a member that is wrong about one word is outvoted there, and the sentence continues with the right word.
#
# None of the entities in these questions occurred in a training question.

# %%
decoding = GenerationConfig(max_new_tokens=24)
prompts = [messages[:1] for messages in test_chats]
answers = generate_text(ensemble, prompts, decoding, batch_size=64)
right = torch.tensor(
    [
        answer.text.strip() == messages[1]["content"]
        for answer, messages in zip(answers, test_chats, strict=True)
    ]
)
print(f"{right.float().mean():.0%} of {len(right)} answers are right, word for word")

# %% [markdown]
# ## Look at single tokens
#
# Every token has a [mutual information](../glossary.md#uncertainty-and-calibration), in nats, which measures
# how much the members disagree at this position. It is near zero if all members would write the same token,
# and also if all of them see the same choice between two good words. It is large if the members are
# confident of different tokens, which happens when none of them knows the answer and each makes up its own.

# %%
doubt = torch.tensor([answer.uncertainty.mutual_information.max().item() for answer in answers])


def show(index):
    """A question, its answer, and the doubt in each token."""
    answer = answers[index]
    print("Q:", test_chats[index][0]["content"])
    print("A:", answer.text.strip(), "" if right[index] else f"(expected: {test_chats[index][1]['content']})")
    for token, nats in zip(answer.tokens, answer.uncertainty.mutual_information.tolist(), strict=True):
        print(f"   {nats:6.3f} {'#' * round(20 * nats):<20} {token!r}")


order = doubt.argsort().tolist()
print("The answer about which members contradict each other least:\n")
show(order[0])
print("\nThe one about which they contradict each other most:\n")
show(order[-1])

# %% [markdown]
# As a rule the uncertainty is highest at the word that states the fact, a town or a colour, or at the word
# where the sentence begins to depend on it. The other words follow from the question.
#
# "Right" is strict here: it means word for word. An answer that says the same in other words counts as wrong.

# %% tags=["plot"]
from lora_ensembles import plots

plots.token_uncertainty(answers[order[-1]])

# %% [markdown]
# ## Does the uncertainty find the wrong answers?
#
# We compare several scores of an answer: the mutual information of its tokens; the total entropy of its
# tokens, which also counts harmless choices of words; and the improbability of the whole text. A single model
# has the last two as well. The AUROC is the probability that a wrong answer has a higher score than a right
# one; 0.5 is chance.


# %%
def of_tokens(name, reduced):
    """A score for each answer: a tensor of its tokens' uncertainty, reduced to one number."""
    return torch.tensor([reduced(getattr(answer.uncertainty, name)).item() for answer in answers])


scores = {
    "mutual information, largest token": of_tokens("mutual_information", torch.max),
    "mutual information, mean": of_tokens("mutual_information", torch.mean),
    "total entropy, largest token": of_tokens("total_entropy", torch.max),
    "total entropy, mean": of_tokens("total_entropy", torch.mean),
    "improbability of the text": of_tokens("log_probs", lambda log_probs: -log_probs.sum()),
}
print(f"{int((~right).sum())} wrong answers of {len(right)}")
for name, score in scores.items():
    if 0 < right.sum() < len(right):
        print(f"{name:<34} AUROC {error_auroc(score, right):.2f}")

# %% [markdown]
# With a few dozen wrong answers, each AUROC is known to about five points either way, so do not rank scores
# by small differences. [Text from the ensemble](../generation.md) has the same measurement with three seeds
# and twice as many questions; there mutual information is ahead of entropy in each seed. The entropy of a
# single token is a poor score: it is large wherever several words would fit.
#
# ## Let the model say when it guesses
#
# We choose a threshold on the first half of the questions: the mutual information above which at most half of
# the answers are right. The second half shows how well the threshold works.

# %%
half = len(right) // 2


def threshold_for(doubt, right):
    """The smallest doubt from which on at most half of the answers are right."""
    doubt, order = doubt.sort()
    right = right[order].float()
    share_above = right.flip(0).cumsum(0).flip(0) / torch.arange(len(right), 0, -1)
    good = (share_above <= 0.5).nonzero()
    return doubt[good[0]].item() if len(good) else float("inf")


threshold = threshold_for(doubt[:half], right[:half])
guessed = doubt[half:] >= threshold
for name, chosen in (("said plainly", ~guessed), ("said to be a guess", guessed)):
    if chosen.any():
        share = right[half:][chosen].float().mean()
        print(f"{name:<19} {int(chosen.sum()):>4} answers, {share:.0%} right")

# %% [markdown]
# And the chat model itself:


# %%
def reply(question):
    """An answer, with a warning where members contradict each other."""
    answer = generate_text(ensemble, [{"role": "user", "content": question}], decoding)[0]
    guess = answer.uncertainty.mutual_information.max().item() >= threshold
    return answer.text.strip() + ("   [I am guessing.]" if guess else "")


for index in (order[0], order[len(order) // 2], order[-1]):
    print("Q:", test_chats[index][0]["content"])
    print("A:", reply(test_chats[index][0]["content"]), "\n")

# %% [markdown]
# ## What this cannot do
#
# If members learnt the same mistake, they agree on it, and the uncertainty does not show it. The threshold is
# for questions of this kind; choose a new one for others. Finally, the uncertainty is about single *tokens*:
# it does not tell you whether a long text as a whole is right.
#
# ## Read on
#
# - [Text from the ensemble](../generation.md): beams, sampling, streaming, and the measurement with three
#   seeds.
# - From a shell: `lora-ensembles generate runs/chat --chat --prompt '...'` shades tokens by mutual
#   information.
