"""The blocks of Python and of shell commands on the pages of docs run as they stand there, in page order, and
every link between pages leads somewhere.

A page's blocks share one namespace and one fresh folder that has the repository's examples/ in it. Training
is cut to one epoch and a few rows: that a call runs is the same. A block below `<!-- not run: REASON -->` is
left out.
"""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from breadth import LONG
from command_line import call, shell_words
from lora_ensembles.studies.demo import run as demo_run

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
GENERATED = ("reproduction.md", "models.md", "performance.md", "statistics.md")
NEEDED = {"four-bit.md": "bitsandbytes"}
PYTHON_TESTED_ELSEWHERE = ("heads.md", "baselines.md")  # with what they print: tests/unit/test_*_docs.py
WITH_MEASUREMENTS = ("how-to/choosing-members.md",)
NOT_OURS = ("pip ", "make ", "python ", "cat ", "torchrun ", "#")  # how a block of other commands may begin
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>.+?) -->\n)?^```(?P<language>python|sh)\n(?P<code>.*?)^```$", re.M | re.S
)
FEW = {"--epochs": "1", "--limit": "24", "--limit-validation": "12"}


class Block(NamedTuple):
    """A block of a page, the line that it begins in, and why it is not run, if it is not."""

    language: str
    code: str
    line: int
    reason: str | None


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        line = text.count("\n", 0, found.start("code"))
        yield Block(found["language"], found["code"], line, found["reason"])


ALL = [page for page in sorted(DOCS.rglob("*.md")) if "tutorials" not in page.parts]
WITH_BLOCKS = [page for page in ALL if page.name not in GENERATED and any(blocks(page))]

# The tests of the command line and of quantised bases run what these show, too.
TAKE_LONG = (
    "command-line.md",
    "scikit-learn.md",
    "how-to/distill.md",
    "how-to/four-bit.md",
)


def name(page: Path) -> str:
    return str(page.relative_to(DOCS))


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[LONG] if name(page) in TAKE_LONG else ()) for page in WITH_BLOCKS],
    ids=name,
)
def test_blocks_of_the_page_run_in_order(page, capsys, monkeypatch, tmp_path):
    if page.name in NEEDED:
        pytest.importorskip(NEEDED[page.name], reason="part of the development extra on Linux only")
    shutil.copytree(REPOSITORY / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    small = functools.partial(
        demo_run.DemoSettings, train_questions=8, validation_questions=20, ood_questions=8, epochs=1, draws=1
    )
    monkeypatch.setattr(demo_run, "DemoSettings", small)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks(page):
        if block.reason is not None:
            continue
        if block.language == "sh":
            run_commands(block, page, capsys)
        elif page.name not in PYTHON_TESTED_ELSEWHERE:
            code = "\n" * block.line + made_small(block.code)  # so that errors name the page's line
            exec(compile(code, str(page), "exec"), namespace)


def made_small(code: str) -> str:
    """The same code with less to train on and to measure."""
    code = re.sub(r"\btask\.train\b(?!\[)", "task.train[:24]", code)
    code = re.sub(r"\btask\.validation\b(?!\[)", "task.validation[:60]", code)
    return code if "snapshot_epochs" in code else re.sub(r"\bepochs=\d+", "epochs=1", code)


def run_commands(block: Block, page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if block.code.startswith(NOT_OURS):
        return
    for command in block.code.replace("\\\n", " ").splitlines():
        if not command.strip() or command.startswith("#"):
            continue
        assert command.startswith("lora-ensembles "), f"{page}: {command!r} is no command of this package"
        done = call(capsys, *quick(shell_words(command)[1:]))
        assert done.code == 0, f"{page}, after line {block.line}: {command}\n{done.err}"


def quick(words: list[str]) -> list[str]:
    """The same command with less to train on, or to measure."""
    if words[0] not in ("train", "evaluate"):
        return words
    for flag, few in FEW.items():
        if flag in words:
            words[words.index(flag) + 1] = few
        elif words[0] == "train" or flag == "--limit":
            words += [flag, few]
    if "--snapshot-epochs" in words:
        words[words.index("--snapshot-epochs") + 1] = FEW["--epochs"]
    return words


@pytest.mark.parametrize("page", WITH_BLOCKS, ids=name)
def test_every_mark_stands_above_a_block(page):
    marks = re.findall(r"^<!-- not run: .+ -->$", page.read_text(encoding="utf-8"), re.M)
    assert len(marks) == sum(block.reason is not None for block in blocks(page))


@pytest.mark.parametrize("page", ALL, ids=name)
def test_links_of_the_page_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page}: {link}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(target), f"{page}: {link}; there: {sorted(anchors(target))}"


@functools.cache
def anchors(page: Path) -> frozenset[str]:
    """The anchors that GitHub makes of a page's headings."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.M)
    return frozenset(re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles)


@pytest.mark.parametrize("page", WITH_MEASUREMENTS)
def test_numbers_of_the_page_are_those_of_the_measured_pages(page):
    measured = "".join((DOCS / source).read_text(encoding="utf-8") for source in GENERATED)
    text = re.sub(r"^```.*?^```$", "", (DOCS / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    numbers = re.findall(r"\d\.\d{2,}", re.sub(r"arXiv:\S+|\]\(\S+\)", "", text))
    assert [number for number in numbers if number not in measured] == []


def test_arxiv_numbers_in_the_code_are_on_the_page_of_papers():
    code = "".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "src").rglob("*.py"))
    cited = set(re.findall(r"arXiv:([\w/.-]*\d)", code))
    assert len(cited) > 5
    assert {number for number in cited if f"[{number}](" not in (DOCS / "papers.md").read_text()} == set()
