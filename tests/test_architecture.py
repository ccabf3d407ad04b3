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

BASE = ("errors", "hierarchy")
# Pure functions of arrays: no files, flags or devices.
PURE = ("adaptation", "models", "training.loss", "evaluation.metrics", "data.augment")
# All that `experiment` builds from; beside and above it stand the modules at the package's root.
BELOW = (*BASE, "adaptation", "data", "models", "training", "evaluation")
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


def test_base_imports_nothing_of_the_package():
    """`errors` and `hierarchy` stand alone, `hierarchy` on `errors` at most."""
    assert own_imports(f"{PACKAGE}.errors") == set()
    assert own_imports(f"{PACKAGE}.hierarchy") <= {f"{PACKAGE}.errors"}


def test_pure_parts_import_only_each_other():
    """Adaptation, models, loss, metrics and augmentation know the base and each other alone."""
    for part in PURE:
        for module in select([part]):
            strangers = {name for name in own_imports(module) if not within(name, BASE + PURE)}
            assert not strangers, f"{module} imports {strangers}"


def test_pure_parts_know_no_files_flags_or_devices():
    """Nor do the pure parts import files or flags, open anything, or place arrays on devices."""
    for module in select(PURE):
        outside = {name.split(".")[0] for name in imports(TREES[module])}
        forbidden = outside & FILES_AND_FLAGS | used_names(TREES[module]) & (DEVICES | {"open"})
        assert not forbidden, f"{module} uses {forbidden}"


def test_training_and_data_import_what_is_below_them():
    """Training imports the base, the pure parts, data and itself; data imports no training."""
    for module in select(["training"]):
        strangers = {
            name
            for name in own_imports(module)
            if not within(name, (*BASE, *PURE, "data", "training"))
        }
        assert not strangers, f"{module} imports {strangers}"
    for module in select(["data"]):
        strangers = {name for name in own_imports(module) if not within(name, (*BASE, "data"))}
        assert not strangers, f"{module} imports {strangers}"


def test_nothing_below_experiment_imports_it():
    """The parts import parts, never `experiment` or what uses it; nothing imports `main`."""
    for module in select(BELOW):
        upward = {name for name in own_imports(module) if not within(name, BELOW)}
        assert not upward, f"{module} imports {upward}"
    assert all(within(module, BELOW) for module in TREES if module.count(".") > 1)
    assert not [module for module in TREES if f"{PACKAGE}.main" in own_imports(module)]


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
    """pmap, device_put, jax.distributed, shard_map, axis_index: in training/parallel.py alone."""
    users = {module for module in TREES if used_names(TREES[module]) & MAPPING}
    assert users == {f"{PACKAGE}.training.parallel"}


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
    own = "from hiercls_jax.training import parallel\nparallel.pmap(f)\n"
    assert "pmap" not in used_names(ast.parse(own))
    assert "pmap" in used_names(ast.parse(own + "import jax\njax.pmap(f)"))
