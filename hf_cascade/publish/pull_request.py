"""Our pull request on the Hub: found again by the content's hash in its title, made once, closed when it is stale."""

import re

from huggingface_hub import HfApi
from huggingface_hub.community import Discussion
from huggingface_hub.hf_api import RepoFile

from hf_cascade.publish import checksums
from hf_cascade.publish.folder import Upload
from hf_cascade.publish.steps import Steps

MARK = re.compile(r"\[release ([0-9a-f]{12})\]$")
NEEDED_NO_MORE = "main holds the released state already"
STALE = "Closed: {reason}. A pull request with the whole new state takes its place."


def open_one(
    api: HfApi,
    steps: Steps,
    repo_id: str,
    uploads: list[Upload],
    *,
    message: str,
    base: str,
    there: dict[str, RepoFile],
) -> int:
    """
    Number of the one open pull request of ours for this content on this head of main; stale ones are closed.

    Args:
        message (`str`): what the release is; begins the title.
        base (`str`), there (`dict[str, RepoFile]`): commit at the head of main, and its files.
    """
    author = _author(api, steps)
    wanted = checksums.digest(uploads)
    listed = steps.run("listing pull requests", lambda: _ours(api, repo_id, author))
    kept = None
    for one in listed:
        reason = steps.run(
            "looking at an earlier pull request", lambda one=one: _stale(api, one, uploads, base, there), tries=1
        )
        if reason is None and kept is None:
            kept = one.num
            continue
        _close_one(api, steps, one, STALE.format(reason=reason or "there are two"), reason or "there are two")

    def find() -> int | None:
        if kept is not None:
            return kept
        same = [one.num for one in _ours(api, repo_id, author) if MARK.search(one.title)[1] == wanted[:12]]
        return next(iter(same), None)

    def make() -> int:
        text = f"{message} [release {wanted[:12]}]"
        return api.create_pull_request(repo_id, text, description=_description(uploads, wanted)).num

    number = steps.run("opening a pull request", make, find)
    steps.say(f"pull request {number}" + (", from an earlier call" if kept else ""))
    return number


def close_all(api: HfApi, steps: Steps, repo_id: str) -> None:
    """Close what earlier calls left open: main holds the new state without them."""
    author = _author(api, steps)
    for one in steps.run("listing pull requests", lambda: _ours(api, repo_id, author)):
        _close_one(api, steps, one, f"Closed: {NEEDED_NO_MORE}.", NEEDED_NO_MORE)


def _author(api: HfApi, steps: Steps) -> str:
    return steps.run("asking whose token this is", lambda: api.whoami(cache=True))["name"]


def _close_one(api: HfApi, steps: Steps, one: Discussion, comment: str, reason: str) -> None:
    steps.say(f"pull request {one.num} is closed: {reason}")
    steps.run(
        "closing a stale pull request",
        lambda: _close(api, one, comment),
        lambda: _closed(api, one.repo_id, one.num),
    )


def _ours(api: HfApi, repo_id: str, author: str) -> list[Discussion]:
    """Open pull requests that a release of this account made, newest first. Opened by a program they are drafts."""
    found = api.get_repo_discussions(repo_id, discussion_type="pull_request", author=author)
    return [one for one in found if one.is_pull_request and one.status in ("open", "draft") and MARK.search(one.title)]


def _stale(api: HfApi, one: Discussion, uploads: list[Upload], base: str, there: dict[str, RepoFile]) -> str | None:
    """Why a pull request cannot become this release; `None` if it can."""
    if MARK.search(one.title)[1] != checksums.digest(uploads)[:12]:
        return "it holds another content"
    commits = [commit.commit_id for commit in api.list_repo_commits(one.repo_id, revision=one.git_reference)]
    if base not in commits:
        return "main has another commit now"
    files = checksums.files_at(api, one.repo_id, commits[0])
    if checksums.same(files, there):
        return None  # nothing committed yet
    return "its files are not the ones that were sent" if checksums.differences(uploads, files) else None


def _close(api: HfApi, one: Discussion, comment: str) -> bool:
    api.change_discussion_status(one.repo_id, one.num, "closed", comment=comment)
    return True


def _closed(api: HfApi, repo_id: str, number: int) -> bool | None:
    return True if api.get_discussion_details(repo_id, number).status in ("closed", "merged") else None


def _description(uploads: list[Upload], wanted: str) -> str:
    lines = [f"A complete new state: {len(uploads)} files, {checksums.size_of(uploads)}, content sha256 `{wanted}`."]
    lines += ["It is merged after the Hub's checksums and the gate have been looked at, not before.", ""]
    lines += [f"- `{upload.path_in_repo}` sha256 `{upload.sha256}`" for upload in uploads]
    return "\n".join(lines)
