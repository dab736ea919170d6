"""How a model was made, for a card: its stages with hashes, data and tokens, and commands to make it again."""

import itertools
import json
import shlex
from collections import Counter
from pathlib import Path

from hf_cascade import manifest
from hf_cascade.cli import WORDS
from hf_cascade.evaluate import tables
from hf_cascade.publish.escaping import Markdown, code, escape
from hf_cascade.publish.lineage import Stage, in_order, is_hub_id
from hf_cascade.publish.paths import without_paths_in

DID = {
    "pretrain": "trained from a random start",
    "prune": "pruned",
    "distill": "distilled on a teacher's logits",
    "sft": "fine-tuned on conversations",
    "pwrm": "trained to say which of two answers is better",
    "difficulty": "prompts chosen by pass rates",
    "odpo": "Online DPO",
    "grpo": "GRPO",
    "fp8": "converted to FP8",
}
TEACHER = "teacher_model_name_or_path"
_JUDGES = (TEACHER, "reward_model", "judge_model_name_or_path")  # inputs; a server's is named by a flag:
_SERVED, _REWARDS = "judge_model", "reward_funcs"
_CHAINS = "format"  # a filter that only chains of thought have: their thinking is well formed
_DATA_FLAGS = ("calibration", "prompts")
FILES = (".jsonl", ".json", ".txt", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".zst", ".bz2", ".xz", ".zip")
BUILDERS = ("json", "csv", "parquet", "text", "arrow", "imagefolder", "webdataset")  # loaders of files, no Hub ids
SHOWN = 12  # hex digits of a hash; cascade.json has all
_LOG = "log.json"
SHARES = {"grpo": "grpo/generated", "odpo": "odpo/generated"}


def line_table(stages: list[Stage]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a stage a row, oldest first."""
    header = ["stage", "what was done", "shape", "teacher, judge or rewards", "manifest"]
    rows, before = [], None
    for stage in stages:
        record, inputs = stage.record or {}, (stage.record or {}).get("inputs") or {}
        begun = inputs.get("model") or inputs.get("model_name_or_path")
        further = stage.run == "pretrain" and begun
        did = escape("trained further" if further else what(stage))
        if isinstance(begun, str) and _last(begun) != before:
            did = Markdown(f"{did}, from {code(_last(begun))}")
        for flag, value in (record.get("config") or {}).items():
            if flag.endswith("revision") and isinstance(value, str):
                did = Markdown(f"{did}, {escape(flag.replace('_', ' '))} {code(value)}")
        shape = _shape(record.get("output") or {})
        told = Markdown(", ".join(code(name) for name in judges(record))) or tables.MISSING
        rows.append([code(stage.name), did, shape, told, code(stage.sha256[:SHOWN])])
        before = stage.name
    return header, rows


def what(stage: Stage) -> str:
    """What a stage did, in a few words."""
    record = stage.record or {}
    if stage.run == "sft" and _CHAINS in ((record.get("config") or {}).get("filters") or ()):
        return "fine-tuned on chains of thought"
    return DID.get(stage.run, stage.run)


def judges(record: dict) -> list[str]:
    """Names of what said to a stage what is right: models whose logits or verdicts it learned from, and rewards."""
    config, inputs = record.get("config") or {}, record.get("inputs") or {}
    found = [inputs.get(flag) for flag in _JUDGES] + [config.get(_SERVED), config.get(_REWARDS)]
    return [name for given in found for name in names(given)]


def names(given: str | list | None) -> list[str]:
    """What a setting names, one or a list: Hub ids whole, of paths the last name."""
    return [_last(one) for one in (given if isinstance(given, list) else [given]) if isinstance(one, str)]


def beside_table(stages: list[Stage]) -> tuple[list[str], list[list[str]]] | None:
    """Header and rows: the stages that made teachers, judges, reward models and prompts; `None` without any."""
    line = {stage.sha256 for stage in stages}
    more = [stage for stage in in_order(stages) if stage.sha256 not in line]
    (_, did), (_, read) = line_table(more), data_table(more)
    header = ["stage", "what was done", "shape", "data", "read", "manifest"]
    rows = [[*one[:3], *data[1:3], one[-1]] for one, data in zip(did, read, strict=True)]
    return (header, rows) if rows else None


def unknown(stages: list[Stage]) -> list[str]:
    """Names of the stages whose record is not here."""
    return [stage.name for stage in stages if stage.record is None]


def teachers(stages: list[Stage]) -> list[str]:
    """Names of the models whose logits the line was distilled on."""
    given = [stage.record["inputs"].get(TEACHER) for stage in stages if stage.run == "distill" and stage.record]
    return list(dict.fromkeys(_last(one) for one in given if isinstance(one, str)))


def data_table(stages: list[Stage]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: what each stage read, how much, in which windows, and how long it took."""
    header = ["stage", "data", "read", "window", "learning rate", "time"]
    rows, told = [], _told_by_ledgers(stages)
    for stage in stages:
        if stage.record is None:
            read = f"{tables.count(told[stage.name])} tokens" if stage.name in told else tables.MISSING
            rows.append([code(stage.name), "its record is not here", read, *[tables.MISSING] * 3])
            continue
        record, config = stage.record, stage.record["config"]
        names = [code(name) for name in data_names(record, stage.folder)]
        window = config.get("max_length") or config.get("calibration_length")
        answers = config.get("max_completion_length")
        length = f"{window:,}" if window else f"answers of {answers:,}" if answers else tables.MISSING
        rate, seconds = config.get("learning_rate"), record["metrics"].get("seconds")
        rows.append(
            [
                code(stage.name),
                Markdown("<br>".join(names)) if names else tables.MISSING,
                amount(record, stage.folder),
                length,
                f"{rate:g}" if isinstance(rate, int | float) else tables.MISSING,
                duration(seconds),
            ]
        )
    return header, rows


def data_names(record: dict, folder: Path | None = None) -> list[str]:
    """
    Data sets of a stage: Hub ids with their revisions, and names of files.

    Prompts that another stage chose are named by what that stage read, if `folder`, the stage's own, leads there.
    """
    names = []
    for part in record["config"].get("datasets") or []:
        label = Path(str(part["data_files"])).name if isinstance(part.get("data_files"), str) else str(part["path"])
        if isinstance(part.get("data_files"), list):
            label = ", ".join(Path(str(name)).name for name in part["data_files"])
        more = [part.get("name"), part.get("revision") and f"revision {part['revision']}"]
        names.append(", ".join(filter(None, (label, *more))))
    names += [_last(record["config"][flag]) for flag in _DATA_FLAGS if isinstance(record["config"].get(flag), str)]
    for source, chosen in _chosen(record, folder).items():
        read = data_names(chosen) if chosen else ["prompts"]
        names += [f"{name}, chosen by {_last(source)}" for name in read]
    return names


def _chosen(record: dict, folder: Path | None) -> dict[str, dict | None]:
    """Each folder that a stage's prompts are from, and its manifest; `None` for one that is not here."""
    found = {source: folder and manifest.beside(source, folder) for source in manifest.named(record, "prompts_from")}
    return {source: manifest.read(place) if place else None for source, place in found.items()}


def hub_datasets(stages: list[Stage]) -> list[str]:
    """Hub ids of the data sets that the line was trained on, prompts and calibration text too."""
    paths, local = [], set()
    for stage in stages:
        if stage.record is None:
            continue
        for record in (stage.record, *filter(None, _chosen(stage.record, stage.folder).values())):
            parts = record["config"].get("datasets") or []
            paths += [part.get("path") for part in parts if not part.get("data_files")]
            paths += [record["config"].get(flag) for flag in _DATA_FLAGS]
            files = [Path(name) for name in record.get("text_sha256") or {}]
            local |= {str(place) for file in files for place in (file, *file.parents)}
    found = [path for path in paths if isinstance(path, str) and path not in local and path not in BUILDERS]
    return list(dict.fromkeys(path for path in found if is_hub_id(path) and Path(path).suffix not in FILES))


def tokens_of(record: dict) -> int | None:
    """Tokens of text that a stage was trained on, as its data ledger counts them."""
    return (record.get("data") or {}).get("tokens")


def distilled_tokens(stages: list[Stage]) -> str | None:
    """Tokens of text that the line was distilled on, all stages together; `None` where one does not say."""
    counts = [stage.record and tokens_of(stage.record) for stage in stages if stage.run == "distill"]
    return tables.count(sum(counts)) if counts and all(counts) else None


def amount(record: dict, folder: Path | None = None) -> str:
    """What a stage read or wrote, as far as its manifest says, and the log in its folder."""
    metrics = record["metrics"]
    if tokens := tokens_of(record):
        return f"{tables.count(tokens)} tokens"
    if tokens := metrics.get("calibration_tokens"):
        return f"{tables.count(tokens)} tokens, for calibration"
    prefix = SHARES.get(record["run"])
    if prefix and (tokens := metrics.get(f"{prefix}_tokens")):
        answers = metrics.get(f"{prefix}_responses")
        return (f"{answers:,} answers" if answers else "answers") + f" of its own, {tables.count(tokens)} tokens"
    if "kept" in metrics and "dropped" in metrics:
        return f"{metrics['kept']:,} of {metrics['kept'] + metrics['dropped']:,} prompts kept"
    rows, epochs = (metrics.get("reasoning_data") or {}).get("rows"), metrics.get("epoch")
    pairs = ((metrics.get("calibration") or {}).get("trained") or {}).get("kept")
    told = [f"{count:,} {unit}" for count, unit in ((rows, "conversations"), (pairs, "pairs")) if count]
    told += [f"{epochs:.3g} {'times' if told else 'epochs'}"] if epochs else []
    tokens = logged_tokens(folder) if record["run"] == "sft" and folder is not None else None
    told += [f"{tables.count(tokens)} tokens"] if tokens else []
    return ", ".join(told) or tables.MISSING


def logged_tokens(folder: Path) -> int | None:
    """Tokens of all rows trained on, by a stage's log.json, where counting begins anew when a run is resumed."""
    if not (folder / _LOG).is_file():
        return None
    entries = json.loads((folder / _LOG).read_text(encoding="utf-8"))
    counts = [entry["num_tokens"] for entry in entries if entry.get("num_tokens")]
    return int(sum(before for before, after in itertools.pairwise([*counts, 0]) if after < before))


def _told_by_ledgers(stages: list[Stage]) -> dict[str, int]:
    """Tokens of stages, by the ledgers of those that read on where they stopped."""
    records = [stage.record for stage in stages if stage.record]
    ledgers = [(record.get("data") or {}).get("ledger") or [] for record in records]
    return {part["stage"]: part["tokens"] for ledger in ledgers for part in ledger}


def longest_window(stages: list[Stage]) -> tuple[int, str] | None:
    """The longest window of text that a stage was trained on, and that stage; `None` where no manifest says."""
    found = []
    for stage in stages:
        if stage.record is None or stage.run not in ("pretrain", "distill", "sft"):
            continue
        ledger = (stage.record.get("data") or {}).get("ledger") or []
        own = [(part.get("lengths") or {}).get("longest") for part in ledger if part.get("stage") == stage.name]
        longest = max((length for length in own if length), default=None) or stage.record["config"].get("max_length")
        if longest:
            found.append((int(longest), stage.name))
    return max(reversed(found), key=lambda pair: pair[0]) if found else None


def longest_answers(stages: list[Stage]) -> int | None:
    """The longest answers of reinforcement learning and Online DPO, in tokens; `None` without any."""
    told = [stage.record["config"] for stage in stages if stage.run in SHARES and stage.record]
    lengths = [config["max_completion_length"] for config in told if config.get("max_completion_length")]
    return max(lengths, default=None)


def since_pruning(stages: list[Stage]) -> list[Stage]:
    """The stages after the last pruning, or all where there was none."""
    places = [place for place, stage in enumerate(stages) if stage.run == "prune"]
    return stages[places[-1] + 1 :] if places else stages


def window_after(stages: list[Stage], name: str) -> int | None:
    """The longest rows of fine-tuning after a stage; `None` without any."""
    places = [place for place, stage in enumerate(stages) if stage.name == name]
    after = [stage.record for stage in stages[places[-1] + 1 :] if stage.run == "sft" and stage.record]
    return max((record["config"]["max_length"] for record in after if record["config"].get("max_length")), default=None)


def commands(stages: list[Stage]) -> list[tuple[str, str, dict]]:
    """
    For each stage whose record is here: its name, the command, and what the YAML file that it names holds.

    Stages of one name, of several runs, have the run's name before it.
    """
    made = [stage for stage in stages if stage.record is not None and stage.run in WORDS]
    count = Counter(stage.name for stage in made)
    labels = {
        stage.folder.resolve(): f"{stage.folder.resolve().parent.name}-{stage.name}"
        for stage in made
        if stage.folder is not None and count[stage.name] > 1
    }
    found = []
    for stage in made:
        name = labels.get(stage.folder and stage.folder.resolve(), stage.name)
        inputs = {flag: _places(value, stage.folder, labels) for flag, value in stage.record["inputs"].items()}
        command = f"hf-cascade {stage.run} --config {shlex.quote(f'{name}.yaml')} --output_dir {shlex.quote(name)}"
        found.append((name, command, without_paths_in({**inputs, **stage.record["config"]})))
    return found


def duration(seconds: float | None) -> str:
    """`83 s`, `12 min`, `3.4 h`."""
    if seconds is None:
        return tables.MISSING
    for unit, name, most in ((1, "s", 600), (60, "min", 7200)):
        if seconds < most:
            return f"{seconds / unit:,.0f}\N{NO-BREAK SPACE}{name}"
    return f"{seconds / 3600:,.1f}\N{NO-BREAK SPACE}h"


def _shape(output: dict) -> str:
    """`8 x 96 / 256, 1.18M`: layers, hidden size, FFN size, parameters."""
    keys = ("num_hidden_layers", "hidden_size", "intermediate_size")
    if any(output.get(key) is None for key in keys):
        return tables.MISSING
    layers, hidden, ffn = (output[key] for key in keys)
    size = f", {tables.count(output['num_parameters'])}" if output.get("num_parameters") else ""
    return f"{layers} × {hidden:,} / {ffn:,}{size}"


def _last(source: str) -> str:
    """A Hub id whole, of a path the last name."""
    return source if is_hub_id(source) else Path(source).name


def _places(value, folder: Path | None, labels: dict[Path, str]):
    """An input as the commands name it: the label of a stage's folder, else the last name."""
    if isinstance(value, list):
        return [_places(one, folder, labels) for one in value]
    place = manifest.beside(value, folder) if folder else None
    return labels.get(place and place.resolve(), _last(value))
