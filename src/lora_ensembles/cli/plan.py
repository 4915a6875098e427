"""Say how much memory a training run needs, how to split it where that is too much, and how long it takes at
best; on one GPU, or over several.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from ..embedded.quantised import QUANTIZE, method_of
from ..errors import ConfigError, DataError
from ..studies.report.page import Table
from .common import Arguments, above_zero, add_quantize_flag, count, model_name, say
from .flags import gpus, settings

if TYPE_CHECKING:
    from ..planning.split import Gpus

SUMMARY = "plan memory and time of a training run"
EXAMPLES = """examples:
  lora-ensembles plan --base meta-llama/Llama-2-7b-hf --members 5 --batch-size 16 --tokens 100 --memory 24
  lora-ensembles plan --base meta-llama/Llama-2-7b-hf --quantize nf4 --tokens 100 --memory 24
  lora-ensembles plan --base Qwen/Qwen3-8B --members 8 --tokens 512 --answer-tokens 200 --memory 80 --json
  lora-ensembles plan --base embedded --dtype float32 --examples 400 --epochs 15
  lora-ensembles plan --base meta-llama/Llama-2-70b-hf --members 16 --tokens 100 --gpus 8 --gpu-memory 80"""
GB = 1e9


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--base",
        type=model_name,
        required=True,
        metavar="NAME",
        help="'embedded', 'smollm2', a folder, a GGUF file, or a name on the hub; only its config is read",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16", "float16"),
        default="bfloat16",
        help="of the base (default: bfloat16)",
    )
    add_quantize_flag(parser, "plan the base with its linear layers in 4 or 8 bits by bitsandbytes")
    parser.add_argument("--members", type=count, default=5, metavar="M", help="default: 5")
    parser.add_argument(
        "--batch-size", type=count, default=16, metavar="B", help="rows of a member in a step (default: 16)"
    )
    parser.add_argument(
        "--tokens", type=count, default=128, metavar="T", help="tokens of a row (default: 128)"
    )
    parser.add_argument(
        "--answer-tokens", type=count, default=1, metavar="K", help="tokens of an answer (default: 1)"
    )
    parser.add_argument(
        "--memory",
        "--gpu-memory",
        type=above_zero,
        metavar="GB",
        help="of the device, in 10^9 bytes; a step that does not fit is split",
    )
    parser.add_argument(
        "--tflops",
        type=above_zero,
        default=788.0,
        metavar="X",
        help="what the device computes, 10^12 a second (default: 788, an H200 in bf16)",
    )
    parser.add_argument(
        "--examples", type=count, metavar="N", help="training examples, for the time of the whole run"
    )
    parser.add_argument("--epochs", type=count, default=1, metavar="N", help="with --examples (default: 1)")
    settings.add_adapter_flags(parser)
    gpus.add_gpu_flags(parser)


def run(args: Arguments) -> dict[str, Any]:
    """Plan and show; returns the summary.

    Raises:
        DataError: the base's config cannot be read.
        ConfigError: flags that contradict each other, or as `plan_training` and `plan_split`.
    """
    import torch
    from transformers import AutoConfig

    from ..embedded.loading import base_source
    from ..planning.memory import plan_training
    from ..stack.capacity import cached_bytes

    several, source = gpus.gpus_of(args), base_source(args.base)
    try:
        config = AutoConfig.from_pretrained(source)
    except (OSError, ValueError) as error:
        raise DataError(
            f"the config of {args.base!r} cannot be read: {str(error).splitlines()[0]}; "
            "give a folder or a name on the hub"
        ) from error
    adapter = settings.adapter_config(args, _skeleton(config))
    _set_quantization(config, args)
    if several is not None:
        return _over_gpus(config, adapter, several, args)
    plan = plan_training(
        config,
        adapter=adapter,
        members=args.members,
        batch_size=args.batch_size,
        tokens=args.tokens,
        answer_tokens=args.answer_tokens,
        dtype=getattr(torch, args.dtype),
        memory=None if args.memory is None else int(args.memory * GB),
    )
    seconds = plan.seconds(args.tflops * 1e12)
    rows = [
        (name, f"{getattr(plan, name) / GB:.3f} GB") for name in ("base", "members", "activations", "total")
    ]
    rows.append(
        ("rows in flight", f"{plan.rows} of {args.members * args.batch_size}, {plan.parts} parts a step")
    )
    cached = cached_bytes(config, members=args.members, dtype=getattr(torch, args.dtype))
    rows.append(("1,000 tokens kept, served", f"{1000 * cached / GB:.3f} GB"))
    rows.append(("a step at the limit", f"{seconds:.4g} s at {args.tflops:g} TFLOP/s"))
    summary = {"base": args.base, **plan.to_dict(), "seconds_a_step_at_the_limit": seconds}
    summary["cached_bytes_a_token"] = cached
    summary["quantize"] = args.quantize
    summary["max_rows"] = plan.rows if plan.parts > 1 else None
    if args.examples is not None:
        steps = -(-args.examples // args.batch_size) * args.epochs
        summary["seconds_at_the_limit"] = steps * seconds
        rows.append((f"{steps} steps at the limit", f"{steps * seconds:.4g} s"))
    print(Table(("memory and time", ""), tuple(rows)))
    if plan.parts > 1:
        say(f"train with --max-rows {plan.rows}: the result is that of whole steps")
    if plan.fits is False:
        say("one row does not fit: take a device with more memory, a base in 4 bits, or shorter rows")
    return summary


def _set_quantization(config: Any, args: Arguments) -> None:
    """Give a config the quantisation that --quantize asks for, and say of a quantised checkpoint what is
    planned.
    """
    method = method_of(config, None)
    if method is None and args.quantize is not None:
        config.quantization_config = dict(QUANTIZE[args.quantize])
    elif method is not None and args.quantize is not None:
        raise ConfigError(
            f"--quantize {args.quantize}: {args.base!r} is quantised by {method} already; leave the flag out"
        )
    elif method not in (None, "bitsandbytes"):
        say(f"{args.base!r} is quantised by {method}; its base is planned in {args.dtype}, which is too much")


def _over_gpus(config: Any, adapter: Any, several: Gpus, args: Arguments) -> dict[str, Any]:
    """The plan of each split over several GPUs."""
    import torch

    from ..planning.split import plan_split
    from ..planning.work import Work
    from .screen.splits import show_splits

    work = Work(
        args.members,
        args.batch_size,
        args.tokens,
        args.answer_tokens,
        getattr(torch, args.dtype),
        adapter,
    )
    return show_splits(plan_split(config, work, several), work, several, args=args)


def _skeleton(config: Any) -> Any:
    """The base without data, to see what its layers are called."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except ValueError as error:
        raise ConfigError(
            f"no causal language model can be built from this config: {str(error).splitlines()[0]}"
        ) from error
