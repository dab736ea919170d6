"""A small model for tests of releases: its old and its new state, and how a Hub looks when the new one is complete."""

import hashlib

from hf_cascade.publish.folder import Upload
from hf_cascade.publish.release import publish
from hf_cascade.publish.verdict import Decision, Line
from tests.publish.hub import TOKEN
from tests.publish.hub_state import GIT_ATTRIBUTES, Blob

PASSES = Decision([Line("complete", True, "2 files", "all")])
REFUSES = Decision([Line("retention", False, "0.61", ">= 0.9 of the parent", "distil longer")])
CARD = b"---\nlicense: apache-2.0\n---\n# A model\n"
NEW = {"config.json": b'{"new": 1}', "model.safetensors": b"new weights" * 100, "README.md": CARD}
OLD = {"config.json": b'{"old": 1}', "model.safetensors": b"old weights" * 100, "only_in_old/plot.png": b"old"}
REPO, COLLECTION = "org/a", "A family"


def upload(path: str, content: bytes) -> Upload:
    return Upload(path, None, content, hashlib.sha256(content).hexdigest(), len(content))


def uploads(files: dict[str, bytes] = NEW) -> list[Upload]:
    return [upload(path, content) for path, content in files.items()]


def release(api, files: dict[str, bytes] = NEW, decide=lambda: PASSES, **more):
    lines = []
    told = {"collection": COLLECTION, "private": False, "say": lines.append, "message": "Release A", **more}
    published = publish(uploads(files), repo_id=REPO, api=api, decide=decide, **told)
    assert TOKEN not in "\n".join(lines)
    return published


def state(files: dict[str, bytes]) -> dict[str, bytes]:
    return {".gitattributes": GIT_ATTRIBUTES, **files}


def commit_by_hand(hub, files: dict[str, bytes], ref: str = "main"):
    blobs = {path: Blob(content, lfs=path.endswith(".safetensors")) for path, content in files.items()}
    return hub.repo(REPO).commit(ref, blobs, title="by hand", author="somebody")


def assert_complete(hub, commits: int, tags: list[str]):
    """The new state, once."""
    repo = hub.repo(REPO)
    assert repo.files() == state(NEW)
    assert len(repo.history("main")) == commits
    assert list(repo.tags) == tags and repo.tags[tags[-1]] == repo.refs["main"]
    assert not repo.private
    statuses = [one.status for one in repo.discussions]
    assert statuses.count("merged") == 1 and set(statuses) <= {"merged", "closed"}
    assert [[item.id for item in one.items] for one in hub.collections.values()] == [[REPO]]
    assert not hub.leaks
