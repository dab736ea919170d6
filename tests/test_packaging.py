"""What is released: the sdist and the wheel made from it, run from another directory; READMEs against their folders."""

import gzip
import json
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

import hf_cascade

ROOT = Path(__file__).resolve().parents[1]
INFO = f"hf_cascade-{hf_cascade.__version__}.dist-info"
SHIPPED = ("trainers", "recipes", "evals", "hub_cards")


def tree(folder: str) -> set[str]:
    """Files below a folder of the checkout, without what Python and the tools leave there."""
    files = (path.relative_to(ROOT) for path in (ROOT / folder).rglob("*") if path.is_file())
    return {str(path) for path in files if not {"__pycache__", ".ruff_cache", ".pytest_cache"} & set(path.parts)}


@pytest.fixture(scope="module")
def release(tmp_path_factory) -> Path:
    """Folder with the sdist and the wheel, as `python -m build` makes them: the wheel comes from the sdist."""
    out = tmp_path_factory.mktemp("release")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return out


@pytest.fixture(scope="module")
def wheel(release) -> set[str]:
    (path,) = release.glob("*.whl")
    assert path.name.startswith("hf_cascade-") and path.name.endswith("-py3-none-any.whl")
    return set(zipfile.ZipFile(path).namelist())


@pytest.mark.parametrize("folder", SHIPPED)
def test_the_wheel_carries_every_shipped_file(wheel, folder):
    files = tree(folder)
    assert files
    prefix = f"hf_cascade/_assets/{folder}/"
    assert {name for name in wheel if name.startswith(prefix)} == {f"hf_cascade/_assets/{name}" for name in files}


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    code = {name for name in wheel if name.startswith("hf_cascade/") and not name.startswith("hf_cascade/_assets/")}
    assert code == tree("hf_cascade")
    assert {name.split("/")[0] for name in wheel} == {"hf_cascade", INFO}
    assert not [name for name in wheel if re.search(r"__pycache__|\.pyc$|\.venv|(^|/)runs/|checkpoint-", name)]
    assert {f"{INFO}/licenses/LICENSE", f"{INFO}/licenses/NOTICE"} <= wheel


def test_the_sdist_can_be_tested(release):
    (path,) = release.glob("*.tar.gz")
    names = {name.partition("/")[2] for name in tarfile.open(path).getnames()}
    assert {"pyproject.toml", "constraints.txt", "Makefile", ".ci/run", "README.md", "LICENSE", "NOTICE"} <= names
    assert tree("tests") <= names
    assert not [name for name in names if name.startswith(("runs/", ".venv/", "dist/")) or "__pycache__" in name]


def test_the_installed_wheel_plans_from_any_directory(release, tmp_path):
    (path,) = release.glob("*.whl")
    site = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "-qq", "--no-deps", "--no-index", "--target"]
    subprocess.run([*pip, str(site), str(path)], check=True)
    away = tmp_path / "away"
    away.mkdir()
    python = [sys.executable, "-m", "hf_cascade.cli", "run", "recipes/tiny/cascade.yaml", "--dry_run"]
    environment = os.environ | {"PYTHONPATH": str(site)}
    where = [sys.executable, "-c", "import hf_cascade.assets as a; print(a.__file__, a.root())"]
    shown = subprocess.check_output(where, cwd=away, env=environment, text=True).split()
    assert shown == [str(site / "hf_cascade/assets.py"), str(site / "hf_cascade/_assets")]
    plan = subprocess.run(python, cwd=away, env=environment, capture_output=True, text=True)
    assert plan.returncode == 0, plan.stderr
    assert "3b" in plan.stdout
    assert list(away.iterdir()) == []  # a plan writes nothing


def test_public_names_load_on_first_use():
    names = [name for name in hf_cascade.__all__ if name != "__version__"]
    lazy = "import sys, hf_cascade; dir(hf_cascade); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", f"{lazy}; from hf_cascade import {', '.join(names)}"], check=True)
    with pytest.raises(AttributeError, match="public names: __version__, CascadeDistillationConfig"):
        _ = hf_cascade.CascadeDistilationConfig


def test_constraints_lie_in_the_ranges_of_pyproject():
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["dev"]]
    for requirement in needed:
        name = canonicalize_name(requirement.name)
        assert name in pins, f"constraints.txt pins no {name}"
        assert requirement.specifier.contains(pins[name]), f"{name}=={pins[name]} is outside {requirement}"
    assert not [name for name in pins if re.match("nvidia|cuda|triton", name)]


def test_the_readmes_tree_is_the_tree():
    block = re.search(r"<!-- tree -->(.*?)<!-- /tree -->", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block, "README.md has no block between <!-- tree --> and <!-- /tree -->"
    lines = [line.strip() for line in block[1].splitlines()]
    listed = [line.split()[0] for line in lines if line and not line.startswith("```")]
    assert listed
    missing = [path for path in listed if not (ROOT / path).exists()]
    assert not missing, f"README.md lists what is not there: {missing}"
    made = {"runs", "build", "dist"}
    folders = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] != "." and path.name not in made}
    unlisted = folders - {path.split("/")[0] for path in listed}
    assert not unlisted, f"README.md does not list {sorted(unlisted)}"


def test_the_texts_readme_is_the_folder():
    folder = ROOT / "recipes/tiny/data"
    rows = re.findall(r"^\| `(\S+)` \| (\S+) \| ([^|]+) \|", (folder / "README.md").read_text(), re.MULTILINE)
    assert {row[0] for row in rows} == {path.name for path in folder.iterdir()} - {"README.md"}
    for name, count, what in rows:
        with gzip.open(folder / name, "rt", encoding="utf-8") as file:
            lines = [json.loads(line) for line in file]
        assert f"{len(lines):,}" == count
        if "text" in lines[0]:
            assert f"{sum(len(line['text'].encode()) for line in lines):,}" == what
        else:
            assert what == ", ".join(f"`{column}`" for column in lines[0])
