"""`hf-cascade difficulty`: prompts in; those that are neither too easy, too hard nor wrong out, with a report."""

import hashlib
import json
import math
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, fields
from pathlib import Path

from tqdm import tqdm
from transformers import HfArgumentParser
from trl import TrlParser

from hf_cascade import assets, manifest, progress
from hf_cascade.data.prompts import PROMPTS
from hf_cascade.evaluate.preference import check_reward
from hf_cascade.evaluate.preference_samples import load_rows
from hf_cascade.grpo.difficulty import (
    AFTER_SAMPLING,
    KEPT,
    Difficulty,
    Window,
    difficulty,
    final_answer,
)
from hf_cascade.grpo.difficulty_arguments import DifficultyArguments
from hf_cascade.grpo.difficulty_report import NO_SAMPLING, PICTURE, draw, histogram, nothing_kept, report
from hf_cascade.grpo.difficulty_rows import BEFORE_SAMPLING, check_no_images, gold_of, judge_of, same_of, screen
from hf_cascade.grpo.difficulty_samples import Drawn, Journal, ModelSource, Sample, ServerSource, all_equal, collect
from hf_cascade.rewards.maths import maths_reward
from hf_cascade.rewards.preference import PairwisePreference
from hf_cascade.rewards.programs import ProgramReward, program_reward
from hf_cascade.rewards.running import SandboxUnavailable
from hf_cascade.rewards.stem import StemReward
from hf_cascade.rewards.verifiable import load_reward

SAMPLES, DROPPED, RESULTS, REPORT = "samples.jsonl", "dropped.jsonl", "difficulty.json", "report.md"
END_CHARACTERS = 500  # of the first response to a prompt, kept for people
EXAMPLES = 3  # of them in the report
_INPUTS = ("model",)
_ASKED = ("samples_per_prompt", "sampling_temperature", "max_completion_length", "dtype", "url", "served_model")


def make_parser() -> HfArgumentParser:
    """Flags of `hf-cascade difficulty`; `--config FILE` reads them from YAML."""
    return TrlParser((DifficultyArguments,), prog="hf-cascade difficulty", description=__doc__)


def main(argv: list[str]) -> int:
    """
    Sample, judge and write; everything that can be checked is checked before weights are read.

    Raises:
        ValueError, FileNotFoundError: bad input; or no prompt stays.
        ConnectionError: the server gave nothing; the same command goes on.
    """
    (arguments,) = make_parser().parse_args_and_config(argv)
    folder, settings = Path(arguments.output_dir), _settings(arguments)
    inputs = {name: getattr(arguments, name) for name in _INPUTS if getattr(arguments, name)}
    check_output_dir(folder)
    work = DifficultyFilter(arguments)
    if manifest.is_finished(folder):
        if manifest.read(folder)["config_sha256"] == manifest.config_sha256("difficulty", settings, inputs):
            print(f"{folder} is already finished; delete it to make it again")
            return 0
    work.sample()
    started = time.monotonic()
    kept, dropped, results = work.sort()
    results["seconds"] = work.journal.seconds + time.monotonic() - started
    (folder / manifest.FILE).unlink(missing_ok=True)  # of the same responses with another window
    (folder / PROMPTS).unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / DROPPED, _lines(dropped))
    _write(folder / RESULTS, json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    draw(results, folder)
    _write(folder / REPORT, report(results, dropped))
    if not kept:
        raise ValueError(f"{nothing_kept(results)}. See {folder / REPORT}")
    _write(folder / PROMPTS, _lines(kept))
    figures = {"kept": len(kept), "dropped": len(dropped), "seconds": results["seconds"]}
    manifest.write(folder, stage=folder.name, run="difficulty", config=settings, inputs=inputs, metrics=figures)
    counts = ", ".join(f"{name} {count}" for name, count in results["outcomes"].items() if count)
    print(f"{folder / PROMPTS}: {len(kept)} of {results['rows']} prompts ({counts})")
    return 0


class DifficultyFilter:
    """
    One run of `hf-cascade difficulty`; making it checks everything, and reads no weights.

    Args:
        arguments (`DifficultyArguments`): what to do.

    Raises:
        ValueError, FileNotFoundError: bad input.
    """

    def __init__(self, arguments: DifficultyArguments):
        self.arguments = arguments
        self.window = Window(
            arguments.min_pass_rate, arguments.max_pass_rate, arguments.majority_share, arguments.pass_above
        )
        self.rows = load_rows(arguments.prompts, arguments.dataset_split, arguments.limit)
        check_no_images(self.rows)
        self.reward = load_reward(arguments.reward)
        self.reasons = screen(self.rows, self.reward, self._check_reward())
        self.places = [place for place, reason in enumerate(self.reasons) if reason is None]
        if any(self.rows[place].get("tests") for place in self.places):
            self._check_sandbox()
        self.journal = Journal(Path(arguments.output_dir) / SAMPLES, _asked(arguments, self.rows))
        self.source, self._warned = None, False
        if self.places:
            kind = ModelSource if arguments.model is not None else ServerSource
            self.source = kind(arguments, [self.rows[place] for place in self.places])

    def _check_reward(self) -> list[str]:
        """Refuse a reward that cannot judge these rows; returns the columns that it needs."""
        name, reward = self.arguments.reward, self.reward
        if isinstance(reward, PairwisePreference):
            raise ValueError(f"reward {name!r} compares two responses: give one that judges each by itself")
        return check_reward(name, reward, self.rows)

    def _check_sandbox(self) -> None:
        """Refuse to begin where no program can be run."""
        judge = program_reward if isinstance(self.reward, StemReward) else self.reward
        try:
            if isinstance(judge, ProgramReward):
                judge.backend.check()
        except SandboxUnavailable as error:
            raise ValueError(f"reward {self.arguments.reward!r} runs programs, and here none runs: {error}") from error

    def sample(self) -> None:
        """Answer and judge every prompt that was not left out, and keep it in samples.jsonl."""
        if self.source is None:
            return
        with tqdm(total=len(self.places), desc="prompts", disable=None) as bar:

            def tell(done: int) -> None:
                bar.update(done - bar.n)
                progress.report(done, len(self.places), label="prompts answered")

            collect(self.journal, self.source, self.rows, self.places, self._keep, tell)

    def sort(self) -> tuple[list[dict], list[dict], dict]:
        """Rows that stay, rows that go with their `reason`, and what difficulty.json holds."""
        with ThreadPoolExecutor(maths_reward.workers) as pool:
            found = dict(zip(self.places, pool.map(self._difficulty, self.places), strict=True))
        kept, dropped = [], []
        for place, row in enumerate(self.rows):
            if place not in found:
                dropped.append(row | {"reason": self.reasons[place]})
                continue
            one = found[place]
            figures = {"pass_rate": one.pass_rate, "samples": one.samples, "majority_answer": one.majority.answer}
            if one.outcome == KEPT:
                kept.append({key: value for key, value in row.items() if key != "reason"} | figures)
            else:
                dropped.append(row | figures | {"reason": one.outcome})
        return kept, dropped, self._results(found)

    def _difficulty(self, place: int) -> Difficulty:
        row, samples = self.rows[place], self.journal.samples[place]
        rewards, answers = ([getattr(one, name) for one in samples] for name in ("reward", "answer"))
        return difficulty(rewards, answers, gold_of(row), same_of(row, self.reward), self.window)

    def _keep(self, rows: list[dict], drawn: list[list[Drawn | None]]) -> list[list[Sample]]:
        """Judge responses to some prompts."""
        flat = [(row, one) for row, given in zip(rows, drawn, strict=True) for one in given if one is not None]
        rewards = iter(self._rewards([row for row, _ in flat], [one for _, one in flat]))
        kept = []
        for row, given in zip(rows, drawn, strict=True):
            samples = []
            for one in given:
                if one is None:
                    samples.append(Sample())
                    continue
                in_box = judge_of(row, self.reward) is not None
                answer = None if row.get("tests") else final_answer(row["prompt"], one.completion, in_box)
                digest = hashlib.sha256(_text(one.completion).encode()).hexdigest()[:12]
                samples.append(Sample(True, next(rewards), answer, one.tokens, one.cut_off, digest))
            first = next((number for number, one in enumerate(given) if one is not None), None)
            if first is not None:
                samples[first].end = _text(given[first].completion)[-END_CHARACTERS:]
            kept.append(samples)
        if self.arguments.url and not self._warned and all(map(all_equal, kept)):
            self._warned = True
            print(f"hf-cascade: warning: so far {NO_SAMPLING}", file=sys.stderr)
        return kept

    def _rewards(self, rows: list[dict], drawn: list[Drawn]) -> list[float | None]:
        """Of responses, each with its row."""
        if not rows:
            return []
        given = ("prompt", "prompts", "completions", "completion_ids")  # no columns of the dataset
        columns = {name: [row[name] for row in rows] for name in self.rows[0] if name not in given}
        if drawn[0].token_ids is not None:
            columns["completion_ids"] = [one.token_ids for one in drawn]
        prompts, completions = [row["prompt"] for row in rows], [one.completion for one in drawn]
        values = self.reward(prompts=prompts, completions=completions, **columns)
        if not isinstance(values, list) or len(values) != len(rows):
            raise ValueError(
                f"reward {self.arguments.reward!r} must give a list of {len(rows)} numbers, and gave {str(values)[:80]}"
            )
        return [None if value is None or math.isnan(value) else float(value) for value in values]

    def _results(self, found: dict[int, Difficulty]) -> dict:
        outcomes = [found[place].outcome if place in found else self.reasons[place] for place in range(len(self.rows))]
        rates = [(one.pass_rate, one.outcome) for one in found.values() if one.pass_rate is not None]
        samples = {place: [one for one in self.journal.samples[place] if one.came] for place in found}
        came = [one for given in samples.values() for one in given]
        answers = [one.answer for place in found if not self.rows[place].get("tests") for one in samples[place]]
        shown = [place for place in found if samples[place]][:EXAMPLES]
        tokens = [one.tokens for one in came if one.tokens is not None]
        names = [flag.name for flag in fields(self.arguments) if flag.name != "output_dir"]
        return {
            "schema": 1,
            "rows": len(self.rows),
            "outcomes": {name: outcomes.count(name) for name in (KEPT, *AFTER_SAMPLING, *BEFORE_SAMPLING)},
            "histogram": histogram(rates, self.arguments.samples_per_prompt),
            "responses": {
                "asked": len(found) * self.arguments.samples_per_prompt,
                "came": len(came),
                "judged": sum(one.reward is not None for one in came),
                "tokens": sum(tokens) / len(tokens) if tokens else None,
                "cut_off": sum(one.cut_off for one in came) / len(came) if came else 0.0,
                "all_equal": sum(map(all_equal, samples.values())) / len(found) if found else 0.0,
                "without_answer": answers.count(None) / len(answers) if answers else 0.0,
            },
            "examples": [{"prompt": self.rows[place]["prompt"], "end": _end(samples[place])} for place in shown],
            "settings": {name: getattr(self.arguments, name) for name in names},
        }


def check_output_dir(folder: Path) -> None:
    """
    Refuse a folder that holds anything but this command's own files.

    Raises:
        ValueError: it does, or is a file.
    """
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    ours = (SAMPLES, PROMPTS, DROPPED, RESULTS, REPORT, PICTURE, manifest.FILE)
    foreign = [name for name in names if name not in ours and not name.endswith(".partial")]
    if folder.is_file() or foreign:
        what = "is a file" if folder.is_file() else f"holds {', '.join(foreign[:3])}"
        raise ValueError(f"output_dir={folder} {what}: name a folder that is new or empty")


def _settings(arguments: DifficultyArguments) -> dict:
    """The flags that are not defaults, without inputs and output."""
    flags = [flag for flag in fields(arguments) if flag.name not in (*_INPUTS, "output_dir")]
    return {
        flag.name: getattr(arguments, flag.name)
        for flag in flags
        if flag.default is MISSING or getattr(arguments, flag.name) != flag.default
    }


def _asked(arguments: DifficultyArguments, rows: list[dict]) -> dict:
    """What responses and rewards depend on; the window and the batch size are free to change."""
    settings = {name: getattr(arguments, name) for name in _ASKED} | {"reward": arguments.reward}
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, default=str).encode())
    settings["prompts_sha256"] = digest.hexdigest()
    if arguments.model is not None:
        settings["model"] = _identity(arguments.model)
    return settings


def _identity(model: str) -> str:
    """A model's name, and a hash of what its folder holds."""
    folder = Path(assets.locate(model))
    if not folder.is_dir():
        return model
    digest = hashlib.sha256()
    for file in sorted(folder.glob("*")):
        if file.is_file():
            whole = file.suffix in (".json", ".jinja")  # weights are known by the manifest, and by their size
            digest.update(file.name.encode() + (file.read_bytes() if whole else str(file.stat().st_size).encode()))
    return f"{folder.resolve().name} {digest.hexdigest()}"


def _text(completion: str | list[dict]) -> str:
    return completion if isinstance(completion, str) else str(completion[-1].get("content") or "")


def _end(samples: list[Sample]) -> str:
    """The end of the response of which it was kept."""
    return next((one.end for one in samples if one.end is not None), "")


def _lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)


def _write(path: Path, text: str) -> None:
    """Write whole or not at all."""
    draft = path.with_name(f".{path.name}.partial")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)
