"""What a Hub for tests holds, in memory: repositories with commits and pull requests, and collections."""

import hashlib
import re
from dataclasses import dataclass, field

GIT_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
MAIN = "main"


class Problem(Exception):
    """An answer that is an error: a status, what is wrong, and the Hub's name for it where it has one."""

    def __init__(self, status: int, message: str, code: str | None = None, **more):
        super().__init__(message)
        self.status, self.message, self.code, self.more = status, message, code, more


@dataclass(frozen=True)
class Blob:
    """A file's content, and whether git holds it or only a pointer to it."""

    content: bytes
    lfs: bool = False

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def in_git(self) -> bytes:
        if not self.lfs:
            return self.content
        oid = f"oid sha256:{self.sha256}\nsize {len(self.content)}\n"
        return f"version https://git-lfs.github.com/spec/v1\n{oid}".encode()

    @property
    def oid(self) -> str:
        """git's sha1 of the file, or of the pointer."""
        return hashlib.sha1(b"blob %d\0" % len(self.in_git) + self.in_git).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.oid

    def as_json(self, path: str) -> dict:
        entry = {"type": "file", "path": path, "size": len(self.content), "oid": self.oid}
        if self.lfs:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": len(self.in_git)}
        return entry


@dataclass(frozen=True)
class Commit:
    """A whole state of a repository."""

    id: str
    parent: str | None
    title: str
    message: str
    author: str
    files: dict[str, Blob]


@dataclass
class Discussion:
    """A discussion or a pull request."""

    num: int
    title: str
    author: str
    pull_request: bool
    base: str
    status: str
    events: list[dict] = field(default_factory=list)
    merge_commit: str | None = None

    @property
    def ref(self) -> str:
        return f"refs/pr/{self.num}"

    @property
    def comments(self) -> list[str]:
        return [event["data"]["latest"]["raw"] for event in self.events if event["type"] == "comment"]

    def add(self, kind: str, author: str, data: dict) -> dict:
        """A new event."""
        event = {"id": f"{self.num}-{len(self.events)}", "type": kind, "createdAt": now(), "data": data}
        event["author"] = {"name": author}
        self.events.append(event)
        return event

    def comment(self, author: str, text: str) -> dict:
        """A new comment."""
        latest = {"raw": text, "html": text, "updatedAt": now()}
        return self.add("comment", author, {"edited": False, "hidden": False, "latest": latest, "history": []})


class Repo:
    """A model repository: refs that point to commits, tags, discussions, and the large files that were uploaded."""

    def __init__(self, repo_id: str, private: bool, author: str):
        self.id, self.private, self.gated = repo_id, private, False
        self.commits: dict[str, Commit] = {}
        self.refs: dict[str, str] = {}  # main, other branches, refs/pr/N
        self.tags: dict[str, str] = {}
        self.discussions: list[Discussion] = []
        self.objects: dict[str, bytes] = {}  # large files by sha256
        self.commit(MAIN, {".gitattributes": Blob(GIT_ATTRIBUTES)}, title="initial commit", author=author)

    def commit(self, ref: str, files: dict[str, Blob], *, title: str, author: str, message: str = "") -> Commit:
        """Put a new state on a branch or pull request."""
        parent = self.refs.get(ref)
        text = f"{self.id} {parent} {title} {len(self.commits)} {sorted((p, b.oid) for p, b in files.items())}"
        made = Commit(hashlib.sha1(text.encode()).hexdigest(), parent, title, message, author, dict(files))
        self.commits[made.id], self.refs[ref] = made, made.id
        for discussion in self.discussions:
            if discussion.ref == ref:
                discussion.add("commit", author, {"subject": title, "oid": made.id})
        return made

    def at(self, revision: str) -> Commit:
        """The commit that a branch, pull request, tag or hash names."""
        name = self.refs.get(revision) or self.tags.get(revision) or revision
        if name not in self.commits:
            raise Problem(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[name]

    def history(self, revision: str) -> list[Commit]:
        """Newest first."""
        found, name = [], self.at(revision).id
        while name is not None:
            found.append(self.commits[name])
            name = found[-1].parent
        return found

    def files(self, revision: str = MAIN) -> dict[str, bytes]:
        """Content of every file."""
        return {path: blob.content for path, blob in self.at(revision).files.items()}

    def discussion(self, num: int) -> Discussion:
        if not 0 < num <= len(self.discussions):
            raise Problem(404, f"no discussion {num}")
        return self.discussions[num - 1]

    def open(self, title: str, description: str, author: str, pull_request: bool, status: str) -> Discussion:
        """A new discussion or pull request on main."""
        base = self.refs[MAIN]
        new = Discussion(len(self.discussions) + 1, title, author, pull_request, base, status)
        self.discussions.append(new)
        if pull_request:
            self.refs[new.ref] = base
        new.comment(author, description)
        return new

    def conflicts(self, pull_request: Discussion) -> list[str]:
        """Files that main changed in another way since the pull request began."""
        base, main = self.commits[pull_request.base].files, self.at(MAIN).files
        theirs = self.at(pull_request.ref).files
        both = {path for path in {*base, *main, *theirs} if base.get(path) != main.get(path) != theirs.get(path)}
        return sorted(path for path in both if base.get(path) != theirs.get(path))

    def merge(self, pull_request: Discussion, author: str) -> None:
        """One new commit on main, as git would merge: what only one side changed is that side's."""
        if pull_request.status != "open" or not pull_request.pull_request:
            raise Problem(400, f"a pull request that is {pull_request.status} cannot be merged")
        if self.conflicts(pull_request):
            raise Problem(409, "This pull request has conflicts with main")
        base, main = self.commits[pull_request.base].files, self.at(MAIN).files
        theirs = self.at(pull_request.ref).files
        files = {
            path: blob
            for path in {*main, *theirs}
            if (blob := main.get(path) if base.get(path) == theirs.get(path) else theirs.get(path)) is not None
        }
        commits = [commit for commit in self.history(pull_request.ref) if commit.id not in self._known(pull_request)]
        message = "\n".join(f"- {commit.title} ({commit.id})" for commit in reversed(commits))
        title = f"{pull_request.title} (#{pull_request.num})"
        merged = self.commit(MAIN, files, title=title, author=author, message=message)
        pull_request.status, pull_request.merge_commit = "merged", merged.id
        pull_request.add("status-change", author, {"status": "merged"})

    def _known(self, pull_request: Discussion) -> set[str]:
        return {commit.id for commit in self.history(pull_request.base)}


@dataclass
class Item:
    """One line of a collection."""

    key: str
    id: str
    type: str
    note: str | None

    def as_json(self, position: int) -> dict:
        note = None if self.note is None else {"text": self.note, "html": self.note}
        return {"_id": self.key, "id": self.id, "type": self.type, "position": position, "note": note}


@dataclass
class Collection:
    """A list of models with a title."""

    slug: str
    title: str
    namespace: str
    private: bool
    description: str | None
    items: list[Item] = field(default_factory=list)

    def add(self, item_id: str, item_type: str, note: str | None) -> None:
        if any((item.id, item.type) == (item_id, item_type) for item in self.items):
            raise Problem(409, "Item already exists in the collection")
        self.items.append(Item(f"{len(self.items):024x}", item_id, item_type, note))

    def item(self, key: str) -> Item:
        for item in self.items:
            if item.key == key:
                return item
        raise Problem(404, f"no item {key}")

    def as_json(self, most: int | None = None) -> dict:
        """As the Hub writes it; a list of collections holds the first items of each, and says no position."""
        position = {"position": 0} if most is None else {}
        return {
            **position,
            "slug": self.slug,
            "title": self.title,
            "description": self.description,
            "owner": {"name": self.namespace, "type": "org"},
            "items": [item.as_json(position) for position, item in enumerate(self.items[:most])],
            "lastUpdated": now(),
            "private": self.private,
            "theme": "green",
            "upvotes": 0,
        }


def slug_of(namespace: str, title: str) -> str:
    """Address of a collection."""
    words = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return f"{namespace}/{words}-{hashlib.sha1(title.encode()).hexdigest()[:24]}"


def now() -> str:
    """A date as the Hub writes it; always the same, for tests."""
    return "2026-01-02T03:04:05.000Z"
