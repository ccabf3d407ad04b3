"""The rules of which module may import what, read from the syntax trees of the sources."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = "hiercls_jax"
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / PACKAGE).rglob("*.py"))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in SOURCES.items()}

# What each room may import besides itself. ARCHITECTURE.md says why.
BASE = ("errors", "files")
PURE = ("hierarchy", "models", "adaptation", "metrics", "training.loss", "data.augment")
ROOMS = {
    "errors": (),
    "files": ("errors",),
    "hierarchy": BASE,
    "models": ("errors",),
    "adaptation": ("errors", "hierarchy"),
    "metrics": ("errors", "hierarchy", "adaptation"),
    "runtime": BASE,
    "data": (*BASE, "hierarchy"),
    "training": (*BASE, *PURE, "runtime", "data"),
    "tables": (*BASE, *PURE),
    "evaluation": (*BASE, *PURE, "tables"),
    "report": (*BASE, *PURE, "evaluation"),
    "experiment": (*BASE, *PURE, "runtime", "data", "training", "evaluation", "report"),
    # A study reads the runs of experiments, and rebuilds their networks to count them.
    "study": (*BASE, *PURE, "runtime", "evaluation", "report", "experiment"),
}
ENTRANCES = ("__init__", "__main__", "main", "commands")  # these may import every room
FILES_AND_FLAGS = {"os", "pathlib", "absl", "tempfile", "shutil", "io", "ml_collections"}
# Attributes and names by which code places arrays on devices, or asks about them.
MAPPING = {"pmap", "device_put", "distributed", "shard_map", "axis_index"}
DEVICES = MAPPING | {
    "devices",
    "local_devices",
    "device_count",
    "local_device_count",
    "process_index",
    "process_count",
    "default_backend",
    "device_get",
}


def within(module: str, parts) -> bool:
    """Whether a module is, or lies inside, one of `parts` of the package."""
    return any(f"{module}.".startswith(f"{PACKAGE}.{part}.") for part in parts)


def select(parts) -> list[str]:
    """The modules that are, or lie inside, one of `parts`; at least one."""
    modules = [module for module in TREES if within(module, parts)]
    assert modules, parts
    return modules


def imports(tree: ast.AST, modules=TREES) -> set[str]:
    """What a module imports, wherever in it: full names, of modules of the package where known."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in modules else node.module)
    return found


def own_imports(module: str) -> set[str]:
    """The modules of the package that a module imports."""
    return {name for name in imports(TREES[module]) if name.split(".")[0] == PACKAGE}


def used_names(tree: ast.AST) -> set[str]:
    """Every name and attribute in a module, and all it imports; less what is the package's own."""
    found, own = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            source = getattr(node, "module", "") or ""
            for alias in node.names:
                full = f"{source}.{alias.name}".lstrip(".")
                if full.split(".")[0] == PACKAGE:
                    own.add(alias.asname or alias.name.split(".")[0])
                else:
                    found |= set(full.split("."))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id not in own:
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and root(node) not in own:
            found.add(node.attr)
    return found


def root(node: ast.AST) -> str | None:
    """`a` of `a.b.c`; None where the expression begins with something else than a name."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def test_every_module_stands_in_a_room():
    """A module lies in one of the rooms above, or is one of the package's entrances."""
    inside = {module for module in TREES if within(module, (*ROOMS, *ENTRANCES))}
    assert set(TREES) - inside == {PACKAGE}


@pytest.mark.parametrize("room", ROOMS)
def test_imports_follow_the_arrows(room):
    """A room imports only itself and the rooms below it: never a command, never upwards."""
    for module in select([room]):
        strangers = {name for name in own_imports(module) if not within(name, (room, *ROOMS[room]))}
        assert not strangers, f"{module} imports {strangers}"


@pytest.mark.parametrize("part", ["training.loss", "data.augment"])
def test_pure_modules_import_only_pure_parts(part):
    """The loss and the augmentation stand among other code, but know the pure parts alone."""
    for module in select([part]):
        strangers = {name for name in own_imports(module) if not within(name, ("errors", *PURE))}
        assert not strangers, f"{module} imports {strangers}"


def test_pure_parts_know_no_files_flags_or_devices():
    """The pure parts import neither files nor flags, open nothing, and place nothing on devices.

    A hierarchy alone reads and writes its own files.
    """
    for module in select([part for part in PURE if part != "hierarchy"]):
        outside = {name.split(".")[0] for name in imports(TREES[module])}
        forbidden = outside & FILES_AND_FLAGS | used_names(TREES[module]) & (DEVICES | {"open"})
        assert not forbidden, f"{module} uses {forbidden}"


def test_no_import_cycles():
    """Following imports never leads back, those inside functions included."""
    edges = {module: own_imports(module) & set(TREES) for module in TREES}
    done = set()

    def visit(module, path):
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for name in sorted(edges[module]):
                visit(name, [*path, module])
            done.add(module)

    for module in TREES:
        visit(module, [])


def test_devices_are_known_to_one_file():
    """pmap, device_put, jax.distributed, shard_map, axis_index: in runtime/parallel.py alone."""
    users = {module for module in TREES if used_names(TREES[module]) & MAPPING}
    assert users == {f"{PACKAGE}.runtime.parallel"}


def test_no_module_is_called_utils():
    """Every module is named for what it holds."""
    vague = {"util", "utils", "helpers", "misc", "common"}
    assert not {module for module in TREES if set(module.split(".")) & vague}


def test_no_tensorflow_and_no_pickle():
    """No Python file of the project imports TensorFlow or pickle."""
    folders = ("hiercls_jax", "tests", "configs", "launch", "benchmarks", "examples")
    files = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert {Path(__file__), *SOURCES.values()} < set(files)
    for path in files:
        outside = {name.split(".")[0] for name in imports(ast.parse(path.read_text("utf-8")))}
        forbidden = outside & {"tensorflow", "pickle", "cloudpickle", "dill", "joblib"}
        assert not forbidden, f"{path} imports {forbidden}"


@pytest.mark.parametrize(
    ("source", "module", "name"),
    [
        ("import a.b", "a.b", "b"),
        ("def f():\n  from jax import pmap as p", "jax", "pmap"),
        ("from pkg import mod", "pkg.mod", "mod"),
        ("from pkg.mod import x", "pkg.mod", "x"),
        ("if 1:\n  import jax\n  jax.distributed.initialize()", "jax", "distributed"),
    ],
)
def test_imports_are_found(source, module, name):
    """The two readers that the rules rest on see imports wherever and however written."""
    tree = ast.parse(source)
    assert imports(tree, modules={"pkg", "pkg.mod"}) == {module}
    assert name in used_names(tree)


def test_own_wrappers_are_not_taken_for_jax():
    """`parallel.pmap` is the package's own pmap; `jax.pmap` beside it is still seen."""
    own = "from hiercls_jax.runtime import parallel\nparallel.pmap(f)\n"
    assert "pmap" not in used_names(ast.parse(own))
    assert "pmap" in used_names(ast.parse(own + "import jax\njax.pmap(f)"))
