"""The shape of the code: imports point one way, nothing heavy at import, no pickle, short files and functions.

The sources are read as text, never imported, so a rule is checked even where a module could not be imported here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGE = "lora_ensembles"

# From the ground up. A module imports from levels below its own, or from its own level as long as no circle closes.
# A package (tasks, baselines, ...) counts as one module; "__init__" is the package's front door.
LEVELS: dict[str, set[str]] = {
    "errors": {"errors", "compat"},
    "parts": {
        "tasks",
        "checks",
        "sites",
        "dropout",
        "shortcuts",
        "buffers",
        "int8",
        "head_layers",
        "lora",
        "products",
        "decoder",
        "memory",
        "forward",
        "objectives",
        "optim",
        "uncertainty",
        "metrics",
        "completion_metrics",
        "studentised",
        "intervals",
        "ece_intervals",
        "selective",
        "records",
        "files",
        "head_config",
        "progress",
        "layout",
        "claimed",
        "schema",
        "signals",
        "provenance",
        "model_card",
    },
    "embedded": {"embedded"},
    "ensemble": {
        "ensemble",
        "probe",
        "info",
        "seeds",
        "capacity",
        "adapters",
        "adapter_options",
        "description",
        "storage",
        "hub",
        "inputs",
        "prediction",
        "scoring",
        "reading",
        "trunk_states",
        "heads",
    },
    "training": {
        "training",
        "config",
        "batches",
        "answer_losses",
        "text_losses",
        "label_losses",
        "remarks",
        "validation",
        "training_rows",
        "completion_scores",
        "checkpoint",
        "board",
        "reporting",
        "presets",
        "generation",
        "generated_text",
        "decoding",
        "planning",
        "plots",
    },
    "baselines": {"baselines"},
    "studies": {"studies", "report", "demo", "harness"},
    "door": {"__init__"},
    "command line": {"cli", "__main__"},
}
LEVEL_OF = {module: level for level, modules in enumerate(LEVELS.values()) for module in modules}

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
}

MAX_FILE_LINES = 399
MAX_FUNCTION_LINES = 70  # docstring included


def package_files(source: Path) -> list[Path]:
    return sorted((source / PACKAGE).rglob("*.py"))


def own_files() -> list[Path]:
    """The package, and the scripts that people read beside it."""
    return [
        path
        for folder in ("src", "benchmarks", "examples")
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
    ]


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path.name}:{getattr(node, 'lineno', 1)}"


def nodes_run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that runs when the module is imported: not the bodies of functions, not what only a type checker reads."""
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
    """The name under which a file stands in `LEVELS`."""
    return path.relative_to(source / PACKAGE).with_suffix("").parts[0]


def imported_module(name: str, modules: set[str]) -> str | None:
    """The name in `LEVELS` that an absolute dotted name belongs to; None outside the package."""
    package, _, rest = name.partition(".")
    if package != PACKAGE:
        return None
    first = rest.partition(".")[0]
    return first if first in modules or first in LEVEL_OF else "__init__"


def import_graph(source: Path) -> dict[str, dict[str, str]]:
    """Who imports whom at import time: module -> imported module -> where."""
    modules = {module_of(path, source) for path in package_files(source)}
    graph: dict[str, dict[str, str]] = {module: {} for module in sorted(modules)}
    for path in package_files(source):
        importer = module_of(path, source)
        for node, name in imported_names(path, source, nodes_run_at_import(parse(path))):
            imported = imported_module(name, modules)
            if imported is not None and imported != importer:
                graph[importer].setdefault(imported, place(path, node))
    return graph


def imports_against_the_order(graph: dict[str, dict[str, str]]) -> list[str]:
    return [
        f"{where}: {importer} imports {imported}, which stands above it"
        for importer, imports in graph.items()
        for imported, where in imports.items()
        if LEVEL_OF.get(imported, -1) > LEVEL_OF.get(importer, len(LEVELS))
    ]


def functions(path: Path) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [
        node for node in ast.walk(parse(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def starts_with(name: str, prefixes: Iterable[str]) -> bool:
    return any(name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def test_every_module_has_a_level() -> None:
    unplaced = sorted(set(import_graph(REPOSITORY / "src")) - set(LEVEL_OF))
    assert not unplaced, (
        f"place {', '.join(unplaced)} in LEVELS of tests/test_architecture.py: which modules may it import, and which import it?"
    )


def test_no_module_has_two_levels() -> None:
    assert sum(map(len, LEVELS.values())) == len(LEVEL_OF)


def test_imports_point_one_way() -> None:
    assert imports_against_the_order(import_graph(REPOSITORY / "src")) == []


def test_imports_close_no_circle() -> None:
    TopologicalSorter(import_graph(REPOSITORY / "src")).prepare()


def test_no_pickle_is_imported_written_or_read() -> None:
    found = []
    for path in own_files():
        source = next(
            REPOSITORY / folder
            for folder in ("src", "benchmarks", "examples")
            if path.is_relative_to(REPOSITORY / folder)
        )
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
    ]
    assert found == [], (
        "import it inside the function that needs it, and raise MissingExtraError with the install command"
    )


def test_no_file_is_long() -> None:
    lengths = {
        place(path, parse(path)): len(path.read_text(encoding="utf-8").splitlines()) for path in own_files()
    }
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FILE_LINES} == {}


def test_no_function_is_long() -> None:
    lengths = {
        f"{place(path, node)} {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for path in own_files()
        for node in functions(path)
    }
    assert {name: lines for name, lines in lengths.items() if lines > MAX_FUNCTION_LINES} == {}


def stands_for_another(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether it takes a foreign function's place and shows that one's signature."""
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
        "from .training import train",
        "from . import training",
        "import lora_ensembles.training",
        "from lora_ensembles.training import train",
        "try:\n    from .training import train\nexcept ImportError:\n    train = None",
        "class Early:\n    from .training import train",
    ],
)
def test_an_import_of_a_higher_level_is_found_in_every_spelling(tmp_path: Path, text: str) -> None:
    source = write_package(tmp_path, {"lora.py": text, "training.py": ""})
    assert len(imports_against_the_order(import_graph(source))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "def late():\n    from .training import train",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .training import TrainConfig",
        "from .errors import ConfigError",
        "import training",
    ],
)
def test_a_late_a_typing_or_a_downward_import_is_allowed(tmp_path: Path, text: str) -> None:
    source = write_package(tmp_path, {"lora.py": text, "errors.py": "", "training.py": ""})
    assert imports_against_the_order(import_graph(source)) == []


def test_a_relative_import_from_a_folder_is_resolved(tmp_path: Path) -> None:
    files = {
        "tasks/__init__.py": "from .files import load",
        "tasks/files.py": "from ..embedded import base",
        "embedded/__init__.py": "",
    }
    graph = import_graph(write_package(tmp_path, files))
    assert list(graph["tasks"]) == ["embedded"]
    assert len(imports_against_the_order(graph)) == 1


def test_a_circle_within_a_level_is_found(tmp_path: Path) -> None:
    source = write_package(tmp_path, {"lora.py": "from . import optim", "optim.py": "from . import lora"})
    assert imports_against_the_order(import_graph(source)) == []
    with pytest.raises(CycleError, match="cycle"):
        TopologicalSorter(import_graph(source)).prepare()
