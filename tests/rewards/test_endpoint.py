"""`ChatEndpoint`: answers in order, the cache, the budget, a server that goes away. See test_judge.py too."""

import json
import pickle
import subprocess
import sys
import threading

import pytest

from hf_cascade.rewards.endpoint import ChatEndpoint, RequestBudgetError, UnusableAnswer, choices_of
from tests.rewards.chat_server import says, serving

BODIES = [{"messages": [{"role": "user", "content": text}], "seed": 7} for text in ("one", "two", "three", "four")]
WORDS = ["one", "two", "three", "four"]


def read(answer):
    return choices_of(answer)[0]["message"]["content"]


def echo(body, _):
    return says(body["messages"][0]["content"])


@pytest.fixture
def ask(monkeypatch):
    """An endpoint at a server's address."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def endpoint(server, **settings):
        settings = {"timeout_seconds": 5, "retries": 2, "backoff_seconds": 0.01} | settings
        return ChatEndpoint(f"http://127.0.0.1:{server.server_port}/v1", "model-1", **settings)

    return endpoint


def test_answers_stand_in_the_order_of_the_questions(ask):
    with serving(echo) as server:
        endpoint = ask(server)
        assert endpoint.ask(BODIES * 5, read) == WORDS * 5
        assert endpoint.ask([], read) == []
    assert endpoint.requests == len(server.bodies) == 20  # equal bodies are samples, each its own
    assert all(body["model"] == "model-1" and body["seed"] == 7 for body in server.bodies)


def test_what_was_answered_once_is_not_asked_again(ask, tmp_path):
    """By url, model and body; from another object too, and without a server."""
    cache = tmp_path / "new" / "cache.sqlite"
    with serving(echo) as server:
        assert ask(server, cache=cache).ask(BODIES[:2], read) == WORDS[:2]
        assert ask(server, cache=cache).ask(BODIES, read) == WORDS
        assert len(server.bodies) == 4
        other = ask(server, cache=cache)
        other.model = "model-2"
        changed = [{**BODIES[0], "seed": 8}, {**BODIES[0], "temperature": 1}]
        assert other.ask(BODIES[:1], read) == ask(server, cache=cache).ask(changed, read)[:1] == ["one"]
        assert len(server.bodies) == 7
    reordered = [dict(reversed(body.items())) for body in BODIES]
    assert ask(server, cache=str(cache), max_requests=0).ask(reordered, read) == WORDS


def test_failures_are_not_kept(ask, tmp_path):
    """One request is refused and one answer cannot be read; both are asked again, and only they."""
    broken = {"one": (500, "no"), "two": says("?")}

    def answer(body, number):
        return broken.get(body["messages"][0]["content"]) or echo(body, number)

    def careful(body):
        if (text := read(body)) == "?":
            raise UnusableAnswer("a question")
        return text

    with serving(answer) as server:
        endpoint = ask(server, cache=tmp_path / "cache", retries=0)
        assert endpoint.ask(BODIES, careful) == [None, None, "three", "four"]
        broken.clear()
        assert endpoint.ask(BODIES, careful) == WORDS
        assert len(server.bodies) == 6


def test_a_reader_that_changed_does_without_old_answers(ask, tmp_path):
    def strict(answer):
        raise UnusableAnswer("not this one")

    with serving(echo) as server:
        endpoint = ask(server, cache=tmp_path / "cache")
        endpoint.ask(BODIES, read)
        with pytest.raises(ConnectionError, match="none of 4 answers.*not this one"):
            endpoint.ask(BODIES, strict)
        assert endpoint.ask(BODIES, read) == WORDS and len(server.bodies) == 4


def test_the_budget_counts_retries_and_ends_with_what_was_paid_for_in_the_cache(ask, tmp_path):
    """The first question fails once: 5 requests for 4 answers."""

    def answer(body, number):
        return (503, "") if number == 1 else echo(body, number)

    with serving(answer) as server:
        endpoint = ask(server, cache=tmp_path / "cache", max_requests=4, concurrency=1)
        with pytest.raises(RequestBudgetError, match="max_requests=4 .* and 1 of 4 answers are missing: raise max_req"):
            endpoint.ask(BODIES, read)
        assert endpoint.requests == len(server.bodies) == 4
        with pytest.raises(RequestBudgetError):
            endpoint.ask(BODIES, read)
        assert ask(server, cache=tmp_path / "cache", max_requests=1).ask(BODIES, read) == WORDS
        assert len(server.bodies) == 5
    assert issubclass(RequestBudgetError, ConnectionError)


def test_no_thread_spends_beyond_the_budget(ask):
    with serving(echo) as server:
        endpoint = ask(server, max_requests=37)
        with pytest.raises(RequestBudgetError):
            endpoint.ask(BODIES * 30, read)
        assert len(server.bodies) == 37


def test_a_server_that_dies_in_the_middle(ask, tmp_path):
    """What came counts, the rest is missing; requests that wait are not each retried to the end."""
    with serving(lambda body, number: echo(body, number) if number <= 8 else (502, "gone")) as server:
        endpoint = ask(server, cache=tmp_path / "cache", concurrency=1, retries=3)
        bodies = [{**BODIES[0], "seed": seed} for seed in range(40)]
        assert endpoint.ask(bodies, read) == ["one"] * 8 + [None] * 32
        assert len(server.bodies) == 8 + 4 + 31
        with pytest.raises(ConnectionError, match="status 502: gone"):
            endpoint.ask(bodies[8:], read)


def test_a_server_that_comes_back_is_retried_again(ask):
    """Two requests fail to their end, then one is answered: the next failure has its retries."""
    failing = {*range(1, 5), 6}
    with serving(lambda body, number: (500, "") if number in failing else echo(body, number)) as server:
        endpoint = ask(server, concurrency=1, retries=2)
        # requests 1 to 3: all tries of the first; 4: the second, once; 5: the third; 6 and 7: the fourth and its retry
        assert endpoint.ask(BODIES, read) == [None, None, "three", "four"]
        assert len(server.bodies) == 7


def test_an_endpoint_with_a_cache_can_be_pickled(ask, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-1234")
    with serving(echo) as server:
        endpoint = pickle.loads(pickle.dumps(ask(server, cache=tmp_path / "cache", max_requests=9)))
        assert endpoint.ask(BODIES, read) == WORDS
    assert b"sk-secret" not in (tmp_path / "cache").read_bytes() + pickle.dumps(endpoint)


WRITER = """
import sys
from hf_cascade.rewards.answer_cache import AnswerCache
cache = AnswerCache(sys.argv[1])
for number in range(int(sys.argv[3])):
    cache.write(f"{sys.argv[2]}-{number}", {"text": "x" * 2000})
    print(number, flush=True)
"""


def test_a_cache_is_shared_by_processes_and_whole_after_a_kill(tmp_path):
    from hf_cascade.rewards.answer_cache import AnswerCache

    path = tmp_path / "cache"
    start = [sys.executable, "-c", WRITER, str(path)]
    running = [
        subprocess.Popen([*start, name, count], stdout=subprocess.PIPE, text=True)
        for name, count in (("a", "30"), ("b", "30"), ("killed", "1000000"))
    ]
    for _ in range(20):
        last = running[2].stdout.readline()
    running[2].kill()
    assert all(process.wait() == 0 for process in running[:2])
    running[2].wait()
    for process in running:
        process.stdout.close()
    cache = AnswerCache(path)
    keys = [f"{name}-{number}" for name in "ab" for number in range(30)]
    keys += [f"killed-{number}" for number in range(int(last) + 1)]
    assert cache.read([*keys, "unknown"]) == {key: {"text": "x" * 2000} for key in keys} and len(keys) == 80


def test_many_threads_write_and_read_many_keys(tmp_path):
    from hf_cascade.rewards.answer_cache import AnswerCache

    cache = AnswerCache(tmp_path / "cache")
    keys = [f"key {number}" for number in range(1200)]
    cache.write(keys[0], {"a": 1})
    threads = [threading.Thread(target=cache.write, args=(key, {"a": 1})) for key in keys[-16:]]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert set(cache.read(keys)) == {keys[0], *keys[-16:]}


def test_settings_that_cannot_work(tmp_path):
    (tmp_path / "text").write_text("not a database, but longer than a header of one hundred bytes " * 3)
    for settings, message in (
        ({"cache": tmp_path / "text"}, "text cannot be used .*name a file"),
        ({"cache": tmp_path}, "cannot be used"),
        ({"cache": tmp_path / "text" / "below"}, "cannot be used"),
        ({"max_requests": -1}, "max_requests=-1: give 0 or more"),
        ({"concurrency": 0}, "concurrency=0"),
    ):
        with pytest.raises(ValueError, match=message):
            ChatEndpoint("http://127.0.0.1:9/v1", "m", **settings)


@pytest.mark.parametrize("answer", [{}, [], "x", {"choices": []}, {"choices": [{"message": {"content": [1]}}]}, None])
def test_what_is_no_chat_completion(answer):
    with pytest.raises(UnusableAnswer, match="no chat completion"):
        choices_of(json.loads(json.dumps(answer)))
