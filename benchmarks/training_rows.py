"""The rows of `train.py`: the stack beside its peers, KL cached beside live, and the curves over members and
over tokens in a step.

Shapes: M members, B rows of a member, S tokens of a row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import operators
import torch
from limits import Peak, member_bytes, peak, training_flops
from memory import peak_bytes
from peers import HuggingFaceTrainer, MixedBatch, TunedPeft, Work, answer_of, difference
from timing import clocked_steps, interleaved, ratio_lines, worst
from torch.nn import functional as F
from transformers import PreTrainedModel
from workloads import SHAPES, Shape, build, in_words, padding, questions, scaled, shape_of, sharing, tokenizer

from lora_ensembles import LoraEnsemble, TrainConfig, load_base, load_task, train
from lora_ensembles.data import Example, encode_examples
from lora_ensembles.heads.lm import losses as answer_losses

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.3}
"""Most difference of weights, as a part of the way that training went. fp32 arms differ by the order of sums
alone: 1e-6 is usual, and Adam makes more of it where a gradient is as small as rounding. In bf16 the arms
round at different places, and weights wander apart."""

MEMBERS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True)
class Profile:
    """A window of training: M members, `batch` rows of each in a step (several: a row of the record for
    each), of `length` tokens.
    """

    shape: str
    members: int
    batch: tuple[int, ...]
    length: int
    must: dict[str, float]
    at_most: dict[str, float] = field(default_factory=dict)
    spread: float = 0.0  # rows are that part of their length longer or shorter
    steps: int = 6  # of a window; the first does not count
    kind: str = "arms"  # or "kl", "members", "tokens", "demo", "words"


@dataclass
class Setting:
    """All that a window needs, built once: the plain base, an ensemble around the same weights, and
    the work.
    """

    name: str
    task: str | None  # None: random tokens
    shape: Shape
    base: PreTrainedModel
    ensemble: LoraEnsemble
    examples: list[Example]
    work: Work
    small: bool

    @property
    def device(self) -> torch.device:
        return self.base.device

    def stacked(self) -> float:
        """Seconds a step of the library's own loop, all members."""
        self.ensemble.stack.set_members(self.work.initial)
        with clocked_steps(self.ensemble.stack, self.device) as clock:
            train(self.ensemble, self.examples, self.work.config, progress=False)
        return clock.seconds_a_step(self.work.steps)


@dataclass(frozen=True)
class Place:
    """The device, dtype and windows of a row; `data`, a folder of data sets, is for questions in words."""

    device: str
    dtype: torch.dtype
    small: bool
    windows: int
    data: Path | None = None

    @functools.cached_property
    def peak(self) -> Peak:
        return peak(self.device, dtype=self.dtype)


def prepare(
    name: str,
    profile: Profile,
    place: Place,
    *,
    batch: int,
    members: int,
    base: PreTrainedModel | None = None,
) -> Setting:
    """The setting of a profile at one batch size and one number of members, on a base that may be there
    already.
    """
    config = TrainConfig(
        epochs=1, batch_size=batch, learning_rate=1e-3, kl_weight=0.1 if profile.kind == "kl" else 0.0
    )
    count = batch * profile.steps
    words: Any
    task = None
    if profile.kind in ("demo", "words"):
        base, words = load_base(profile.shape, dtype=str(place.dtype).removeprefix("torch."))
        base = base.to(place.device)  # type: ignore[arg-type]
        described = in_words(place.data) if profile.kind == "words" else load_task("world-cqa")
        task, shape, examples = described.name, shape_of(base), list(described.train[:count])
        demo = replace(TrainConfig.preset("embedded"), epochs=1, batch_size=batch)
        config = replace(config, loss="vocabulary") if profile.kind == "words" else demo
    else:
        shape = scaled(SHAPES[profile.shape]) if place.small else SHAPES[profile.shape]
        base, words = (
            base or build(shape, dtype=place.dtype, device=place.device),
            tokenizer(shape.vocabulary),
        )
        examples = questions(count, length=profile.length, words=shape.vocabulary, spread=profile.spread)
    base.requires_grad_(False)
    ensemble = LoraEnsemble(sharing(base), words, num_members=members)
    return Setting(
        name,
        task,
        shape,
        base,
        ensemble,
        examples,
        Work.of(ensemble, base, encode_examples(examples, words), config),
        place.small,
    )


def rows_of(name: str, profile: Profile, place: Place) -> list[dict[str, Any]]:
    """The rows of a profile's record."""
    if profile.kind == "kl":
        return [kl_row(name, profile, place)]
    if profile.kind == "members":
        return [members_row(name, profile, place)]
    if profile.kind == "tokens":
        return [tokens_row(name, profile, place)]
    named = {batch: name if len(profile.batch) == 1 else f"{name} b={batch}" for batch in profile.batch}
    settings = (
        prepare(named[batch], profile, place, batch=batch, members=profile.members) for batch in profile.batch
    )
    return [arms_row(setting, place, must={} if place.small else profile.must) for setting in settings]


def arms_row(
    setting: Setting, place: Place, *, must: dict[str, float], peers: str = "A A' B"
) -> dict[str, Any]:
    """The stack against PEFT's arms and the limit, and whether all ended at the same weights."""
    arms = {name: _peer(name, setting.work) for name in peers.split()}
    apart: dict[str, float] = dict.fromkeys(arms, 0.0)

    def run_peer(name: str) -> float:
        return arms[name](
            lambda member, found: apart.update(
                {name: worst(apart[name], setting_apart(setting, member, found))}
            )
        )

    timed = {"stacked": setting.stacked, **{name: functools.partial(run_peer, name) for name in arms}}
    seconds = interleaved(timed, windows=place.windows, device=place.device)
    row = describe(setting, place, seconds["stacked"])
    ratios = {name: seconds[name] / seconds["stacked"] for name in arms} | {"C": row.pop("share")}
    exact = apart_row(apart, setting.base.dtype)
    ok = exact["ok"] and all(ratios[name] >= least for name, least in must.items())
    return row | {"seconds_a_step": seconds, "exact": exact, "ratios": ratios, "must": must, "ok": ok}


def apart_row(apart: dict[str, float], dtype: torch.dtype) -> dict[str, Any]:
    """How far the arms' weights are from the stack's, and whether that is near enough."""
    return {
        "apart": apart,
        "tolerance": TOLERANCE[dtype],
        "ok": all(value <= TOLERANCE[dtype] for value in apart.values()),
    }


def setting_apart(setting: Setting, member: int, found: Any) -> float:
    """How far a peer's weights of a member are from those of the stack, which ran before it."""
    return difference(setting.ensemble.stack.member(member), found, setting.work.initial[member])


def _peer(name: str, work: Work) -> Callable[[Callable[[int, Any], None]], float]:
    """Seconds a step of all members of an arm, which shows each member's weights to the caller."""
    members = range(len(work.initial))
    if name == "B":
        mixed = MixedBatch(work)

        def run_mixed(show: Callable[[int, Any], None]) -> float:
            seconds = mixed.train()
            for member in members:
                show(member, mixed.weights(member))
            return seconds

        return run_mixed
    one: Any = HuggingFaceTrainer(work) if name == "A" else TunedPeft(work)

    def run_each(show: Callable[[int, Any], None]) -> float:
        seconds = 0.0
        for member in members:
            seconds += one.train(member)
            show(member, one.weights(member))
        return seconds

    return run_each


def describe(setting: Setting, place: Place, seconds: float) -> dict[str, Any]:
    """What a row says of the stack: tokens, padding, its share of the limit, memory, operators."""
    work, members = setting.work, setting.ensemble.num_members
    answers = torch.tensor([len(answer_of(one)) for one in work.encoded])
    lengths = torch.tensor([len(one.prompt_ids) for one in work.encoded]) + answers - 1
    mean = float(lengths.float().mean())
    steps = [
        torch.stack([lengths[work.indices(m, step)] for m in range(members)]) for step in range(work.steps)
    ]
    read, held = padding(steps, setting.device)
    tokens = read / work.steps
    flops = training_flops(setting.shape, length=mean, answers=float(answers.float().mean()))
    least = tokens * flops / place.peak.flops
    return {
        "id": setting.name,
        "task": setting.task,
        "scaled": setting.small,
        "shape": dict(vars(setting.shape)),
        "dtype": str(setting.base.dtype).removeprefix("torch."),
        "members": members,
        "batch": work.config.batch_size,
        "tokens_a_row": mean,
        "tokens_a_step": tokens,
        "tokens_a_second": tokens / seconds,
        "share": least / seconds,
        "padding": 1 - read / held,
        "peak_bytes": peak_bytes(setting.stacked, setting.device),
        "operators_per_layer": operators_per_layer(members),
        "peak": place.peak.to_dict(),
    }


@functools.cache
def operators_per_layer(members: int) -> dict[str, float]:
    """Operators that a stacked layer launches in a step."""
    words = tokenizer(64)
    return operators.per_layer(lambda layers: operators.stacked(layers, members, words))


def kl_row(name: str, profile: Profile, place: Place) -> dict[str, Any]:
    """Training with KL to the base: its states cached against asked for in every step, at the
    same weights.
    """
    setting = prepare(name, profile, place, batch=profile.batch[0], members=profile.members)
    found: dict[str, Any] = {}

    def run(arm: str) -> float:
        limit = answer_losses.BASE_CACHE_BYTES if arm == "cached" else 0
        with mock.patch.object(answer_losses, "BASE_CACHE_BYTES", limit):
            seconds = setting.stacked()
        found[arm] = [setting.ensemble.stack.member(member) for member in range(profile.members)]
        return seconds

    arms = {arm: functools.partial(run, arm) for arm in ("cached", "live")}
    seconds = interleaved(arms, windows=place.windows, device=place.device)
    row = describe(setting, place, seconds["cached"])
    pairs = zip(found["cached"], found["live"], setting.work.initial, strict=True)
    exact = apart_row({"live": worst(*(difference(*three) for three in pairs))}, setting.base.dtype)
    ratios = {"live": seconds["live"] / seconds["cached"], "C": row.pop("share")}
    must = {} if place.small else profile.must
    ok = exact["ok"] and all(ratios[one] >= least for one, least in must.items())
    return row | {"seconds_a_step": seconds, "exact": exact, "ratios": ratios, "must": must, "ok": ok}


def members_row(name: str, profile: Profile, place: Place) -> dict[str, Any]:
    """The curve over M at fixed rows of a member: `growth` is a step's time over the longer of one member's
    step and of the computing.

    The computing is what the frozen base alone takes for the same rows forward and backward, without
    adapters, measured in turn with them.
    """
    counts = [count for count in MEMBERS if count <= profile.members]
    first = prepare(name, profile, place, batch=profile.batch[0], members=counts[0])
    settings = {counts[0]: first} | {
        count: prepare(name, profile, place, batch=profile.batch[0], members=count, base=first.base)
        for count in counts[1:]
    }
    stacks = {f"M={count}": settings[count].stacked for count in counts}
    bases = {
        f"base M={count}": functools.partial(_base_alone, first, count * profile.batch[0], profile.length)
        for count in counts
    }
    seconds = interleaved(stacks | bases, windows=place.windows, device=place.device)
    curve = []
    for count in counts:
        row = describe(settings[count], place, seconds[f"M={count}"])
        needed = max(seconds["M=1"], seconds[f"base M={count}"])
        kept = ("members", "tokens_a_step", "tokens_a_second", "share", "peak_bytes")
        state = count * member_bytes(first.shape, dtype=place.dtype)
        times = {
            "seconds": seconds[f"M={count}"],
            "base_seconds": seconds[f"base M={count}"],
            "growth": seconds[f"M={count}"] / needed,
        }
        curve.append({one: row[one] for one in kept} | times | {"member_state_bytes": state})
    growth = max(point["growth"] for point in curve)
    at_most = {} if place.small else profile.at_most
    row.pop("share")
    ratios = {"growth": growth, "C": curve[-1]["share"]}
    return row | {
        "curve": curve,
        "ratios": ratios,
        "must": {},
        "at_most": at_most,
        "ok": all(growth <= one for one in at_most.values()),
    }


def _base_alone(setting: Setting, rows: int, length: int) -> None:
    ids = torch.randint(3, setting.shape.vocabulary, (rows, length), device=setting.device)
    inner: Any = setting.base
    embedded = inner.get_input_embeddings()(ids).requires_grad_()
    hidden = inner.model(inputs_embeds=embedded, use_cache=False).last_hidden_state[:, -1]
    loss = F.cross_entropy(inner.lm_head(hidden).float(), ids[:, 0])
    torch.autograd.grad(loss, embedded)


def tokens_row(name: str, profile: Profile, place: Place) -> dict[str, Any]:
    """The curve over tokens in a step, at fixed M, against the best plain loop and the mixed batch."""
    curve: list[dict[str, Any]] = []
    base: PreTrainedModel | None = None
    for batch in profile.batch:
        setting = prepare(name, profile, place, batch=batch, members=profile.members, base=base)
        base = setting.base
        row = arms_row(setting, place, must={}, peers="A' B")
        curve.append(
            {one: row[one] for one in ("batch", "tokens_a_step", "tokens_a_second", "ratios", "exact")}
        )
    ratios = {one: min(point["ratios"][one] for point in curve) for one in curve[0]["ratios"]}
    return row | {"curve": curve, "ratios": ratios, "ok": all(point["exact"]["ok"] for point in curve)}


def shown(row: dict[str, Any]) -> str:
    """A row for a reader."""
    lines = [f"{row['id']}  {'scaled down: ' if row['scaled'] else ''}{_sizes(row)}"]
    for arm, seconds in row.get("seconds_a_step", {}).items():
        lines.append(f"  {arm:<10} {1000 * seconds:10.2f} ms a step of all members")
    for point in row.get("curve", []):
        lines.append("  " + "  ".join(f"{key} {value:.4g}" for key, value in _flat(point).items()))
    operators_said = "  ".join(f"{name} {value:g}" for name, value in row["operators_per_layer"].items())
    lines.append(
        f"  {row['tokens_a_second']:,.0f} tokens/s, {row['padding']:.1%} padding, "
        f"peak {row['peak_bytes'] / 2**20:,.1f} MiB"
    )
    lines.append(f"  operators per layer: {operators_said}")
    lines += ratio_lines(row)
    if "exact" in row:
        lines.append(
            f"  weights apart: {max(row['exact']['apart'].values()):.1e} "
            f"(at most {row['exact']['tolerance']:g})"
        )
    return "\n".join([*lines, f"  {'ok' if row['ok'] else 'NOT ok'}"])


def _flat(point: dict[str, Any]) -> dict[str, float]:
    return {
        key: value
        for key, value in (point | point.get("ratios", {})).items()
        if isinstance(value, int | float)
    }


def _sizes(row: dict[str, Any]) -> str:
    shape = row["shape"]
    sizes = (
        f"{shape['architecture']}, {shape['layers']} layers x {shape['hidden']}, "
        f"vocabulary {shape['vocabulary']}, {row['dtype']}"
    )
    return f"{sizes}; M={row['members']}, b={row['batch']}, {row['tokens_a_row']:.0f} tokens a row"
