"""vLLM's own source, for the tests that hold ours to it: the unpacked wheel that the environment variable
LORA_ENSEMBLES_VLLM names, read by `ast`, or run in parts with stubs for what these import of the rest.
"""

from __future__ import annotations

import ast
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

VARIABLE = "LORA_ENSEMBLES_VLLM"
FOLDER = os.environ.get(VARIABLE)
NEEDED = pytest.mark.skipif(
    FOLDER is None, reason=f"{VARIABLE} names no unpacked wheel of vLLM (pip download vllm --no-deps)"
)


def path(module: str) -> Path:
    """The file of a module of vLLM."""
    assert FOLDER is not None
    file = Path(FOLDER, *module.split("."))
    return file / "__init__.py" if file.is_dir() else file.with_suffix(".py")


def tree(module: str) -> ast.Module:
    return ast.parse(path(module).read_text(encoding="utf-8"))


def class_of(module: str, name: str) -> ast.ClassDef:
    return next(node for node in tree(module).body if isinstance(node, ast.ClassDef) and node.name == name)


def fields(module: str, name: str) -> dict[str, ast.AnnAssign]:
    """The annotated fields of a class, in order."""
    return {
        node.target.id: node
        for node in class_of(module, name).body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def methods(module: str, name: str) -> dict[str, ast.FunctionDef | ast.AsyncFunctionDef]:
    return {
        node.name: node
        for node in class_of(module, name).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def function(module: str, name: str) -> ast.FunctionDef:
    return next(node for node in tree(module).body if isinstance(node, ast.FunctionDef) and node.name == name)


def value(module: str, name: str) -> str:
    """The expression that a name of a module is given."""
    for node in tree(module).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            targets = [node.target]
        if [ast.unparse(target) for target in targets] == [name]:
            return ast.unparse(node.value)  # type: ignore[attr-defined]
    raise AssertionError(f"{module} has no {name}")


def functions_run(module: str, names: Sequence[str]) -> dict[str, Any]:
    """Functions of a module that need nothing else of it, run as they stand there."""
    nodes: list[ast.stmt] = [function(module, name) for name in names]
    future = ast.parse("from __future__ import annotations").body  # their annotations name other modules
    space: dict[str, Any] = {}
    exec(compile(ast.Module([*future, *nodes], []), str(path(module)), "exec"), space)
    return {name: space[name] for name in names}


class _Logger(logging.Logger):
    info_once = logging.Logger.info
    warning_once = logging.Logger.warning


def stub(**names: Any) -> ModuleType:
    made = ModuleType("stub")
    vars(made).update(names)
    return made


@contextmanager
def loaded(modules: Sequence[str], stubs: Mapping[str, ModuleType]) -> Iterator[list[Any]]:
    """Modules of vLLM, run from their files one after the other; of the rest of vLLM there are only stubs."""
    made = {"vllm.logger": stub(init_logger=_Logger), **stubs}
    for name in (*made, *modules):
        for length in range(1, name.count(".") + 1):
            package = ".".join(name.split(".")[:length])
            made.setdefault(package, stub(__path__=[]))
    for name, module in made.items():
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(made[parent], own, module)
    before = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "vllm"}
    for name in before:
        del sys.modules[name]
    sys.modules.update(made)
    try:
        yield [_load(name) for name in modules]
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "vllm"]:
            del sys.modules[name]
        sys.modules.update(before)


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path(name))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
