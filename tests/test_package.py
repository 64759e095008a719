"""The package as a whole: what importing it costs, and that each layer imports only from those above it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import hdraft

PACKAGE = Path(hdraft.__file__).parent

LAYERS = [
    "text",
    "files",
    "drafting",
    "decoding",
    "conversation",
    "building",
    "loading",
    "evaluation",
    "engines",
    "terminal",
    "chat",
    "demo",
    "serve",
    "cli",
]


def imported_by(code: str, *modules: str) -> str:
    check = f"{code}; import sys; print(*(m for m in {modules} if m in sys.modules))"
    return subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout.strip()


def test_drafting_leaves_torch_out() -> None:
    names = "HierarchyDrafter, PublishedDrafter, PromptLookupDrafter, RestDrafter, ModelDatabase, DraftTree"
    assert imported_by("import hdraft.drafting", "torch", "transformers") == ""
    assert imported_by(f"from hdraft import {names}, DatabaseError", "torch", "transformers") == ""


def test_every_name_is_there() -> None:
    for name in hdraft.__all__:
        assert getattr(hdraft, name) is not None
    assert set(hdraft.__all__) <= set(dir(hdraft))


def imports(path: Path) -> Iterator[str]:
    """The modules that a file imports, absolutely or within the package, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def layer(module: str) -> str | None:
    parts = module.split(".")
    return parts[1] if parts[0] == "hdraft" and len(parts) > 1 and parts[1] in LAYERS else None


def test_each_layer_imports_only_from_those_above_it() -> None:
    found = {path.stem if path.parent == PACKAGE else path.parts[len(PACKAGE.parts)] for path in PACKAGE.rglob("*.py")}
    assert found - {"__init__"} <= set(LAYERS)
    for path in PACKAGE.rglob("*.py"):
        own = path.relative_to(PACKAGE).with_suffix("").parts[0]
        if own == "__init__":
            continue
        for module in imports(path):
            used = layer(module)
            assert used is None or LAYERS.index(used) <= LAYERS.index(own), f"{path}: {own} imports {module}"


def test_drafting_imports_no_framework() -> None:
    for path in (PACKAGE / "drafting").rglob("*.py"):
        assert not {module.split(".")[0] for module in imports(path)} & {"torch", "transformers"}, path
