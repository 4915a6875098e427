"""Two dozen tokens tried on a base before members are put to work on it: what does not hold is refused by
name, or not made use of.

No table of architectures knows what the model of a user does, so nothing is assumed that can be tried.

Shapes: M members, B rows of a member, T tokens, V vocabulary, n chosen places.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from ..distributed.lockstep import ran_out_of_memory
from ..errors import AdapterError, ConfigError, LoraEnsemblesError
from ..stack.quantised import chooses_by_batch, gradient_missing, quantised_layers, rows_together, trying
from ..stack.sharding.devices import check_one_device
from .answer_positions import answer_logits, logits_at, read_prefix
from .branches import Branches
from .decoder import Places
from .shared_prefix import context_window
from .shortcuts import ALL, FAILURES, NONE, Shortcuts, allow, were_tried

if TYPE_CHECKING:
    from ..stack.buffers import AdapterStack

_log = logging.getLogger(__name__)

TOKENS, SHARED = 24, 13  # of a tried row, and of these the ones that all rows begin with
MEMBERS, ROWS, ROW_TOKENS = 2, 3, 5  # of the members' trial: no two products of them are the same
TOGETHER = "members cannot be stacked"


@dataclass(frozen=True)
class Tolerance:
    """Shares of the largest logit by which two computations of the same numbers may differ.

    Other shapes of a product round otherwise, by about 1e-6 in float32 and 1e-2 in half precision. A base is
    refused only far above that; a shortcut, which costs nothing but time, is given up earlier.
    """

    refused: float
    dropped: float

    @classmethod
    def of(cls, base: Any) -> Tolerance:
        if any(map(chooses_by_batch, base.modules())):
            return cls(0.25, 0.0)
        return cls(1e-3, 1e-4) if base.dtype == torch.float32 else cls(5e-2, 1e-2)


def check_plain(base: nn.Module) -> None:
    """Refuse a base that is wrapped already, or lies on several devices.

    Raises:
        AdapterError: as it says.
        ConfigError: it reads no token ids.
    """
    if hasattr(base, "peft_config"):
        raise AdapterError(
            "the base is wrapped by PEFT already; pass the plain model (`model.unload()`), "
            "or its folders to from_adapters"
        )
    if any(hasattr(module, "lora_a") and hasattr(module, "context") for module in base.modules()):
        raise AdapterError(
            "the base carries another ensemble; call `unload()` on that one first, or load the base again"
        )
    try:
        base.get_input_embeddings()  # type: ignore[operator]
    except (NotImplementedError, AttributeError) as error:
        raise ConfigError(
            f"{type(base).__name__} has no table of token embeddings, so it does not read rows of token ids"
        ) from error
    check_one_device(base)


def check_language_model(base: Any) -> None:
    """Refuse a base that is no decoder with a language-model head, by what its class and config say.

    Raises:
        ConfigError: as it says.
    """
    name, needed = type(base).__name__, "a causal language model (AutoModelForCausalLM) is needed"
    if getattr(base.config, "is_encoder_decoder", False):
        raise ConfigError(
            f"{name} is an encoder-decoder, whose decoder reads another text than its input; {needed}"
        )
    try:
        head = base.get_output_embeddings()
    except (NotImplementedError, AttributeError):
        head = None
    if head is None:
        raise ConfigError(
            f"{name} has no language-model head, so it says nothing about a next token; {needed}"
        )
    if chooses_by_batch(head):
        raise ConfigError(
            f"the language-model head of {name} is an 8-bit layer that chooses its outlier columns over all "
            "rows of a pass; load the base with BitsAndBytesConfig(llm_int8_skip_modules=['lm_head'])"
        )


def check_targets(base: Any, names: Iterable[str]) -> None:
    """Refuse adapters on the language-model head.

    Raises:
        AdapterError: as it says.
    """
    head = base.get_output_embeddings()
    if any(module is head for name, module in base.named_modules() if name in set(names)):
        raise AdapterError("the output head cannot carry adapters; take it out of target_modules")


@torch.no_grad()
def probe_language_model(base: Any) -> Shortcuts:
    """Tries whether a base is causal, and allows the shortcuts that change none of its logits.

    Three rows begin with the same tokens; what follows is text, other text, and padding without a mask. A
    fourth ends there.

    Returns:
        What is allowed from now on; see `shortcuts.Shortcuts`. A shortcut that is not is named in the log
            "lora_ensembles.passes.probe".

    Raises:
        ConfigError: it is no causal language model: the logits at a token change with what follows or with
            how much, or it cannot read plain token ids.
    """
    check_language_model(base)
    allow(base, NONE)
    if _has_no_data(base):
        return NONE
    ids = _rows(base)
    with _reading(base), trying(base, rows_together, refused=TOGETHER):
        whole: Tensor = base(input_ids=ids, use_cache=False).logits.float()
        beginning = ids[:1, : min(SHARED, ids.shape[1] - 1)]
        alone: Tensor = base(input_ids=beginning, use_cache=False).logits.float()
    if not whole.isfinite().all():
        return NONE  # nothing can be compared; training and prediction name it
    tolerance, shared = Tolerance.of(base), whole[:, : beginning.shape[1]]
    scale = float(whole.abs().max())
    if max(_typical(shared[0], other) for other in (*shared[1:], *alone)) > tolerance.refused * scale:
        raise ConfigError(
            f"{type(base).__name__} is not causal: what it says at a token changes with the tokens "
            "that follow or with their number (masked language models and prefix models do so; "
            "a BERT decoder needs is_decoder=True in its config); a causal language model is needed"
        )
    trials = {"narrowed": _narrowed, "prefix": _after_prefix, "branches": _branches}
    given_up = tolerance.dropped == 0
    allowed = {
        name: not given_up and _holds(base, name, trial, ids, whole, tolerance)
        for name, trial in trials.items()
    }
    shortcuts = Shortcuts(**allowed)
    allow(base, shortcuts)
    return shortcuts


def ensure_probed(base: Any) -> None:
    """Try a base on which nothing was tried yet; raises as `probe_language_model`."""
    if not were_tried(base):
        probe_language_model(base)


@torch.no_grad()
def check_members_apart(base: Any, stack: AdapterStack, run: Callable[[Tensor], Tensor]) -> None:
    """Refuse a base that mixes the rows of a batch: a member must compute alone what it computes beside
    another one.

    Each stacked layer learns on the way whether it sees rows in front, however many tokens each has, or all
    tokens in one axis.

    Args:
        base: the base that carries the stack.
        stack: its adapters; B matrices are random while this runs.
        run: a pass of the base over ids (rows, T), which gives its logits or scores (rows, ...).

    Raises:
        AdapterError: a member's results change with the member beside it, those of a quantised layer change
            with the rows beside a row, or a layer does not see every row of every member in order.
        ConfigError: the base cannot read plain token ids.
    """
    if _has_no_data(base):
        return
    members, ids = min(MEMBERS, stack.num_members), _texts(base)
    with stack.random_b(members), _reading(base, lambda: _without_adapters(stack, run, ids)):
        with (
            stack.learning_rows(),
            trying(base, rows_together, refused=TOGETHER),
            stack.running(rows=members * ROWS, tokens=members * ids.numel(), members=slice(0, members)),
        ):
            together = run(ids.repeat(members, 1)).float()
        if members == 1:
            return
        with stack.running(rows=ROWS, tokens=ids.numel(), members=slice(0, 1)):
            alone = run(ids).float()
    beside = together[:ROWS]
    if together.isfinite().all() and _typical(beside, alone) > Tolerance.of(base).refused * float(
        alone.abs().max()
    ):
        raise AdapterError(
            f"{type(base).__name__} mixes the rows of a batch: "
            "a member's results change with the members beside it, so members cannot be stacked on "
            "it (a layer that sees tokens in front of rows does so); train each member by itself in PEFT"
        )


@torch.enable_grad()
def check_gradients(base: Any, stack: AdapterStack, run: Callable[[Tensor], Tensor]) -> None:
    """Refuse to train through quantised layers that pass no gradient, or a wrong one, to the adapters below
    them; a base without such layers is not run.

    Args:
        base, stack, run: as for `check_members_apart`.

    Raises:
        AdapterError: as it says.
    """
    if not quantised_layers(base) or _has_no_data(base):
        return
    ids = _texts(base)
    with (
        stack.random_b(1),
        trying(base, gradient_missing, refused="adapters can predict, but not be trained"),
        stack.running(rows=ROWS, tokens=ids.numel(), members=slice(0, 1)),
    ):
        run(ids)


def _texts(base: Any) -> Tensor:
    """Rows (B, T) of plain tokens that end a text."""
    ids = token_ids(base, ROWS * ROW_TOKENS).view(ROWS, ROW_TOKENS)
    end = getattr(base.config, "eos_token_id", None)
    if isinstance(end, int):
        ids[:, -1] = end  # some classifiers read the token that ends a text
    return ids


def token_ids(model: Any, count: int) -> Tensor:
    """Ids (count,) of plain tokens, all different where the vocabulary allows it: none that its config names
    for a purpose.
    """
    configs = (model.config, model.config.get_text_config())
    named = {
        value
        for config in configs
        for name, value in vars(config).items()
        if name.endswith(("_token_id", "_token_index"))
    }
    special = {number for value in named if isinstance(value, int) for number in [value]}
    vocabulary = model.get_input_embeddings().weight.shape[0]
    plain = [number for number in range(min(vocabulary, count + 64)) if number not in special] or [0]
    return torch.tensor([plain[number % len(plain)] for number in range(count)], device=model.device)


def _rows(base: Any) -> Tensor:
    """Rows (3, T): text, the same beginning with other text behind it, and the same beginning with padding
    behind it.
    """
    window = context_window(base)
    length = TOKENS if window is None else max(2, min(TOKENS, window))
    shared, ids = min(SHARED, length - 1), token_ids(base, 2 * TOKENS)
    text, other = ids[:length], ids[TOKENS : TOKENS + length].flip(0)
    padding = torch.full_like(text, getattr(base.config.get_text_config(), "pad_token_id", None) or 0)
    return torch.stack([text, *(torch.cat([text[:shared], behind[shared:]]) for behind in (other, padding))])


def _holds(
    base: nn.Module,
    name: str,
    trial: Callable[[nn.Module, Tensor], tuple[Tensor, Tensor] | None],
    ids: Tensor,
    whole: Tensor,
    tolerance: Tolerance,
) -> bool:
    allow(base, ALL)
    reason = "it cannot be done"
    try:
        outcome = trial(base, ids)
    except FAILURES as error:
        if ran_out_of_memory(error):
            raise
        outcome, reason = None, f"it fails ({type(error).__name__}: {error})"
    finally:
        allow(base, NONE)
    if outcome is None:
        _log.info("%s: the shortcut %r is not taken: %s", type(base).__name__, name, reason)
        return False
    positions, logits = outcome
    off = _typical(logits.float(), whole.gather(1, positions[..., None].expand_as(logits)))
    if off <= tolerance.dropped * float(whole.abs().max()):
        return True
    _log.info(
        "%s: the shortcut %r is not taken: its logits differ by %.2g from the whole pass",
        type(base).__name__,
        name,
        off,
    )
    return False


def _narrowed(base: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor]:
    positions = torch.tensor([[ids.shape[1] // 3, ids.shape[1] // 2]], device=ids.device).expand(len(ids), -1)
    return positions, answer_logits(base, ids, positions)


def _after_prefix(base: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor] | None:
    cut = min(SHARED, ids.shape[1] - 1)
    if _keeps_positions(base):
        return None
    prefix = read_prefix(base, ids[:1, :cut])
    if prefix is None:
        return None
    rest = ids[:2, cut:]  # padding has no logits that anybody reads
    positions = torch.arange(rest.shape[1], device=ids.device).expand(len(rest), -1)
    return positions + cut, answer_logits(base, rest, positions, after=prefix)


def _branches(base: nn.Module, ids: Tensor) -> tuple[Tensor, Tensor] | None:
    """The text behind the other one, with the beginning that they have in common once in front of both."""
    if _keeps_positions(base):
        return None
    length = ids.shape[1]
    cut = min(SHARED, length - 1)
    row = torch.cat([ids[1], ids[0, cut:]])[None]
    branches = Branches.of([cut], [[length - cut] * 2]).rows(torch.tensor([0]), row.shape[1], row.device)
    second = torch.arange(length, row.shape[1], device=row.device)
    logits = logits_at(base, row, Places(torch.zeros_like(second), second), branches=branches)
    return torch.arange(cut, length, device=row.device)[None], logits[None]


def _keeps_positions(base: nn.Module) -> bool:
    """Whether a model keeps the positions of one call for the next, whatever rows that one has."""
    return any(hasattr(module, "rope_deltas") for module in base.modules())


def _typical(left: Tensor, right: Tensor) -> float:
    """The median over places of the largest difference at a place.

    Not the largest of all: a token at the border of two experts may go to either, which another rounding of
    the same numbers decides.
    """
    difference = (left - right).abs()
    return float(
        difference.flatten(0, -2).amax(dim=-1).median() if difference.dim() > 1 else difference.median()
    )


def _has_no_data(base: nn.Module) -> bool:
    tensors = (*base.parameters(), *base.buffers())
    return any(tensor.is_meta or isinstance(tensor.data, FakeTensor) for tensor in tensors)


def _without_adapters(stack: AdapterStack, run: Callable[[Tensor], Tensor], ids: Tensor) -> None:
    with stack.disabled():
        run(ids)


@contextmanager
def _reading(base: nn.Module, without_adapters: Callable[[], object] | None = None) -> Iterator[None]:
    """Context in which somebody's model reads token ids: what it raises becomes an error of ours, which says
    whether adapters are to blame.
    """
    try:
        yield
    except FAILURES as error:
        if isinstance(error, LoraEnsemblesError) or ran_out_of_memory(error):
            raise
        name, said = type(base).__name__, f"{type(error).__name__}: {error}"
        if without_adapters is not None and _works(without_adapters):
            raise AdapterError(
                f"a pass of {name} fails with adapters on these target modules and works without "
                f"them ({said}): one of them is no plain linear layer; take it out of target_modules, "
                "or name it in exclude_modules"
            ) from error
        raise ConfigError(
            f"{name} cannot read rows of token ids alone ({said}); "
            "pass a causal language model or a classifier that needs no other input"
        ) from error


def _works(attempt: Callable[[], object]) -> bool:
    try:
        attempt()
    except FAILURES:
        return False
    return True
