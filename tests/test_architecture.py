"""The shape of the code: imports point one way, nothing heavy at import, no pickle, short files and
functions.

The sources are read as text, never imported, so a rule is checked even where a module could not be imported
here.
"""

from __future__ import annotations

import ast
import inspect
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import lora_ensembles

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = "lora_ensembles"

# From the ground up: a room imports from rooms before it. A folder of the package is one room, with the
# folders in it; a file beside the folders is a room of its own. Imports in functions and those that only a
# type checker reads count like all others.
ROOMS = (
    "errors",
    "checks",
    "disk",
    "distributed",
    "stack",
    "data",
    "passes",
    "prediction",
    "calibration",
    "embedded",
    "heads",
    "storage",
    "generation",
    "ensemble",
    "training",
    "planning",
    "baselines",
    "studies",
    "integrations",
    "serve",
    "__init__",
    "cli",
    "__main__",
)

PICKLES = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
EXTRAS = {
    "matplotlib",
    "tensorboard",
    "tensorboardX",
    "torch.utils.tensorboard",
    "yaml",
    "bitsandbytes",
    "lm_eval",
    "evaluate",
    "sklearn",
    "fastapi",
    "starlette",
    "pydantic",
    "uvicorn",
    "prometheus_client",
    "ray",
}
# A class of theirs is the base of one of ours, so these folders import it, and are imported when asked for.
OPENED_LATE = {
    "sklearn": "integrations/sklearn",
    **dict.fromkeys(("fastapi", "starlette", "pydantic", "uvicorn", "prometheus_client"), "serve/http"),
}

MAX_FOLDER_FILES = {
    PACKAGE: 7,
    "figures": 19,
    "data": 16,
    "cli": 15,
}  # a figure is a file; data: one kind of file, one file; cli: a verb is a file
MAX_FILE_LINES = 399
MAX_FUNCTION_LINES = 70  # docstring included


# The package, what plugs into other programs, and the scripts that people read beside them.
SOURCES = ("src", "integrations", "benchmarks", "examples")


def package_files(source: Path) -> list[Path]:
    return sorted((source / PACKAGE).rglob("*.py"))


def own_files() -> list[Path]:
    """All files of `SOURCES`."""
    return [path for folder in SOURCES for path in sorted((REPOSITORY / folder).rglob("*.py"))]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def place(path: Path, node: ast.AST) -> str:
    name = path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path.name
    return f"{name}:{getattr(node, 'lineno', 1)}"


def nodes_run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs when the module is imported: not the bodies of functions, not what only a type
    checker reads.
    """
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from (found for other in child.orelse for found in (other, *nodes_run_at_import(other)))
            continue
        yield child
        yield from nodes_run_at_import(child)


def imported_names(path: Path, source: Path, nodes: Iterable[ast.AST]) -> Iterator[tuple[ast.AST, str]]:
    """Each import as an absolute dotted name; `from a import b` gives "a.b", whether b is a module or not."""
    parents = path.relative_to(source).with_suffix("").parts[:-1]  # of a module and of an __init__ alike
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = parents[: len(parents) - node.level + 1] if node.level else ()
            base = ".".join((*above, *filter(None, [node.module])))
            yield from ((node, f"{base}.{alias.name}") for alias in node.names)


def module_of(path: Path, source: Path) -> str:
    """The dotted name of a file within the package; that of the folder for its `__init__`, "__init__" for the
    package's own.
    """
    parts = path.relative_to(source / PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


def imported_module(name: str, modules: set[str]) -> str | None:
    """The file that an absolute dotted name comes from; None outside the package."""
    package, *parts = name.split(".")
    if package != PACKAGE:
        return None
    found = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((module for module in found if module in modules), "__init__")


def import_graph(source: Path) -> dict[str, dict[str, str]]:
    """Who imports whom, anywhere in a file: module -> imported module -> where."""
    modules = {module_of(path, source) for path in package_files(source)}
    graph: dict[str, dict[str, str]] = {module: {} for module in sorted(modules)}
    for path in package_files(source):
        importer = module_of(path, source)
        for node, name in imported_names(path, source, ast.walk(parse(path))):
            imported = imported_module(name, modules)
            if imported is not None and imported != importer:
                graph[importer].setdefault(imported, place(path, node))
    return graph


def without_doors(graph: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    """The graph without the files that do nothing but name what is behind them: a folder's `__init__` and the
    files in the folder.
    """
    inside = {module: f"{module}." for module in graph}
    return {
        module: {
            imported: where for imported, where in imports.items() if not imported.startswith(inside[module])
        }
        for module, imports in graph.items()
    }


def room_of(module: str) -> str:
    return module.partition(".")[0]


def folder_of(module: str) -> str:
    return module.rpartition(".")[0]


def imports_against_the_order(graph: dict[str, dict[str, str]]) -> list[str]:
    floor = {room: place for place, room in enumerate(ROOMS)}
    return [
        f"{where}: {importer} imports {imported}, which stands above it"
        for importer, imports in graph.items()
        for imported, where in imports.items()
        if floor.get(room_of(imported), -1) > floor.get(room_of(importer), len(ROOMS))
    ]


def folders_that_look_both_ways(graph: dict[str, dict[str, str]]) -> list[tuple[str, str]]:
    """Pairs of folders side by side of which each imports the other; a folder and one within it may."""
    pairs = {
        (folder_of(importer), folder_of(imported))
        for importer, imports in graph.items()
        for imported in imports
    }
    return sorted(
        (one, other)
        for one, other in pairs
        if one < other and (other, one) in pairs and not other.startswith(f"{one}." if one else "")
    )


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [
        node for node in ast.walk(parse(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def starts_with(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def test_every_room_has_a_floor() -> None:
    rooms = {room_of(module) for module in import_graph(REPOSITORY / "src")}
    unplaced = sorted(rooms - set(ROOMS))
    assert not unplaced, (
        f"place {', '.join(unplaced)} in ROOMS: which rooms may it import, and which import it?"
    )
    assert sorted(set(ROOMS) - rooms) == [], "these rooms are gone; take them out of ROOMS"


def test_imports_point_one_way() -> None:
    assert imports_against_the_order(import_graph(REPOSITORY / "src")) == []


def test_imports_close_no_circle() -> None:
    TopologicalSorter(without_doors(import_graph(REPOSITORY / "src"))).prepare()


def test_no_two_folders_look_both_ways() -> None:
    assert folders_that_look_both_ways(import_graph(REPOSITORY / "src")) == []


def test_no_folder_is_crowded() -> None:
    folders = Counter(path.parent for path in package_files(REPOSITORY / "src"))
    crowded = {
        str(folder.relative_to(REPOSITORY)): count - 1  # its __init__ is no file to look into
        for folder, count in folders.items()
        if count - 1 > MAX_FOLDER_FILES.get(folder.name, 14)
    }
    assert crowded == {}


def test_no_pickle_is_imported_written_or_read() -> None:
    found = []
    for path in own_files():
        source = next(REPOSITORY / folder for folder in SOURCES if path.is_relative_to(REPOSITORY / folder))
        nodes = list(ast.walk(parse(path)))
        found += [
            f"{place(path, node)}: {name}"
            for node, name in imported_names(path, source, nodes)
            if starts_with(name, PICKLES)
        ]
        # These two are pickle under another name; safetensors is what the library writes and reads.
        found += [
            place(path, node)
            for node in nodes
            if isinstance(node, ast.Attribute) and ast.unparse(node) in ("torch.save", "torch.load")
        ]
    assert found == []


def test_no_extra_is_imported_at_import_time() -> None:
    source = REPOSITORY / "src"
    found = [
        f"{place(path, node)}: {name}"
        for path in package_files(source)
        for node, name in imported_names(path, source, nodes_run_at_import(parse(path)))
        if starts_with(name, EXTRAS)
        and source / PACKAGE / OPENED_LATE.get(name.partition(".")[0], "nowhere") not in path.parents
    ]
    assert found == [], (
        "import it inside the function that needs it, and raise MissingExtraError with the install command"
    )


def test_no_file_is_long() -> None:
    lengths = {
        place(path, parse(path)): len(path.read_text(encoding="utf-8").splitlines()) for path in own_files()
    }
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def docstring_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    if ast.get_docstring(function) is None:
        return 0
    first = function.body[0]
    return (first.end_lineno or first.lineno) - first.lineno + 1


def test_no_function_is_long() -> None:
    lengths = {
        f"{place(path, node)} {node.name}": (node.end_lineno or node.lineno)
        - node.lineno
        + 1
        - docstring_lines(node)
        for path in own_files()
        for node in functions(path)
    }
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}


CALLED_WITH_ANYTHING = {"lora_ensemble_reward"}  # TRL passes the columns of its data


def stands_for_another(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether it takes a foreign function's place and shows that one's signature, or is called by a foreign
    program with whatever that one has.
    """
    if function.name in CALLED_WITH_ANYTHING:
        return True
    return any(ast.unparse(decorator).startswith("functools.wraps(") for decorator in function.decorator_list)


def test_no_function_takes_arbitrary_keyword_arguments() -> None:
    found = [
        f"{place(path, node)} {node.name} takes **{node.args.kwarg.arg}; name the parameters"
        for path in package_files(REPOSITORY / "src")
        for node in functions(path)
        if node.args.kwarg is not None and not stands_for_another(node)
    ]
    assert found == []


def write_package(source: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = source / PACKAGE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return source


@pytest.mark.parametrize(
    "text",
    [
        "from ..training.adapters import train",
        "from ..training import loop",
        "from .. import training",
        "import lora_ensembles.training.loop",
        "from lora_ensembles.training.adapters import train",
        "try:\n    from ..training.adapters import train\nexcept ImportError:\n    train = None",
        "class Early:\n    from ..training.adapters import train",
        "def late():\n    from ..training.adapters import train",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..training.config import TrainConfig",
    ],
)
def test_an_import_of_a_higher_floor_is_found_in_every_spelling(tmp_path: Path, text: str) -> None:
    files = {
        "stack/__init__.py": "",
        "stack/lora.py": text,
        "training/__init__.py": "",
        "training/loop.py": "",
        "training/config.py": "",
    }
    source = write_package(tmp_path, files)
    assert len(imports_against_the_order(import_graph(source))) == 1


@pytest.mark.parametrize(
    "text", ["from ..errors import ConfigError", "import training", "from . import sites"]
)
def test_a_downward_import_and_one_of_the_same_room_are_allowed(tmp_path: Path, text: str) -> None:
    files = {"errors.py": "", "stack/__init__.py": "", "stack/lora.py": text, "stack/sites.py": ""}
    source = write_package(tmp_path, files)
    assert imports_against_the_order(import_graph(source)) == []


def test_a_circle_within_a_room_and_folders_that_look_both_ways_are_found(tmp_path: Path) -> None:
    files = {
        "heads/__init__.py": "from .lm.head import A",
        "heads/base.py": "from .lm.head import A",
        "heads/lm/__init__.py": "",
        "heads/lm/head.py": "from ..task.head import B\nclass A: ...",
        "heads/task/__init__.py": "",
        "heads/task/head.py": "def late():\n    from ..lm.other import C\nclass B: ...",
        "heads/lm/other.py": "from .head import A\nclass C: ...",
    }
    graph = import_graph(write_package(tmp_path, files))
    with pytest.raises(CycleError):
        TopologicalSorter(without_doors(graph)).prepare()
    assert folders_that_look_both_ways(graph) == [("heads.lm", "heads.task")]


NOT_A_NOUN = ("What", "How", "While", "Where", "Those")


def test_no_docstring_begins_with_a_question_word() -> None:
    found = [
        f"{place(path, node)}: {text.splitlines()[0]}"
        for path in package_files(REPOSITORY / "src")
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and (text := ast.get_docstring(node)) is not None
        and text.startswith(NOT_A_NOUN)
    ]
    assert found == [], "begin with a noun phrase, or a verb in the third person"


def test_every_file_of_the_package_that_architecture_md_names_exists() -> None:
    text = (REPOSITORY / "docs" / "architecture.md").read_text(encoding="utf-8")
    tree = text.partition("```")[2].partition("```")[0]
    files = {path.name for path in package_files(REPOSITORY / "src")}
    named = re.findall(r"\b(\w+\.py)\b", tree)
    assert len(named) > 20
    assert sorted(set(named) - files) == []
    folders = {path.parent.name for path in package_files(REPOSITORY / "src")}
    assert sorted(set(re.findall(r"\b(\w+)/", tree)) - folders - {"src"}) == []


def test_public_functions_document_every_argument_and_what_they_return() -> None:
    """Of `lora_ensembles`; one that takes nothing needs no more than a sentence."""
    missing = []
    for name in lora_ensembles.__all__:
        function = getattr(lora_ensembles, name)
        if not inspect.isfunction(function) or not inspect.signature(function).parameters:
            continue
        text = inspect.getdoc(function) or ""
        names = [f"{parameter}:" for parameter in inspect.signature(function).parameters]
        missing += [f"{name} {part}" for part in ("Args:", "Returns:", *names) if part not in text]
    assert missing == []


def test_every_path_that_docs_name_exists() -> None:
    """Paths below the repository in backticks or links of the pages that people read."""
    missing = []
    for page in (
        REPOSITORY / "README.md",
        REPOSITORY / "CONTRIBUTING.md",
        *(REPOSITORY / "docs").glob("*.md"),
    ):
        text = page.read_text(encoding="utf-8")
        read = "\n".join(line for line in text.splitlines() if "--out" not in line)
        for named in re.findall(r"\b((?:src|tests|docs|benchmarks|examples|results)/[\w./-]+\.\w+)", read):
            if not (REPOSITORY / named).exists():
                missing.append(f"{page.name}: {named}")
    assert missing == []


def test_every_marker_of_the_tests_is_used() -> None:
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    markers = settings["tool"]["pytest"]["ini_options"].get("markers", [])
    texts = [path.read_text(encoding="utf-8") for path in (REPOSITORY / "tests").rglob("*.py")]
    names = [marker.partition(":")[0].strip() for marker in markers]
    assert [name for name in names if not any(f"mark.{name}" in text for text in texts)] == []
