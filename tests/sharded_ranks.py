"""Ranks over which a base lies, for tests: processes that try cases together and write down what came out.

`python sharded_ranks.py FOLDER` imports everything once, forks four processes, and has them run `FOUR`
together; then two of them run `TWO_FSDP` while the two others run `TWO_TP`. Each rank writes a file of
tensors for each case, and the message of an error that the case raised.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from lora_ensembles import LoraEnsemble, TrainConfig, load_base, predict, train
from lora_ensembles.errors import LoraEnsemblesError
from lora_ensembles.passes import answer_positions
from tiny_models import (
    ARCHITECTURES,
    Architecture,
    build,
    letter_examples,
    open_examples,
    random_rows,
    tokenizer,
)

MEMBERS = 4
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
OWN = {
    "gqa": ("qwen2", ALL_LINEAR, dict(num_attention_heads=8, num_key_value_heads=4)),
    "tied": ("llama", ("q_proj", "v_proj", "o_proj", "down_proj"), dict(tie_word_embeddings=True)),
}
Result = dict[str, Tensor]


def register() -> None:
    """Adds to the tiny models those with grouped queries on every linear layer, and with tied embeddings."""
    for name, (like, targets, settings) in OWN.items():
        described = ARCHITECTURES[like]
        ARCHITECTURES[name] = Architecture(described.config, targets, described.settings | settings)


def adapter(name: str, *, layers: list[int] | None = None) -> LoraConfig:
    described = ARCHITECTURES[name.removesuffix("_float64")]
    return LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=list(described.targets),
        fan_in_fan_out=described.conv1d,
        layers_to_transform=layers,
        task_type="CAUSAL_LM",
    )


def ensemble(
    name: str,
    bases: Path,
    *,
    shard: str | None = None,
    members: int = MEMBERS,
    layers: list[int] | None = None,
) -> LoraEnsemble:
    """An ensemble on a base of `bases`, whole or over the ranks, whose B matrices are random."""
    base, _ = load_base(str(bases / name), shard=shard)  # type: ignore[arg-type]
    made = LoraEnsemble(base, tokenizer(), num_members=members, adapter=adapter(name, layers=layers), seed=3)
    randomise(made)
    return made


def randomise(made: LoraEnsemble) -> None:
    whole = made.stack.whole(1, made.stack.b)
    drawn = 0.2 * torch.randn(whole.shape, generator=torch.Generator().manual_seed(5))
    made.stack.b.copy_(made.stack.own(1, drawn))
    made.stack.refresh()


def logits_and_gradients(made: LoraEnsemble) -> Result:
    """The members' logits of two rows, and the gradients of the rows' loss, of all members."""
    ids = torch.tensor(random_rows([9, 9], seed=3))
    here, stack = made.num_members, made.stack
    totals = stack.zero_gradients()
    rows = ids.repeat(here, 1)
    with stack.running(rows=len(rows), tokens=rows.numel()):
        logits = made.base(input_ids=rows, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), rows[:, 1:].flatten(), reduction="sum"
    )
    stack.add_gradients(loss, totals)
    held = sum(
        parameter.to_local().numel() for parameter in made.base.parameters() if hasattr(parameter, "to_local")
    )
    return {
        "logits": stack.sharding.of_all(logits.detach().unflatten(0, (here, -1))),
        "a": stack.whole(0, stack.a),
        "gradient_a": stack.whole(0, totals[0]),
        "gradient_b": stack.whole(1, totals[1]),
        "held": torch.tensor(held),
    }


def config(**changes: object) -> TrainConfig:
    """Settings in which everything that members can differ in differs, and in which gradients are clipped."""
    settings: dict[str, object] = dict(
        epochs=1,
        batch_size=5,
        learning_rate=[1e-2, 2e-2, 1e-2, 5e-3],
        weight_decay_a=1.0,
        weight_decay_b=[20.0, 1.0, 5.0, 0.0],
        dropout=[0.0, 0.1, 0.3, 0.2],
        kl_weight=[0.0, 0.1, 0.0, 0.2],
        max_grad_norm=0.5,
    )
    return TrainConfig(**(settings | changes))  # type: ignore[arg-type]


def trained(made: LoraEnsemble, out: Path | None, **changes: object) -> Result:
    """Two steps of training, and what the members say then."""
    examples = letter_examples()
    train(made, examples, config(**changes), validation=examples[:4], out=out, progress=False)
    return {"log_probs": predict(made, examples).member_log_probs}


def loaded(name: str, bases: Path, saved: Path, *, shard: str) -> Result:
    """What the members of a saved ensemble say on a base over the ranks."""
    base, _ = load_base(str(bases / name), shard=shard)  # type: ignore[arg-type]
    made = LoraEnsemble.from_pretrained(saved, base=base, tokenizer=tokenizer())
    return {"log_probs": predict(made, letter_examples()).member_log_probs}


def interrupted(made: LoraEnsemble, out: Path) -> Result:
    """A run that the second rank is told to end, after its first step."""
    refresh = made.stack.refresh

    def told() -> None:
        refresh()
        if dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGINT)

    made.stack.refresh = told  # type: ignore[method-assign]
    try:
        trained(made, out)
    except KeyboardInterrupt as error:
        raise LoraEnsemblesError(str(error)) from error
    return {}


def out_of_memory(made: LoraEnsemble, out: Path) -> Result:
    """A step for which the second rank has no memory."""
    grad = torch.autograd.grad

    def none_left(*args: object, **named: object) -> object:
        if dist.get_rank() == 1:
            raise torch.OutOfMemoryError("tried to allocate 2 GiB")
        return grad(*args, **named)  # type: ignore[arg-type]

    torch.autograd.grad = none_left  # type: ignore[assignment]
    try:
        made.stack.add_gradients(torch.zeros(1, requires_grad=True).sum(), made.stack.zero_gradients())
    finally:
        torch.autograd.grad = grad
    return {}


def in_chunks(made: LoraEnsemble, out: Path | None) -> Result:
    """Two steps on long answers whose logits are made in chunks, in other numbers on other ranks."""
    budget, answer_positions.LOGIT_BUDGET = answer_positions.LOGIT_BUDGET, 8 * len(tokenizer())
    try:
        train(made, open_examples(), config(kl_weight=0.0), progress=False)
    finally:
        answer_positions.LOGIT_BUDGET = budget
    return {"b": made.stack.whole(1, made.stack.b)}


def command_line(folder: Path) -> Result:
    from lora_ensembles.cli import main

    assert main([*arguments(folder), "--shard-base", "fsdp", "--out", str(folder / "cli_fsdp")]) == 0
    return {}


def arguments(folder: Path) -> list[str]:
    """A call of `train` on rows in `folder`."""
    rows = folder / "rows.jsonl"
    words = (
        f"train {rows} --base {folder / 'bases' / 'gqa'} --members 2 --epochs 1 --batch-size 4 --no-progress"
    )
    return words.split()


Case = Callable[[Path], Result]


def case(name: str, shard: str, run: Callable[..., Result], **named: object) -> Case:
    return lambda folder: run(ensemble(name, folder / "bases", shard=shard), **named)


def with_out(name: str, shard: str, run: Callable[..., Result], out: str) -> Case:
    return lambda folder: run(ensemble(name, folder / "bases", shard=shard), folder / out)


FOUR: dict[str, Case] = {
    "four_fsdp": case("gqa", "fsdp", logits_and_gradients),
    "four_tp": case("gqa", "tp", logits_and_gradients),
    "four_tp_heads": case("tied", "tp", logits_and_gradients),
}
TWO_FSDP: dict[str, Case] = {
    **{
        f"fsdp_{name}": case(name, "fsdp", logits_and_gradients)
        for name in ("gqa", "tied", "mixtral", "gpt2")
    },
    "fsdp_trained": with_out("gqa", "fsdp", trained, "fsdp_trained"),
    "fsdp_loaded": lambda folder: loaded("gqa", folder / "bases", folder / "fsdp_trained", shard="fsdp"),
    "fsdp_trunk": lambda folder: trained(ensemble("gqa", folder / "bases", shard="fsdp", layers=[1]), None),
    "fsdp_in_chunks": case("gqa", "fsdp", in_chunks, out=None),
    "fsdp_uneven": lambda folder: logits_and_gradients(
        ensemble("gqa", folder / "bases", shard="fsdp", members=3)
    ),
    "fsdp_generation": case("gqa", "fsdp", lambda made: {"": made.as_causal_lm()}),
    "fsdp_out_of_memory": with_out("gqa", "fsdp", out_of_memory, "none"),
    "replicate_gqa": case("gqa", "replicate", logits_and_gradients),
    "replicate_trained": with_out("gqa", "replicate", trained, "replicate_trained"),
    "fsdp_command_line": command_line,  # the last: it leaves the ranks
}
TWO_TP: dict[str, Case] = {
    **{
        f"tp_{name}": case(name, "tp", logits_and_gradients)
        for name in ("gqa", "tied", "mixtral", "gpt2", "phi3", "gqa_float64", "tied_float64")
    },
    "tp_trained": with_out("gqa_float64", "tp", trained, "tp_trained"),
    "tp_loaded": lambda folder: loaded("gqa_float64", folder / "bases", folder / "tp_trained", shard="tp"),
    "tp_interrupted": with_out("gqa_float64", "tp", interrupted, "tp_interrupted"),
    "tp_taken": with_out("gqa", "tp", trained, "rows.jsonl"),
}


def write_bases(folder: Path) -> None:
    for name in ("gqa", "tied", "mixtral", "gpt2", "phi3"):
        model = build(name)
        model.save_pretrained(folder / name)
        tokenizer().save_pretrained(folder / name)
        if name in ("gqa", "tied"):
            model.double().save_pretrained(folder / f"{name}_float64")
            tokenizer().save_pretrained(folder / f"{name}_float64")


def write_rows(folder: Path) -> None:
    rows = [
        {"prompt": example.prompt, "completion": example.labels[example.target or 0]}
        for example in letter_examples()
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def run_cases(cases: dict[str, Case], *, rank: int, size: int, port: int, folder: Path) -> None:
    os.environ |= dict(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(size),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
    )
    # A file, for a port that is free now may be another program's a moment later.
    store = dist.FileStore(str(folder / f"store_{port}"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    for name, run in cases.items():
        problem, result = "", {}
        try:
            result = run(folder)
        except LoraEnsemblesError as error:
            problem = f"{type(error).__name__}: {error}"
        except BaseException:
            (folder / f"{name}.{rank}.txt").write_text(traceback.format_exc())
            raise
        save_file(
            {key: value.contiguous() for key, value in result.items()}, folder / f"{name}.{rank}.safetensors"
        )
        (folder / f"{name}.{rank}.txt").write_text(problem)
    if dist.is_initialized():
        dist.destroy_process_group()


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return int(bound.getsockname()[1])


def one_of_four(number: int, ports: list[int], folder: Path) -> None:
    run_cases(FOUR, rank=number, size=4, port=ports[0], folder=folder)
    cases = (TWO_FSDP, TWO_TP)[number // 2]
    run_cases(cases, rank=number % 2, size=2, port=ports[1 + number // 2], folder=folder)


def main(folder: Path) -> int:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    register()
    (folder / "bases").mkdir()
    write_bases(folder / "bases")
    write_rows(folder)
    ports = [free_port() for _ in range(3)]
    children = []
    for number in range(4):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                one_of_four(number, ports, folder)
                code = 0
            except BaseException:  # noqa: BLE001 - nobody else would hear of it
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    codes = [0] * 4
    while children:  # a rank that fails leaves others waiting
        child, status = os.wait()
        children.remove(child)
        if status:
            for other in children:
                os.kill(other, signal.SIGTERM)
            codes[0] = 1
    return max(codes)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
