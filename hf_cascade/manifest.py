"""`cascade.json`: the record a finished stage leaves in its folder, with its settings, inputs, result and ancestors."""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from hf_cascade import __version__, assets
from hf_cascade.data.contents import sha256_of_text

FILE = "cascade.json"
SCHEMA = 1
# Set by the runner for the stage's process: {"name", "run", "fingerprint"}.
STAGE_VARIABLE = "HF_CASCADE_STAGE"
_MODEL_INPUTS = ("model", "model_name_or_path")
_PACKAGES = ("torch", "transformers", "trl", "datasets")


def write(
    folder: str | Path,
    *,
    stage: str,
    run: str,
    config: dict,
    inputs: dict[str, str | list[str]],
    metrics: dict,
    data: dict | None = None,
    output: dict | None = None,
) -> dict:
    """
    Write `folder/cascade.json`, last and atomically: that it exists means that the stage finished. Hashes the local
    files of text that `config` names.

    Args:
        folder (`str` or `Path`): the stage's folder; everything else is in it already.
        stage (`str`): the stage's name. The runner's (`HF_CASCADE_STAGE`) goes before it.
        run (`str`): what made it: pretrain, prune, distill, evaluate.
        config (`dict`): the stage's flags that are not defaults, without the inputs' paths.
        inputs (`dict`): flag to folder or Hub id, or a list of them.
        metrics (`dict`): measured figures, `seconds` among them.
        data (`dict`, *optional*): `cursor` {"document", "token"}, `tokens` of this stage, `ledger` of all so far.
        output (`dict`, *optional*): the model's `num_parameters`, `bytes` and dimensions.

    Returns:
        `dict`: what was written.
    """
    folder = Path(folder)
    running = json.loads(os.environ.get(STAGE_VARIABLE, "{}"))
    record = {
        "schema": SCHEMA,
        "stage": running.get("name", stage),
        "run": run,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config,
        "config_sha256": config_sha256(run, config, inputs),
        "inputs": inputs,
        "output": output,
        "data": data,
        "text_sha256": sha256_of_text(config),
        "metrics": metrics,
        "lineage": _lineage(inputs),
        "versions": _versions(),
        "hardware": _hardware(),
        "git_sha": _git_sha(),
    }
    if "fingerprint" in running:
        record["fingerprint"] = running["fingerprint"]
    _write_atomically(folder / FILE, json.dumps(record, indent=2, ensure_ascii=False, default=_plain) + "\n")
    return record


def read(folder: str | Path) -> dict:
    """
    Read `folder/cascade.json`.

    Raises:
        FileNotFoundError: there is none: the stage has not finished, or the folder is none of hf-cascade's.
        ValueError: the file is not a manifest of a schema this version knows.
    """
    path = Path(folder) / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path} does not exist: the stage that makes {folder} has not finished, or hf-cascade did not make it"
        ) from None
    try:
        record = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); delete the folder and make the stage again") from error
    schema = record.get("schema") if isinstance(record, dict) else None
    if schema != SCHEMA:
        raise ValueError(f"{path} has schema {schema!r}; this hf-cascade reads {SCHEMA}")
    return record


def is_finished(folder: str | Path) -> bool:
    """Whether the stage that makes this folder has finished: its manifest is there."""
    return (Path(folder) / FILE).is_file()


def named(record: dict, flag: str) -> list[str]:
    """What an input of a stage names: one or more, or none."""
    value = record["inputs"].get(flag) or []
    return [value] if isinstance(value, str) else [one for one in value if isinstance(one, str)]


def beside(source: str, folder: str | Path) -> Path | None:
    """
    The finished folder of an input of the stage in `folder`: in the same run, from any working directory and after the
    run was moved, or where it says. `None` where neither is; never `folder` itself.
    """
    here, given = Path(folder).resolve(), Path(source)
    run = here.parent
    places = [run / given.name]
    try:
        there = assets.find(source)
        places = [*places, there] if given.parent.name == run.name else [there, *places]
    except FileNotFoundError:
        if len(given.parts) == 2 and given.parent.name != run.name:
            places = []  # ORG/NAME of the Hub, whatever a stage here is called
    return next((place for place in places if is_finished(place) and place.resolve() != here), None)


def describe(folder: str | Path, num_parameters: int) -> dict:
    """
    The manifest's `output` for a model folder: its parameters, the bytes of its weights, and its dimensions.

    Args:
        folder (`str` or `Path`): holds `config.json` and `*.safetensors`.
        num_parameters (`int`): as `model.num_parameters()` counts them, a tied head once.
    """
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())
    text = config.get("text_config") or config
    dimensions = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings")
    return {
        "num_parameters": num_parameters,
        "bytes": sum(shard.stat().st_size for shard in folder.glob("*.safetensors")),
        **{name: text.get(name) for name in dimensions},
        # Mistral3's top level decides, whatever its text_config says (paper section 1)
        "tie_word_embeddings": config.get("tie_word_embeddings", text.get("tie_word_embeddings", False)),
    }


def weights_sha256(folder: str | Path) -> str:
    """
    Hash of a model's weights and config: over the SHA-256 of `config.json` and of each `*.safetensors`, in the order
    of their names, read by as many threads as there are files, up to 8 (ours).

    Raises:
        FileNotFoundError: the folder has no safetensors.
    """
    folder = Path(folder)
    files = sorted(path for path in folder.iterdir() if path.suffix == ".safetensors") if folder.is_dir() else []
    if not files:
        raise FileNotFoundError(f"{folder} holds no *.safetensors: give the folder of a model")
    files += [path for path in (folder / "config.json",) if path.is_file()]
    with ThreadPoolExecutor(min(8, len(files))) as pool:
        hashes = list(pool.map(_file_sha256, files))
    lines = sorted(f"{path.name} {found}\n" for path, found in zip(files, hashes, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def config_sha256(run: str, config: dict, inputs: dict[str, str | list[str]]) -> str:
    """Hash of a stage's settings. Of an input that is a folder only the name counts, so a moved run stays the same."""
    names = {
        flag: [_name(value) for value in values] if isinstance(values, list) else _name(values)
        for flag, values in inputs.items()
    }
    settings = json.dumps({"run": run, "config": config, "inputs": names}, sort_keys=True, default=_plain)
    return hashlib.sha256(settings.encode()).hexdigest()


def _plain(value):
    """JSON for what flags and metrics hold besides plain values: paths, numpy and torch scalars."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{value!r} ({type(value).__name__}) does not fit {FILE}; give a number, text, list or dict")


def _name(source: str) -> str:
    return Path(source).resolve().name if Path(source).exists() else str(source)


def _lineage(inputs: dict[str, str | list[str]]) -> list[dict]:
    """The first model input's ancestors, oldest first, and that input itself. A Hub id or a foreign folder has none."""
    for flag in _MODEL_INPUTS:
        if inputs.get(flag):
            source = inputs[flag]
            folder = Path(source[0] if isinstance(source, list) else source)
            if not is_finished(folder):
                return []
            parent = read(folder)
            itself = {
                "stage": parent["stage"],
                "run": parent["run"],
                "folder": folder.resolve().name,
                "manifest_sha256": hashlib.sha256((folder / FILE).read_bytes()).hexdigest(),
            }
            return [*parent["lineage"], itself]
    return []


def _versions() -> dict[str, str | None]:
    versions = {"python": platform.python_version(), "hf_cascade": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = None  # recorded as absent
    return versions


def _hardware() -> dict:
    """Processor, cores this process may use, and the accelerator where torch is loaded and has one."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    torch = sys.modules.get("torch")  # a stage that computes has imported it; planning must not
    has_gpu = torch is not None and torch.cuda.is_available()
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "accelerator": torch.cuda.get_device_name() if has_gpu else None,
    }


def _git_sha() -> str | None:
    """Commit of the checkout this package runs from; None for an installed wheel."""
    checkout = Path(__file__).resolve().parent.parent
    git = shutil.which("git")
    if git is None or not (checkout / ".git").exists():
        return None
    answer = subprocess.run([git, "-C", str(checkout), "rev-parse", "HEAD"], capture_output=True, text=True)
    return answer.stdout.strip() if answer.returncode == 0 else None  # not yet a commit, or another user's checkout


def _write_atomically(path: Path, text: str) -> None:
    """After a crash at any moment the file is either whole or not there."""
    draft = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(draft, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name itself
    finally:
        os.close(folder)
