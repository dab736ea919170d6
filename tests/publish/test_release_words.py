"""What a release says: names that the Hub takes not, files that go, who closed what, and what is to be mended."""

import pytest

from hf_cascade.cli import main
from hf_cascade.publish import folder as folders
from hf_cascade.publish.release import ReleaseError, check_names, publish
from tests.publish.releases import CARD, NEW, PASSES, REPO, commit_by_hand, release, uploads


@pytest.mark.parametrize("tag", ["v1", "v1.0-rc.1", "2026/11", "a_b+c"])
def test_tags_that_git_takes(tag):
    check_names(["org/name"], tag)


@pytest.mark.parametrize("tag", ["v 1", "-v1", "v1.", "a..b", "a//b", "x.lock", "main", "refs/tags/x", "ü", "v~1", ""])
def test_tags_that_it_does_not(tag):
    with pytest.raises(ValueError, match="a tag has letters, digits"):
        check_names(["org/name"], tag)


@pytest.mark.parametrize("name", ["org/-a", "org/a.", "org/a..b", "org/a.git", f"org/{'a' * 100}"])
def test_names_of_repositories_are_checked_before_anything_is_read(name, folder, capsys):
    assert main(["publish", "--model", str(folder), "--repo_id", name, "--license", "mit"]) == 2
    said = capsys.readouterr()
    assert f"repo_id={name}: " in said.err and "GATE" not in said.out


def test_files_of_the_old_state_that_go_are_named(old, api):
    lines, base = [], old.repo(REPO).refs["main"]
    release(api, say=lines.append)
    (line,) = [line for line in lines if "the new state is without" in line]
    assert (
        line == f"{REPO}: the new state is without only_in_old/plot.png; commit {base[:12]} keeps what main holds now"
    )
    lines.clear()
    commit_by_hand(old, {**NEW, **{f"{number}.gguf": b"x" for number in range(9)}})
    release(api, say=lines.append)
    assert "0.gguf, 1.gguf, 2.gguf, 3.gguf, 4.gguf and 4 more; commit" in "\n".join(lines)


def test_a_pull_request_that_someone_closes_is_not_merged(hub, api):
    def decide():
        hub.repo(REPO).discussions[0].status = "closed"
        return PASSES

    with pytest.raises(ReleaseError, match="someone closed pull request 1; nothing was merged. main is as it was"):
        release(api, decide=decide)
    release(api)
    assert hub.repo(REPO).files()["README.md"] == CARD
    assert [one.status for one in hub.repo(REPO).discussions] == ["closed", "merged"]


def test_a_pull_request_that_is_needed_no_more_is_closed(old, api):
    """A release of other content stopped before its merge, and the folder is again what main holds."""
    release(api)
    old.fail("POST", "/merge", 403, 9)
    with pytest.raises(ReleaseError, match="merging failed"):
        release(api, {**NEW, "config.json": b'{"newer": 2}'})
    old.mend()
    lines = []
    release(api, say=lines.append)
    assert f"{REPO}: pull request 2 is closed: main holds the released state already" in lines
    assert [one.status for one in old.repo(REPO).discussions] == ["merged", "closed"]
    assert old.repo(REPO).files()["config.json"] == NEW["config.json"]


def test_what_must_be_mended_is_told_from_what_passes(hub, api):
    for status, words in ((403, "When that is mended, the same command goes on"), (412, ". The same command goes on")):
        hub.fail("POST", "/commit/", status, 9)
        with pytest.raises(ReleaseError) as raised:
            release(api)
        assert words in str(raised.value)
        hub.mend()


def test_a_hub_that_is_not_there_is_named(hub, api, monkeypatch):
    hub.fail("GET", "/api/", "drop before", 99)
    with pytest.raises(ReleaseError, match=f"Is {hub.url} the Hub that is meant, and can it be reached"):
        publish(uploads(), repo_id=REPO, api=api, message="A", decide=lambda: PASSES, say=print)


def test_an_adapter_is_told_what_to_do(folder):
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    assert "adapter_config.json: an adapter is no whole model: merge it" in "\n".join(folders.refusals(folder))


def test_a_readme_of_the_folder_s_own_is_said_to_be_replaced(folder, capsys):
    (folder / "README.md").write_text("# Mine")
    (folder / "notes.txt").write_text("x")
    main(["publish", "--model", str(folder), "--repo_id", "org/a", "--license", "mit", "--dry_run"])
    said = capsys.readouterr().out
    assert "left out: notes.txt\nthe folder's own README.md is replaced by the card" in said
