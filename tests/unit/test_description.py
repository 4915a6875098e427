"""`ensemble.json` and members' files that were changed by hand, damaged, or made to mislead: each is named,
with the place in it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lora_ensembles.cli import main
from lora_ensembles.ensemble import LoraEnsemble
from lora_ensembles.errors import CheckpointError
from lora_ensembles.heads import HeadConfig
from lora_ensembles.storage.folder import read_ensemble
from tiny_ensembles import ensemble

Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """An ensemble of two members that says where its questions came from."""
    made = ensemble(members=2, trained=True)
    made.info = dataclasses.replace(
        made.info, task={"name": "mine", "source": {"train": "a.csv", "columns": {"question": "stem"}}}
    )
    made.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def set_at(*place: str | int, to: object) -> Change:
    def change(content: dict[str, Any]) -> None:
        *parents, last = place
        inner: Any = content
        for step in parents:
            inner = inner[step]
        inner[last] = to

    return change


def rewrite(path: Path, change: Change) -> None:
    content = json.loads((path / "ensemble.json").read_text())
    change(content)
    (path / "ensemble.json").write_text(json.dumps(content))


WRONG_VALUES: list[tuple[Change, str]] = [
    (set_at("task", to=None), "task is None; it has to be an object"),
    (set_at("task", to=[1]), r"task is \[1\]; it has to be an object"),
    (set_at("task", "name", to=3), "task.name is 3; it has to be a text"),
    (set_at("task", "source", to="a.csv"), "task.source is 'a.csv'; it has to be an object"),
    (
        set_at("task", "source", "columns", to={"qestion": "stem"}),
        "unknown field 'task.source.columns.qestion'; did you mean 'task.source.columns.question'",
    ),
    (set_at("task", "source", "columns", "question", to=None), "columns.question is None; .* a text"),
    (set_at("task", "source", "columns", to={"options": [1]}), r"columns.options is \[1\]; .* a text"),
    (set_at("task", "source", "labels", to="yes,no"), "task.source.labels is 'yes,no'; it has to be a list"),
    (set_at("task", "source", "seed", to=1.5), "task.source.seed is 1.5; it has to be a whole number"),
    (set_at("task", "source", "open_ended", to=1), "open_ended is 1; it has to be true or false"),
    (set_at("task", "dtype", to="float8"), "task.dtype is 'float8'; it has to be one of 'float32', "),
    (set_at("base", to="gpt2"), "base is 'gpt2'; it has to be an object"),
    (set_at("base", "name", to=None), "base.name is None; it has to be a text"),
    (set_at("base", "name", to="\ud83d"), r"base.name is '\\ud83d'; it has to be a text"),
    (set_at("base", "revision", to=7), "base.revision is 7; it has to be a text"),
    (set_at("base", "fingerprint", to=None), "base.fingerprint is None; it has to be a text"),
    (set_at("base", "num_labels", to="x"), "base.num_labels is 'x'; it has to be a whole number from 1"),
    (set_at("base", "num_labels", to=10**9), "base.num_labels is 1000000000; .* from 1 to 1000000"),
    (set_at("base", "kind", to="seq2seq"), "base.kind is 'seq2seq'; it has to be one of 'causal-lm'"),
    (set_at("seed", to="0"), "seed is '0'; it has to be a whole number"),
    (set_at("seed", to=True), "seed is True; it has to be a whole number"),
    (set_at("seed", to=2**70), f"seed is {2**70}; it has to be a whole number"),
    (set_at("vary", to=3), "vary is 3; it has to be a list"),
    (set_at("vary", to=["all"]), r"vary\[0\] is 'all'; it has to be one of 'init', 'order'"),
    (set_at("next_index", to=-1), "next_index is -1; it has to be a whole number from 0"),
    (set_at("overlong", to="cut"), "overlong is 'cut'; it has to be one of 'error', 'left'"),
    (set_at("members", to=[]), r"members is \[\]; it has to be a list of at least 1"),
    (set_at("members", to={}), r"members is \{\}; it has to be a list of at least 1"),
    (set_at("members", 1, to="member_001"), r"members\[1\] is 'member_001'; it has to be an object"),
    (set_at("members", 1, to={"folder": "member_001"}), r"members\[1\].init_seed is missing"),
    (set_at("members", 1, "order_seed", to=float("nan")), r"members\[1\].order_seed is nan"),
    (set_at("members", 0, "folder", to=3), r"members\[0\].folder is 3; it has to be a text"),
    (set_at("head", to={"kind": "reward", "clases": []}), "unknown field 'head.clases'; did you mean"),
    (set_at("head", to={"kind": "regression"}), "head.kind is 'regression'; it has to be one of"),
    (set_at("head", to={"kind": "reward", "max_length": 0}), "head.max_length is 0"),
]


@pytest.mark.parametrize(("change", "message"), WRONG_VALUES)
def test_a_value_of_another_type_is_named_with_its_place(saved: Path, change: Change, message: str) -> None:
    rewrite(saved, change)

    with pytest.raises(CheckpointError, match=rf"ensemble\.json: .*{message}.*correct it, or save"):
        read_ensemble(saved)


@pytest.mark.parametrize("verb", ["predict", "evaluate", "generate"])
def test_every_verb_that_reads_an_ensemble_says_so_in_one_line(capsys, saved: Path, verb: str) -> None:
    rewrite(saved, set_at("task", to=[1]))
    words = {"predict": ["--in", "a.csv"], "evaluate": [], "generate": ["--prompt", "x"]}[verb]

    assert main([verb, str(saved), *words]) == 2
    streams = capsys.readouterr()
    assert streams.out == ""
    assert re.fullmatch(r"lora-ensembles: error: .*ensemble\.json: task is \[1\].*\n", streams.err)


def test_number_of_classes_that_are_not_those_named_is_refused(saved: Path) -> None:
    head = HeadConfig("sequence-classification", classes=("no", "yes")).to_dict()
    rewrite(saved, set_at("head", to=head))
    rewrite(saved, set_at("base", "num_labels", to=3))

    with pytest.raises(CheckpointError, match=r"base\.num_labels is 3, and head\.classes has 2"):
        read_ensemble(saved)


def test_fields_that_a_later_version_may_add_are_passed_over(saved: Path) -> None:
    expected = read_ensemble(saved)
    for place in ((), ("base",), ("task",), ("task", "source"), ("members", 0)):
        rewrite(saved, set_at(*place, "later", to={"a": [1]}))

    found = read_ensemble(saved)
    assert (found.base_name, found.seeds) == (expected.base_name, expected.seeds)


@pytest.mark.parametrize(
    "name", ["../outside", "member_000/../../outside", "{tmp}/outside", "", ".", "a\0b", "link"]
)
def test_member_outside_the_folder_of_the_ensemble_is_refused(saved: Path, name: str) -> None:
    outside = saved.parent / "outside"
    (saved / "member_001").rename(outside)
    (saved / "link").symlink_to(outside)
    rewrite(saved, set_at("members", 1, "folder", to=name.replace("{tmp}", str(saved.parent))))

    with pytest.raises(
        CheckpointError, match=r"members\[1\]\.folder is .*, which is no folder inside .*saved"
    ):
        read_ensemble(saved)


@pytest.mark.parametrize("name", ["member_000", "./member_000", "copy", "deep/../member_000"])
def test_member_that_comes_twice_is_refused_in_every_spelling(saved: Path, name: str) -> None:
    (saved / "copy").symlink_to("member_000")
    rewrite(saved, set_at("members", 1, "folder", to=name))

    with pytest.raises(CheckpointError, match=r"members 0 and 1 are the same folder|no folder inside"):
        read_ensemble(saved)


def test_ensemble_and_member_behind_links_inside_are_read(saved: Path) -> None:
    """As in the cache of the hub, whose files are links to others elsewhere; and an ensemble in a linked
    folder.
    """
    weights = saved / "member_000" / "adapter_model.safetensors"
    weights.rename(saved.parent / "blob")
    weights.symlink_to(saved.parent / "blob")
    (saved.parent / "link").symlink_to(saved)

    assert len(read_ensemble(saved.parent / "link").weights) == 2


def change_tensors(path: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> str:
    """Change one tensor of a member; returns its name."""
    tensors = load_file(path)
    name = sorted(tensors)[0]
    save_file({**tensors, name: change(tensors[name])}, path)
    return name


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.uint8, torch.bool])
def test_weights_that_are_no_floating_point_numbers_are_refused(saved: Path, dtype: torch.dtype) -> None:
    path = saved / "member_001" / "adapter_model.safetensors"
    name = change_tensors(path, lambda tensor: tensor.to(dtype))

    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(
        CheckpointError, match=rf"member_001.adapter_model.safetensors holds '{re.escape(name)}' as {kind}"
    ):
        read_ensemble(saved)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named_with_the_members_file(saved: Path, value: float) -> None:
    path = saved / "member_001" / "adapter_model.safetensors"
    name = change_tensors(path, lambda tensor: tensor.index_fill(0, torch.tensor([0]), value))

    message = (
        rf"member_001.adapter_model.safetensors holds '{re.escape(name)}' with values that are not finite"
    )
    with pytest.raises(CheckpointError, match=message):
        read_ensemble(saved)
    assert len(read_ensemble(saved, members=[0]).weights) == 1


@pytest.mark.parametrize("name", ["ensemble.json", "member_001/adapter_model.safetensors"])
def test_pipe_in_the_place_of_a_file_is_named_and_not_waited_for(saved: Path, name: str) -> None:
    (saved / name).unlink()
    os.mkfifo(saved / name)

    with pytest.raises(CheckpointError, match=rf"{re.escape(name)} cannot be read: it is no file"):
        read_ensemble(saved)


FILES = ("ensemble.json", "member_001/adapter_config.json", "member_001/adapter_model.safetensors")


@pytest.mark.parametrize("name", FILES)
def test_folder_in_the_place_of_a_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    (saved / name).mkdir()

    with pytest.raises(CheckpointError, match=rf"{re.escape(name)} cannot be read: it is no file"):
        read_ensemble(saved)


@pytest.mark.parametrize("name", FILES)
def test_link_to_nothing_in_the_place_of_a_file_is_named(saved: Path, name: str) -> None:
    (saved / name).unlink()
    (saved / name).symlink_to("gone")

    with pytest.raises(CheckpointError, match=rf"{re.escape(name)} cannot be read: No such file"):
        read_ensemble(saved)


@contextmanager
def without_root() -> Iterator[None]:
    """While this process may do what any user may: root reads what nobody else can."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        try:
            yield
        finally:
            os.seteuid(0)
    else:
        yield


@pytest.mark.parametrize("name", [*FILES, "member_001"])
def test_file_or_folder_that_may_not_be_read_is_named(tmp_path_factory, name: str) -> None:
    top = tmp_path_factory.mktemp("shared")
    for folder in (top, *top.parents[:-2]):  # pytest keeps its folders to their owner
        folder.chmod(folder.stat().st_mode | 0o055)
    ensemble(members=2).save_pretrained(top / "saved")
    for path in (top / "saved").rglob("*"):
        path.chmod(0o755)
    (top / "saved" / name).chmod(0)

    with (
        pytest.raises(CheckpointError, match=rf"{re.escape(name)}.* cannot be read: .*Permission denied"),
        without_root(),
    ):
        read_ensemble(top / "saved")
    (top / "saved" / name).chmod(0o755)
    assert isinstance(read_ensemble(top / "saved").weights, list)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' * 50_000, "1" * 5000, '"\\ud83d'])
def test_json_that_no_parser_takes_is_named(saved: Path, text: str) -> None:
    (saved / "ensemble.json").write_text(text)

    with pytest.raises(CheckpointError, match=r"ensemble\.json is not JSON"):
        read_ensemble(saved)


def test_adapters_from_elsewhere_are_held_to_the_same(saved: Path) -> None:
    path = saved / "member_001" / "adapter_model.safetensors"
    change_tensors(path, lambda tensor: tensor.to(torch.int8))
    made = ensemble()

    with pytest.raises(CheckpointError, match="as int8; members' weights are floating-point numbers"):
        LoraEnsemble.from_adapters(made.unload(), made.tokenizer, [path.parent], check_base=False)
