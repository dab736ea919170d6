"""Paths and JSON of collections on a Hub for tests."""

from tests.publish.hub_routes import Answer, page, route
from tests.publish.hub_state import Collection, slug_of


@route("POST", "/api/collections")
def create_collection(hub, request):
    asked, user = request.json, hub.signed_in(request)
    hub.may_write(f"{asked['namespace']}/-", user)
    slug = slug_of(asked["namespace"], asked["title"])
    if slug in hub.collections:
        return Answer({"error": "Collection already exists", "slug": slug}, 409)
    details = (asked["title"], asked["namespace"], asked.get("private", False), asked.get("description"))
    hub.collections[slug] = Collection(slug, *details)
    return hub.collections[slug].as_json()


@route("GET", "/api/collections")
def list_collections(hub, request):
    owners = request.query.get("owner")
    found = [one for one in hub.collections.values() if owners is None or one.namespace in owners]
    return page(hub, request, [one.as_json(most=4) for one in found])


@route("GET", "/api/collections/<slug>")
def get_collection(hub, request, slug: str):
    return hub.collection(slug).as_json()


@route("PATCH", "/api/collections/<slug>")
def update_collection(hub, request, slug: str):
    one = hub.collection(slug)
    for name in {"title", "description", "private"} & set(request.json):
        setattr(one, name, request.json[name])
    return {"data": one.as_json()}


@route("POST", "/api/collections/<slug>/items")
def add_item(hub, request, slug: str):
    hub.signed_in(request)
    one, item = hub.collection(slug), request.json["item"]
    one.add(item["id"], item["type"], request.json.get("note"))
    return one.as_json()


@route("PATCH", "/api/collections/<slug>/items/<key>")
def update_item(hub, request, slug: str, key: str):
    one = hub.collection(slug)
    item = one.item(key)
    item.note = request.json.get("note", item.note)
    if "position" in request.json:
        one.items.remove(item)
        one.items.insert(request.json["position"], item)
    return {}
