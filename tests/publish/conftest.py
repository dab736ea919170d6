"""A Hub on this machine, and a finished folder, for every test that asks for one."""

import json
import shutil
import types

import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import _http, disable_progress_bars

from hf_cascade.evaluate.suite import published
from hf_cascade.publish import steps
from tests.publish import finished
from tests.publish.finished import record
from tests.publish.gate_lines import SMALLEST
from tests.publish.hub import TOKEN, USER, Hub
from tests.publish.hub_state import Repo
from tests.publish.releases import OLD, REPO, commit_by_hand, state


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """
    A running Hub. Environment variables are set for subprocesses; for this process, where huggingface_hub is imported
    already, its constants are, and its waits between tries take no time.
    """
    with Hub() as hub:
        home = tmp_path / "hf_home"
        environment = {
            "HF_ENDPOINT": hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(home),
        }
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        for name, value in {
            "ENDPOINT": hub.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_OFFLINE": False,
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_XET_CACHE": str(home / "xet"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setattr(_http, "time", types.SimpleNamespace(sleep=lambda seconds: None))
        monkeypatch.setattr(steps, "FIRST_WAIT_SECONDS", 0.0)
        disable_progress_bars()
        yield hub


@pytest.fixture
def api(hub) -> HfApi:
    """The real client, pointed at the Hub."""
    return HfApi(endpoint=hub.url, token=TOKEN)


@pytest.fixture
def old(hub):
    """The Hub with an older state of the model on main."""
    hub.repos[REPO] = Repo(REPO, True, USER)
    commit_by_hand(hub, state(OLD))
    hub.repo(REPO).tags["v1"] = hub.repo(REPO).refs["main"]
    return hub


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return finished.model_folder(tmp_path_factory.mktemp("made") / "3b")


@pytest.fixture
def folder(made, tmp_path):
    """Finished, measured with suite tiny, and with a contamination report."""
    folder = shutil.copytree(made, tmp_path / "3b")
    record(folder)
    split = {"rows": 100, "too_short": 0, "overlapping": 1, "mostly": 1, "examples": []}
    report = {"text": ["text.jsonl, train"], "text_sha256": finished.TEXT, "unknown_text": ["org/parent"]}
    report |= {"splits": {"org/set/test": split}}
    (folder / "contamination.json").write_text(json.dumps(report))
    return folder


@pytest.fixture
def of_the_papers_size(monkeypatch):
    monkeypatch.setitem(published.SIZES, SMALLEST, tuple(finished.SIZES.values()))
