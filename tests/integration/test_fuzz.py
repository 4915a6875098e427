"""Files and flags changed at random: every call ends with exit code 0 or 2 and at most one line of error, and
no input is changed.

A few examples of each kind in every run of the tests, the same each time; `make fuzz` takes many more.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import io
import json
import os
import shutil
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings, strategies as st

from command_line import base_folder
from lora_ensembles import LoraEnsemble, load_base
from lora_ensembles.cli import main
from tiny_ensembles import adapter

EXAMPLES = int(os.environ.get("LORA_ENSEMBLES_FUZZ", "8"))  # of each kind
FUZZ = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)
pytestmark = pytest.mark.filterwarnings("default")  # as on the command line

QUESTIONS = [
    {"id": "sun", "question": "The sun is a", "options": ["planet", "star", "moon"], "answer": "star"},
    {"id": "new", "question": "Does it shine?", "options": ["yes", "no"], "answer": "yes"},
    {"id": "old", "question": "It is", "options": ["old", "new", "both", "neither"], "answer": "both"},
]
CSV = 'id,question,a,b,answer\nsun,The sun is a,planet,star,star\nnew,"Does it, really\nshine?",yes,no,yes\n'
CONFIG = {
    "task": None,
    "members": 2,
    "epochs": 1,
    "learning_rate": [1e-3, 2e-3],
    "vary": ["init"],
    "resume": False,
}
counts: Counter[str] = Counter()


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A saved ensemble and files for it, which no test changes."""
    folder = tmp_path_factory.mktemp("originals")
    made = LoraEnsemble(*load_base(base_folder()), num_members=2, adapter=adapter())
    source = {"train": "rows.jsonl", "columns": {"question": "question"}}
    made.info = dataclasses.replace(made.info, task={"name": "rows", "source": source})
    made.save_pretrained(folder / "run")
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in QUESTIONS))
    (folder / "rows.csv").write_text(CSV)
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    yield folder
    print("\nexamples:", dict(counts), "exit codes included")


@contextlib.contextmanager
def copied(originals: Path) -> Iterator[Path]:
    """A copy to change, as the present folder."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    before = os.getcwd()
    shutil.copytree(originals, folder, dirs_exist_ok=True)
    os.chdir(folder)
    try:
        yield folder
    finally:
        os.chdir(before)
        shutil.rmtree(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_call(folder: Path, kind: str, *words: str, made: Collection[str] = ("out",)) -> None:
    """Call the command line and hold it to its promises; `made` is what it may make."""
    before = contents(folder)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(list(words))
    counts[f"{kind}: {code}"] += 1
    assert code in (0, 2), err.getvalue()
    assert "Traceback" not in err.getvalue()
    errors = [line for line in err.getvalue().splitlines() if line.startswith("lora-ensembles: error: ")]
    assert len(errors) == (code == 2)
    after = {name: content for name, content in contents(folder).items() if name.split("/")[0] not in made}
    assert after == before


# What is put in the place of something else

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2, 3, 7, 2**31, 2**63, -(2**63) - 1, 10**30]),
    st.floats(),
    st.sampled_from(
        [
            "",
            "x",
            ".",
            "..",
            "/",
            "a\0b",
            "\ud83d",
            "é" * 3,
            "NaN",
            "member_000",
            "init",
            "yes,no",
            "1e400",
            "none",
        ]
    ),
    st.text(max_size=6),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=4,
)


def places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a tree of JSON, the root aside."""
    items: Any = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for name, inner in items:
        yield (*place, name)
        yield from places(inner, (*place, name))


def similar(value: Any) -> st.SearchStrategy[Any]:
    """Another value of the same type, which a check of types lets pass."""
    if isinstance(value, bool):
        return st.booleans()
    if isinstance(value, int | float):
        return st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 9) | st.floats(0, 4)
    if isinstance(value, str):
        return st.sampled_from(
            ["", "init", "left", "member_001", value.upper(), value[:-1], value * 2]
        ) | st.text(max_size=6)
    if isinstance(value, list):
        return st.sampled_from([[], value[::-1], value * 2, value[:1]])
    return VALUES


def changed_tree(draw: Callable[[Any], Any], tree: Any) -> Any:
    """The tree with one to three values replaced, removed, doubled or renamed."""
    tree = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        every = list(places(tree))
        if not every:
            return draw(VALUES)
        *parents, last = draw(st.sampled_from(every))
        inner = tree
        for step in parents:
            inner = inner[step]
        action = draw(st.sampled_from(["similar", "similar", "replace", "remove", "double", "swap"]))
        if action == "remove":
            del inner[last]
        elif action == "double" and isinstance(inner, list):
            inner.append(copy.deepcopy(inner[last]))
        elif action == "similar":
            inner[last] = draw(similar(inner[last]))
        elif action == "swap":
            inner[last] = copy.deepcopy(draw(st.sampled_from([tree, [inner[last]], {"a": inner[last]}])))
        else:
            inner[last] = draw(VALUES)
    return tree


def changed_bytes(draw: Callable[[Any], Any], content: bytes) -> bytes:
    """The bytes with one to four pieces replaced, removed, doubled or put in."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        end = min(len(content), start + draw(st.integers(0, 40)))
        pieces = st.one_of(
            st.binary(max_size=8),
            st.sampled_from(
                [
                    b"",
                    b"\0",
                    b"\xff",
                    b"\xef\xbb\xbf",
                    b"\r",
                    b'"',
                    b"{",
                    b"]",
                    b",",
                    b"\n\n",
                    b"\\ud83d",
                    b"NaN",
                    b"PK\x03\x04",
                    b"9" * 5000,
                    content[start:end] * 2,
                ]
            ),
        )
        content = content[:start] + draw(pieces) + content[end:]
        if draw(st.integers(0, 7)) == 0:
            content = content[:start]
    return content


def as_json(tree: Any) -> bytes:
    return json.dumps(tree).encode("ascii")


@pytest.mark.parametrize("name", ["ensemble.json", "member_000/adapter_config.json"])
@FUZZ
@given(data=st.data())
def test_description_with_other_values(originals: Path, name: str, data: st.DataObject) -> None:
    with copied(originals) as folder:
        path = folder / "run" / name
        tree = json.loads(path.read_text())
        version = tree.pop("format_version", None)  # a wrong one would hide what comes behind it
        changed = changed_tree(data.draw, tree)
        if version is not None and isinstance(changed, dict):
            changed["format_version"] = version
        path.write_bytes(as_json(changed))
        verb = data.draw(st.sampled_from(["predict", "predict", "evaluate"]))
        check_call(folder, name, verb, "run", *(["--in", "rows.jsonl"] if verb == "predict" else []))


@pytest.mark.parametrize(
    "name", ["ensemble.json", "member_000/adapter_config.json", "member_001/adapter_model.safetensors"]
)
@FUZZ
@given(data=st.data())
def test_description_and_weights_of_other_bytes(originals: Path, name: str, data: st.DataObject) -> None:
    with copied(originals) as folder:
        path = folder / "run" / name
        path.write_bytes(changed_bytes(data.draw, path.read_bytes()))
        check_call(folder, f"{name}, bytes", "predict", "run", "--in", "rows.jsonl")


@FUZZ
@given(data=st.data())
def test_weights_with_another_header(originals: Path, data: st.DataObject) -> None:
    with copied(originals) as folder:
        path = folder / "run" / "member_001" / "adapter_model.safetensors"
        content = path.read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + size])
        if data.draw(st.booleans()):
            name = data.draw(st.sampled_from(sorted(header)))
            kinds = ["F16", "BF16", "F64", "I8", "I32", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "X", ""]
            header[name] = {**header[name], "dtype": data.draw(st.sampled_from(kinds))}
        else:
            header = changed_tree(data.draw, header)
        changed = as_json(header)
        path.write_bytes(struct.pack("<Q", len(changed)) + changed + content[8 + size :])
        check_call(folder, "safetensors header", "predict", "run", "--in", "rows.jsonl")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
@FUZZ
@given(data=st.data())
def test_rows_of_other_bytes(originals: Path, name: str, data: st.DataObject) -> None:
    with copied(originals) as folder:
        (folder / name).write_bytes(changed_bytes(data.draw, (folder / name).read_bytes()))
        columns = ["--options-column", "a,b"] if name == "rows.csv" else []
        out = data.draw(st.sampled_from(["out", "out/a.jsonl", "out/a.csv"]))
        check_call(folder, f"{name}, bytes", "predict", "run", "--in", name, *columns, "--out", out)


@FUZZ
@given(data=st.data())
def test_rows_with_other_values(originals: Path, data: st.DataObject) -> None:
    with copied(originals) as folder:
        rows = changed_tree(data.draw, QUESTIONS)
        lines = rows if isinstance(rows, list) else [rows]
        (folder / "rows.jsonl").write_bytes(b"\n".join(map(as_json, lines)))
        verb = data.draw(st.sampled_from(["predict", "evaluate"]))
        flag = {"predict": "--in", "evaluate": "--file"}[verb]
        check_call(folder, "rows.jsonl, values", verb, "run", flag, "rows.jsonl")


@FUZZ
@given(data=st.data())
def test_config_with_other_values(originals: Path, data: st.DataObject) -> None:
    """Up to the base, which is not there: a config may well ask for a training of days."""
    with copied(originals) as folder:
        path = folder / "config.yaml"
        if data.draw(st.booleans()):
            tree = changed_tree(data.draw, CONFIG)
            with contextlib.suppress(yaml.YAMLError, UnicodeError):
                path.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
        else:
            path.write_bytes(changed_bytes(data.draw, path.read_bytes()))
        words = ["--train", "rows.jsonl", "--base", "./gone", "--out", "out"]
        check_call(folder, "config.yaml", "train", "--config", "config.yaml", *words)


TRAIN_FLAGS = [
    "--members", "--seed", "--vary", "--epochs", "--batch-size", "--learning-rate", "--schedule",
    "--kl-weight", "--dropout", "--weight-decay-b", "--rank", "--alpha", "--lora-dropout", "--target-modules",
    "--preset", "--limit", "--labels", "--question-column", "--options-column", "--answer-column",
    "--answer-form", "--validation", "--task", "--head", "--dtype", "--snapshot-epochs", "--data", "--config",
]  # fmt: skip
READ_FLAGS = [
    "--only", "--max-rows", "--dtype", "--device", "--question-column", "--options-column", "--answer-column",
    "--id-column", "--pair-column", "--labels", "--answer-form", "--format", "--out", "--base", "--in-format",
]  # fmt: skip
WORDS = st.one_of(
    st.sampled_from(["", "0", "-1", "1", "2", "1e400", "nan", "inf", "none", "a,b", "0,1", "question", ".",
                     "rows.jsonl", "run", "out", "rows.csv", "csv", "text", "é", "\udcff", "--", "-",
                     "x.xlsx", "./gone"]),
    st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), max_size=5),
)  # fmt: skip


@pytest.mark.parametrize(
    ("verb", "flags", "needed"),
    [
        ("train", TRAIN_FLAGS, ["--train", "rows.jsonl", "--base", "./gone", "--out", "out"]),
        ("predict", READ_FLAGS, ["run", "--in", "rows.jsonl"]),
        ("evaluate", [*READ_FLAGS, "--ood", "--limit", "--file"], ["run", "--file", "rows.jsonl"]),
        (
            "generate",
            ["--max-new-tokens", "--temperature", "--top-k", "--top-p", "--stop", "--seed", "--only"],
            ["run", "--prompt", "The sun"],
        ),
    ],
)
@FUZZ
@given(data=st.data())
def test_flags_with_other_values(
    originals: Path, verb: str, flags: list[str], needed: list[str], data: st.DataObject
) -> None:
    with copied(originals) as folder:
        words = list(needed)
        for _ in range(data.draw(st.integers(1, 3))):
            flag, value = data.draw(st.sampled_from(flags)), data.draw(WORDS)
            words += data.draw(
                st.sampled_from([[flag, value], [flag, value], [f"{flag}={value}"], [flag], [value]])
            )
        words += data.draw(st.sampled_from([[], ["--json"], ["--overwrite"]]))
        split = [
            part for word in words for part in (word.split("=", 1) if word.startswith("--out=") else [word])
        ]
        outs = {split[index + 1].split("/")[0] for index, word in enumerate(split[:-1]) if word == "--out"}
        check_call(folder, f"flags of {verb}", verb, *words, made={"out", *outs} - set(READ_ONLY))


READ_ONLY = ("run", "rows.jsonl", "rows.csv", "config.yaml")  # what no flag may change
