"""The bounds of pyproject.toml and the two files of pins: what is admitted is what is tested."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

REPOSITORY = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
REQUIREMENTS = [
    requirement
    for lines in (PROJECT["dependencies"], *PROJECT["optional-dependencies"].values())
    for requirement in map(Requirement, lines)
    if requirement.name != PROJECT["name"]
]
# Only the pinned release of a linter decides what it says, and only that of a builder what it builds.
TOOLS = {"ruff", "mypy", "jupytext"} | {
    Requirement(line).name
    for extra in ("docs", "release")
    for line in PROJECT["optional-dependencies"][extra]
}


def pins(file: str) -> dict[str, Version]:
    lines = (REPOSITORY / file).read_text(encoding="utf-8").splitlines()
    pairs = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): Version(version) for name, version in pairs}


OLDEST, NEWEST = pins("constraints-oldest.txt"), pins("constraints.txt")


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_the_oldest_environment_holds_the_lower_bound_of_every_requirement(requirement: Requirement) -> None:
    if requirement.name in TOOLS:
        assert not requirement.specifier
        return
    lower = [Version(bound.version) for bound in requirement.specifier if bound.operator == ">="]
    pinned = OLDEST[canonicalize_name(requirement.name)]
    assert [pinned] == lower, f"pyproject.toml admits {requirement}, tested is {pinned}"


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_the_pinned_release_is_one_that_the_requirement_admits(requirement: Requirement) -> None:
    assert NEWEST[canonicalize_name(requirement.name)] in requirement.specifier


def test_no_pin_of_the_oldest_environment_is_above_the_pinned_release_of_a_requirement() -> None:
    names = {canonicalize_name(requirement.name) for requirement in REQUIREMENTS}
    assert {name for name in names & OLDEST.keys() if OLDEST[name] > NEWEST[name]} == set()
