"""Paths and JSON of the Hub's API, as huggingface_hub's client asks for them (read in huggingface_hub 2.4)."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlencode, urlsplit

import yaml

from tests.publish.hub_state import MAIN, Blob, Commit, Problem, Repo, now

ROUTES: list[tuple[str, re.Pattern, Callable]] = []
LARGE_NAMES = (".safetensors", ".bin", ".pt", ".gguf")
LARGE_BYTES = 10 * 2**20
NAMES = {"repo": "[^/]+/[^/]+", "rev": "[^/]+", "path": ".+", "num": r"\d+", "slug": "[^/]+/[^/]+", "key": "[^/]+"}


@dataclass
class Request:
    """One request, read whole."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    user: str | None = None

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True)

    @property
    def json(self) -> dict:
        return json.loads(self.body or b"{}")

    def asks(self, name: str) -> bool:
        """Whether a flag of the query is set."""
        return self.query.get(name, ["0"])[-1].lower() in ("1", "true")


@dataclass
class Answer:
    """What goes back: JSON, or bytes."""

    body: object = None
    status: int = 200
    headers: dict[str, str] | None = None


def route(method: str, pattern: str):
    """Register a handler `(hub, request, **parts of the path) -> Answer | JSON`."""
    pattern = re.sub(r"<(\w+)>", lambda found: f"(?P<{found[1]}>{NAMES[found[1]]})", pattern)

    def register(handler):
        ROUTES.append((method, re.compile(pattern), handler))
        return handler

    return register


def answer(hub, request: Request) -> Answer:
    """Find the handler and call it."""
    for method, pattern, handler in ROUTES:
        if method == request.method and (found := pattern.fullmatch(request.path)):
            parts = {name: unquote(text) for name, text in found.groupdict().items()}
            if "repo" in parts:
                writes = method not in ("GET", "HEAD") and "/paths-info/" not in request.path
                parts["repo"] = hub.visible(parts["repo"], request, write=writes)
            made = handler(hub, request, **parts)
            return made if isinstance(made, Answer) else Answer(made)
    raise Problem(404, f"no such path: {request.method} {request.path}")


@route("GET", "/api/whoami-v2")
def whoami(hub, request):
    orgs = [{"name": name, "roleInOrg": "write"} for name in hub.organizations]
    auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": "write"}}
    return {"type": "user", "name": hub.signed_in(request), "fullname": "", "orgs": orgs, "auth": auth}


@route("POST", "/api/repos/create")
def create_repo(hub, request):
    asked, user = request.json, hub.signed_in(request)
    repo_id = f"{asked['organization'] or user}/{asked['name']}"
    hub.may_write(repo_id, user)
    if repo_id in hub.repos:
        answer = {"error": "You already created this model repo", "url": f"{hub.url}/{repo_id}"}
        return Answer(answer, 409)
    private = asked.get("visibility") == "private" or bool(asked.get("private"))
    hub.repos[repo_id] = Repo(repo_id, private, user)
    return {"url": f"{hub.url}/{repo_id}", "name": repo_id, "id": repo_id}


@route("POST", "/api/validate-yaml")
def validate_yaml(hub, request):
    found = re.match(r"\s*---\r?\n(.*?)\r?\n---", request.json["content"], re.DOTALL)
    if not found:
        return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
    try:
        metadata = yaml.safe_load(found[1])
    except yaml.YAMLError as error:
        return Answer({"errors": [{"message": str(error)}], "warnings": []}, 400)
    if not isinstance(metadata, dict):
        return Answer({"errors": [{"message": "metadata must be keys and values"}], "warnings": []}, 400)
    return {"errors": [], "warnings": []}


@route("POST", "/api/models/<repo>/preupload/<rev>")
def preupload(hub, request, repo: Repo, rev: str):
    files = []
    there = repo.at(rev).files
    for file in request.json["files"]:
        large = file["path"].endswith(LARGE_NAMES) or file["size"] > LARGE_BYTES
        entry = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        if file["path"] in there:
            entry["oid"] = there[file["path"]].etag
        files.append(entry)
    return {"files": files}


@route("POST", "/<repo>.git/info/lfs/objects/batch")
def lfs_batch(hub, request, repo: Repo):
    objects = []
    for wanted in request.json["objects"]:
        entry, oid = {"oid": wanted["oid"], "size": wanted["size"]}, wanted["oid"]
        if oid not in repo.objects:
            address, header = f"{hub.url}/objects/{repo.id}/{oid}", {}
            if hub.part_bytes and "multipart" in request.json["transfers"] and wanted["size"] > hub.part_bytes:
                parts = range(1, -(-wanted["size"] // hub.part_bytes) + 1)
                header = {"chunk_size": str(hub.part_bytes), **{str(part): f"{address}?part={part}" for part in parts}}
            verify = {"href": f"{hub.url}/{repo.id}.git/info/lfs/verify"}
            entry["actions"] = {"upload": {"href": address, "header": header}, "verify": verify}
        objects.append(entry)
    return {"transfer": "basic", "objects": objects}


@route("PUT", "/objects/<repo>/<key>")
def put_object(hub, request, repo: Repo, key: str):
    if "part" in request.query:
        hub.parts[key, int(request.query["part"][0])] = request.body
        return Answer(b"", 200, {"ETag": hashlib.md5(request.body).hexdigest()})
    return _store(repo, key, request.body)


@route("POST", "/objects/<repo>/<key>")
def join_parts(hub, request, repo: Repo, key: str):
    numbers = [part["partNumber"] for part in request.json["parts"]]
    return _store(repo, key, b"".join(hub.parts.pop((key, number)) for number in numbers))


def _store(repo: Repo, oid: str, content: bytes) -> Answer:
    if hashlib.sha256(content).hexdigest() != oid:
        raise Problem(400, "the content has another checksum")
    repo.objects[oid] = content
    return Answer(b"")


@route("POST", "/<repo>.git/info/lfs/verify")
def lfs_verify(hub, request, repo: Repo):
    if request.json["oid"] not in repo.objects:
        raise Problem(404, "object not found")
    return {}


@route("POST", "/api/models/<repo>/commit/<rev>")
def commit(hub, request, repo: Repo, rev: str):
    lines = [json.loads(line) for line in request.body.splitlines() if line]
    header = lines[0]["value"]
    author, parent = hub.signed_in(request), header.get("parentCommit")
    if rev not in repo.refs:
        raise Problem(404, f"Invalid rev id: {rev}", "RevisionNotFound")
    if parent is not None and parent != repo.refs[rev]:
        raise Problem(412, "A commit has happened since. Please refresh and try again.")
    files = dict(repo.at(rev).files)
    for line in lines[1:]:
        _apply(hub, repo, files, line["key"], line["value"])
    asked = request.asks("create_pr")
    if asked:
        opened = repo.open(header["summary"], header.get("description", ""), author, True, "open")
        rev = opened.ref
    made = repo.commit(rev, files, title=header["summary"], author=author, message=header.get("description", ""))
    address = f"{hub.url}/{repo.id}/commit/{made.id}"
    more = {"pullRequestUrl": f"{hub.url}/{repo.id}/discussions/{opened.num}"} if asked else {}
    return {"success": True, "commitOid": made.id, "commitUrl": address, "hookOutput": "", **more}


def _apply(hub, repo: Repo, files: dict[str, Blob], key: str, value: dict) -> None:
    """One line of a commit."""
    path = value["path"]
    if key == "file":
        files[path] = Blob(hub.damaged(path, base64.b64decode(value["content"])))
    elif key == "lfsFile":
        if value["oid"] not in repo.objects:
            raise Problem(400, f"{path} points to an object that was not uploaded")
        files[path] = Blob(hub.damaged(path, repo.objects[value["oid"]]), lfs=True)
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise Problem(404, "A file with this name doesn't exist", "EntryNotFound")
    elif key == "deletedFolder":
        for inside in [name for name in files if name.startswith(f"{path.rstrip('/')}/")]:
            del files[inside]
    else:
        raise Problem(400, f"unknown line {key}")


@route("GET", "/api/models/<repo>")
@route("GET", "/api/models/<repo>/revision/<rev>")
def info(hub, request, repo: Repo, rev: str = MAIN):
    at = repo.at(rev)
    siblings = []
    for path, blob in sorted(at.files.items()):
        entry = blob.as_json(path)
        more = {"size": entry["size"], "blobId": entry["oid"]} if request.asks("blobs") else {}
        if more and blob.lfs:
            more["lfs"] = {"sha256": blob.sha256, "size": entry["size"], "pointerSize": len(blob.in_git)}
        siblings.append({"rfilename": path, **more})
    state = {"private": repo.private, "gated": repo.gated, "disabled": False, "downloads": 0, "likes": 0}
    dates = {"createdAt": now(), "lastModified": now()}
    author = repo.id.split("/")[0]
    return {"id": repo.id, "author": author, "sha": at.id, "tags": [], "siblings": siblings, **state, **dates}


@route("GET", "/api/models/<repo>/tree/<rev>")
@route("GET", "/api/models/<repo>/tree/<rev>/<path>")
def tree(hub, request, repo: Repo, rev: str, path: str = ""):
    at = repo.at(rev)
    start = f"{path.rstrip('/')}/" if path else ""
    inside = {name: blob for name, blob in sorted(at.files.items()) if name.startswith(start)}
    if path and not inside:
        raise Problem(404, f"{path} does not exist on {rev}", "EntryNotFound")
    entries, folders = [], set()
    for name, blob in inside.items():
        parts = name[len(start) :].split("/")
        for depth in range(1, len(parts)) if request.asks("recursive") else [1] if len(parts) > 1 else []:
            folder = start + "/".join(parts[:depth])
            if folder not in folders:
                folders.add(folder)
                oid = hashlib.sha1(folder.encode()).hexdigest()
                entries.append({"type": "directory", "path": folder, "size": 0, "oid": oid})
        if len(parts) == 1 or request.asks("recursive"):
            entries.append(_entry(repo, at, name, blob, request.asks("expand")))
    return page(hub, request, entries)


def _entry(repo: Repo, at: Commit, path: str, blob: Blob, expand: bool) -> dict:
    entry = blob.as_json(path)
    if expand:
        last = at
        for commit in repo.history(at.id):
            if commit.files.get(path) != blob:
                break
            last = commit
        entry["lastCommit"] = {"id": last.id, "title": last.title, "date": now()}
        entry["securityFileStatus"] = None
    return entry


def page(hub, request, entries: list) -> Answer:
    """A part of a list, and the address of the next."""
    start = int(request.query.get("cursor", ["0"])[0])
    end = start + hub.page
    if end >= len(entries):
        return Answer(entries[start:end])
    query = {name: values[-1] for name, values in request.query.items()} | {"cursor": end}
    link = f'<{hub.url}{request.path}?{urlencode(query)}>; rel="next"'
    return Answer(entries[start:end], 200, {"Link": link})


@route("GET", "/api/models/<repo>/refs")
def refs(hub, request, repo: Repo):
    def listed(refs, kind):
        return [{"name": name, "ref": f"{kind}{name}", "targetCommit": target} for name, target in refs.items()]

    branches = {name: target for name, target in repo.refs.items() if not name.startswith("refs/pr/")}
    answer = {"branches": listed(branches, "refs/heads/"), "tags": listed(repo.tags, "refs/tags/"), "converts": []}
    if request.asks("include_prs"):
        pulls = {name: target for name, target in repo.refs.items() if name.startswith("refs/pr/")}
        answer["pullRequests"] = listed(pulls, "")
    return answer


@route("GET", "/api/models/<repo>/commits/<rev>")
def commits(hub, request, repo: Repo, rev: str):
    return page(
        hub,
        request,
        [
            {"id": c.id, "title": c.title, "message": c.message, "authors": [{"user": c.author}], "date": now()}
            for c in repo.history(rev)
        ],
    )


@route("POST", "/api/models/<repo>/paths-info/<rev>")
def paths_info(hub, request, repo: Repo, rev: str):
    asked = parse_qs(request.body.decode())
    at = repo.at(rev)
    expand = asked.get("expand", ["false"])[0].lower() == "true"
    paths = [path for path in asked.get("paths", []) if path in at.files]
    return [_entry(repo, at, path, at.files[path], expand) for path in paths]


@route("POST", "/api/models/<repo>/branch/<rev>")
def create_branch(hub, request, repo: Repo, rev: str):
    if rev in repo.refs:
        raise Problem(409, "Reference already exists")
    repo.refs[rev] = repo.at(request.json.get("startingPoint", MAIN)).id
    return {}


@route("POST", "/api/models/<repo>/tag/<rev>")
def create_tag(hub, request, repo: Repo, rev: str):
    if request.json["tag"] in repo.tags:
        raise Problem(409, "Tag reference exists already")
    repo.tags[request.json["tag"]] = repo.at(rev).id
    return {}


@route("PUT", "/api/models/<repo>/settings")
def settings(hub, request, repo: Repo):
    if "visibility" in request.json or "private" in request.json:
        repo.private = request.json.get("visibility") == "private" or bool(request.json.get("private"))
    repo.gated = request.json.get("gated", repo.gated)
    return {}


@route("GET", "/api/models/<repo>/xet-write-token/<rev>")
@route("GET", "/api/models/<repo>/xet-read-token/<rev>")
def xet_token(hub, request, repo: Repo, rev: str):
    raise Problem(404, "this Hub has no Xet storage: set HF_HUB_DISABLE_XET=1")


@route("HEAD", "/<repo>/resolve/<rev>/<path>")
@route("GET", "/<repo>/resolve/<rev>/<path>")
def resolve(hub, request, repo: Repo, rev: str, path: str):
    at = repo.at(rev)
    if path not in at.files:
        raise Problem(404, "Entry not found", "EntryNotFound", commit=at.id)
    blob = at.files[path]
    headers = {"X-Repo-Commit": at.id, "ETag": f'"{blob.etag}"', "Accept-Ranges": "bytes"}
    if blob.lfs:  # as the Hub, which sends to another server for these
        hub.linked[blob.sha256] = blob.content
        headers |= {"X-Linked-ETag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
        return Answer(b"", 302, {**headers, "Location": f"{hub.storage_url}/linked/{blob.sha256}"})
    return _part(request, blob.content, headers)


@route("HEAD", "/linked/<key>")
@route("GET", "/linked/<key>")
def linked(hub, request, key: str):
    return _part(request, hub.linked[key], {"ETag": f'"{key}"', "Accept-Ranges": "bytes"})


def _part(request, content: bytes, headers: dict) -> Answer:
    """The whole, or the bytes that a Range header asks for."""
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if not found:
        return Answer(content, 200, headers)
    start, end = int(found[1]), int(found[2] or len(content) - 1)
    span = f"bytes {start}-{end}/{len(content)}"
    return Answer(content[start : end + 1], 206, {**headers, "Content-Range": span})
