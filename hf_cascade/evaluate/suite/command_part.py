"""What `hf-cascade evaluate` does about suites: check, run each model's tasks, set them beside the paper and parent."""

import os
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from hf_cascade import assets, manifest, progress
from hf_cascade.evaluate.benchmarks.data import VARIABLE
from hf_cascade.evaluate.config import EvaluateArguments
from hf_cascade.evaluate.family import Member
from hf_cascade.evaluate.suite import figures, kept, published, suites
from hf_cascade.loading import local_weights

TASKS = "evals/tasks"
SAMPLES = "suites"  # in the report's folder: a folder for each model, with every response


class Suites:
    """
    The suites of one `hf-cascade evaluate`; making it checks that they can be run.

    Args:
        arguments (`EvaluateArguments`): its flags.
        members (`list[Member]`): the models.
        teacher (`Member`, *optional*): the one of them that is the parent.
        tokenizers (`dict`): theirs by name, of backend hf.

    Raises:
        ValueError: an unknown suite, task or model of the paper; a parent without figures; no chat template.
        FileNotFoundError: `data` is no folder.
    """

    def __init__(self, arguments: EvaluateArguments, members: list[Member], teacher: Member | None, tokenizers: dict):
        from hf_cascade.evaluate.harness import open_tasks  # lm-eval takes seconds to import

        self.arguments, self.members, self.teacher = arguments, members, teacher
        self.suites = [suites.load(name) for name in arguments.suite]
        known = known_metrics(open_tasks([], TASKS).task_index)
        for suite in self.suites:
            suites.check_tasks(suite, known, TASKS)
        if chat := [suite.name for suite in self.suites if suite.chat]:
            for member in members:
                if member.name in tokenizers and not _has_template(member, tokenizers[member.name]):
                    raise ValueError(f"suite {chat[0]} asks through a chat template, and {member.name} has none")
        for model in arguments.paper_row:
            published.check_model(model)
        if arguments.data is not None:
            folder = assets.find(arguments.data)
            if not folder.is_dir():
                raise FileNotFoundError(f"data={arguments.data}: it is no folder; give one as evals/rows is")
            self.data = str(folder.resolve())
        else:
            self.data = os.environ.get(VARIABLE)
        self.judge()  # whether it can be read
        self._given_parent = None if arguments.parent is None else kept.parent_from(arguments.parent)

    def open(self, member: Member):
        """What answers for a model: an `lm_eval.api.model.LM`; of backend hf its `model` is the loaded model."""
        from hf_cascade.evaluate.harness import quiet

        with quiet():
            return self._open(member)

    def _open(self, member: Member):
        """[`open`], with lm-eval's warnings about what is done on purpose."""
        from hf_cascade.evaluate.backends.opening import open_backend

        given = self.arguments
        if given.backend == "openai":
            name = given.served_model_name or given.model[0]
            return open_backend(name, "openai", url=given.base_url)
        if given.backend == "vllm":
            return open_backend(member.source, "vllm", dtype=given.dtype)
        return open_backend(member.source, "hf", batch_size=given.batch_size, dtype=given.dtype)

    def prove(self) -> dict | None:
        """
        Conformance of the tasks, before a model is loaded; on the first process.

        Raises:
            ValueError: a scorer is wrong.
        """
        from hf_cascade.evaluate.conformance.prove import record

        if int(os.environ.get("RANK", 0)) > 0:
            return None
        folders = [Path(member.source) for member in self.members if Path(member.source).is_dir()]
        known = next((found for folder in folders if (found := (kept.read(folder) or {}).get("conformance"))), None)
        tasks = list(dict.fromkeys(task for suite in self.suites for task in suite.tasks))

        def told(done: int, total: int, name: str) -> None:
            progress.report(done, total, label=f"conformance of {name}")

        return record(tasks, known, told)

    def weights(self, member: Member) -> str | None:
        """Hash of a model's weights; `None` of a model behind a server that has no folder here."""
        if self.arguments.backend == "openai" and not Path(member.source).is_dir():
            return None
        return manifest.weights_sha256(local_weights(member.source))

    def run(self, member: Member, lm, report: Callable[[float], None]) -> dict[str, dict]:
        """
        All suites on one model.

        Args:
            member (`Member`): the model.
            lm (`lm_eval.api.model.LM`): what answers for it.
            report (`Callable`): called with the share of the work that is done.

        Returns:
            `dict`: suite to `{"rows": {label: figures}, "tasks": {task: figures}}`.
        """
        from hf_cascade.evaluate.suite.run import run_suite

        if any(suite.chat for suite in self.suites):
            lm.check_chat()  # before hours of other suites
        found: dict[bool, dict] = {}
        chats = sorted({suite.chat for suite in self.suites})
        for index, chat in enumerate(chats):
            tasks = list(dict.fromkeys(t for suite in self.suites if suite.chat == chat for t in suite.tasks))
            folder = samples_folder(self.arguments.output_dir, member.name) / ("chat" if chat else "plain")

            def told(share: float, label: str, index=index) -> None:
                report((index + share) / len(chats), f"{member.name}: {label}")

            listens = os.environ.get(progress.EVENTS_VARIABLE)  # else the suite draws its own bar
            found[chat] = run_suite(lm, tasks, self.settings(chat), folder, told if listens else None)
        return {suite.name: self._figures(suite, found[suite.chat]) for suite in self.suites}

    def settings(self, chat: bool):
        """The runner's settings."""
        from hf_cascade.evaluate.suite.settings import SuiteSettings

        given = self.arguments
        return SuiteSettings(
            chat=chat,
            system_prompt=given.system_prompt if chat else None,
            samples=given.samples,
            temperature=given.suite_temperature,
            top_p=given.suite_top_p,
            max_gen_tokens=given.max_gen_tokens,
            limit=given.limit,
            tasks_path=TASKS,
            judge=self.judge(),
            data=self.data,
        )

    def judge(self):
        """The judge that flags name, with what else `HFC_JUDGE_*` say of it; `None` leaves all to those variables."""
        from hf_cascade.evaluate.benchmarks.judge_settings import PREFIX, JudgeSettings

        if self.arguments.judge_url is None:
            return None
        names = {"url": "judge_url", "model": "judge_model", "key_variable": "judge_api_key_variable"}
        names |= {"cache": "judge_cache", "max_requests": "judge_max_requests", "max_tokens": "judge_max_tokens"}
        flags = {PREFIX + name.upper(): getattr(self.arguments, flag) for name, flag in names.items()}
        before = dict(os.environ)
        os.environ.update({name: str(value) for name, value in flags.items() if value is not None})
        try:
            return JudgeSettings.from_environment()
        finally:
            for name in flags:
                os.environ.pop(name, None)
            os.environ.update(before)

    def compare(self, models: list[dict]) -> str | None:
        """
        Set each model's rows beside the paper's and the parent's; returns the parent's name.

        Args:
            models (`list[dict]`): their records, with `suites`; changed.
        """
        parents = {model["name"]: self._parent(model, models) for model in models}
        for model in models:
            row = self._paper_row(model)
            name, theirs = parents[model["name"]]
            for suite in self.suites:
                if mine := model["suites"].get(suite.name):
                    rows = (theirs.get(suite.name) or {}).get("rows")
                    same = name is not None and name == model["name"]
                    figures.set_beside(mine["rows"], suite, row, None if same else rows)
        found = list(dict.fromkeys(name for name, _ in parents.values() if name is not None))
        return found[0] if len(found) == 1 else "parent" if found else None

    def described(self) -> list[dict]:
        """The suites as results.json has them."""
        return [asdict(suite) for suite in self.suites]

    def _figures(self, suite: suites.Suite, tasks: dict[str, dict]) -> dict:
        mine = {task: tasks[task] for task in suite.tasks if task in tasks}
        return {"rows": figures.rows_of(suite, mine), "tasks": mine}

    def _paper_row(self, model: dict) -> str | None:
        """The paper's model to set a model beside: the one that is named, or of its sizes."""
        given = self.arguments.paper_row
        places = [assets.locate(source) for source in self.arguments.model]
        mine = [index for index, place in enumerate(places) if _same(place, model["source"])]
        if given and mine:
            return given[mine[0] if len(given) > 1 else 0]
        return published.row_for(model)

    def _parent(self, model: dict, models: list[dict]) -> tuple[str | None, dict]:
        """Name and suites of a model's parent: measured here, given, or named by the model's cascade.json."""
        if self.teacher is not None:
            other = next(one for one in models if one["name"] == self.teacher.name)
            return other["name"], other["suites"]
        if self._given_parent is not None:
            return self._given_parent
        member = next(one for one in self.members if one.name == model["name"])
        return kept.parent_of(member)


def known_metrics(index: dict) -> dict[str, list[str] | None]:
    """
    Tasks, without groups, to the metrics that their YAML names; what it refers to is not imported, no rows are read.

    Args:
        index (`dict`): lm-eval's `TaskManager.task_index`.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    known = {}
    for name, entry in index.items():
        given = load_yaml(entry.yaml_path, resolve_func=False) if entry.yaml_path else {}
        if "group" not in given:
            known[name] = [metric["metric"] for metric in given.get("metric_list") or []] or None
    return known


def _has_template(member: Member, tokenizer) -> bool:
    """Whether there is a chat template, of the tokenizer or of a processor."""
    return bool(tokenizer.chat_template) or any(Path(member.source).glob("chat_template*"))


def nothing_ran(results: dict) -> bool:
    """Whether suites alone were asked for and not one task of them was run."""
    others = any(results[part] for part in ("heldout", "tasks", "comparison"))
    rows = [row for model in results["models"] for suite in model["suites"].values() for row in suite["rows"].values()]
    return bool(results["suites"]) and not others and not any(row["status"] == figures.RUN for row in rows)


def samples_folder(output_dir: str, model: str) -> Path:
    """Where the responses of a model are kept, by its name, and its evals.json where it has no folder of its own."""
    return Path(output_dir) / SAMPLES / re.sub(r"[^\w.-]+", "__", model)


def _same(place: str, source: str) -> bool:
    return Path(place).resolve() == Path(source).resolve() if Path(place).exists() else place == source
