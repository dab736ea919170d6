"""
One model to the Hub, whole or not at all: pull request, one atomic commit, checksums, gate, merge, tag.

Every step asks the Hub first whether it is done, so the same call completes a release that stopped anywhere. Until the
merge, main is as it was; the merge brings the complete new state: files that it does not have are deleted with it.
"""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.hf_api import ModelInfo, RepoFile
from huggingface_hub.utils import validate_repo_id

from hf_cascade.display import clock
from hf_cascade.publish import checksums, pull_request
from hf_cascade.publish.collection import Entry, arrange
from hf_cascade.publish.folder import Upload
from hf_cascade.publish.steps import ReleaseError, Steps, print_line
from hf_cascade.publish.verdict import Decision

COUNTED = re.compile(r"v(\d+)$")
TAG = re.compile(
    r"(?!main$|refs/|.*(\.\.|//|\.lock$|[./]$))\w[\w.+/-]*", re.ASCII
)  # what git and the Hub's addresses take
MOST_NAMED = 5  # differences in one message


class GateRefusal(ReleaseError):
    """The gate said no; the pull request stays unmerged."""


@dataclass(frozen=True)
class Published:
    """
    A finished release.

    Attributes:
        url (`str`): the model's page.
        commit (`str`): the commit on main.
        tag (`str`): its tag.
        collection (`str`, *optional*): address of the collection that lists it.
    """

    url: str
    commit: str
    tag: str
    collection: str | None = None


def publish(
    uploads: list[Upload],
    *,
    repo_id: str,
    api: HfApi,
    message: str,
    decide: Callable[[], Decision],
    tag: str | None = None,
    private: bool | None = None,
    gated: str | bool | None = None,
    collection: str | None = None,
    note: str | None = None,
    say: Callable[[str], None] = print_line,
) -> Published:
    """
    Release one model; the same call again completes what a failure left undone, and repeats nothing.

    Args:
        uploads (`list[Upload]`): the complete new state, the card too.
        repo_id (`str`): `organization/name`; a new repository is private.
        api (`HfApi`): the client, with its token and endpoint.
        message (`str`): title of the commit and the pull request.
        decide: the gate; asked when the Hub's checksums are right, before the merge.
        tag (`str`, *optional*): name of the tag. Unset: `v1`, `v2`, ..., one for every new state.
        private (`bool`, *optional*): `False` makes the repository public, last of all; `True` makes it private, first
            of all. Unset, it stays as it is.
        gated (`str` or `bool`, *optional*): `auto` or `manual` makes readers apply, `False` does not; set last of all.
        collection (`str`, *optional*): title of a collection of the same owner; made where it is missing.
        note (`str`, *optional*): the model's note in the collection.
        say: prints a line of progress.

    Raises:
        `GateRefusal`: nothing was merged.
        `ReleaseError`: a step failed; the message says which, and what main holds.
    """
    release = Release(uploads, repo_id=repo_id, api=api, message=message, say=say)
    commit = release.to_main(decide, tag=tag, private=private)
    name = release.tag(commit, tag)
    address = None
    if collection is not None:
        owner = repo_id.split("/")[0]
        entries = [Entry(repo_id, note)]
        address = arrange(api, release.steps, collection, owner=owner, entries=entries, private=private is not False)
    release.settings(private=private, gated=gated)
    return Published(f"{api.endpoint}/{repo_id}", commit, name, address)


def check_names(repo_ids: list[str], tag: str | None) -> None:
    """
    Refuse what the Hub would refuse, before anything is read or sent.

    Raises:
        ValueError: a name of a repository, or a tag, that it does not take.
    """
    for repo_id in repo_ids:
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise ValueError(f"repo_id={repo_id}: {error}") from error
    if tag is not None and not TAG.fullmatch(tag):
        raise ValueError(f"tag={tag}: a tag has letters, digits, - _ + . only, as v1.0, and is not main")


class Release:
    """
    The steps of one release, in the order of `publish`.

    Args:
        uploads, repo_id, api, message, say: as of `publish`.
    """

    def __init__(self, uploads: list[Upload], *, repo_id: str, api: HfApi, message: str, say=print_line):
        if repo_id.count("/") != 1:
            raise ValueError(f"a repository is named organization/name; got {repo_id!r}")
        if not uploads:
            raise ValueError(f"nothing to upload to {repo_id}: an empty state would delete the model")
        self.uploads, self.repo_id, self.api, self.message = uploads, repo_id, api, message
        self.steps = Steps(repo_id, say)

    def to_main(self, decide: Callable[[], Decision], *, tag: str | None = None, private: bool | None = None) -> str:
        """The commit on main that holds exactly `uploads`; see `publish`."""
        base = self._repository(hide=private is True)
        there = self._files(base)
        merged = not checksums.differences(self.uploads, there)
        self._tag_is_free(tag, base if merged else None)
        if merged:
            self.steps.holds = "main holds the complete new state."
            self.steps.say("main holds this content already")
            self._ask(decide)
            pull_request.close_all(self.api, self.steps, self.repo_id)
            return base
        if gone := checksums.to_delete(self.uploads, there):
            more = f" and {len(gone) - MOST_NAMED} more" if len(gone) > MOST_NAMED else ""
            named = f"{', '.join(gone[:MOST_NAMED])}{more}"
            self.steps.say(f"the new state is without {named}; commit {base[:12]} keeps what main holds now")
        about = {"message": self.message, "base": base, "there": there}
        number = pull_request.open_one(self.api, self.steps, self.repo_id, self.uploads, **about)
        head = self._commit(number, base, there)
        self._verify(head, "comparing checksums")
        self._ask(decide)
        return self._merge(number, base)

    def tag(self, commit: str, name: str | None = None) -> str:
        """Tag a commit; see `publish`. Returns the tag's name."""

        def find() -> str | None:
            counted = self._counted()
            last = name or (f"v{counted[-1]}" if counted else None)
            there = self._tagged(last)
            if name and there not in (None, commit):
                raise self._taken(name, there)
            return last if there == commit else None

        def make() -> str:
            new = name or f"v{max([0, *self._counted()]) + 1}"
            self.api.create_tag(self.repo_id, tag=new, revision=commit)
            return new

        made = self.steps.run("tagging", make, find)
        self.steps.say(f"tag {made}")
        return made

    def settings(self, *, private: bool | None = None, gated: str | bool | None = None) -> None:
        """Visibility and gating in one request: never public without the gate that was asked for."""
        wanted = {name: value for name, value in (("private", private), ("gated", gated)) if value is not None}
        if not wanted:
            return

        def find() -> bool | None:
            info = self._info()
            return True if all(getattr(info, name) == value for name, value in wanted.items()) else None

        def make() -> bool:
            self.api.update_repo_settings(self.repo_id, **wanted)
            return True

        self.steps.run("setting visibility", make, find)
        visible = [] if private is None else ["private" if private else "public"]
        asks = [] if gated is None else [f"readers apply ({gated})" if gated else "not gated"]
        self.steps.say(", ".join(visible + asks))

    def _repository(self, hide: bool) -> str:
        """A repository that exists; returns the head of main."""

        def find() -> ModelInfo | None:
            try:
                return self._info()
            except RepositoryNotFoundError:
                return None

        def make() -> ModelInfo:
            self.api.create_repo(self.repo_id, private=True, exist_ok=True)
            return self._info()

        info = self.steps.run("making the repository", make, find)
        if hide and not info.private:
            self.settings(private=True)
            return info.sha
        self.steps.say("private repository" if info.private else "public repository: what is uploaded can be seen")
        return info.sha

    def _commit(self, number: int, base: str, there: dict[str, RepoFile]) -> str:
        """The one commit on the pull request; returns it."""
        reference, parent = f"refs/pr/{number}", base

        def find() -> str | None:
            nonlocal parent
            head = self._info(reference).sha
            if head == base:
                return None
            if head == self._info().sha:  # the pull request began on a commit newer than `base`
                raise self._moved("committing", head)
            if checksums.same(checksums.files_at(self.api, self.repo_id, head), there):
                parent = head  # a first commit without changes
                return None
            return head

        if done := self.steps.run("looking at the pull request", lambda: find() or ""):
            return done
        additions = [
            CommitOperationAdd(upload.path_in_repo, upload.path if upload.content is None else upload.content)
            for upload in self.uploads
        ]
        self._upload(additions, reference)

        def make() -> str:
            deleted = [CommitOperationDelete(path) for path in checksums.to_delete(self.uploads, there)]
            on = {"revision": reference, "parent_commit": parent}
            return self.api.create_commit(self.repo_id, [*additions, *deleted], commit_message=self.message, **on).oid

        return self.steps.run("committing", make, find)

    def _upload(self, additions: list[CommitOperationAdd], reference: str) -> None:
        """Weights one after another, with how long the rest takes; the client draws a bar for each on a terminal."""
        weights = [one for one in additions if one.path_in_repo.endswith(".safetensors")]
        rest = [one for one in additions if one not in weights]
        total, sent, started = sum(one.upload_info.size for one in weights), 0, time.monotonic()
        for batch in [[one] for one in weights] + [rest] * bool(rest):
            self.steps.run(
                f"uploading {batch[0].path_in_repo}" if batch != rest else "uploading",
                lambda batch=batch: self.api.preupload_lfs_files(
                    self.repo_id, batch, revision=reference, free_memory=False
                ),
                tries=1,
            )
            if batch != rest:
                sent += batch[0].upload_info.size
                left = (time.monotonic() - started) / max(sent, 1) * (total - sent)
                time_left = f", {clock(left)} left" if sent < total else ""
                self.steps.say(f"{checksums.in_words(sent)} of {checksums.in_words(total)} of weights{time_left}")

    def _verify(self, commit: str, step: str) -> None:
        """The Hub has exactly what was to be uploaded."""
        found = checksums.differences(self.uploads, self._files(commit))
        if found:
            more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
            raise self.steps.error(step, f"{'; '.join(found[:MOST_NAMED])}{more}")
        self.steps.say(f"{step}: {len(self.uploads)} files are right")

    def _ask(self, decide: Callable[[], Decision]) -> None:
        decision = decide()
        if not decision.passed:
            text = f"{self.repo_id}: the gate refuses; nothing was merged. {self.steps.holds}\n{decision.text()}"
            raise GateRefusal("the gate", text)

    def _merge(self, number: int, base: str) -> str:
        """Merge the pull request on the head of main that it was made for; returns the commit on main."""

        def details():
            return self.api.get_discussion_details(self.repo_id, number)

        def find() -> str | None:
            one = details()
            return (one.merge_commit_oid or self._info().sha) if one.status == "merged" else None

        def make() -> str:
            if (head := self._info().sha) != base:
                raise self._moved("merging", head)
            if (status := details().status) == "closed":
                raise self.steps.error("merging", f"someone closed pull request {number}; nothing was merged")
            if status == "draft":
                self.api.change_discussion_status(self.repo_id, number, "open")
            self.steps.holds = "main is as it was or holds the complete new state, nothing between."
            self.api.merge_pull_request(self.repo_id, number)
            return details().merge_commit_oid or self._info().sha

        commit = self.steps.run("merging", make, find)
        self.steps.holds = "main is merged, and not compared yet."
        self._verify(commit, "comparing main after the merge")
        self.steps.holds = "main holds the complete new state."
        self.steps.say(f"merged: main is {commit[:12]}")
        return commit

    def _moved(self, step: str, head: str) -> ReleaseError:
        why = f"someone else committed {head[:12]} to main in the meantime; nothing was merged"
        return self.steps.error(step, why)

    def _tag_is_free(self, name: str | None, commit: str | None) -> None:
        """Better now than after an upload."""
        there = self.steps.run("looking at tags", lambda: self._tagged(name))
        if there not in (None, commit):
            raise self._taken(name, there)

    def _taken(self, name: str, there: str) -> ReleaseError:
        why = f"tag {name} is another state, commit {there[:12]}. {self.steps.holds} Give another name, or none."
        return ReleaseError("tagging", f"{self.repo_id}: {why}")

    def _tagged(self, name: str | None) -> str | None:
        """The commit of a tag."""
        if name is None or name not in {tag.name for tag in self.api.list_repo_refs(self.repo_id).tags}:
            return None
        return self._info(name).sha

    def _counted(self) -> list[int]:
        tags = self.api.list_repo_refs(self.repo_id).tags
        return sorted(int(found[1]) for tag in tags if (found := COUNTED.match(tag.name)))

    def _info(self, revision: str | None = None) -> ModelInfo:
        return self.api.model_info(self.repo_id, revision=revision)

    def _files(self, commit: str) -> dict[str, RepoFile]:
        return self.steps.run("listing files", lambda: checksums.files_at(self.api, self.repo_id, commit), tries=1)
