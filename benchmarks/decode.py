"""What a token costs: `python benchmarks/decode.py --profile embedded --json`.

Arms, all through the same Hugging Face `generate`, greedily, with a dynamic cache, on the same prompt, taken in turn:

  ensemble     M stacked members, one text, the mean of their probabilities at every step
  merged       one member, merged into the base: what a single fine-tuned model costs
  sequential   M PEFT models one after another, each writing a text of its own (a lower bound: nothing is averaged)

A token's cost is the time of a whole call, prompt included, divided by the new tokens.
"""

from __future__ import annotations

import argparse
import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from timing import interleaved, write_record
from torch import nn

from lora_ensembles import LoraEnsemble, load_base


@dataclass(frozen=True)
class Profile:
    """A piece of work: M members, B prompts of `prompt` tokens, `new` tokens each."""

    members: int
    rows: int
    prompt: int
    new: int


PROFILES = {"embedded": Profile(members=5, rows=1, prompt=64, new=96)}
MUST = {"ensemble_to_merged": 2.0, "ensemble_to_sequential": 0.5}


def members_of(ensemble: LoraEnsemble, base: nn.Module) -> list[PeftModel]:
    """Each member as PEFT holds it, on a base of its own."""
    models = []
    for index in range(ensemble.num_members):
        config = LoraConfig(**{name: getattr(ensemble.adapter, name) for name in ("r", "lora_alpha", "target_modules", "task_type")})
        model = get_peft_model(copy.deepcopy(base), config).eval()  # type: ignore[arg-type]
        weights, parameters = ensemble.stack.member(index), dict(model.named_parameters())
        for site in weights.a:
            parameters[f"base_model.model.{site}.lora_A.default.weight"].data.copy_(weights.a[site])
            parameters[f"base_model.model.{site}.lora_B.default.weight"].data.copy_(weights.b[site])
        models.append(model)
    return models


def measure(profile: Profile, *, windows: int) -> dict[str, Any]:
    """Milliseconds a token of each arm, and their ratios."""
    base, tokenizer = load_base()
    plain = copy.deepcopy(base)
    ensemble = LoraEnsemble(base, tokenizer, members=profile.members)
    ensemble.stack.b.normal_(std=0.02, generator=torch.Generator().manual_seed(0))
    peft = members_of(ensemble, plain)
    merged: Any = copy.deepcopy(peft[0]).merge_and_unload()
    ids = torch.randint(3, len(tokenizer), (profile.rows, profile.prompt), generator=torch.Generator().manual_seed(1))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    exactly: dict[str, Any] = dict(max_new_tokens=profile.new, min_new_tokens=profile.new, do_sample=False)
    lm: Any = ensemble.as_causal_lm()
    arms = {
        "ensemble": lambda: lm.generate(**inputs, **exactly),
        "merged": lambda: merged.generate(**inputs, **exactly),
        "sequential": lambda: [model.generate(**inputs, **exactly) for model in peft],
    }
    seconds = interleaved(arms, windows=windows)
    ratios = {
        "ensemble_to_merged": seconds["ensemble"] / seconds["merged"],
        "ensemble_to_sequential": seconds["ensemble"] / seconds["sequential"],
    }
    return {
        "milliseconds_a_token": {name: round(1000 * value / profile.new, 4) for name, value in seconds.items()},
        "ratios": {name: round(value, 4) for name, value in ratios.items()},
        "must_be_at_most": MUST,
        "ok": all(ratios[name] <= most for name, most in MUST.items()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--profile", choices=PROFILES, default="embedded")
    parser.add_argument("--windows", type=int, default=9, help="interleaved runs of every arm")
    parser.add_argument("--out", type=Path, help="write the record there")
    parser.add_argument("--json", action="store_true", help="end with one JSON line")
    arguments = parser.parse_args()
    profile = PROFILES[arguments.profile]
    record = {"profile": arguments.profile, **vars(profile), **measure(profile, windows=arguments.windows)}
    for name, value in record["milliseconds_a_token"].items():
        print(f"{name:<12} {value:7.3f} ms a token")
    for name, value in record["ratios"].items():
        print(f"{name:<24} {value:.2f}  (at most {MUST[name]:g})")
    whole = write_record(arguments.out, record)
    if arguments.json:
        print(json.dumps(whole))


if __name__ == "__main__":
    main()
