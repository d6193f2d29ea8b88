"""The floors of the house: no import points upward, and none of any kind closes a circle.

Every import in the source text counts, also those inside functions.  docs/design.md says what a floor knows.
"""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "gpuhmm"

#: From the ground up; what stands side by side may import each other.
FLOORS = [
    {"errors", "shared", "version"},
    {"mm"},
    {"hmm"},
    {"kernels"},
    {"memory"},
    {"mirror", "translation", "image"},
    {"capture"},
    {"process", "dump", "snapshot", "watch", "results"},
    {"check", "bench", "coalesce"},
    {"cli"},
]
HEIGHT = {name: height for height, names in enumerate(FLOORS) for name in names}
#: Names for type checkers alone that may come from a floor above.
FORWARD = {"AddressSpace", "PhysicalMemory", "File"}
#: These import inside functions: AddressSpace what only faults need, commands what they need when they run.
LATE_IMPORTERS = ("gpuhmm.memory.space", "gpuhmm.cli.")
#: Imported when somebody asks its package for it: it imports every driver.
LATE = "gpuhmm.coalesce.drivers.registry"


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
#: The doors of the whole package: everything lies below them.
ROOT = {"gpuhmm", "gpuhmm.moved", "gpuhmm.__main__"}


def imports(tree, inside="module"):
    """Yield (where, module, name) of all imports of the package: where is module, function or types."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gpuhmm":
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield inside, whole if whole in MODULES else node.module, alias.name
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "gpuhmm":
                    yield inside, alias.name, ""
        elif isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            yield from imports(node, "types")
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports(node, "function")
        else:
            yield from imports(node, inside)


IMPORTS = [
    (name, *found)
    for name, path in MODULES.items()
    if name not in ROOT
    for found in imports(ast.parse(path.read_text()))
]


def height(module):
    return HEIGHT[module.split(".")[1]] if module not in ROOT else len(FLOORS)


def test_every_module_lies_on_a_floor():
    assert {name.split(".")[1] for name in MODULES if name not in ROOT} == set(HEIGHT)


def test_no_import_points_upward():
    upward = [
        f"{importer} imports {name or module} from {module}"
        for importer, where, module, name in IMPORTS
        if height(module) > height(importer) and not (where == "types" and name in FORWARD)
    ]
    assert not upward, "\n".join(upward)


def test_imports_form_no_circle():
    graph = {name: set() for name in MODULES}
    for importer, where, module, name in IMPORTS:
        late = where == "function" and importer.startswith(LATE_IMPORTERS[0])
        if not late and not (where == "types" and name in FORWARD) and module != importer:
            graph[importer].add(module)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_only_what_is_compiled_is_imported_late():
    compiled = {name for name, path in MODULES.items() if "numba import" in path.read_text()}
    before = set()
    while compiled != before:  # what imports compiled code is itself no use without a compiler
        before = set(compiled)
        compiled |= {
            importer for importer, where, module, _ in IMPORTS if where == "module" and module in before
        }
    late = [
        f"{importer} imports {module} inside a function"
        for importer, where, module, _ in IMPORTS
        if where == "function" and module not in compiled | {LATE} and not importer.startswith(LATE_IMPORTERS)
    ]
    assert not late, "\n".join(late)


def test_no_name_of_a_package_hides_a_module_of_it():
    hidden = []
    for package, path in MODULES.items():
        if path.name == "__init__.py":
            bound = []
            for node in ast.parse(path.read_text()).body:
                if not isinstance(node, ast.ImportFrom):
                    bound.append(getattr(node, "name", ""))
                elif node.module != package:  # else the name is bound to the module itself
                    bound += [alias.asname or alias.name for alias in node.names]
            hidden += [f"{package}.{name}" for name in bound if f"{package}.{name}" in MODULES]
    assert not hidden
