"""What a token costs: `python benchmarks/decode.py --profile embedded --json`.

Arms, all through the same Hugging Face `generate`, greedily, on the same prompt, taken in turn:

  ensemble   M stacked members, one text, the mean of their probabilities at every step
  merged     one member, merged into the base: what a single fine-tuned model costs
  A          M PEFT models one after another, each writing a text of its own (a lower bound: nothing is
             averaged)
  A'         the same with every member merged beforehand: M times `merged`, and M bases in memory
  B          PEFT's `adapter_names`: the rows of all members in one batch, a text each
  compiled   with a static cache and torch.compile, the ensemble and the merged model; on a GPU, or with
             --compile
  C          the limit: the prompt at the device's FLOP/s, then for each token what must be read or computed

A ratio A, A' or B is that arm's time over the ensemble's, `merged` the ensemble's over that model's, C the
share of the limit. A token's cost is the time of a whole call, prompt included, divided by the new tokens.
With a static cache the ensemble's decoding step is compiled once more by a backend that counts graphs and
runs them as they are: it must be one.
"""

from __future__ import annotations

import argparse
import copy
import functools
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from limits import Peak, decode_seconds, peak, prompt_seconds
from peers import Work, put, wrap
from timing import WINDOWS, add_record_flags, end_with, interleaved, ratio_lines, rounded, worst
from torch import Tensor
from transformers import CompileConfig
from workloads import SHAPES, Shape, build, scaled, shape_of, sharing, tokenizer

from lora_ensembles import LoraEnsemble, TrainConfig, load_base

TOLERANCE = {
    torch.float32: 1e-3,
    torch.bfloat16: 0.25,
}  # nats: most difference of a member's log-probabilities from PEFT's
COMPARED = 16  # last positions at which they are compared


@dataclass(frozen=True)
class Profile:
    """A piece of work: M members, B prompts of `prompt` tokens, `new` tokens each."""

    shape: str
    members: int
    rows: int
    prompt: int
    new: int
    must: dict[str, float]
    at_most: dict[str, float]


PROFILES = {
    "D1": Profile("8B", 8, 1, 1024, 128, {"A": 5.0, "B": 4.0}, {"merged compiled": 1.35}),
    "D2": Profile("8B", 8, 8, 1024, 128, {"B": 3.0, "C": 0.55}, {}),
}
SMALL = {  # the same on every device
    "embedded": Profile("embedded", 5, 1, 64, 96, {"A": 2.0}, {"merged": 2.0}),
    "smollm2": Profile("smollm2", 5, 1, 64, 32, {"A": 2.0, "A'": 1.0}, {}),
    "toy": Profile("toy", 8, 1, 32, 32, {"B": 2.0}, {}),
    "tiny": Profile("tiny", 2, 1, 8, 4, {}, {}),
}


@dataclass
class Setting:
    """The ensemble, PEFT's models of its members, and one merged member, all of the same weights."""

    shape: Shape
    ensemble: LoraEnsemble
    peft: list[Any]
    mixed: Any
    merged: Any
    inputs: dict[str, Tensor]

    @property
    def names(self) -> list[str]:
        """The adapter of each of the M * B rows of the mixed batch."""
        return [f"member{index}" for index in range(len(self.peft)) for _ in self.inputs["input_ids"]]


def prepare(profile: Profile, *, small: bool, device: str, dtype: torch.dtype) -> Setting:
    """Members whose B matrices are random, so that all differ."""
    words: Any
    if profile.shape not in SHAPES:
        base, words = load_base(profile.shape, dtype=str(dtype).removeprefix("torch."))
        base = base.to(device)  # type: ignore[arg-type]
        shape = shape_of(base)
    else:
        shape = scaled(SHAPES[profile.shape]) if small else SHAPES[profile.shape]
        base, words = build(shape, dtype=dtype, device=device), tokenizer(shape.vocabulary)
    base.requires_grad_(False).eval()
    ensemble = LoraEnsemble(sharing(base), words, num_members=profile.members)
    weights = [ensemble.stack.member(index) for index in range(profile.members)]
    generator = torch.Generator().manual_seed(0)
    for member in weights:
        for matrix in member.b.values():
            matrix.normal_(std=0.02, generator=generator)
    ensemble.stack.set_members(weights)
    work = Work(base, ensemble.adapter, [], TrainConfig(), weights, [])
    peft = []
    for member in weights:
        peft.append(wrap(work, ["default"]).eval())
        put(peft[-1], member)
    mixed = wrap(work, [f"member{index}" for index in range(profile.members)]).eval()
    for index, member in enumerate(weights):
        put(mixed, member, f"member{index}")
    alone = wrap(
        replace(work, base=copy.deepcopy(base)), ["default"]
    ).eval()  # merging writes into the weights
    put(alone, weights[0])
    generator = torch.Generator(device).manual_seed(1)
    ids = torch.randint(
        3, shape.vocabulary, (profile.rows, profile.prompt), generator=generator, device=device
    )
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return Setting(shape, ensemble, peft, mixed, alone.merge_and_unload(), inputs)


def arms_of(setting: Setting, new: int, *, compiled: bool) -> dict[str, Callable[[], Any]]:
    """What is timed; every arm returns its texts (rows, tokens)."""
    exactly: dict[str, Any] = dict(max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
    lm: Any = setting.ensemble.as_causal_lm()
    many = {name: value.repeat(len(setting.peft), 1) for name, value in setting.inputs.items()}
    arms = {
        "ensemble": lambda: lm.generate(**setting.inputs, **exactly),
        "merged": lambda: setting.merged.generate(**setting.inputs, **exactly),
        "A": lambda: torch.cat([model.generate(**setting.inputs, **exactly) for model in setting.peft]),
        "B": lambda: setting.mixed.generate(**many, **exactly, adapter_names=setting.names),
    }
    if compiled:
        config = CompileConfig()
        config._compile_all_devices = True  # type: ignore[assignment]
        static = dict(cache_implementation="static", compile_config=config)
        arms["ensemble compiled"] = lambda: lm.generate(**setting.inputs, **exactly, **static)
        arms["merged compiled"] = lambda: setting.merged.generate(**setting.inputs, **exactly, **static)
    return arms


def count_graphs(setting: Setting, new: int) -> dict[str, int]:
    """Graphs into which the ensemble's and the merged model's decoding compile with a static cache, without a
    break.

    0 where there is no way without one: torch 2.6 cannot look into transformers' own Llama.
    """
    counted = {}
    lm: Any = setting.ensemble.as_causal_lm()
    for name, model in (("ensemble", lm), ("merged", setting.merged)):
        graphs: list[int] = []

        def keep(graph: Any, _inputs: Any, graphs: list[int] = graphs) -> Callable[..., Any]:
            graphs.append(len(graph.graph.nodes))
            return graph.forward  # type: ignore[no-any-return]

        torch._dynamo.reset()
        config = CompileConfig(fullgraph=True, backend=keep, mode=None)  # type: ignore[arg-type]
        config._compile_all_devices = True  # type: ignore[assignment]
        static: dict[str, Any] = dict(cache_implementation="static", compile_config=config)
        exactly: dict[str, Any] = dict(
            max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0
        )
        with suppress(torch._dynamo.exc.Unsupported):
            model.generate(**setting.inputs, **exactly, **static)
        counted[name] = len(graphs)
        vars(model).pop("_compiled_call", None)
    torch._dynamo.reset()
    return counted


@torch.no_grad()
def exactness(setting: Setting, arms: dict[str, Callable[[], Any]], new: int) -> dict[str, Any]:
    """How far each member's log-probabilities are from PEFT's over the ensemble's text, and whether it writes
    PEFT's text alone.
    """
    exactly: dict[str, Any] = dict(max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
    text, lm = arms["ensemble"](), setting.ensemble.as_causal_lm()
    members = lm(input_ids=text, use_cache=False, logits_to_keep=COMPARED).member_log_probs
    apart = 0.0
    for found, model in zip(members, setting.peft, strict=True):
        expected = (
            model(input_ids=text, use_cache=False, logits_to_keep=COMPARED).logits.float().log_softmax(dim=-1)
        )
        apart = worst(apart, float((found - expected).abs().max()))
    alone: list[Any] = [setting.ensemble.member(index) for index in range(len(setting.peft))]
    texts = torch.cat([model.generate(**setting.inputs, **exactly) for model in alone])
    tolerance = TOLERANCE[setting.ensemble.base.dtype]
    same = bool((texts == arms["A"]()).all())
    # In bf16 two ways of rounding may prefer different words of nearly the same probability.
    ok = apart <= tolerance and (same or setting.ensemble.base.dtype != torch.float32)
    return {"apart": {"A": apart}, "tolerance": tolerance, "same_texts": same, "ok": ok}


def limit_seconds(profile: Profile, shape: Shape, limit: Peak, element: int) -> float:
    """The least that a call of the ensemble can take."""
    one = functools.partial(
        decode_seconds, shape, limit, members=profile.members, rows=profile.rows, element=element
    )
    prompt = prompt_seconds(shape, limit, members=profile.members, rows=profile.rows, length=profile.prompt)
    return prompt + (profile.new - 1) * one(seen=profile.prompt + profile.new / 2)


def measure(
    name: str, *, windows: int = WINDOWS, small: bool = False, compiled: bool = False, **sizes: int
) -> dict[str, Any]:
    """The row of a profile; `sizes` replaces fields of it."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    small = (small or device == "cpu") and name in PROFILES
    fields = (dict(prompt=64, new=16) if small else {}) | sizes
    profile = replace({**PROFILES, **SMALL}[name], **fields)  # type: ignore[arg-type]
    dtype = torch.bfloat16 if device == "cuda" and name in PROFILES else torch.float32
    setting = prepare(profile, small=small, device=device, dtype=dtype)
    arms = arms_of(setting, profile.new, compiled=compiled or (device == "cuda" and name in PROFILES))
    seconds = interleaved(arms, windows=windows, device=device)
    limit = peak(device, dtype=dtype)
    fastest = min(seconds[arm] for arm in seconds if arm.startswith("ensemble"))
    ratios = {arm: seconds[arm] / seconds["ensemble"] for arm in ("A", "B")}
    ratios["A'"] = profile.members * seconds["merged"] / seconds["ensemble"]
    ratios["C"] = limit_seconds(profile, setting.shape, limit, dtype.itemsize) / fastest
    ratios["merged"] = seconds["ensemble"] / seconds["merged"]
    if "merged compiled" in seconds:
        ratios["merged compiled"] = seconds["ensemble compiled"] / seconds["merged compiled"]
    graphs, exact = count_graphs(setting, profile.new), exactness(setting, arms, profile.new)
    must, at_most = ({}, {}) if small else (profile.must, profile.at_most)
    ok = exact["ok"] and graphs["ensemble"] == min(1, graphs["merged"])
    ok = (
        ok
        and all(ratios[one] >= least for one, least in must.items())
        and all(ratios[one] <= most for one, most in at_most.items())
    )
    return {
        "id": name if name in PROFILES else f"decode-{name}",
        "scaled": small,
        "shape": dict(vars(setting.shape)),
        "dtype": str(dtype).removeprefix("torch."),
        **{field: getattr(profile, field) for field in ("members", "rows", "prompt", "new")},
        "milliseconds_a_token": {arm: 1000 * value / profile.new for arm, value in seconds.items()},
        "tokens_a_second": profile.rows * profile.new / seconds["ensemble"],
        "graphs": graphs,
        "exact": exact,
        "peak": limit.to_dict(),
        "ratios": ratios,
        "must": must,
        "at_most": at_most,
        "ok": ok,
    }


def shown(row: dict[str, Any]) -> str:
    """A row for a reader."""
    sizes = (
        f"M={row['members']}, B={row['rows']}, prompt {row['prompt']}, {row['new']} new tokens, "
        f"{row['dtype']}"
    )
    shape = row["shape"]
    lines = [
        (
            f"{row['id']}  {'scaled down: ' if row['scaled'] else ''}{shape['layers']} layers x "
            f"{shape['hidden']}; {sizes}"
        )
    ]
    lines += [f"  {arm:<18} {value:9.3f} ms a token" for arm, value in row["milliseconds_a_token"].items()]
    lines += ratio_lines(row)
    lines.append(
        f"  graphs with a static cache: ensemble {row['graphs']['ensemble']}, "
        f"merged {row['graphs']['merged']}"
    )
    exact = row["exact"]
    lines.append(
        f"  members' log-probabilities apart from PEFT's: {exact['apart']['A']:.1e} "
        f"(at most {exact['tolerance']:g})"
    )
    return "\n".join([*lines, f"  {'ok' if row['ok'] else 'NOT ok'}"])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--profile", choices=[*PROFILES, *SMALL], default="embedded")
    parser.add_argument(
        "--scaled",
        action="store_true",
        help="a small model of the same architecture; the default without a GPU",
    )
    parser.add_argument("--windows", type=int, default=WINDOWS, help="interleaved runs of every arm")
    parser.add_argument(
        "--compile", action="store_true", help="time compiled arms without a GPU too; needs a C++ compiler"
    )
    add_record_flags(parser)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", message=".*compile_config.*")
    row = rounded(
        measure(
            arguments.profile, windows=arguments.windows, small=arguments.scaled, compiled=arguments.compile
        )
    )
    print(shown(row))
    end_with({"rows": [row]}, arguments, device="cuda" if torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    main()
