"""`validate`: what is wrong with the text of a card, offline; the Hub looks at the front matter once more."""

import math
import re
from collections.abc import Collection

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import model_index_to_eval_results

from hf_cascade import secrets
from hf_cascade.publish.licenses import LICENSES
from hf_cascade.publish.lineage import HUB_ID

SECTIONS = ("Results", "How to use", "How it was made", "Limitations", "Citation")
PIPELINES = ("text-generation", "image-text-to-text")
RELATIONS = ("finetune", "quantized", "adapter", "merge")
_FRONT = re.compile(r"\A---\n(.*?)\n---\n", re.DOTALL)
_FENCE = re.compile(r"^(`{3,})[^\n]*\n.*?^\1\s*$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"(`+).+?\1")
_IMAGE = re.compile(r"!\[([^\]]*)\]\(([^)\s]+)\)")
_TAG = re.compile(r"(?<!\\)<\s*/?\s*([a-zA-Z][\w-]*)")
_TAGS = ("details", "summary", "br", "sub", "sup")
_LANGUAGE = re.compile(r"^([a-z]{2,3}|code|multilingual)$")


def validate(text: str, files: Collection[str] | None = None) -> list[str]:
    """
    What has to be mended before a card is published.

    Args:
        text (`str`): README.md.
        files (`Collection[str]`, *optional*): paths in the repository, to check links to images.

    Returns:
        `list[str]`: a problem a line; empty for a card that is right.
    """
    found = _FRONT.match(text)
    if found is None:
        return ["front matter: there is none; the card has to begin with a YAML block between lines of ---"]
    problems = _front_matter(found.group(1), text)
    body = text[found.end() :]
    plain = _CODE.sub("", _FENCE.sub("", body))
    problems += _structure(plain) + _tables(_FENCE.sub("", body)) + _pictures(plain, files)
    problems += [f"a {kind} stands in the card; take it out, and make it void" for kind in secrets.find(text)]
    return problems


def _front_matter(given: str, text: str) -> list[str]:
    try:
        data = yaml.safe_load(given)
    except yaml.YAMLError as error:
        return [f"front matter: it is no YAML: {' '.join(str(error).split())}"]
    if not isinstance(data, dict):
        return ["front matter: it is no YAML mapping"]
    try:
        ModelCard(text, ignore_metadata_errors=False)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"front matter: huggingface_hub does not read it: {error}"]
    problems = _license(data) + _base_model(data) + _index(data)
    if data.get("library_name") != "transformers":
        problems.append(f"library_name: {data.get('library_name')!r}; it has to be transformers")
    if data.get("pipeline_tag") not in PIPELINES:
        problems.append(f"pipeline_tag: {data.get('pipeline_tag')!r}; allowed are {', '.join(PIPELINES)}")
    if not _texts(data.get("tags")):
        problems.append("tags: give a list of words")
    for language in data.get("language") or []:
        if not isinstance(language, str) or not _LANGUAGE.match(language):
            problems.append(f"language: {language!r} is no ISO 639 code, as en, fr or zh")
    for name in data.get("datasets") or []:
        if not isinstance(name, str) or not HUB_ID.match(name):
            problems.append(f"datasets: {name!r} is no Hub id, as ORG/NAME")
    return problems


def _license(data: dict) -> list[str]:
    given = data.get("license")
    if given is None:
        return ["license: it is not known; give it with --license, by the terms of the parent and of the training data"]
    if given not in LICENSES:
        return [f"license: the Hub does not know {given!r}; give one as apache-2.0, or other with a name and a link"]
    missing = [key for key in ("license_name", "license_link") if given == "other" and not data.get(key)]
    return [f"license: other needs {' and '.join(missing)}: give --{' and --'.join(missing)}"] if missing else []


def _base_model(data: dict) -> list[str]:
    given, relation = data.get("base_model"), data.get("base_model_relation")
    problems = []
    if given is None:
        return ["base_model_relation: it is given without base_model"] if relation else []
    if not _texts(given):
        problems.append(f"base_model: {given!r} is no list of Hub ids")
    else:
        problems += [f"base_model: {name!r} is no Hub id, as ORG/NAME" for name in given if not HUB_ID.match(name)]
    if relation not in RELATIONS:
        problems.append(f"base_model_relation: {relation!r}; allowed are {', '.join(RELATIONS)}")
    return problems


def _index(data: dict) -> list[str]:
    if "model-index" not in data:
        return []
    try:
        name, entries = model_index_to_eval_results(data["model-index"])
    except (KeyError, TypeError, ValueError) as error:
        return [f"model-index: huggingface_hub does not read it: {type(error).__name__}: {error}"]
    problems = [] if isinstance(name, str) and name else ["model-index: the model has no name"]
    for entry in entries:
        value = entry.metric_value
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            problems.append(f"model-index: {entry.dataset_name}, {entry.metric_type}: {value!r} is no finite number")
    return problems


def _structure(plain: str) -> list[str]:
    problems = []
    titles = re.findall(r"^# +(\S.*)$", plain, re.MULTILINE)
    if len(titles) != 1:
        problems.append(f"the card has {len(titles)} titles (# ...); it has to have one")
    sections = re.findall(r"^## +(\S.*?)\s*$", plain, re.MULTILINE)
    problems += [f"section {name}: it is missing" for name in SECTIONS if name not in sections]
    for mark in ("{{", "}}", "{%", "%}", "{#", "#}"):
        if mark in plain:
            problems.append(f"{mark} stands in the text: a part of a template was not filled in")
    for word in re.findall(r"(?<![\w\\])(None|nan|NaN|Undefined|TODO|FIXME|\[More Information Needed\])(?!\w)", plain):
        problems.append(f"{word} stands in the text: a value is missing")
    for tag in dict.fromkeys(_TAG.findall(plain)):
        if tag.lower() not in _TAGS:
            problems.append(f"<{tag}>: HTML that a card of ours has not; a text was not escaped")
    if re.search(r"(?<!\\)\]\(\s*(javascript|data|vbscript):", plain, re.IGNORECASE):
        problems.append("a link runs a script")
    return problems


def _tables(body: str) -> list[str]:
    """Rows of a table that have not as many cells as its header."""
    problems, width, header = [], 0, ""
    for line in body.split("\n"):
        if not line.startswith("|"):
            width = 0
            continue
        cells = len(re.findall(r"(?<!\\)\|", line)) - 1
        if not width:
            width, header = cells, line
        elif cells != width:
            problems.append(f"table {header[:60]!r}: a row has {cells} cells instead of {width}: {line[:60]!r}")
    return problems


def _pictures(plain: str, files: Collection[str] | None) -> list[str]:
    problems = []
    for alt, path in _IMAGE.findall(plain):
        if not alt.strip():
            problems.append(f"image {path}: it has no text for those who cannot see it")
        if re.match(r"[a-z][a-z0-9+.-]*:", path) or path.startswith("/") or ".." in path.split("/"):
            problems.append(f"image {path}: it has to be a file of the repository")
        elif files is not None and path not in files:
            problems.append(f"image {path}: there is no such file in the repository")
    return problems


def _texts(value) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) and one for one in value)
