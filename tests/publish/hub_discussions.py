"""Paths and JSON of discussions and pull requests on a Hub for tests."""

from tests.publish.hub_routes import Answer, route
from tests.publish.hub_state import MAIN, Discussion, Problem, Repo, now


def _summary(repo: Repo, one: Discussion) -> dict:
    return {
        "num": one.num,
        "title": one.title,
        "status": one.status,
        "author": {"name": one.author},
        "createdAt": now(),
        "isPullRequest": one.pull_request,
        "repo": {"name": repo.id, "type": "model"},
    }


@route("GET", "/api/models/<repo>/discussions")
def list_discussions(hub, request, repo: Repo):
    found = list(reversed(repo.discussions))
    kind, status = (request.query.get(name, [None])[0] for name in ("type", "status"))
    if kind in ("discussion", "pull_request"):
        found = [one for one in found if one.pull_request == (kind == "pull_request")]
    if status in ("open", "closed"):
        found = [one for one in found if (one.status in ("open", "draft")) == (status == "open")]
    if "author" in request.query:
        found = [one for one in found if one.author == request.query["author"][0]]
    start = int(request.query.get("p", ["0"])[0]) * hub.page
    page = [_summary(repo, one) for one in found[start : start + hub.page]]
    return {"discussions": page, "count": len(found), "start": start, "numClosedDiscussions": 0}


@route("POST", "/api/models/<repo>/discussions")
def open_discussion(hub, request, repo: Repo):
    asked, user = request.json, hub.signed_in(request)
    is_pull_request = bool(asked["pullRequest"])  # opened through the API they begin as drafts
    status = "draft" if is_pull_request else "open"
    return {"num": repo.open(asked["title"], asked["description"], user, is_pull_request, status).num}


@route("GET", "/api/models/<repo>/discussions/<num>")
def details(hub, request, repo: Repo, num: str):
    one = repo.discussion(int(num))
    answer = {**_summary(repo, one), "events": one.events}
    if one.pull_request:
        conflicts = repo.conflicts(one) if one.status in ("open", "draft") else []
        answer |= {"filesWithConflicts": conflicts, "diff": ""}
        answer["changes"] = {"base": f"refs/heads/{MAIN}", "mergeCommitId": one.merge_commit}
    return answer


@route("POST", "/api/models/<repo>/discussions/<num>/comment")
def comment(hub, request, repo: Repo, num: str):
    return {"newMessage": repo.discussion(int(num)).comment(hub.signed_in(request), request.json["comment"])}


@route("POST", "/api/models/<repo>/discussions/<num>/status")
def change_status(hub, request, repo: Repo, num: str):
    one, user = repo.discussion(int(num)), hub.signed_in(request)
    if one.status == "merged":
        raise Problem(400, "this pull request is merged")
    if request.json.get("comment"):
        one.comment(user, request.json["comment"])
    one.status = request.json["status"]
    return {"newStatus": one.add("status-change", user, {"status": one.status})}


@route("POST", "/api/models/<repo>/discussions/<num>/merge")
def merge(hub, request, repo: Repo, num: str):
    repo.merge(repo.discussion(int(num)), hub.signed_in(request))
    return Answer({})
