"""What of a finished folder goes to the Hub: an allow-list by name; and what makes a folder unfit to be published.

Files that no pattern names are left out. Refused, whatever an override says: pickles by name or content, Python files,
hidden files, links that leave the folder (the Hub cache's own too: copy a snapshot with `cp -rL` first), weights that
are not whole safetensors, configs that ask for code, empty files, and files with tokens in them.

Records hold paths of the machine they were made on. In `cascade.json`, `evals.json` and the contamination report those
become names (`/home/ann/runs/x` is `x`, `runs/x` stays) in what is uploaded; the folder's own files stay as they are.
"""

import hashlib
import json
import stat
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from hf_cascade import file_contents, manifest, secrets
from hf_cascade.evaluate.suite.kept import EVALS
from hf_cascade.loading import COMPANIONS, VOCABULARIES
from hf_cascade.publish import tensors
from hf_cascade.publish.paths import without_paths, without_paths_in

CONFIG, ADAPTER = "config.json", "adapter_config.json"
CONTAMINATION = "contamination.json"  # of `hf-cascade contamination`
RECORDS = (manifest.FILE, EVALS, CONTAMINATION, "contamination.md")
TEMPLATES = "additional_chat_templates"  # transformers keeps templates beside the first one here
ALLOWED = (CONFIG, tensors.INDEX, *COMPANIONS, *VOCABULARIES, *RECORDS)
SUFFIXES = (".json", ".jinja", ".txt", ".md", ".bpe")  # of allowed files beside weights
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill", ".npy", ".npz")
HARMLESS = (".gitattributes", ".gitignore", ".DS_Store")  # hidden files that downloads and desktops leave
ORIGINAL = "published_from_sha256"  # key of a rewritten record: hash of the file that lineages name
# Texts that are read as a whole path by a config's user; in other configs paths are for the user to take out.
_PATH_KEYS = ("_name_or_path", "name_or_path", "tokenizer_file", "vocab_file")


@dataclass(frozen=True)
class Upload:
    """
    One file of a release.

    Attributes:
        path_in_repo (`str`): its name there.
        path (`Path`, *optional*): the file to send; `None` where `content` is sent instead.
        content (`bytes`, *optional*): rewritten content.
        sha256 (`str`): of what is sent.
        size (`int`): bytes of what is sent.
    """

    path_in_repo: str
    path: Path | None
    content: bytes | None
    sha256: str
    size: int


class Unsafe(ValueError):
    """
    A folder that must not be published.

    Args:
        problems (`list[str]`): of [`refusals`].
    """

    def __init__(self, problems: list[str]):
        super().__init__("not published:\n  " + "\n  ".join(problems))
        self.problems = problems


def uploads(folder: Path) -> list[Upload]:
    """
    What is sent: the config, the weights, then everything else that is allowed, by name. Hashes all of it.

    Raises:
        Unsafe: [`refusals`] has something to say.
    """
    folder = Path(folder)
    if problems := refusals(folder):
        raise Unsafe(problems)
    names = [name for name, kind, _ in _entries(folder) if kind == "sent"]
    names.sort(key=lambda name: (name != CONFIG, not name.endswith(".safetensors"), name))
    return [_upload(folder, name) for name in names]


def refusals(folder: Path) -> list[str]:
    """Everything that makes a folder unfit, a line each; tokens and their like are never shown."""
    folder = Path(folder)
    if not folder.is_dir():
        return [f"{folder} is no folder"]
    lines = []
    for name, kind, told in _entries(folder):
        if kind == "refused":
            lines.append(f"{name}: {told}")
        elif kind == "sent" and not name.endswith(".safetensors"):
            lines += file_contents.faults(folder / name, name) + _path_faults(folder / name, name)
    if (folder / ADAPTER).is_file():
        lines.append(f"{ADAPTER}: an adapter is no whole model: merge it (`merge_and_unload`), save and evaluate that")
    elif not (folder / CONFIG).is_file():
        lines.append(f"{CONFIG} is missing: give a model's folder")
    if not any("link" in line or "device" in line for line in lines):
        lines += tensors.faults(folder) + _metadata_faults(folder)
    return lines


def left_out(folder: Path) -> list[str]:
    """Names of files and folders that stay behind, such as logs and checkpoints; a folder's ends with a slash."""
    folder = Path(folder)
    return [name for name, kind, _ in _entries(folder) if kind == "left out"] if folder.is_dir() else []


def _entries(folder: Path) -> list[tuple[str, str, str]]:
    """Name, `sent` / `refused` / `left out`, and why it is refused, of everything in the folder."""
    paths = sorted(folder.iterdir())
    templates = folder / TEMPLATES
    if templates.is_dir() and not templates.is_symlink():
        paths += sorted(templates.iterdir())
    return [(_name(path, folder), *_kind(path, folder)) for path in paths]


def _name(path: Path, folder: Path) -> str:
    directory = "" if path.is_symlink() or not path.is_dir() else "/"
    return path.relative_to(folder).as_posix() + directory


def _kind(path: Path, folder: Path) -> tuple[str, str]:
    """What happens to one entry, by its name and kind of file."""
    name, suffix = path.name, path.suffix.lower()
    if path.is_symlink():
        if not path.exists() or not path.resolve().is_relative_to(folder.resolve()):
            return "refused", "a link out of the folder: put the file itself there (`cp -rL` copies a whole folder)"
    if path.is_dir():
        return "left out", ""
    if not stat.S_ISREG(path.stat().st_mode):
        return "refused", "a device or pipe: delete it"
    if name.startswith("."):
        return ("left out", "") if name in HARMLESS else ("refused", "a hidden file: delete it")
    if suffix in PICKLES:
        return "refused", "a pickle, which runs code when it is opened, and may hold a token: delete it"
    if suffix in (".py", ".pyc", ".so"):
        return "refused", "code: a model folder holds none; delete it"
    if suffix == ".safetensors":
        return "sent", ""
    if path.parent != folder:
        return ("sent", "") if suffix == ".jinja" else ("left out", "")
    if not any(fnmatchcase(name, pattern) for pattern in ALLOWED):
        return "left out", ""
    return ("sent", "") if suffix in SUFFIXES or file_contents.is_sentencepiece(name) else ("left out", "")


def _metadata_faults(folder: Path) -> list[str]:
    """Tokens in the texts that safetensors files carry beside tensors."""
    lines = []
    for path in sorted(folder.glob("*.safetensors")):
        try:
            about = tensors.read_header(path)[1]
        except tensors.Torn:
            continue  # told already
        kinds = secrets.find("\n".join(f"{name}: {text}" for name, text in about.items()))
        lines += [f"{path.name}, its metadata: a {kind}: save the model again" for kind in kinds]
    return lines


def _path_faults(path: Path, name: str) -> list[str]:
    """Configs are sent as they are, since hashes cover them; so a path of this machine in one is refused."""
    if name in RECORDS or not name.endswith("config.json"):
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return []  # told already
    if not isinstance(found, dict):
        return [f"{name} is no JSON object: save it again"]
    return [
        f"{name}: {key} is a path of this machine: take it out"
        + ", and evaluate the model again: the hash of its weights covers this file" * (name == CONFIG)
        for key in _PATH_KEYS
        if isinstance(found.get(key), str) and without_paths(found[key]) != found[key]
    ]


def _upload(folder: Path, name: str) -> Upload:
    path = folder / name
    rewritten = _rewritten(path) if name in RECORDS else None
    if rewritten is not None:
        return Upload(name, None, rewritten, hashlib.sha256(rewritten).hexdigest(), len(rewritten))
    with open(path, "rb") as file:
        return Upload(name, path, None, hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)


def _rewritten(path: Path) -> bytes | None:
    """A record without the machine's paths; `None` where it has none."""
    content = path.read_bytes()
    text = content.decode("utf-8")
    if path.suffix != ".json":
        plain = without_paths(text)
        return None if plain == text else plain.encode()
    record = json.loads(text)
    plain = without_paths_in(record)
    if plain == record:
        return None
    plain = {**plain, ORIGINAL: hashlib.sha256(content).hexdigest()} if isinstance(plain, dict) else plain
    return (json.dumps(plain, indent=2, ensure_ascii=False) + "\n").encode()
