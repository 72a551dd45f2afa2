"""The house has floors, and imports only go down.

Every ``import`` of every module is read from its syntax tree (the lazy ones inside functions too) and held against the floors of
``docs/architecture.md``. The pure packages may use nothing but a short list of the standard library's modules: ids and
counts, never arrays, files or sockets. Third-party packages must be declared as dependencies of the core install.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "octavo"

FLOORS: list[set[str]] = [
    {"config"},
    {"program", "weights", "text", "kv"},
    {"decoding", "models", "backends"},
    {"llm", "engine"},
    {"server", "bench"},
    {"cli"},
]
"""From the ground up; a name is a package or a top module of ``octavo``."""

SAME_FLOOR = {("llm", "engine")}
"""(importer, imported): the one neighbour that may be called upon."""

NATIVE_EXTENSION = "_native"
"""The compiled kernels: a part of ``backends``, and theirs alone."""

FASTAPIS_OWN = {"starlette", "pydantic-core"}
"""What FastAPI is made of and lets through in its own interface: it names the versions, we name FastAPI."""

PURE_STDLIB = {
    "__future__", "abc", "array", "bisect", "collections", "copy", "dataclasses", "enum", "functools", "hashlib", "heapq", "itertools",
    "logging", "math", "operator", "random", "re", "secrets", "struct", "time", "types", "typing", "weakref",
}  # fmt: skip


@dataclass(frozen=True)
class Import:
    importer: str  # dotted module that imports
    imported: str  # dotted name, absolute
    line: int
    for_types: bool = False  # below ``if TYPE_CHECKING``

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    base = SOURCE.parent.joinpath(*name.split("."))
    return base.is_dir() or base.with_suffix(".py").exists() or name == f"octavo.{NATIVE_EXTENSION}"


def imports_of(path: Path) -> Iterator[Import]:
    """Every import of the file, resolved to absolute names; ``from package import module`` counts as ``package.module``."""
    tree = ast.parse(path.read_text(), str(path))
    guards = [node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")]
    typed_lines = {line for guard in guards for part in guard.body for line in range(part.lineno, (part.end_lineno or part.lineno) + 1)}
    for found in _imports_in(tree, path):
        yield replace(found, for_types=found.line in typed_lines)


def _imports_in(tree: ast.Module, path: Path) -> Iterator[Import]:
    importer = module_name(path)
    package = importer if path.name == "__init__.py" else importer.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(importer, alias.name, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")
                base = ".".join(parents[: len(parents) - node.level + 1] + ([base] if base else []))
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield Import(importer, full if base == "octavo" or is_module(full) else base, node.lineno)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__", "files"):  # files: importlib.resources
                name = node.args[0].value
                yield Import(importer, package + name if name.startswith(".") else name, node.lineno)


FILES = sorted(SOURCE.rglob("*.py"))
IMPORTS = [found for path in FILES for found in imports_of(path)]
INSIDE = [found for found in IMPORTS if found.imported.split(".")[0] == "octavo"]
OUTSIDE = [found for found in IMPORTS if found.imported.split(".")[0] not in sys.stdlib_module_names | {"octavo"}]


def room(name: str) -> str:
    """The room of the house that a dotted name lies in; ``""`` for the package itself (the public names)."""
    parts = name.split(".")
    if len(parts) == 1 or (len(parts) == 2 and re.fullmatch(r"__\w+__", parts[1])):
        return ""
    if parts[1] == NATIVE_EXTENSION:
        return "backends"
    if not is_module(".".join(parts[:2])):
        return "llm"  # a public name of the package, re-exported from the top of the engine
    return parts[1]


def floor(name: str) -> int:
    for level, rooms in enumerate(FLOORS):
        if name in rooms:
            return level
    raise AssertionError(f"octavo.{name} stands on no floor: name it in docs/architecture.md and in FLOORS")


def test_there_is_something_to_check() -> None:
    assert len(FILES) > 10
    assert len(INSIDE) > 10


def test_every_module_stands_on_a_floor() -> None:
    for path in FILES:
        where = room(module_name(path))
        if where:
            floor(where)


def test_imports_go_down() -> None:
    wrong = []
    for found in INSIDE:
        above, below = room(found.importer), room(found.imported)
        if above == below or not above or not below:  # the same room; the package's own __init__; the bare package
            continue
        if floor(above) == floor(below) and (found.for_types or (above, below) in SAME_FLOOR):
            continue  # a neighbour's type may be named in a signature: nothing is loaded, nothing called
        if floor(above) <= floor(below):
            wrong.append(f"{found}: {above} (floor {floor(above)}) may not reach {below} (floor {floor(below)})")
    assert not wrong, "\n".join(wrong)


def test_public_names_are_for_those_outside() -> None:
    """Inside, one imports from the module where a thing lives: ``from octavo import X`` would pull in the whole engine."""
    wrong = [
        str(found) for found in INSIDE if found.imported.count(".") == 1 and not is_module(found.imported) and room(found.imported) == "llm"
    ]
    assert not wrong, "\n".join(wrong)


def pure_files() -> list[Path]:
    return [path for path in FILES if path.relative_to(SOURCE).parts[0] in ("kv", "decoding") or path == SOURCE / "engine" / "scheduler.py"]


def test_pure_packages_use_no_arrays_files_or_sockets() -> None:
    pure = {module_name(path) for path in pure_files()}
    wrong = [str(found) for found in IMPORTS if found.importer in pure and found.imported.split(".")[0] not in PURE_STDLIB | {"octavo"}]
    for path in pure_files():
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("open", "print", "input", "exec", "eval")
            ):
                wrong.append(f"{module_name(path)}:{node.lineno} calls {node.func.id}()")
    assert not wrong, "\n".join(wrong)


def test_pure_modules_load_without_numpy() -> None:
    """What they import, and all that follows from it, is pure too (``octavo`` itself must therefore be lazy)."""
    modules = sorted(module_name(path) for path in pure_files() if room(module_name(path)) in ("kv", "decoding"))
    assert modules
    code = f"import sys, importlib\nsys.modules['numpy'] = None\nfor m in {modules!r}: importlib.import_module(m)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


OPTIONAL = {"huggingface_hub": ("octavo.weights.hub",), "matplotlib": ("octavo.bench.plot",)}
"""Packages of an extra, and the one module that may import each (when it is used, not when it is loaded)."""


@pytest.mark.parametrize("banned", ["torch", "transformers", "gguf", "safetensors", "llama_cpp", "matplotlib", "huggingface_hub"])
def test_banned_packages(banned: str) -> None:
    wrong = [str(found) for found in OUTSIDE if found.imported.split(".")[0] == banned and found.importer not in OPTIONAL.get(banned, ())]
    assert not wrong, "\n".join(wrong)


def core_dependencies() -> set[str]:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    return {normal(re.match(r"[A-Za-z0-9._-]+", requirement)[0]) for requirement in declared}  # type: ignore[index]


def normal(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def test_third_party_imports_are_declared() -> None:
    core, providers = core_dependencies(), packages_distributions()
    wrong = []
    for found in OUTSIDE:
        top = found.imported.split(".")[0]
        if found.importer in OPTIONAL.get(top, ()):
            continue
        if not {normal(name) for name in providers.get(top, [top])} & (core | FASTAPIS_OWN):
            wrong.append(f"{found}, which no core dependency provides")
    assert not wrong, "\n".join(wrong)


def test_every_module_loads_with_the_core_install_alone() -> None:
    """Each module is imported in a process where every distribution outside the core's closure is hidden."""
    modules = sorted(module_name(path) for path in FILES if path.name != "__main__.py")
    code = f"""
import importlib, re, sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires
normal = lambda name: re.sub(r"[-_.]+", "-", name).lower()
closure, todo = set(), {sorted(core_dependencies())!r}
while todo:
    name = normal(todo.pop())
    if name in closure: continue
    closure.add(name)
    try: needed = requires(name) or []
    except PackageNotFoundError: continue
    todo += [re.match(r"[A-Za-z0-9._-]+", r)[0] for r in needed if "extra ==" not in r]
class Hide:
    def find_spec(self, name, path=None, target=None):
        owners = hidden.get(name.split(".")[0])
        if owners and not {{normal(o) for o in owners}} & (closure | {{"octavo"}}):
            raise ModuleNotFoundError(f"{{name}} belongs to {{owners}}, which is not in the core install")
hidden = packages_distributions()
sys.meta_path.insert(0, Hide())
for module in {modules!r}:
    importlib.import_module(module)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_importing_octavo_is_light() -> None:
    """``import octavo`` alone brings in neither NumPy nor the web stack; each public name is loaded when first used."""
    code = "import sys, octavo; print([m for m in ('numpy', 'fastapi', 'tokenizers', 'jinja2', 'typer') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_every_dependency_has_its_reason() -> None:
    """``docs/dependencies.md`` has a row for each requirement of ``pyproject.toml``, build and extras included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    requirements = [*project["build-system"]["requires"], *project["project"]["dependencies"]]
    requirements += [name for extra in project["project"]["optional-dependencies"].values() for name in extra]
    named = {normal(re.match(r"[A-Za-z0-9._-]+", requirement)[0]) for requirement in requirements}  # type: ignore[index]
    explained = {normal(name) for name in re.findall(r"^\| `([^`]+)` \| \S", (ROOT / "docs" / "dependencies.md").read_text(), re.MULTILINE)}
    assert named <= explained, f"docs/dependencies.md does not say why: {', '.join(sorted(named - explained))}"
