"""A judge for a test: a real server on this machine, named to the judged tasks by the environment."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lm_eval import evaluate

from hf_cascade import assets
from hf_cascade.evaluate.conformance.knowing import Responding
from hf_cascade.evaluate.harness import open_tasks, quiet
from tests.rewards.chat_server import Server, serving


def says(text: str, finish: str = "stop", tokens: tuple[int, int] = (100, 10)) -> dict:
    """A chat completion with its usage."""
    usage = dict(zip(("prompt_tokens", "completion_tokens"), tokens, strict=True))
    return {"choices": [{"message": {"content": text}, "finish_reason": finish}], "usage": usage}


@contextmanager
def judging(monkeypatch, answer: Callable, **settings) -> Iterator[Server]:
    """`answer` as of `chat_server.Server`; `settings` are fields of `JudgeSettings`."""
    for name in [name for name in os.environ if name.startswith("HFC_JUDGE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setenv("HFC_EVAL_DATA", str(assets.find("evals/rows")))
    with serving(answer) as server:
        url = f"http://127.0.0.1:{server.server_port}/v1"
        for name, value in {"url": url, "model": "judge-1", "timeout_seconds": 5, "retries": 2, **settings}.items():
            monkeypatch.setenv(f"HFC_JUDGE_{name.upper()}", str(value))
        yield server


def text_of(body: dict) -> str:
    """The user's message of a request to the judge."""
    content = body["messages"][-1]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def run(task: str, respond: Callable[[dict], str]) -> tuple[dict, list[dict]]:
    """A task's metrics and samples, by lm-eval, of a model that answers as `respond` says."""
    with quiet():
        loaded = open_tasks([task], "evals/tasks/cascade").load([task])
        results = evaluate(Responding(lambda doc, sample: respond(doc)), loaded, bootstrap_iters=0)
    metrics = results["results"][task].items()
    named = {key.removesuffix(",none"): value for key, value in metrics if key.endswith(",none")}
    return {key: value for key, value in named.items() if not key.endswith("_stderr")}, results["samples"][task]
