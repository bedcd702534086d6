"""The rooms of `docs/architecture.md`: who may import whom, and how large a file or a function may be."""

import ast
import graphlib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("dskd", "harness")
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 60
# Of each room (the longest prefix counts) those that it may import, itself and `dskd` aside.
MAY_IMPORT = {
    "dskd": set(),
    "dskd.trained": {"harness.predict"},  # `dskd.load`, the one door to what `harness` has trained
    "harness": {"harness.data"},  # what crosses rooms, and what they share
    "harness.data": {"harness"},
    "harness.run": {"harness", "harness.data"},
    "harness.launch": {"harness", "harness.data"},
    "harness.launch.worker": {"harness", "harness.launch", "harness.run"},  # in its process the runs are done
    "harness.leaderboard": {"harness"},
    "harness.predict": {"harness", "harness.data", "harness.run"},
    "harness.doctor": {"harness", "harness.launch", "harness.run"},
    "harness.cli": {
        "harness",
        "harness.data",
        "harness.doctor",
        "harness.launch",
        "harness.leaderboard",
        "harness.predict",
        "harness.run",
    },
    "harness.__main__": {"harness.cli"},
}
# What crosses a process or a disk imports nothing of who uses it.
CROSSING = ("job", "events", "run_folder", "records", "spec")
BELOW = {"environment", "files", "foreign", "naming", "plugins", "remembered", "schema", "shapes", "text"}


def modules() -> dict[str, Path]:
    found = {}
    for path in (path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        found[".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")] = path
    return found


MODULES = modules()


def imports(module: str) -> set[str]:
    """The modules of ours that it imports, anywhere but for a type checker alone."""
    tree = ast.parse(MODULES[module].read_text())
    hidden = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    names = set()
    for node in ast.walk(tree):
        if node in hidden:
            continue
        if isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return names & MODULES.keys() - {module}


def room(module: str) -> str:
    return max((name for name in MAY_IMPORT if f"{module}.".startswith(f"{name}.")), key=len)


def test_arrows_point_one_way() -> None:
    wrong = [
        f"{module} imports {other}"
        for module in MODULES
        for other in sorted(imports(module))
        if room(other) not in {room(module), "dskd", *MAY_IMPORT[room(module)]}
    ]
    assert not wrong


def test_what_crosses_rooms_imports_nothing_above_it() -> None:
    allowed = {f"harness.{name}" for name in (*CROSSING, *BELOW)}
    own = {name for module in CROSSING for name in imports(f"harness.{module}") if name.startswith("harness.")}
    assert own <= allowed
    assert {name for module in BELOW for name in imports(f"harness.{module}") if name.startswith("harness.")} <= allowed


def test_no_circle_of_files() -> None:
    graphlib.TopologicalSorter({module: imports(module) for module in MODULES}).prepare()


def test_files_and_functions_are_short() -> None:
    paths = [*MODULES.values(), *(ROOT / "benchmarks").rglob("*.py")]
    long = [str(path.relative_to(ROOT)) for path in paths if len(path.read_text().splitlines()) > MOST_LINES]
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                long += [f"{path.relative_to(ROOT)}: {node.name}"] if lines > MOST_LINES_OF_A_FUNCTION else []
    assert not long
