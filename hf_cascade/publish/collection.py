"""A collection on the Hub: made once, each model in it once, with its note, in the given order."""

from dataclasses import dataclass

from huggingface_hub import HfApi
from huggingface_hub.hf_api import Collection, CollectionItem

from hf_cascade.publish.steps import Steps

# what the Hub takes (docstrings of HfApi.create_collection and add_collection_item)
MOST_DESCRIPTION, MOST_NOTE = 150, 500


@dataclass(frozen=True)
class Entry:
    """A model and its note."""

    repo_id: str
    note: str | None = None


def check(entries: list[Entry], description: str | None = None) -> None:
    """Refuse what the Hub would refuse, before anything is uploaded."""
    if description is not None and len(description) > MOST_DESCRIPTION:
        got = f"{len(description)} characters: {description!r}"
        raise ValueError(f"a collection's description has at most {MOST_DESCRIPTION} characters; got {got}")
    for entry in entries:
        if entry.note is not None and len(entry.note) > MOST_NOTE:
            got = f"{len(entry.note)} for {entry.repo_id}"
            raise ValueError(f"a note in a collection has at most {MOST_NOTE} characters; got {got}")


def arrange(
    api: HfApi,
    steps: Steps,
    title: str,
    *,
    owner: str,
    entries: list[Entry],
    description: str | None = None,
    private: bool = True,
) -> str:
    """
    Make the collection hold these models in this order; what else is in it stays.

    Args:
        title (`str`), owner (`str`): which one; made where it is missing.
        entries (`list[Entry]`): models and notes.
        description (`str`, *optional*): for a new one.
        private (`bool`): whether a new one is; `False` makes one that is there public, `True` hides none.

    Returns:
        `str`: its address.
    """

    def find() -> Collection | None:
        same = [one.slug for one in api.list_collections(owner=owner) if one.title == title]
        return api.get_collection(same[0]) if same else None

    def make() -> Collection:
        details = {"namespace": owner, "description": description, "private": private, "exists_ok": True}
        return api.create_collection(title, **details)

    one = steps.run("making the collection", make, find)
    for entry in entries:
        steps.run("adding to the collection", lambda e=entry: _add(api, one.slug, e), lambda e=entry: _has(api, one, e))
    steps.run("sorting the collection", lambda: _sort(api, one.slug, [entry.repo_id for entry in entries]))
    if one.private and not private:
        steps.run("showing the collection", lambda: api.update_collection_metadata(one.slug, private=False))
    steps.say(f"in the collection {title}")
    return one.url


def _items(api: HfApi, slug: str) -> dict[str, CollectionItem]:
    """Its models, in order."""
    items = sorted(api.get_collection(slug).items, key=lambda item: item.position)
    return {item.item_id: item for item in items if item.item_type == "model"}


def _add(api: HfApi, slug: str, entry: Entry) -> bool:
    api.add_collection_item(slug, entry.repo_id, "model", note=entry.note, exists_ok=True)
    return True


def _has(api: HfApi, one: Collection, entry: Entry) -> bool | None:
    """Whether the model is there; its note is brought up to date."""
    item = _items(api, one.slug).get(entry.repo_id)
    if item is None:
        return None
    if entry.note is not None and item.note != entry.note:
        api.update_collection_item(one.slug, item.item_object_id, note=entry.note)
    return True


def _sort(api: HfApi, slug: str, wanted: list[str]) -> None:
    """The given models in the given order, in the places that they have together; others stay where they are."""
    items = sorted(api.get_collection(slug).items, key=lambda item: item.position)
    ours = {item.item_id: item for item in items if item.item_type == "model" and item.item_id in wanted}
    in_order = iter([ours[name] for name in wanted])
    target = [next(in_order) if item in ours.values() else item for item in items]
    for position, item in enumerate(target):
        if items[position] is not item:
            api.update_collection_item(slug, item.item_object_id, position=position)
            items.remove(item)
            items.insert(position, item)
