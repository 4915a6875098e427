"""Numbers that cannot work are refused by the name of their field, before anything is built; numpy's numbers
work like Python's.
"""

from __future__ import annotations

import json
import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig

from lora_ensembles.ensemble import LoraEnsemble
from lora_ensembles.errors import ConfigError
from lora_ensembles.planning.memory import plan_training
from lora_ensembles.stack.adapters import check_numbers
from lora_ensembles.stack.capacity import BYTES_A_PARAMETER, memory_of, parameters_of
from lora_ensembles.stack.seeds import member_seeds
from lora_ensembles.training.config import TrainConfig
from tiny_ensembles import adapter, ensemble, llama, tokenizer


def made(**settings: Any) -> LoraEnsemble:
    return LoraEnsemble(llama(), tokenizer(), **{"adapter": adapter(), "num_members": 2, **settings})


def config_with(**fields: Any) -> LoraConfig:
    config = adapter()
    for name, value in fields.items():  # past the constructor, as a file or a later assignment may give it
        setattr(config, name, value)
    return config


@pytest.mark.parametrize(
    ("field", "value", "needed"),
    [
        *(
            ("lora_alpha", value, "a finite number above 0")
            for value in (0, -5, math.nan, math.inf, True, "16")
        ),
        *(
            ("lora_dropout", value, "a number of at least 0 and below 1")
            for value in (-0.1, 1, 1.5, math.nan, "0")
        ),
        *(("r", value, "a whole number of at least 1") for value in (0, -8, 2.5, True)),
    ],
)
def test_number_of_the_adapter_with_which_nothing_is_learnt_is_refused_by_name(
    field: str, value: object, needed: str
) -> None:
    base = llama()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}

    with pytest.raises(ConfigError, match=f"^{field}={value!r}; it is {needed}"):
        LoraEnsemble(base, tokenizer(), adapter=config_with(**{field: value}))

    assert base.state_dict().keys() == before.keys()


@pytest.mark.parametrize(
    "pattern", [{"rank_pattern": {"q_proj": 0}}, {"alpha_pattern": {"q_proj": math.nan}}]
)
def test_number_of_one_layer_is_refused_with_the_layer(pattern: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"^(rank|alpha)_pattern\['q_proj'\]="):
        check_numbers(config_with(**pattern))


def test_rank_beyond_every_adapted_layer_is_refused_before_a_member_is_made() -> None:
    with pytest.raises(
        ConfigError, match=r"^r=100000; the layers that get adapters have at most 16 features"
    ):
        made(adapter=adapter(rank=100_000))


def test_rank_of_one_layer_beyond_its_sides_is_refused_too() -> None:
    with pytest.raises(ConfigError, match=r"^rank_pattern\['q_proj'\]=100000; "):
        made(adapter=config_with(rank_pattern={"q_proj": 100_000}))


@pytest.mark.parametrize("grown", [False, True])
def test_members_that_no_memory_holds_are_refused_with_the_sum(grown: bool) -> None:
    count = 10**10
    each = parameters_of(ensemble(members=1).stack.member(0))
    needed = (
        f"{each:,} parameters each at 16 bytes .* are {each * count * BYTES_A_PARAMETER / 1e9:,.1f} GB, "
        "and cpu has"
    )

    with pytest.raises(
        ConfigError, match=rf"^num_members={count} of rank 2 do not fit into memory: {needed}"
    ):
        ensemble().add_members(count) if grown else made(num_members=count)


def test_members_that_do_not_fit_leave_the_ensemble_as_it_was() -> None:
    own = ensemble(trained=True)
    before = [own.stack.member(index) for index in range(2)]

    with pytest.raises(ConfigError, match="do not fit into memory"):
        own.add_members(10**10)

    assert own.num_members == 2 == len(own.info.seeds)
    for index, member in enumerate(before):
        assert all(torch.equal(own.stack.member(index).b[name], member.b[name]) for name in member.b)


def test_memory_of_this_computer_is_no_more_than_its_pages() -> None:
    import os

    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert 2**28 < memory_of(torch.device("cpu")) <= pages


@pytest.mark.parametrize("seed", ["a", 1.5, None, True, np.float32(1)])
def test_seed_that_is_no_whole_number_is_refused(seed: object) -> None:
    with pytest.raises(ConfigError, match=r"^seed=.*; it is a whole number"):
        made(seed=seed)
    with pytest.raises(ConfigError, match=r"^seed=.*; it is a whole number"):
        member_seeds(seed, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("members", [0, -1, 2.0, True, "2", None, np.float64(2), np.bool_(True)])
def test_number_of_members_that_counts_nothing_is_refused(members: object) -> None:
    with pytest.raises(ConfigError, match=r"^num_members=.*; an ensemble has at least 1 member"):
        made(num_members=members)


def test_numpy_numbers_are_numbers() -> None:
    plain = TrainConfig(
        epochs=2, learning_rate=0.5, kl_weight=[0.25, 0.0], snapshot_epochs=[1], max_grad_norm=1.5
    )
    config = TrainConfig(
        epochs=np.int64(2),  # type: ignore[arg-type]
        learning_rate=np.float32(0.5),  # type: ignore[arg-type]
        kl_weight=np.array([0.25, 0.0]),  # type: ignore[arg-type]
        snapshot_epochs=[np.int32(1)],  # type: ignore[list-item]
        max_grad_norm=np.float64(1.5),
    )
    own = made(num_members=np.int64(2), seed=np.int64(7), adapter=config_with(lora_alpha=np.float64(8)))

    assert config == plain
    assert json.dumps(config.to_dict()) == json.dumps(plain.to_dict())
    assert own.num_members == 2
    assert own.info.seeds == made(seed=7).info.seeds
    assert json.dumps([own.info.seed, own.info.next_index]) == "[7, 2]"


@pytest.mark.parametrize("vary", ["init", 3, None])
def test_what_varies_is_a_list_of_names(vary: object) -> None:
    with pytest.raises(ConfigError, match=r"^vary=.*; it is a list of names, such as"):
        made(vary=vary)


def test_members_between_which_nothing_varies_are_said_to_be_copies(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="lora_ensembles"):
        own = made(vary=[])
        made(vary=["order"])
        made(vary=[], num_members=1)

    (record,) = caplog.records
    assert "all 2 members begin with the same weights" in record.getMessage()
    assert own.info.seeds[0] == own.info.seeds[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tokens": 10**9}, r"tokens=1000000000; the base's window is 64 tokens"),
        ({"tokens": True}, r"tokens=True; it is a whole number of at least 1"),
        ({"batch_size": 10**16, "tokens": 64}, r"rows of tokens=64 have tensors of more elements"),
        ({"members": 10**6}, r"members=1000000; up to 1000 are planned, and 1000000 of [\d,]+ parameters"),
        ({"memory": math.nan}, r"memory=nan; it is a finite number above 0"),
        ({"memory": -1}, r"memory=-1; it is a finite number above 0"),
        ({"adapter": config_with(lora_alpha=0)}, r"lora_alpha=0; it is a finite number above 0"),
    ],
)
def test_plan_of_a_number_that_cannot_work_is_refused_at_once(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"{message}"):
        plan_training(llama().config, **{"tokens": 8, "adapter": adapter(), **settings})


def test_plan_of_rows_beyond_what_can_be_addressed_is_refused_where_no_window_ends_them() -> None:
    config = llama().config
    config.max_position_embeddings = 10**12

    with pytest.raises(ConfigError, match="10 rows of tokens=1000000000 have tensors of more elements"):
        plan_training(config, adapter=adapter(), members=5, batch_size=2, tokens=10**9)
