"""The Hub for tests answers huggingface_hub's real client as the Hub does, and fails where it is told to."""

import hashlib

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import get_session

from hf_cascade.publish.steps import HTTPError
from tests.publish.hub import DROP_AFTER, DROP_BEFORE, TOKEN, USER

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
REPO = "org/a"
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights" * 9999,
    "README.md": b"---\nlicense: mit\n---\n",
    "s/a": b"a",
}


@pytest.fixture
def folder(tmp_path):
    for path, content in FILES.items():
        file = tmp_path / "model" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return tmp_path / "model"


@pytest.fixture
def filled(hub, api, folder):
    api.create_repo(REPO, private=True)
    api.upload_folder(repo_id=REPO, folder_path=folder)
    return hub


def add(path: str, content: bytes = b"x") -> CommitOperationAdd:
    return CommitOperationAdd(path, content)


def test_a_folder_goes_up_and_comes_down(filled, api, folder):
    assert api.whoami()["name"] == USER
    checked = api.verify_repo_checksums(REPO, local_dir=folder)
    assert checked.checked_count == len(FILES) and not checked.mismatches
    down = snapshot_download(REPO)
    assert {path: open(f"{down}/{path}", "rb").read() for path in FILES} == FILES
    assert filled.repo(REPO).at("main").files["model.safetensors"].lfs and not filled.leaks


@pytest.mark.parametrize("page", [2, 1000])
def test_trees_come_in_pages(filled, api, page):
    filled.page = page
    paths = [entry.path for entry in api.list_repo_tree(REPO, recursive=True, expand=True)]
    assert sorted(paths) == sorted([".gitattributes", "s", *FILES])
    assert [entry.path for entry in api.list_repo_tree(REPO, "s")] == ["s/a"]
    assert len(api.list_repo_commits(REPO)) == 2
    with pytest.raises(EntryNotFoundError):
        list(api.list_repo_tree(REPO, "nowhere"))


def test_checksums_are_those_of_git_and_lfs(filled, api):
    small, large = api.get_paths_info(REPO, ["config.json", "model.safetensors"], expand=True)
    assert small.blob_id == hashlib.sha1(b"blob 2\0{}").hexdigest() and small.lfs is None
    assert large.lfs.sha256 == hashlib.sha256(FILES["model.safetensors"]).hexdigest()
    assert small.last_commit.title == "Upload folder using huggingface_hub"
    assert api.model_info(REPO, files_metadata=True).siblings[0].rfilename == ".gitattributes"


def test_large_files_in_parts(filled, api):
    filled.part_bytes, content = 30_000, b"new" * 40_000
    api.upload_file(repo_id=REPO, path_or_fileobj=content, path_in_repo="model.safetensors")
    assert filled.repo(REPO).files()["model.safetensors"] == content
    assert len(filled.asked("PUT", r"[?]part=")) == 4


def test_a_part_of_a_file(filled):
    sha = filled.repo(REPO).at("main").files["model.safetensors"].sha256
    hf_hub_download(REPO, "model.safetensors")
    got = get_session().get(f"{filled.storage_url}/linked/{sha}", headers={"Range": "bytes=7-13"})
    assert got.status_code == 206 and got.content == b"weights"


def test_what_is_not_there(filled, api):
    for missing, call in {
        RepositoryNotFoundError: lambda: api.model_info("org/none"),
        RevisionNotFoundError: lambda: api.model_info(REPO, revision="none"),
        EntryNotFoundError: lambda: hf_hub_download(REPO, "none"),
    }.items():
        with pytest.raises(missing):
            call()
    with pytest.raises(HfHubHTTPError, match="401"):
        HfApi(endpoint=filled.url, token=False).model_info(REPO)  # private


def test_repositories(hub, api):
    assert api.create_repo(REPO, private=True) == api.create_repo(REPO, exist_ok=True) == f"{hub.url}/{REPO}"
    with pytest.raises(HfHubHTTPError, match="409"):
        api.create_repo(REPO)
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_repo("stranger/a")
    api.update_repo_settings(REPO, private=False, gated="auto")
    info = HfApi(endpoint=hub.url, token=False).model_info(REPO)
    assert info.gated == "auto" and not info.private
    api.update_repo_settings(REPO, gated=False)
    assert hub.repo(REPO).gated is False and not hub.repo(REPO).private


def test_branches_and_tags(filled, api):
    api.create_branch(REPO, branch="dev")
    api.create_tag(REPO, tag="v1")
    api.upload_file(repo_id=REPO, path_or_fileobj=b"x", path_in_repo="x", revision="dev")
    refs = api.list_repo_refs(REPO, include_pull_requests=True)
    assert [one.name for one in refs.branches] == ["main", "dev"] and refs.pull_requests == []
    assert refs.tags[0].target_commit == api.model_info(REPO).sha != api.model_info(REPO, revision="dev").sha
    for make in (lambda: api.create_branch(REPO, branch="dev"), lambda: api.create_tag(REPO, tag="v1")):
        with pytest.raises(HfHubHTTPError, match="409"):
            make()


def test_a_commit_on_an_old_parent_is_refused(filled, api):
    parent = api.model_info(REPO).sha
    operations = [add("x"), CommitOperationDelete("config.json"), CommitOperationDelete("s/")]
    api.create_commit(REPO, operations, commit_message="one", parent_commit=parent)
    assert {"x", "README.md"} < set(api.list_repo_files(REPO)) and "s/a" not in api.list_repo_files(REPO)
    with pytest.raises(HfHubHTTPError, match="412"):
        api.create_commit(REPO, [add("y")], commit_message="two", parent_commit=parent)
    assert "y" not in api.list_repo_files(REPO)


def test_bad_cards_are_refused(filled, api):
    with pytest.raises(ValueError, match="Invalid metadata"):
        api.create_commit(REPO, [add("README.md", b"---\na: [\n---\n")], commit_message="m")


def test_pull_requests_begin_as_drafts_and_merge_once(filled, api):
    number = api.create_pull_request(REPO, "A title", description="why").num
    api.create_commit(REPO, [add("x")], commit_message="m", revision=f"refs/pr/{number}")
    with pytest.raises(HfHubHTTPError, match="draft cannot be merged"):
        api.merge_pull_request(REPO, number)
    api.change_discussion_status(REPO, number, "open", comment="ready")
    assert "x" not in filled.repo(REPO).files()
    api.merge_pull_request(REPO, number)
    details = api.get_discussion_details(REPO, number)
    assert details.status == "merged" and details.merge_commit_oid == api.model_info(REPO).sha
    assert api.list_repo_commits(REPO)[0].title == "A title (#1)" and filled.repo(REPO).files()["x"] == b"x"
    with pytest.raises(HfHubHTTPError, match="merged cannot be merged"):
        api.merge_pull_request(REPO, number)
    assert filled.repo(REPO).discussion(number).comments == ["why", "ready"]


def test_a_pull_request_with_conflicts_does_not_merge(filled, api):
    made = api.create_commit(REPO, [add("config.json", b"1"), add("x")], commit_message="theirs", create_pr=True)
    api.create_commit(REPO, [add("config.json", b"2")], commit_message="ours")
    assert api.get_discussion_details(REPO, made.pr_num).conflicting_files == ["config.json"]
    with pytest.raises(HfHubHTTPError, match="409"):
        api.merge_pull_request(REPO, made.pr_num)
    assert "x" not in filled.repo(REPO).files()


def test_discussions_are_listed_by_kind_and_state(filled, api):
    filled.page = 1
    for title in ("one", "two"):
        api.create_pull_request(REPO, title)
    api.create_discussion(REPO, "talk")
    api.comment_discussion(REPO, 3, "hello")
    api.change_discussion_status(REPO, 1, "closed")

    def titles(**filters):
        return [one.title for one in api.get_repo_discussions(REPO, **filters)]

    assert titles() == ["talk", "two", "one"] and titles(author="nobody") == []
    assert titles(discussion_type="pull_request", discussion_status="open") == ["two"]
    assert filled.repo(REPO).discussion(3).comments[-1] == "hello"


def test_collections(filled, api):
    one = api.create_collection("A family", namespace="org", description="all of it", private=True)
    assert api.create_collection("A family", namespace="org", exists_ok=True).slug == one.slug
    for name in ("org/b", REPO, "org/c", "org/d", "org/e"):
        api.add_collection_item(one.slug, name, "model", note=name)
    assert len(api.add_collection_item(one.slug, REPO, "model", exists_ok=True).items) == 5
    (listed,) = api.list_collections(owner="org")
    assert len(listed.items) == 4 and not list(api.list_collections(owner="other"))  # the first ones, as on the Hub
    items = api.get_collection(one.slug).items
    api.update_collection_item(one.slug, items[1].item_object_id, position=0, note="first")
    api.update_collection_metadata(one.slug, private=False)
    there = api.get_collection(one.slug)
    assert [item.item_id for item in there.items][:2] == [REPO, "org/b"] and there.items[0].note == "first"
    assert not there.private and there.description == "all of it"


@pytest.mark.parametrize(("what", "done"), [(500, False), (DROP_BEFORE, False), (DROP_AFTER, True)])
def test_faults_happen_before_or_after_the_deed(filled, api, what, done):
    filled.fail("POST", "/tag/", what, skip=1)
    api.create_tag(REPO, tag="v1")
    with pytest.raises(HTTPError):
        api.create_tag(REPO, tag="v2")
    assert list(filled.repo(REPO).tags) == (["v1", "v2"] if done else ["v1"])
    api.create_tag(REPO, tag="v3")
    assert "v3" in filled.repo(REPO).tags


def test_faults_that_last_and_end(filled, api):
    filled.fail("*", "/refs", 403, times=None)
    for _ in range(3):
        with pytest.raises(HfHubHTTPError, match="403"):
            api.list_repo_refs(REPO)
    filled.mend()
    assert api.list_repo_refs(REPO).branches


def test_flipped_bits(filled, api):
    filled.flip("x")
    api.upload_file(repo_id=REPO, path_or_fileobj=b"x", path_in_repo="x")
    assert filled.repo(REPO).files()["x"] == b"y"


def test_leaks_are_seen(filled, api):
    assert not filled.leaks
    api.create_discussion(REPO, f"my token is {TOKEN}")
    api.upload_file(repo_id=REPO, path_or_fileobj=TOKEN.encode() * 99, path_in_repo="weights.safetensors")
    get_session().get(f"{filled.url}/api/whoami-v2?token={TOKEN}")
    get_session().get(f"{filled.url}/api/whoami-v2", headers={"X-Token": TOKEN})
    assert {leak.split()[0] for leak in filled.leaks} == {"POST", "PUT", "GET"} and len(filled.leaks) >= 4
