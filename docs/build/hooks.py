"""The parts of the documentation site beside the pages in docs/: pages made from README, CHANGELOG,
the parser and the public names; pictures of the records; formulas as MathML; and llms.txt.

mkdocs calls these functions (https://www.mkdocs.org/dev-guide/plugins/#events).
"""

from __future__ import annotations

import html
import os
import re
import sys
from pathlib import Path

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Navigation
from mkdocs.structure.pages import Page

from lora_ensembles.studies.store import code_fingerprint

sys.path.insert(0, str(Path(__file__).parent))
from api_pages import api_pages, code_of_pages
from cli_page import cli_page
from gallery import write_gallery

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
SUMMARIES: dict[str, str] = {}


def on_startup(command: str, dirty: bool) -> None:
    """Warnings of the libraries name folders of the machine that builds; a tutorial's page shows none."""
    os.environ["PYTHONWARNINGS"] = "ignore"  # read by the kernels that run tutorials, and by them alone


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made and the pictures of the records."""
    for path, text in _made_pages():
        files.append(File.generated(config, path, content=text))
    gallery = _gallery()
    made = {path.relative_to(REPOSITORY): path for path in (REPOSITORY / "results").rglob("*.png")}
    made |= {path.relative_to(gallery): path for path in gallery.rglob("*.*")}
    for inside, path in sorted(made.items()):
        files.append(File.generated(config, inside.as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Send links that leave docs/ to the repository, and those to pictures of the records to their copy."""
    SUMMARIES[page.file.src_uri] = _summary(markdown)
    folder = (DOCS / page.file.src_uri).parent
    if page.file.src_uri in ("index.md", "changelog.md"):
        folder = REPOSITORY
    depth = page.file.src_uri.count("/")

    def target(match: re.Match[str]) -> str:
        link, anchor = match.group(1), match.group(2) or ""
        path = (folder / link).resolve()
        if not path.is_relative_to(REPOSITORY) or not path.exists():
            return match.group(0)  # mkdocs says what is wrong with it
        inside = path.relative_to(REPOSITORY).as_posix()
        if path.is_relative_to(DOCS) and path.is_file():
            return f"]({'../' * depth}{path.relative_to(DOCS).as_posix()}{anchor})"
        if path.suffix == ".png" and inside.startswith("results/"):
            return f"]({'../' * depth}{inside})"
        kind = "tree" if path.is_dir() else "blob"
        return f"]({config.extra['repository']}/{kind}/main/{inside}{anchor})"

    return re.sub(r"\]\((?![a-z]+:|#)([^)#\s]+)(#[^)\s]*)?\)", target, markdown)


def on_page_content(content: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Formulas as MathML, which browsers draw themselves."""

    def drawn(match: re.Match[str]) -> str:
        formula = html.unescape(match.group(2)).strip()
        block = formula.startswith("\\[")
        mathml = convert(formula[2:-2].strip(), display="block" if block else "inline")
        return f'<div class="formula" tabindex="0">{mathml}</div>' if block else mathml

    return re.sub(r'<(span|div) class="arithmatex">(.*?)</\1>', drawn, content, flags=re.S)


def on_nav(nav: Navigation, config: MkDocsConfig, files: Files) -> Navigation:
    """Keep the order of the pages for llms.txt."""
    config.extra["order"] = [page.file.src_uri for page in nav.pages]
    return nav


def on_post_build(config: MkDocsConfig) -> None:
    """Write llms.txt (https://llmstxt.org): each page's title, address and first sentence."""
    lines = ["# lora-ensembles", "", f"> {config.site_description}.", ""]
    for uri in config.extra["order"]:
        title, _, rest = SUMMARIES.get(uri, "").partition("\n")
        if title:
            address = re.sub(r"\.(md|ipynb)$", ".html", uri)
            lines.append(f"- [{title}]({address}): {rest}")
    (Path(config.site_dir) / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _gallery() -> Path:
    """The folder of the gallery's page and pictures, drawn again where the package has changed."""
    folder = REPOSITORY / ".cache" / f"gallery-{code_fingerprint()}"
    if not (folder / "gallery.md").is_file():
        write_gallery(folder)
    return folder


def _made_pages() -> list[tuple[str, str]]:
    sources = code_of_pages(sorted([*DOCS.rglob("*.md"), *DOCS.glob("tutorials/*.py")]), DOCS)
    return [
        ("index.md", (REPOSITORY / "README.md").read_text(encoding="utf-8")),
        ("changelog.md", (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")),
        ("reference/command-line.md", cli_page()),
        *api_pages(sources),
    ]


def _summary(markdown: str) -> str:
    """The title of a page, and its first sentence on the line below."""
    title = re.search(r"^# (.+)$", markdown, re.M)
    if title is None:
        return ""
    for block in re.split(r"\n\s*\n", markdown[title.end() :]):
        text = " ".join(block.split())
        if text and text[0] not in "#|`<![:-":
            text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", text)
            return f"{title.group(1)}\n{re.split(r'(?<=[.:]) ', text)[0]}"
    return f"{title.group(1)}\n"
