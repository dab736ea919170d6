"""Every request of a release fails in every way: main is the old or the new state, and the same call completes it."""

import pytest

from hf_cascade.publish.release import GateRefusal
from hf_cascade.publish.steps import ReleaseError
from tests.publish.hub import DROP_AFTER, DROP_BEFORE, TOKEN
from tests.publish.releases import NEW, OLD, REFUSES, REPO, assert_complete, release, state

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")


# method and path of every request of a release, how many like it go well before, and whether the Hub had the model
REQUESTS = {
    "whose token": ("GET", "/whoami-v2", 0),
    "repository": ("GET", "/models/org/a$", 0),
    "tags": ("GET", "/refs", 0),
    "files of main": ("GET", "/tree/", 0),
    "pull requests": ("GET", "/discussions[?]", 0),
    "open pull request": ("POST", "/discussions$", 0),
    "opened pull request": ("GET", "/discussions/1[?]", 0),
    "head of pull request": ("GET", "/revision/refs%2Fpr%2F1", 0),
    "how to upload": ("POST", "/preupload/", 0),
    "ask where": ("POST", "/objects/batch", 0),
    "send": ("PUT", "/objects/", 0),
    "sent": ("POST", "/lfs/verify", 0),
    "card": ("POST", "/validate-yaml", 0),
    "commit": ("POST", "/commit/", 0),
    "checksums": ("GET", "/tree/", 1),
    "main before merge": ("GET", "/models/org/a$", 1),
    "no draft": ("POST", "/discussions/1/status", 0),
    "merge": ("POST", "/merge", 0),
    "merge commit": ("GET", "/discussions/1[?]", 3),
    "main after merge": ("GET", "/tree/", 2),
    "tag": ("POST", "/tag/", 0),
    "collections": ("GET", "/collections[?]", 0),
    "make collection": ("POST", "/collections$", 0),
    "look into collection": ("GET", "/collections/org/", 0),
    "add to collection": ("POST", "/items$", 0),
    "settings": ("PUT", "/settings", 0),
}
FAULTS = {
    "503 once": (503, 1),
    "503 always": (503, None),
    "500": (500, None),
    "403": (403, None),
    "412": (412, None),
    "dropped before": (DROP_BEFORE, 1),
    "dropped after": (DROP_AFTER, 1),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("request_name", REQUESTS)
def test_main_is_old_or_new_whatever_fails(old, api, request_name, fault):
    (method, path, skip), (what, times) = REQUESTS[request_name], FAULTS[fault]
    old.fail(method, path, what, times, skip)
    if times == 1:
        release(api)  # survived in one call
    else:
        with pytest.raises(ReleaseError) as raised:
            release(api)
        assert_says(str(raised.value), what)
        assert old.repo(REPO).files() in (state(OLD), state(NEW))
        assert_says_what_main_holds(str(raised.value), old.repo(REPO).files())
        old.mend()
        release(api)
    assert_complete(old, commits=3, tags=["v1", "v2"])


def assert_says(text: str, status: int):
    """One line: where, which step, what the Hub said, how to go on."""
    assert text.startswith(REPO) and "\n" not in text and TOKEN not in text
    assert str(status) in text or "no JSON" in text  # that is what the client says of a card
    mended = "When that is mended, the same command" if status == 403 else "The same command"
    assert text.endswith(f"{mended} goes on from here.")


def assert_says_what_main_holds(text: str, files: dict[str, bytes]):
    unknown = "main is as it was or holds the complete new state, nothing between." in text
    old, new = "main is as it was." in text, "main holds the complete new state." in text
    merged = "main is merged, and not compared yet." in text
    assert unknown + old + new + merged == 1
    assert unknown or (files == state(OLD)) == old


@pytest.mark.parametrize("fault", FAULTS)
def test_a_repository_that_cannot_be_made_leaves_none_or_an_empty_one(hub, api, fault):
    what, times = FAULTS[fault]
    hub.fail("POST", "/repos/create", what, times)
    if times is None:
        with pytest.raises(ReleaseError, match="making the repository"):
            release(api)
        assert not hub.repos
        hub.mend()
    release(api)
    assert_complete(hub, commits=2, tags=["v1"])


@pytest.mark.parametrize("fault", FAULTS)
def test_looking_at_an_earlier_pull_request_may_fail(old, api, fault):
    what, times = FAULTS[fault]
    with pytest.raises(GateRefusal):
        release(api, decide=lambda: REFUSES)
    old.fail("GET", "/commits/refs%2Fpr%2F1", what, times)
    if times is None:
        with pytest.raises(ReleaseError, match="looking at an earlier pull request failed"):
            release(api)
        assert old.repo(REPO).files() == state(OLD)
        old.mend()
    release(api)
    assert_complete(old, commits=3, tags=["v1", "v2"])
    assert len(old.repo(REPO).discussions) == 1
