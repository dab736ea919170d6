"""The house's floors: a lower module never imports a higher one, trainers know no recipes, planning needs no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hf_cascade

PACKAGE = Path(hf_cascade.__file__).parent
FLOORS = [
    {"assets", "anatomy", "manifest", "loading", "fields", "needs", "data", "progress", "machines"}
    | {"completions", "companions", "secrets", "file_contents"},
    {"shape", "context", "prune", "recipe", "plan", "display", "run", "evaluate", "plots", "pruning_plots", "stage"}
    | {"costs", "memory", "online_costs", "writing", "remedies", "stage_setup", "estimate", "plan_report", "rewards"}
    | {"pushing"},
    {"distill", "online", "odpo", "grpo", "publish", "flag_help", "cli", "__main__"},
]
FLOOR = {module: floor for floor, modules in enumerate(FLOORS, 1) for module in modules}
FILES = sorted(path for path in PACKAGE.rglob("*.py") if "_assets" not in path.parts)
TORCH_FREE = ["assets", "manifest", "fields", "needs", "progress", "shape", "recipe", "plan", "display", "run", "cli"]
TORCH_FREE += ["machines", "costs", "memory", "online_costs", "writing", "remedies", "stage_setup", "estimate"]
TORCH_FREE += ["plan_report", "flag_help"]


def name_of(path: Path) -> str:
    """First name below hf_cascade: `prune` for hf_cascade/prune/plan.py."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def own_imports(path: Path) -> set[str]:
    """First names below hf_cascade that a file imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full (from hf_cascade.x import y)"
            if node.module == "hf_cascade":
                found |= {alias.name for alias in node.names}
            elif node.module.startswith("hf_cascade."):
                found.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("hf_cascade.")}
    return found - {"__version__"}


def test_every_module_has_a_floor():
    assert len(FILES) > 10
    assert {name_of(path) for path in FILES} - {"__init__"} == set(FLOOR)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_imports_a_higher_floor(path):
    if name_of(path) == "__init__":
        return  # its names load on first use
    higher = {name for name in own_imports(path) if FLOOR[name] > FLOOR[name_of(path)]}
    assert not higher, f"{path.name} is on floor {FLOOR[name_of(path)]} and imports {sorted(higher)}"


def test_trainer_classes_know_no_recipes_and_no_manifests():
    """Someone who knows TRL can use each class alone."""
    files = [path for path in FILES if name_of(path) in ("distill", "online", "odpo", "grpo")]
    files = [path for path in files if not path.stem.endswith("command")]  # a command is no trainer class
    assert files
    for path in files:
        assert not own_imports(path) & {"manifest", "recipe", "run", "cli", "stage"}, path


def test_planning_imports_no_torch():
    names = [f"hf_cascade.{name}" for name in TORCH_FREE]
    code = f"import sys, {', '.join(names)}; print(sorted({{'torch', 'transformers', 'datasets'}} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
