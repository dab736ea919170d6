"""A release: one model whole on main, once; what others do in the meantime is seen, and nothing half is merged."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi

from hf_cascade import assets
from hf_cascade.publish.folder import Upload
from hf_cascade.publish.release import GateRefusal, Release, publish
from hf_cascade.publish.steps import ReleaseError
from tests.publish.hub import DROP_AFTER
from tests.publish.releases import (
    NEW,
    OLD,
    PASSES,
    REFUSES,
    REPO,
    assert_complete,
    commit_by_hand,
    release,
    state,
    uploads,
)

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")


def test_new_repository(hub, api):
    published = release(api, tag="first", note="the base model")
    assert published.url == f"{hub.url}/{REPO}" and published.tag == "first"
    assert published.commit == hub.repo(REPO).refs["main"]
    assert_complete(hub, commits=2, tags=["first"])
    assert hub.asked("POST", "repos/create")[0].json["visibility"] == "private"
    written = [one for one in hub.requests if one.method in ("POST", "PUT") and "discussions/1/comment" not in one.path]
    assert written[-1].path.endswith("/settings")  # public last of all
    pull_request = hub.repo(REPO).history("refs/pr/1")
    assert len(pull_request) == 2 and pull_request[0].title == "Release A"  # one atomic commit
    (collection,) = hub.collections.values()
    assert collection.items[0].note == "the base model" and not collection.private


def test_new_state_deletes_what_it_has_not_and_is_tagged_by_number(old, api):
    assert release(api).tag == "v2"
    assert_complete(old, commits=3, tags=["v1", "v2"])


def test_private_and_gated(hub, api):
    release(api, private=True, gated="manual")
    repo, (collection,) = hub.repo(REPO), hub.collections.values()
    assert repo.private and repo.gated == "manual" and collection.private
    release(api, private=False, gated="auto")  # the same content
    assert not repo.private and repo.gated == "auto" and not collection.private
    assert len(hub.asked("PUT", "/settings")) == 2  # both at once
    release(api, private=None)
    assert not repo.private  # who loads it already must not be shut out by a default


def test_a_public_repository_that_is_to_be_private_is_so_before_anything_is_sent(old, api):
    old.repo(REPO).private = False
    release(api, private=True)
    written = [one for one in old.requests if one.method in ("POST", "PUT")]
    assert written[0].path.endswith("/settings") and written[0].json == {"visibility": "private"}
    assert old.repo(REPO).private and len(old.asked("PUT", "/settings")) == 1


def test_a_public_repository_stays_so_unless_told(old, api):
    old.repo(REPO).private = False
    lines = []
    release(api, private=None, say=lines.append)
    assert not old.repo(REPO).private and not old.asked("PUT", "/settings")
    assert lines[0] == "org/a: public repository: what is uploaded can be seen"


def test_unset_a_new_repository_is_private_to_the_end(hub, api):
    release(api, private=None)
    assert hub.repo(REPO).private and not hub.asked("PUT", "/settings")
    assert all(one.private for one in hub.collections.values())


def test_second_call_changes_nothing(old, api):
    first = release(api)
    asked = len(old.requests)
    assert release(api) == first
    assert all(one.method == "GET" for one in old.requests[asked:])


def test_a_refused_gate_merges_nothing(old, api):
    with pytest.raises(GateRefusal, match=r"(?s)main is as it was.*retention.*0\.61.*distil longer"):
        release(api, decide=lambda: REFUSES)
    repo = old.repo(REPO)
    assert repo.files() == state(OLD) and [one.status for one in repo.discussions] == ["draft"] and not old.collections
    release(api)  # the gate passes now: the pull request that is there is used
    assert_complete(old, commits=3, tags=["v1", "v2"])
    assert len(repo.discussions) == 1 and len(old.asked("POST", "/commit/")) == 1


def test_a_gate_that_fails_merges_nothing(old, api):
    def torn():
        raise ValueError("evals.json is torn")

    with pytest.raises(ValueError, match="torn"):
        release(api, decide=torn)
    assert old.repo(REPO).files() == state(OLD)


@pytest.mark.parametrize("path", ["model.safetensors", "config.json"])
def test_a_corrupted_upload_is_not_merged(old, api, path):
    old.flip(path)
    with pytest.raises(ReleaseError, match=rf"comparing checksums failed: {path} has .* on the Hub") as raised:
        release(api)
    assert "main is as it was" in str(raised.value)
    assert old.repo(REPO).files() == state(OLD)
    release(api)
    assert_complete(old, commits=3, tags=["v1", "v2"])
    first, second = old.repo(REPO).discussions
    assert first.status == "closed" and "not the ones that were sent" in first.comments[-1]
    assert second.status == "merged"


def test_another_content_closes_the_stale_pull_request(old, api):
    with pytest.raises(GateRefusal):
        release(api, {**NEW, "config.json": b"{}"}, decide=lambda: REFUSES)
    foreign = old.repo(REPO).open("Fix a typo", "", "somebody", True, "open")
    same_title = old.repo(REPO).open("Release [release 123456789abc]", "", "somebody", True, "open")
    release(api)
    ours = old.repo(REPO).discussions[0]
    assert ours.status == "closed" and "another content" in ours.comments[-1]
    assert len(ours.comments) == 2
    assert foreign.status == same_title.status == "open"  # only our own are closed
    foreign.status = same_title.status = "closed"
    assert_complete(old, commits=3, tags=["v1", "v2"])


def test_closing_a_stale_pull_request_survives_a_lost_answer(old, api):
    with pytest.raises(GateRefusal):
        release(api, {**NEW, "config.json": b"{}"}, decide=lambda: REFUSES)
    old.fail("POST", "/discussions/1/status", DROP_AFTER)
    release(api)
    assert len(old.repo(REPO).discussions[0].comments) == 2
    assert_complete(old, commits=3, tags=["v1", "v2"])


@pytest.mark.parametrize("when", [("POST", "/commit/"), ("POST", "/discussions$"), ("GET", "/discussions/1[?]")])
def test_somebody_elses_commit_on_main_stops_the_merge(old, api, when):
    foreign = state({**OLD, "notes.txt": b"theirs"})
    old.meanwhile(*when, lambda: commit_by_hand(old, foreign))
    with pytest.raises(ReleaseError, match="someone else committed .* to main in the meantime; nothing was merged"):
        release(api)
    assert old.repo(REPO).files() == foreign
    release(api)  # on the new head
    assert_complete(old, commits=4, tags=["v1", "v2"])
    *stale, last = old.repo(REPO).discussions
    assert last.status == "merged" and all("main has another commit now" in one.comments[-1] for one in stale)
    assert len(stale) == (when != ("POST", "/discussions$"))  # then it began on the new head


def test_a_commit_in_the_very_moment_of_the_merge_is_seen(old, api):
    foreign = state({**OLD, "notes.txt": b"theirs"})
    old.meanwhile("POST", "/merge", lambda: commit_by_hand(old, foreign))
    with pytest.raises(ReleaseError, match="comparing main after the merge failed: notes.txt should not be there"):
        release(api)
    assert list(old.repo(REPO).tags) == ["v1"] and old.repo(REPO).private
    release(api)
    assert old.repo(REPO).files() == state(NEW)


def test_a_conflict_in_the_very_moment_of_the_merge_merges_nothing(old, api):
    foreign = state({**OLD, "config.json": b"theirs"})
    old.meanwhile("POST", "/merge", lambda: commit_by_hand(old, foreign))
    with pytest.raises(ReleaseError, match="merging failed: the Hub answered 409"):
        release(api)
    assert old.repo(REPO).files() == foreign
    release(api)
    assert_complete(old, commits=4, tags=["v1", "v2"])


def test_a_commit_pushed_into_our_pull_request_is_not_merged(old, api):
    def push():
        commit_by_hand(old, state({**NEW, "evil.py": b"import os"}), ref="refs/pr/1")

    old.meanwhile("POST", "/commit/", push)
    with pytest.raises(ReleaseError, match="committing failed: the Hub answered 412"):
        release(api)
    assert old.repo(REPO).files() == state(OLD)
    release(api)
    assert_complete(old, commits=3, tags=["v1", "v2"])


def test_a_pull_request_may_begin_with_a_commit_without_changes(old, api):
    old.meanwhile("GET", "/discussions/1[?]", lambda: commit_by_hand(old, state(OLD), ref="refs/pr/1"))
    with pytest.raises(GateRefusal):
        release(api, decide=lambda: REFUSES)
    release(api)
    assert_complete(old, commits=3, tags=["v1", "v2"])
    assert len(old.repo(REPO).discussions) == 1


def test_a_taken_tag_is_refused_before_anything_is_uploaded(old, api):
    with pytest.raises(ReleaseError, match="tag v1 is another state, commit .* main is as it was. Give another name"):
        release(api, tag="v1")
    assert not old.repo(REPO).discussions and not old.asked("POST", "")


def test_an_edit_by_hand_is_a_state_of_its_own(old, api):
    release(api)
    commit_by_hand(old, state({**NEW, "README.md": b"edited"}))
    assert release(api).tag == "v3"
    assert old.repo(REPO).files() == state(NEW)


def test_what_a_release_says(hub, api):
    lines = []
    release(api, say=lines.append)
    assert lines[0] == "org/a: private repository" and "org/a: 1.1 kB of 1.1 kB of weights" in lines
    checked = [line for line in lines if line.endswith("3 files are right")]
    assert checked == ["org/a: comparing checksums: 3 files are right", checked[1]] and "main" in checked[1]
    assert lines[-3:] == ["org/a: tag v1", "org/a: in the collection A family", "org/a: public"]
    release(api, say=lines.append, gated="manual")
    assert lines[-1] == "org/a: public, readers apply (manual)"


def test_weights_are_counted_with_the_time_left(hub, api):
    lines = []
    files = {**NEW, "model-00001.safetensors": b"1" * 500_000, "model-00002.safetensors": b"2" * 500_000}
    Release(uploads(files), repo_id=REPO, api=api, message="m", say=lines.append).to_main(lambda: PASSES)
    counted = [line for line in lines if "of weights" in line]
    assert [line.split(",")[0] for line in counted][0] == "org/a: 1.1 kB of 1.0 MB of weights"
    assert len(counted) == 3 and "left" in counted[1] and "left" not in counted[2]


def test_a_wrong_token_says_what_to_do(hub):
    with pytest.raises(ReleaseError, match="401.*hf auth login") as raised:
        release(HfApi(endpoint=hub.url, token="hf_" + "wrong" * 6))
    assert "wrongwrong" not in str(raised.value)


def test_another_namespace_says_what_to_do(hub, api):
    with pytest.raises(ReleaseError, match="403.*needs write access"):
        publish(uploads(), repo_id="stranger/a", api=api, message="m", decide=lambda: PASSES)


def test_bad_arguments(api):
    with pytest.raises(ValueError, match="organization/name; got 'a'"):
        publish(uploads(), repo_id="a", api=api, message="m", decide=lambda: PASSES)
    with pytest.raises(ValueError, match="an empty state would delete"):
        publish([], repo_id=REPO, api=api, message="m", decide=lambda: PASSES)


def test_a_file_that_changes_meanwhile_is_not_released(hub, api, tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"{}")
    files = [Upload("config.json", path, None, hashlib.sha256(b"{}").hexdigest(), 2), *uploads()[1:]]
    hub.meanwhile("POST", "/discussions$", lambda: path.write_bytes(b"[]"))
    with pytest.raises(ValueError, match="config.json was changed while it was released"):
        publish(files, repo_id=REPO, api=api, message="m", decide=lambda: PASSES)
    assert hub.repo(REPO).files() == state({})


LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
ours, theirs = (AutoModelForCausalLM.from_pretrained(name, trust_remote_code=False) for name in sys.argv[1:])
pairs = list(zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True))
assert pairs and all(torch.equal(one, other) for one, other in pairs)
tokenizers = [AutoTokenizer.from_pretrained(name, trust_remote_code=False) for name in sys.argv[1:]]
ids = [tokenizer("A river runs")["input_ids"] for tokenizer in tokenizers]
assert ids[0] == ids[1] and ids[0]
print("equal")
"""


def test_transformers_loads_the_published_model(hub, api):
    folder = Path(assets.find("recipes/tiny/parent"))
    paths = [path for path in sorted(folder.iterdir()) if path.name != "parent-short.json"]
    files = [Upload(p.name, p, None, hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_size) for p in paths]
    publish(files, repo_id=REPO, api=api, message="Tiny parent", decide=lambda: PASSES)
    assert hub.repo(REPO).private
    done = subprocess.run([sys.executable, "-c", LOAD, str(folder), REPO], capture_output=True, text=True)
    assert done.stdout.strip() == "equal", done.stderr
    assert hub.asked("HEAD", "/resolve/.*model.safetensors") and not hub.leaks
    elsewhere = hub.asked("GET", "/linked/")
    assert elsewhere and all(one.user is None for one in elsewhere)  # storage on another host gets no token
