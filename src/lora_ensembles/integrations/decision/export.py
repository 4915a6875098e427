"""One member in the files of transformers' `pipeline("decision")`: its adapter, a template that writes our
prompt, and a temperature of its own.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...calibration.temperature import best_temperature
from ...data import encode_examples
from ...data.decisions import decision_rows
from ...data.formats import Row
from ...data.inputs import answer_of
from ...data.prompts import LETTERS
from ...data.tokens.questions import leading_ids, tokenise
from ...data.whole_file import read_whole
from ...disk.atomic import written_aside
from ...ensemble import LoraEnsemble
from ...errors import ConfigError
from ...stack.adapters import write_adapter
from ...stack.seeds import check_indices
from ...storage.folder import base_name, member_folder

if TYPE_CHECKING:
    from ...calibration.calibrated import HeldOut

CONFIG, TEMPLATE = "decision.json", "decision_template.jinja"
TYPES = {"choice": "choice", "score": "score", "predicate": "noul"}  # our names, and those of transformers
# Writes what `data.decisions` and `data.prompts` write; the pipeline reads the token before the mark.
PROMPT = """
{%- macro text(x) %}{{ "" if x is none else x if x is string else x|tojson }}{% endmacro -%}
{%- set ns = namespace(state="") -%}
{%- if state is string -%}
    {%- set ns.state = state|trim -%}
{%- elif state is sequence and state is not mapping and state and state[0] is mapping \
and state[0].content is defined -%}
    {%- for message in state -%}
        {%- set ns.state = ns.state ~ ("\\n" if not loop.first else "") ~ (message.role or "user") \
~ ": " ~ message.content -%}
    {%- endfor -%}
{%- else -%}
    {%- set ns.state = state|tojson -%}
{%- endif -%}
{{- LEADING ~ "Q: " ~ ns.state ~ "\\n\\n" ~ text(question.instructions)|trim ~ "\\nAnswer Choices:\\n" -}}
{%- for option in question.options -%}
    {%- set said = text(question.descriptions[loop.index0])|trim -%}
    {%- set name = {"true": "yes", "false": "no"}[option] if question.type == "noul" else option -%}
    {%- set shown = name ~ ": " ~ said if said and said != name else name -%}
    {{- "(" ~ question.labels[loop.index0] ~ ") " ~ shown ~ "\\n" -}}
{%- endfor -%}
{{- "A: (<|mark|>" -}}
"""
PROBE = {
    "state": {"ticket": "The invoice is wrong.", "plan": None},
    "questions": [
        {"id": "queue", "type": "choice", "instructions": "Which queue?", "choices": ["billing", "bug"]}
    ],
}


def export_decision(ensemble: LoraEnsemble, path: str | Path, *, member: int = 0) -> None:
    """Write one member so that transformers' decision pipeline answers as it does.

    `pipeline("decision", model=BASE, decision_config=path)` then gives the member's probabilities for
    predicates, choices and scores; it needs transformers 5.24 or newer. Where the ensemble is calibrated, the
    member gets the temperature of least NLL on the same held-out examples, for each type. A pipeline knows
    one adapter: the ensemble's mean and its epistemic uncertainty stay here.

    Args:
        ensemble: of members that answer by letter with the language model's head.
        path: a folder that is not there or is empty.
        member: the index of the member.

    Raises:
        ConfigError: no such member, members that answer in another way, or a tokenizer to which a letter
            behind a bracket is another token than the letter alone.
        CheckpointError: `path` is not empty, or cannot be written.

    Example:
        >>> import tempfile
        >>> from lora_ensembles import load_base
        >>> folder = Path(tempfile.mkdtemp()) / "one"
        >>> export_decision(LoraEnsemble(*load_base(), num_members=2), folder)
        >>> sorted(file.name for file in folder.iterdir())
        ['decision.json', 'decision_template.jinja', 'member_000']
    """
    check_indices([member], ensemble.num_members)
    labels = (ensemble.info.task.get("source") or {}).get("labels")
    if ensemble.info.head.kind != "causal-lm" or answer_of(ensemble.info) == "text" or labels:
        raise ConfigError(
            "export_decision: the pipeline reads the letter of an option from a language model, and these "
            "members answer in another way (a head of their own, label words, or the options' texts)"
        )
    leading = _leading(ensemble)
    config = copy.deepcopy(ensemble.adapter)
    config.base_model_name_or_path = base_name(ensemble.base)
    content = {
        "labels": {name: list(LETTERS[: 2 if name == "noul" else len(LETTERS)]) for name in TYPES.values()},
        "temperature": _temperatures(ensemble.calibrated, member),
        "noul_options": ["true", "false"],
        "sanitize_control_tokens": True,
        "adapter": member_folder(member),
    }
    template = PROMPT.replace("LEADING", json.dumps(leading))
    with written_aside(Path(path)) as aside:
        write_adapter(
            aside / member_folder(member), ensemble.stack.member(member), config, dtype=torch.float32
        )
        (aside / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        (aside / TEMPLATE).write_text(template, encoding="utf-8")


def _leading(ensemble: LoraEnsemble) -> str:
    """The text of the tokens that the tokenizer puts in front of a prompt, which a template must write
    itself.

    Raises:
        ConfigError: letters are other tokens in the prompt than by themselves.
    """
    tokenizer = ensemble.tokenizer
    rows = decision_rows([Row("probe", "probe", PROBE)])
    (example,) = read_whole(rows, name="probe", labelled=False).examples
    (encoded,) = encode_examples([example], tokenizer)
    alone = [tuple(ids) for ids in tokenizer(list(example.labels), add_special_tokens=False)["input_ids"]]
    if list(encoded.label_ids) != alone:
        raise ConfigError(
            f"export_decision: to {type(tokenizer).__name__} a letter behind a bracket is another token than "
            "the letter alone, which is what the pipeline reads"
        )
    (ids,) = tokenise(tokenizer, [example.prompt])
    return "".join(tokenizer.convert_ids_to_tokens(list(leading_ids(tokenizer, example.prompt, ids))))


def _temperatures(kept: HeldOut | None, member: int) -> dict[str, float]:
    """The member's own temperature for each type of question, from the examples that were held out; of a type
    without examples that of all.
    """
    if kept is None:
        return {}
    prediction = kept.prediction.member(member)
    whole = best_temperature(prediction)
    found = {}
    for own, name in TYPES.items():
        rows = torch.tensor(
            [row for row, kind in enumerate(prediction.types) if kind == own], dtype=torch.int64
        )
        found[name] = best_temperature(prediction.take(rows)) if len(rows) else whole
    return found
