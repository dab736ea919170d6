"""What `hf-cascade evaluate` does about suites: check, run each model's tasks, set them beside the paper and parent."""

import os
import re
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from tqdm import tqdm

from hf_cascade import assets, companions, manifest, progress
from hf_cascade.evaluate.backends.windows import window_of
from hf_cascade.evaluate.benchmarks.data import VARIABLE
from hf_cascade.evaluate.config import EvaluateArguments
from hf_cascade.evaluate.family import Member
from hf_cascade.evaluate.suite import ahead, figures, kept, published, suites
from hf_cascade.loading import load_config, local_weights

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

    Attributes:
        lacks (`list[str]`): what will not be run, and why, as far as it is known before any work.

    Raises:
        ValueError: an unknown suite, task or model of the paper; a parent without figures; no chat template, or one
            that takes no system prompt; nothing that can be run.
        FileNotFoundError: `data` is no folder.
    """

    def __init__(self, arguments: EvaluateArguments, members: list[Member], teacher: Member | None, tokenizers: dict):
        from hf_cascade.evaluate.harness import open_tasks  # lm-eval takes seconds to import

        self.arguments, self.members, self.teacher = arguments, members, teacher
        self.suites = [suites.load(name) for name in arguments.suite]
        tasks = read_yamls(open_tasks([], TASKS).task_index)
        known = known_metrics(tasks)
        for suite in self.suites:
            suites.check_tasks(suite, known, TASKS)
        if chat := [suite.name for suite in self.suites if suite.chat]:
            for member in members:
                if member.name in tokenizers:
                    _check_template(chat[0], member, tokenizers[member.name], arguments.system_prompt)
        if arguments.backend == "vllm" and find_spec("vllm") is None:
            raise ValueError(
                "backend=vllm: vLLM is not installed: pip install vllm, or serve the model elsewhere and give "
                "--backend openai"
            )
        for model in arguments.paper_row:
            published.check_model(model)
        self.data = self._data([tasks[task] for suite in self.suites for task in suite.tasks])
        models = {member.name: self._able(member) for member in members}
        self.lacks = ahead.lacks(self.suites, tasks, models, self._judged(), self.data) if members else []
        self._served = None
        self._given_parent = None if arguments.parent is None else kept.parent_from(arguments.parent)

    def _data(self, yamls: list[dict]) -> str | None:
        """
        The folder with the benchmarks' rows; `None`: the Hub.

        Raises:
            FileNotFoundError: it is no folder.
        """
        named = "data" if self.arguments.data is not None else VARIABLE
        given = self.arguments.data if self.arguments.data is not None else os.environ.get(VARIABLE)
        if not given or (named == VARIABLE and not ahead.repos_of(yamls)):
            return given or None
        places = [Path(given).expanduser(), assets.root() / given]
        folder = next((place for place in places if place.is_dir()), None)
        if folder is None:
            raise FileNotFoundError(
                f"{named}={given}: it is no folder; give one with a folder for each dataset, as evals/rows is"
            )
        return str(folder.resolve())

    def _judged(self) -> bool:
        """
        Whether flags or `HFC_JUDGE_*` name a judge.

        Raises:
            ValueError: its settings cannot be read, or its address is none.
        """
        from hf_cascade.evaluate.benchmarks.judge_settings import JudgeSettings, NoJudge
        from hf_cascade.rewards.endpoint import ChatEndpoint

        try:
            judge = self.judge() or JudgeSettings.from_environment()
        except NoJudge:
            return False
        ChatEndpoint(judge.url, judge.model, judge.key_variable)  # is not asked yet
        return True

    def _able(self, member: Member) -> ahead.Able:
        """What a model can be asked, by its config; behind a server it is not known."""
        if self.arguments.backend == "openai":
            return ahead.Able()
        config = load_config(member.source)
        images = self.arguments.backend == "hf" and getattr(config, "vision_config", None) is not None
        return ahead.Able(images, window_of(config))

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
            self._served = self._served or open_backend(name, "openai", url=given.base_url)  # one model, once
            return self._served
        if given.backend == "vllm":
            return open_backend(member.source, "vllm", dtype=given.dtype)
        return open_backend(member.source, "hf", batch_size=given.batch_size, dtype=given.dtype)

    def prove(self) -> dict | None:
        """
        Conformance of the tasks, before a model is loaded; on the first process.

        Raises:
            ValueError: a scorer is wrong, or a server does not answer.
        """
        from hf_cascade.evaluate.conformance.prove import record

        if int(os.environ.get("RANK", 0)) > 0:
            return None
        if self.arguments.backend == "openai":
            self._check_server()
        folders = [Path(member.source) for member in self.members if Path(member.source).is_dir()]
        known = next((found for folder in folders if (found := (kept.read(folder) or {}).get("conformance"))), None)
        tasks = list(dict.fromkeys(task for suite in self.suites for task in suite.tasks))

        shown = sys.stderr.isatty() and not os.environ.get(progress.EVENTS_VARIABLE)
        with tqdm(total=len(tasks), unit=" scorers", leave=False, disable=not shown) as bar:

            def told(done: int, total: int, name: str) -> None:
                progress.report(done, total, label=f"conformance of {name}")
                bar.set_description(f"conformance of {name}", refresh=False)
                bar.update(done + len(tasks) - total - bar.n)

            return record(tasks, known, told)

    def _check_server(self):
        """`ValueError` where nobody answers, or not for this model."""
        lm = self.open(self.members[0])
        lm.chat = any(suite.chat for suite in self.suites)
        try:
            lm.check_server()
        except ConnectionError as error:
            raise ValueError(
                f"base_url={self.arguments.base_url}: {error}. See whether the server runs, serves that model "
                "(--served_model_name) and gets its key (OPENAI_API_KEY)"
            ) from error

    def weights(self, member: Member) -> str | None:
        """Hash of a model's weights; `None` of a model behind a server that has no folder here."""
        if self.arguments.backend == "openai" and not Path(member.source).is_dir():
            return None
        return manifest.weights_sha256(local_weights(member.source))

    def companions(self, member: Member) -> dict | None:
        """Hashes of what decides answers beside the weights; `None` of a model that has no folder here."""
        return companions.digests(member.source) if Path(member.source).is_dir() else None

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
            lm.check_chat(self.arguments.system_prompt)  # before hours of other suites
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


def read_yamls(index: dict) -> dict[str, dict]:
    """
    The YAML of each task, without groups; what it refers to is not imported, no rows are read.

    Args:
        index (`dict`): lm-eval's `TaskManager.task_index`.
    """
    from lm_eval.tasks._yaml_loader import load_yaml

    read = {
        name: load_yaml(entry.yaml_path, resolve_func=False) if entry.yaml_path else {} for name, entry in index.items()
    }
    return {name: given for name, given in read.items() if "group" not in given}


def known_metrics(tasks: dict[str, dict]) -> dict[str, list[str] | None]:
    """The metrics that tasks' YAMLs name."""
    return {
        name: [metric["metric"] for metric in given.get("metric_list") or []] or None for name, given in tasks.items()
    }


def _check_template(suite: str, member: Member, tokenizer, system_prompt: str | None) -> None:
    """
    Raises:
        ValueError: there is no chat template, of the tokenizer or of a processor, or it takes no system prompt.
    """
    from hf_cascade.evaluate.backends.asking import check_template

    if not tokenizer.chat_template:
        if not any(Path(member.source).glob("chat_template*")):
            raise ValueError(f"suite {suite} asks through a chat template, and {member.name} has none")
        return
    check_template(tokenizer, member.name, system_prompt)


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
