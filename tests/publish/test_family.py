"""A family is released model by model, each whole, into one collection in order; no gate, no upload."""

import hashlib
from pathlib import Path

import pytest

from hf_cascade.publish.family import Member, publish_family
from hf_cascade.publish.folder import Upload
from hf_cascade.publish.release import GateRefusal
from hf_cascade.publish.steps import ReleaseError
from hf_cascade.publish.verdict import Decision, Line
from tests.publish.hub import DROP_AFTER, DROP_BEFORE, TOKEN
from tests.publish.hub_state import GIT_ATTRIBUTES, Collection

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
TITLE = "Cascade tiny"
KINDS = ("base", "instruct", "reasoning")
MEMBERS = [Member(Path(f"runs/{n}b-{k}"), f"org/tiny-{n}b-{k}", k, f"{n}B, {k}") for n in (14, 8, 3) for k in KINDS]
NAMES = [member.repo_id for member in MEMBERS]


def files_of(member: Member) -> dict[str, bytes]:
    return {"config.json": b"{}", "model.safetensors": member.repo_id.encode() * 99}


def uploads(member: Member, decision: Decision) -> list[Upload]:
    assert decision.passed and decision.lines[0].figure == member.repo_id
    files = files_of(member).items()
    return [Upload(path, None, content, hashlib.sha256(content).hexdigest(), len(content)) for path, content in files]


def passes(member: Member) -> Decision:
    return Decision([Line("complete", True, member.repo_id, "all")])


def family(api, members=MEMBERS, decide=passes, **more):
    told = {"title": TITLE, "private": False, "message": "Release", "say": lambda line: None, **more}
    return publish_family(members, api=api, uploads=uploads, decide=decide, **told)


def assert_complete(hub, names=NAMES):
    for member in MEMBERS:
        if member.repo_id in names:
            repo = hub.repo(member.repo_id)
            assert repo.files() == {".gitattributes": GIT_ATTRIBUTES, **files_of(member)}
            assert len(repo.history("main")) == 2 and list(repo.tags) == ["v1"] and not repo.private
    (collection,) = hub.collections.values()
    assert [item.id for item in collection.items] == names and collection.title == TITLE
    assert not hub.leaks


def test_nine_models_and_one_collection(hub, api):
    published = family(api, description="Three sizes")
    assert_complete(hub)
    (collection,) = hub.collections.values()
    assert [item.note for item in collection.items] == [member.note for member in MEMBERS]
    assert collection.description == "Three sizes" and not collection.private
    assert [one.url for one in published] == [f"{hub.url}/{name}" for name in NAMES]
    assert {one.collection for one in published} == {f"{hub.url}/collections/{collection.slug}"}
    asked = len(hub.requests)
    assert family(api, description="Three sizes") == published
    assert all(one.method == "GET" for one in hub.requests[asked:])


def test_nothing_is_public_before_everything_is_there(hub, api):
    family(api)
    first = next(number for number, one in enumerate(hub.requests) if one.path.endswith("/settings"))
    last_merge = max(number for number, one in enumerate(hub.requests) if one.path.endswith("/merge"))
    assert last_merge < first


def test_one_refused_gate_and_nothing_is_uploaded(hub, api):
    def decide(member: Member) -> Decision:
        if member.kind == "instruct":
            return Decision([Line("retention", False, "0.6", ">= 0.9", "distil longer")])
        return passes(member)

    with pytest.raises(GateRefusal, match=r"(?s)refuses 3 of 9 models; nothing was uploaded.*8b-instruct:.*retention"):
        family(api, decide=decide)
    assert not hub.requests


def test_a_gate_is_asked_again_before_its_merge(hub, api):
    asked = []

    def decide(member: Member) -> Decision:
        asked.append(member.repo_id)
        if asked.count(member.repo_id) == 2 and member.repo_id == NAMES[1]:  # changed since
            return Decision([Line("hash", False, "other", "these weights", "evaluate")])
        return passes(member)

    with pytest.raises(GateRefusal, match=rf"(?s)hash.*Released whole: {NAMES[0]}. Not begun: {NAMES[2]}, ") as raised:
        family(api, decide=decide)
    assert NAMES[1] not in str(raised.value).split("Released whole")[1]
    assert set(hub.repos) == set(NAMES[:2]) and hub.repo(NAMES[1]).files().keys() == {".gitattributes"}


@pytest.mark.parametrize("what", [503, 403, DROP_BEFORE, DROP_AFTER])
@pytest.mark.parametrize(("method", "path"), [("POST", f"{NAMES[4]}/commit/"), ("POST", f"{NAMES[4]}/discussions/1/m")])
def test_a_failure_in_the_middle_leaves_the_released_ones_whole(hub, api, method, path, what):
    hub.fail(method, path, what, times=None if isinstance(what, int) else 1)
    if isinstance(what, int):
        with pytest.raises(ReleaseError, match=f"{NAMES[4]}: .* failed: .*{what}") as raised:
            family(api)
        released, not_begun = str(raised.value).split("Released whole: ")[1].split(" Not begun: ")
        assert released == ", ".join(NAMES[:4]) + "." and not_begun == ", ".join(NAMES[5:]) + "."
        assert "he same command goes on from here." in str(raised.value) and TOKEN not in str(raised.value)
        assert set(hub.repos) == set(NAMES[:5]) and not hub.collections
        assert all(repo.private for repo in hub.repos.values())
        hub.mend()
    family(api)
    assert_complete(hub)


COLLECTION_REQUESTS = [("GET", "/collections[?]"), ("POST", "/collections$"), ("POST", "/items$"), ("PUT", "/settings")]


@pytest.mark.parametrize("what", [503, 412, DROP_BEFORE, DROP_AFTER])
@pytest.mark.parametrize(("method", "path"), COLLECTION_REQUESTS)
def test_a_failure_at_the_end_is_completed(hub, api, method, path, what):
    members = MEMBERS[:3]
    hub.fail(method, path, what, times=None if isinstance(what, int) else 1, skip=path == "/items$")
    if isinstance(what, int):
        with pytest.raises(ReleaseError, match=str(what)):
            family(api, members)
        assert all(repo.files().keys() > {"config.json"} for repo in hub.repos.values())
        hub.mend()
    family(api, members)
    assert_complete(hub, NAMES[:3])


def test_a_collection_that_is_there_is_put_in_order(hub, api):
    there = Collection("org/cascade-tiny-1", TITLE, "org", True, None)
    for name, note in ((NAMES[2], None), ("org/other", "stays"), (NAMES[0], "old note")):
        there.add(name, "model", note)
    hub.collections[there.slug] = there
    family(api, MEMBERS[:3])
    assert [item.id for item in there.items] == [NAMES[0], "org/other", NAMES[1], NAMES[2]]
    assert [item.note for item in there.items] == ["14B, base", "stays", "14B, instruct", "14B, reasoning"]
    assert not there.private and len(hub.collections) == 1


def test_what_the_hub_would_refuse_is_refused_before_anything_is_asked(hub, api):
    for members, more, wrong in [
        ([], {}, "at least one model"),
        ([MEMBERS[0]] * 2, {}, "twice: org/tiny-14b-base"),
        (MEMBERS, {"description": "x" * 151}, "at most 150 characters; got 151"),
        ([Member(Path("a"), "org/a", "base", "x" * 501)], {}, "at most 500 characters; got 501 for org/a"),
    ]:
        with pytest.raises(ValueError, match=wrong):
            family(api, members, **more)
    assert not hub.requests
