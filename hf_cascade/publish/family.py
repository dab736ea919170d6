"""Several models to the Hub, each whole or not at all, and one collection of them; all gates are asked first."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi

from hf_cascade.publish import collection
from hf_cascade.publish.collection import Entry
from hf_cascade.publish.folder import Upload
from hf_cascade.publish.release import GateRefusal, Published, Release
from hf_cascade.publish.steps import ReleaseError, Steps, print_line
from hf_cascade.publish.verdict import Decision


@dataclass(frozen=True)
class Member:
    """
    One model of a family.

    Attributes:
        folder (`Path`): its finished folder.
        repo_id (`str`): its repository.
        kind (`str`): `base`, `instruct` or `reasoning`.
        note (`str`, *optional*): its note in the collection. Unset, its kind.
    """

    folder: Path
    repo_id: str
    kind: str
    note: str | None = None


def publish_family(
    members: list[Member],
    *,
    api: HfApi,
    message: str,
    uploads: Callable[[Member, Decision], list[Upload]],
    decide: Callable[[Member], Decision],
    title: str | None = None,
    description: str | None = None,
    tag: str | None = None,
    private: bool | None = None,
    gated: str | bool | None = None,
    say: Callable[[str], None] = print_line,
) -> list[Published]:
    """
    Release all models one after another, put them into one collection in this order, and show them all last of all.

    The same call again completes what a failure left undone: models that are released are recognised by their content.

    Args:
        members (`list[Member]`): in the order of the collection.
        api (`HfApi`): the client, with its token and endpoint.
        message (`str`): title of each commit.
        uploads: the complete new state of a member, its card too; its decision is for the card.
        decide: the gate of a member. Asked for all before anything is uploaded, and for each again before its merge.
        title (`str`, *optional*): of the collection, which belongs to the first member's owner. Unset, there is none.
        description (`str`, *optional*): of a new collection.
        tag, private, gated, say: as of `release.publish`.

    Raises:
        `GateRefusal`: a gate refuses.
        `ReleaseError`: a step failed; the message says which models are released.
    """
    entries = [Entry(member.repo_id, member.note or member.kind) for member in members]
    _check(members, entries, description)
    decisions = _ask_all(members, decide)
    done: dict[str, tuple[Release, str, str]] = {}
    for member in members:
        try:
            files = uploads(member, decisions[member.repo_id])
            one = Release(files, repo_id=member.repo_id, api=api, message=message, say=say)
            commit = one.to_main(lambda member=member: decide(member), tag=tag, private=private)
            done[member.repo_id] = one, commit, one.tag(commit, tag)
        except ReleaseError as error:
            raise type(error)(error.step, f"{error}{_released(members, done)}") from error
    address = None
    if title is not None:
        steps = Steps(f"collection {title}", say)
        steps.holds = "All models are released."
        details = {"owner": members[0].repo_id.split("/")[0], "description": description}
        details["private"] = private is not False
        address = collection.arrange(api, steps, title, entries=entries, **details)
    for one, _, _ in done.values():
        one.settings(private=private, gated=gated)
    return [Published(f"{api.endpoint}/{name}", commit, tag, address) for name, (_, commit, tag) in done.items()]


def _check(members: list[Member], entries: list[Entry], description: str | None) -> None:
    """Before anything is read or sent."""
    names = [member.repo_id for member in members]
    if not members:
        raise ValueError("a family has at least one model")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"each model of a family has its own repository; twice: {', '.join(twice)}")
    collection.check(entries, description)


def _ask_all(members: list[Member], decide: Callable[[Member], Decision]) -> dict[str, Decision]:
    """Every member's decision; refuses with all refusals at once."""
    decisions = {member.repo_id: decide(member) for member in members}
    refused = [f"{name}:\n{one.text()}" for name, one in decisions.items() if not one.passed]
    if refused:
        text = f"the gate refuses {len(refused)} of {len(members)} models; nothing was uploaded.\n"
        raise GateRefusal("the gate", text + "\n".join(refused))
    return decisions


def _released(members: list[Member], done: dict) -> str:
    """What a failure in the middle leaves."""
    names = [member.repo_id for member in members]
    left = [name for name in names if name not in done]
    released = f" Released whole: {', '.join(done)}." if done else ""
    return f"{released} Not begun: {', '.join(left[1:])}." if left[1:] else released
