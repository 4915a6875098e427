"""What the documentation site is made from, without building it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

import lora_ensembles

DOCS = Path(__file__).parents[2] / "docs"


def loaded(name: str):
    spec = importlib.util.spec_from_file_location(name, DOCS / "build" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def test_api_reference_holds_every_public_name_once():
    named = [name.split(".")[0] for group in loaded("api_pages").GROUPS.values() for name in group.names]
    assert set(named) == set(lora_ensembles.__all__)
    once = [name for name in named if name != "plots"]
    assert len(once) == len(set(once))


def test_api_page_links_to_the_pages_that_use_a_name():
    pages = dict(
        loaded("api_pages").api_pages({"heads.md": "model = load_base()", "data.md": "reload_base()"})
    )
    ensemble = pages["reference/api/ensemble.md"]
    entry = ensemble.split("::: lora_ensembles.load_base")[1]
    assert "](../../heads.md)" in entry
    assert "data.md" not in entry


@pytest.mark.parametrize("flag", ["--weight-decay-b", "--members", "--dtype {float32,bfloat16,float16}"])
def test_page_of_flags_is_made_from_the_parser(flag):
    page = loaded("cli_page").cli_page()
    assert f"`{flag}" in page
    assert "==SUPPRESS==" not in page
    assert page.count("\n## ") == len(loaded("cli_page").parsers()[1])


def test_every_page_of_the_navigation_is_there_or_made():
    navigation = (DOCS.parent / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    pages = [word for word in navigation.replace("\n", " ").split() if word.endswith((".md", ".ipynb"))]
    made = ("index.md", "changelog.md", "reference/", "gallery.md")
    missing = [page for page in pages if not page.startswith(made) and not (DOCS / page).is_file()]
    assert missing == []
    listed = {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")}
    assert listed <= set(pages)


@pytest.mark.parametrize(
    ("docstring", "expected"),
    [
        ("A sum.\n\nExample:\n    >>> 1 + 1\n    2", "A sum.\n\nExamples:\n    >>> 1 + 1\n    2"),
        (
            "Args:\n    a, b: both\n        numbers.",
            "Args:\n    a: both\n        numbers.\n    b: both\n        numbers.",
        ),
        ("Raises:\n    DataError: it is a, b: never.", "Raises:\n    DataError: it is a, b: never."),
    ],
)
def test_docstrings_of_the_house_become_googles(docstring, expected):
    assert loaded("google_style").in_google_style(docstring) == expected
