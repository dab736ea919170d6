"""`hf-cascade evaluate`: models in, results.json, report.md and plots out, and evals.json beside each cascade.json."""

import json
import os
import sys
import time
from dataclasses import MISSING, asdict, fields
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from transformers import HfArgumentParser, PreTrainedModel
from trl import TrlParser

from hf_cascade import assets, companions, manifest, plots, progress, pruning_plots
from hf_cascade.data.text_files import load_texts
from hf_cascade.evaluate import preference_plot, tables, verbosity_plot
from hf_cascade.evaluate.backends.windows import window_of
from hf_cascade.evaluate.config import EvaluateArguments
from hf_cascade.evaluate.family import (
    Member,
    arrange,
    earlier_stages,
    previous,
    read_members,
    step_labels,
    tokens_and_seconds,
)
from hf_cascade.evaluate.heldout import Scorer, Windows, make_windows, measure
from hf_cascade.evaluate.preference import COMPLETIONS, Preference, completions_text
from hf_cascade.evaluate.suite import kept
from hf_cascade.evaluate.suite import plot as suite_plot
from hf_cascade.evaluate.suite import report as suite_report
from hf_cascade.evaluate.suite.command_part import SAMPLES, Suites, nothing_ran, samples_folder
from hf_cascade.loading import check_same_tokenizer, load_config, load_model, load_tokenizer

RESULTS, REPORT = "results.json", "report.md"
NOTHING_RAN = 2  # exit status: as for bad input
STOPPED = 130  # exit status: as shells have it for Ctrl-C
PRUNE_REPORT = "prune_report.json"  # what pruning leaves in its folder
_DIMENSIONS = ("num_parameters", "bytes", "num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")
_DIMENSIONS += ("max_position_embeddings", "tie_word_embeddings")
_INPUTS = ("model", "teacher", "reward_model", "baseline", "parent")


def make_parser() -> HfArgumentParser:
    """Flags of `hf-cascade evaluate`; `--config FILE` reads them from YAML."""
    return TrlParser((EvaluateArguments,), prog="hf-cascade evaluate", description=__doc__)


def main(argv: list[str]) -> int:
    """
    Measure and write; everything that can be checked is checked before weights are read.

    Raises:
        ValueError, FileNotFoundError: bad input, nothing written.
    """
    (arguments,) = make_parser().parse_args_and_config(argv)
    started = time.monotonic()
    evaluation = Evaluation(arguments)
    try:
        results = evaluation.run()
    except KeyboardInterrupt:
        if evaluation.suites is None:
            raise
        _stop(arguments.output_dir)
    if int(os.environ.get("RANK", 0)) > 0:  # accelerate launch: the first process writes
        return 0
    folder = Path(arguments.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / RESULTS, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    if evaluation.completions:
        _write(folder / COMPLETIONS, completions_text(evaluation.completions))
    drawn = plots.family(results, folder) + preference_plot.preference(results, folder)
    drawn += verbosity_plot.verbosity(results, folder) + suite_plot.suites(results, folder)
    ran = not nothing_ran(results)
    for member in evaluation.members:
        if ran:
            _write_evals(member, results, folder)
        if (Path(member.source) / PRUNE_REPORT).is_file():
            pruned = json.loads((Path(member.source) / PRUNE_REPORT).read_text(encoding="utf-8"))
            drawn += pruning_plots.pruning(pruned, member.name, folder)
    names = [path.name for path in drawn]
    sections, notes = suite_report.sections(results), suite_report.notes(results)
    _write(folder / REPORT, tables.report(results, names, sections, notes))
    if not ran:  # the folder is not finished: no cascade.json
        print(suite_report.summary_text(results))
        print(f"hf-cascade evaluate: no benchmark was run; {folder / REPORT} says why", file=sys.stderr)
        return NOTHING_RAN
    manifest.write(
        folder,
        stage=folder.name,
        run="evaluate",
        config=_settings(arguments),
        inputs={name: getattr(arguments, name) for name in _INPUTS if getattr(arguments, name)},
        metrics={"seconds": time.monotonic() - started},
    )
    print("\n\n".join(filter(None, (tables.summary_text(results), suite_report.summary_text(results)))))
    print(f"{folder / REPORT}: {tables.models(results)} measured")
    return 0


def _stop(output_dir: str):
    """End after Ctrl-C at once: threads that wait for a server's answer would be waited for, an hour at most."""
    print(
        f"\nhf-cascade evaluate: stopped. The answers so far are in {Path(output_dir) / SAMPLES}; the same command "
        "goes on from them",
        file=sys.stderr,
        flush=True,
    )
    sys.stdout.flush()
    os._exit(STOPPED)


class Evaluation:
    """
    One run of `hf-cascade evaluate`; making it checks everything, [`Evaluation.run`] does the work.

    Args:
        arguments (`EvaluateArguments`): what to measure.

    Raises:
        ValueError, FileNotFoundError: bad input.
    """

    def __init__(self, arguments: EvaluateArguments):
        self.arguments = arguments
        _check_output_dir(Path(arguments.output_dir))
        # the parent is measured first, since every other model is compared with it
        teacher = [] if arguments.teacher is None else [arguments.teacher]
        where = {assets.locate(source) for source in teacher}
        sources = [m for m in arguments.model if assets.locate(m) not in where]
        if arguments.baseline is not None:
            if assets.locate(arguments.baseline) not in where | {assets.locate(m) for m in sources}:
                sources.insert(0, arguments.baseline)
        self.members = read_members([*teacher, *sources])
        self.teacher = self.members[0] if teacher else None
        self.lengths = [length for length in (arguments.max_length, arguments.long_max_length) if length]
        here = self.members if arguments.backend == "hf" else []  # other back ends read them themselves
        self.tokenizers = {member.name: load_tokenizer(member.source) for member in here}
        configs = {member.name: load_config(member.source).get_text_config() for member in here}
        self.positions = {name: window_of(config) for name, config in configs.items()}
        for member in self.members:
            if arguments.dataset and (self.positions[member.name] or arguments.max_length) < arguments.max_length:
                raise ValueError(
                    f"max_length={arguments.max_length}: {member.name} has {self.positions[member.name]} positions; "
                    "give that or less"
                )
            if self.teacher and arguments.dataset:
                names = (member.name, self.teacher.name)
                check_same_tokenizer(self.tokenizers[member.name], self.tokenizers[self.teacher.name], names)
        self.suites = Suites(arguments, self.members, self.teacher, self.tokenizers) if arguments.suite else None
        self.tasks = None
        if arguments.tasks:
            from hf_cascade.evaluate import harness  # lm-eval takes seconds to import

            self.tasks = harness.open_tasks(arguments.tasks, arguments.tasks_path)
        self.texts = None
        if arguments.dataset:
            self.texts = load_texts(arguments.dataset, arguments.dataset_text_field, arguments.dataset_split)
        self.preference, self.completions = None, []
        if arguments.prompts:
            self.baseline = self._member(arguments.baseline or arguments.model[0])
            self.preference = Preference(arguments, self.baseline.name, self.tokenizers, self.positions)
        self.device = (
            torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
        )
        self._windows: dict[tuple, Windows] = {}
        self._teacher_scorers: dict[int, Scorer] = {}
        self.brief = earlier_stages(self.members) if arguments.final_only else set()
        full = len(self.lengths) * bool(self.texts) + bool(self.tasks) + bool(self.suites)
        self._parts_done = 0
        self._parts = sum(bool(self.texts) if member.name in self.brief else full for member in self.members)
        self._parts += (len(self.members) + 1) * bool(self.preference)

    def run(self) -> dict:
        """Measure every model; returns what results.json holds."""
        arguments = self.arguments
        if self.suites and int(os.environ.get("RANK", 0)) == 0:
            for line in self.suites.lacks:  # before hours of work
                print(f"hf-cascade evaluate: will not be run: {line}", file=sys.stderr)
        conformance = self.suites and self.suites.prove()
        models = [self._measure(member) for member in self.members]
        if self.teacher and self.texts:
            for model in models:
                model["retention"] = 100 * models[0]["heldout"]["perplexity"] / model["heldout"]["perplexity"]
        if self.preference:
            report = self._part("answers compared")
            found, self.completions = self.preference.finish(self._load(self.baseline), report)
            for model in models:
                model["preference"] = found[model["name"]]
        heldout = None
        if self.texts:
            heldout = {
                "dataset": arguments.dataset,
                "documents": len(self.texts),
                "bytes": sum(len(text.encode()) for text in self.texts),
                "max_length": arguments.max_length,
                "long_max_length": arguments.long_max_length,
            }
        return {
            "schema": 1,
            "teacher": self.teacher and self.teacher.name,
            "suites": self.suites.described() if self.suites else [],
            "conformance": conformance,
            "suite_parent": self.suites.compare(models) if self.suites else None,
            "heldout": heldout,
            "tasks": arguments.tasks,
            "limit": arguments.limit,
            "comparison": self.preference and self.preference.summary(),
            "models": models,
            "steps": step_labels(self.members),
            "children": arrange(self.members),
        }

    def _measure(self, member: Member) -> dict:
        """Load one model and take all its figures."""
        arguments, tokenizer = self.arguments, self.tokenizers.get(member.name)
        brief = member.name in self.brief
        lm = self.suites.open(member) if self.suites and not brief else None
        model = None  # other back ends hold it themselves
        if arguments.backend == "hf":
            model = self._load(member) if lm is None else lm.model
        record = {
            "name": member.name,
            "source": _shown(member.source),
            "run": member.record and member.record["run"],
            "previous": previous(member, self.members),
            "manifest_sha256": member.sha256,
            **_dimensions(member, model),
            **tokens_and_seconds(member, self.members),
            "retention": None,
            "heldout": None,
            "long": None,
            "tasks": {},
            "suites": {},
            "weights_sha256": self.suites.weights(member) if lm is not None else None,
            kept.COMPANIONS: self.suites.companions(member) if lm is not None else None,
            "preference": None,
        }
        if self.texts:
            for length, key in zip(self.lengths[: 1 if brief else 2], ("heldout", "long"), strict=False):
                record[key] = self._held_out(member, model, length)
        if self.tasks and not brief:
            from hf_cascade.evaluate import harness

            report = self._part(f"{member.name}: lm-eval")
            record["tasks"] = harness.run_tasks(
                model, tokenizer, arguments.tasks, self.tasks, arguments.batch_size, arguments.limit, report
            )
        if lm is not None:
            record["suites"] = self.suites.run(member, lm, self._part(f"{member.name}: benchmarks"))
        if self.preference:  # last: it replaces the generation config
            self.preference.sample(member.name, model, tokenizer, self._part(f"{member.name}: answers"))
        return record

    def _load(self, member: Member) -> PreTrainedModel:
        dtype = self.arguments.dtype
        dtype = "float32" if dtype == "auto" and self.device.type == "cpu" else dtype
        return load_model(member.source, dtype=dtype).to(self.device)

    def _member(self, source: str) -> Member:
        """The member that a model's folder or Hub id was read into."""
        place = assets.locate(source)
        place = str(Path(place).resolve()) if Path(place).is_dir() else place
        return next(member for member in self.members if member.source == place)

    def _held_out(self, member: Member, model: PreTrainedModel, length: int) -> dict | None:
        """Held-out figures in windows of `length`; None for a model with fewer positions."""
        report = self._part(f"{member.name}: held-out text, {length:,}-token windows")
        if (self.positions[member.name] or length) < length:
            return None
        tokenizer = self.tokenizers[member.name]
        key = (length, tokenizer.bos_token_id, frozenset(tokenizer.get_vocab().items()))
        if key not in self._windows:
            self._windows[key] = make_windows(tokenizer, self.texts, length)
        batch_size = max(1, self.arguments.batch_size * self.arguments.max_length // length)
        is_teacher = member is self.teacher
        scorer = Scorer(model, self._windows[key], batch_size, keep=is_teacher)
        figures = asdict(measure(scorer, self._teacher_scorers.get(length), self._windows[key], report))
        if is_teacher:
            self._teacher_scorers[length] = scorer
            figures |= {"kl": 0.0, "top1_agreement": 1.0}  # by definition
        return figures

    def _part(self, label: str):
        """A function that reports the share done of the next part of the work."""
        done, self._parts_done = self._parts_done, self._parts_done + 1

        def report(share: float, label: str = label) -> None:
            progress.report(round(100 * (done + share)), 100 * self._parts, label=label)

        report(0.0)
        return report


def _shown(source: str) -> str:
    """A folder below the working directory by its relative path: reports are moved and published."""
    here = Path.cwd()
    return str(Path(source).relative_to(here)) if Path(source).is_relative_to(here) else source


def _dimensions(member: Member, model: PreTrainedModel | None) -> dict:
    """Parameters, bytes of the weights and sizes, as the manifest's `output` has them; `None` where unknown."""
    folder = member.source
    if not Path(folder).is_dir():
        if model is None:  # behind a server
            return dict.fromkeys(_DIMENSIONS)
        folder = snapshot_download(folder, local_files_only=True)  # which loading has just fetched
    known = ((member.record or {}).get("output") or {}).get("num_parameters")
    return manifest.describe(folder, known if model is None else model.num_parameters())


def _check_output_dir(folder: Path) -> None:
    """An earlier report, finished or not, may be written over; nothing else."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    ours = (REPORT, RESULTS, COMPLETIONS, manifest.FILE)
    foreign = [name for name in names if name not in (*ours, SAMPLES) and not name.endswith(".png")]
    if folder.is_file() or foreign:
        what = "is a file" if folder.is_file() else f"holds {', '.join(foreign[:3])}"
        raise ValueError(f"output_dir={folder} {what}: name a folder that is new or empty")


def _settings(arguments: EvaluateArguments) -> dict:
    """The flags that are not defaults, without inputs and output."""
    flags = [flag for flag in fields(arguments) if flag.name not in (*_INPUTS, "output_dir")]
    defaults = {f.name: f.default if f.default_factory is MISSING else f.default_factory() for f in flags}
    return {name: getattr(arguments, name) for name in defaults if getattr(arguments, name) != defaults[name]}


def _write_evals(member: Member, results: dict, output_dir: Path) -> None:
    """
    Put a model's figures in its own folder, when a stage made that folder; shipped models are left as they are. Figures
    of suites on other models are put beside their responses, where `--parent` can find them.
    """
    folder = Path(member.source)
    (figures,) = (model for model in results["models"] if model["name"] == member.name)
    shipped = (assets.root() / "recipes").resolve() in folder.parents
    if member.record is None or shipped or not os.access(folder, os.W_OK):
        if not figures["suites"]:
            return
        folder = samples_folder(output_dir, member.name)
        folder.mkdir(parents=True, exist_ok=True)
    shared = {name: results[name] for name in ("schema", "teacher", "heldout", "limit", "comparison")}
    shared["conformance"] = results["conformance"]
    own = folder == Path(member.source)
    if own and figures["weights_sha256"] is None:  # no suite was run; a later run asks whether these are still true
        now = {"weights_sha256": manifest.weights_sha256(folder), kept.COMPANIONS: companions.digests(folder)}
        figures = {**figures, **now}
    merged, lines = kept.merge({**shared, **figures}, folder)
    for line in lines:
        print(line)
    _write(folder / kept.EVALS, json.dumps(merged, indent=1, ensure_ascii=False) + "\n")


def _write(path: Path, text: str) -> None:
    """Write whole or not at all."""
    draft = path.with_name(f".{path.name}.partial")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
