"""The user's machine, taken out of what is published: absolute paths become names, private hosts become `private`."""

import re

# What a machine's paths begin with; a text that begins so is a path as a whole, blanks and all.
ROOTS = ("home", "Users", "root", "tmp", "var", "mnt", "media", "data", "scratch", "work", "workspace", "opt", "srv")
ROOTS += ("content", "private", "Volumes", "usr", "gpfs", "lustre", "nfs", "project", "projects")
_NAME = r"[^\s/\\'\"`,;:()<>|\[\]{}$*?]+"
_WHOLE = re.compile(
    rf"(?:file://)?(?:~[\w.-]*(?=/)|/(?:{'|'.join(ROOTS)})(?=/|$)|[A-Za-z]:(?=\\|/[A-Z]))(?:[\\/][^\n]*)?"
)
# Two names and more, so that `[/INST]`, `/think` and `and/or` stay; not inside a URL or a relative path.
_PART = re.compile(
    rf"(?:(?<!\w)file://|(?<![\w./:~$}}<-])~[\w.-]*|(?<![\w./:~$}}<-]))/(?:{_NAME}/)+(?:{_NAME})?"
    rf"|(?<![\w.])[A-Za-z]:\\(?:{_NAME}\\)+(?:{_NAME})?"
)
_HOME = re.compile(r"(?:file://)?(?:/(?:home|Users)/[^/\s]+|~[\w.-]*|/root|[A-Za-z]:[\\/]Users[\\/][^\\/\s]+)[\\/]?")
_PRIVATE = re.compile(
    r"(https?://)(?:localhost|127(?:\.\d+){3}|10(?:\.\d+){3}|192\.168(?:\.\d+){2}|172\.(?:1[6-9]|2\d|3[01])(?:\.\d+){2}"
    r"|169\.254(?:\.\d+){2}|0\.0\.0\.0|\[[\da-fA-F:]+\]|[\w-]+(?=[:/]|$)|[\w.-]+\.(?:local|internal|lan|intranet))"
    r"(?::\d+)?(?=[/\s\"',;)]|$)"
)
HOME, PRIVATE = "home", "private"


def without_paths(text: str) -> str:
    """
    `/home/ann/runs/x` is `x`, here and inside of longer texts; `runs/x/14b` and URLs of public hosts stay.

    A server on the machine or in its network is `http://private/...`.
    """
    text = _PRIVATE.sub(rf"\1{PRIVATE}", text)
    if _WHOLE.fullmatch(text):
        return _last(text)
    return _PART.sub(lambda match: _last(match.group()), text)


def without_paths_in(value):
    """The same for every text in JSON, keys too; what is not text stays."""
    if isinstance(value, str):
        return without_paths(value)
    if isinstance(value, list):
        return [without_paths_in(one) for one in value]
    if isinstance(value, dict):
        return {without_paths(key): without_paths_in(one) for key, one in value.items()}
    return value


def _last(path: str) -> str:
    """The last name; of a home folder itself, whose last name is the user's, `home`."""
    if _HOME.fullmatch(path):
        return HOME
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]
