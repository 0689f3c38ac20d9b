"""The folders' order is the architecture: an import may only point to the same layer or below."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = {"kernels": 0, "runtime": 1, "agent": 2, "bench": 2, "api": 3}
FILES = [path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py"))]
NO_TORCH = ("sirocco", "sirocco.runtime.async_engine", "sirocco.runtime.process_client", "sirocco.api.server")


def imported(tree: ast.AST) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the package in full"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_down(path):
    layer = path.relative_to(ROOT).parts[0]
    for name in imported(ast.parse(path.read_text())):
        parts = name.split(".")
        assert parts[0] not in LAYERS, f"{name}: import sirocco.{parts[0]}, never the bare folder"
        assert parts[0] != "tests", f"{name}: nothing imports tests"
        if parts[0] == "sirocco" and len(parts) > 1 and parts[1] in LAYERS:
            neighbours = LAYERS[parts[1]] == LAYERS[layer] and parts[1] != layer
            assert LAYERS[parts[1]] <= LAYERS[layer] and not neighbours, f"{name} points up from {layer}"


def test_kernels_package_holds_a_docstring_only():
    body = ast.parse((ROOT / "kernels" / "__init__.py").read_text()).body
    assert len(body) == 1 and isinstance(body[0], ast.Expr)


@pytest.mark.parametrize("module", NO_TORCH)
def test_api_process_never_imports_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)
