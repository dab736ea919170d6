"""The tiny tasks: rows made from held-out text only, scorers that conform, figures that a hand computation confirms."""

import importlib.util
import json
import math

import pytest
import torch

from hf_cascade import assets
from hf_cascade.evaluate import rows
from hf_cascade.evaluate.conformance.knowing import Knowing, Uniform
from hf_cascade.evaluate.harness import open_tasks, run_tasks, score

from .conftest import tiny_model

FOLDER = assets.find("evals/tasks/tiny")
TASKS = ["cascade_tiny_bits", "cascade_tiny_continuation", "cascade_tiny_copy"]


def read(name: str) -> list[dict]:
    return rows.load(f"evals/tasks/tiny/{name}.jsonl")["test"].to_list()


@pytest.fixture(scope="module")
def builder():
    spec = importlib.util.spec_from_file_location("build_rows", FOLDER / "build_rows.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_rebuild_gives_the_shipped_rows(builder, tmp_path):
    builder.build(tmp_path)
    shipped = sorted(FOLDER.glob("*.jsonl"))
    assert len(shipped) == 3 and sum(path.stat().st_size for path in shipped) < 2e6
    for path in shipped:
        assert path.read_bytes() == (tmp_path / path.name).read_bytes(), path.name


def test_rows_stand_in_the_held_out_text(builder):
    texts = {row["source"]: row["text"] for row in builder.documents()}
    continuation, copy, bits = (read(name) for name in ("continuation", "copy", "bits"))
    assert [len(continuation), len(copy), len(bits)] == [200, 200, 60]
    for row in continuation:
        text = texts[row["source"].rsplit(":", 1)[0]]
        assert row["context"] + row["choices"][row["answer"]] in text
        assert len(set(row["choices"])) == 4 and all(60 <= len(choice) <= 75 for choice in row["choices"])
        assert not row["context"][-1].isspace() and all(choice[0] == " " for choice in row["choices"])
        assert all(any(choice in text for text in texts.values()) for choice in row["choices"])
    for row in copy:
        assert row["context"] + row["target"] in texts[row["source"].rsplit(":", 1)[0]]
        assert row["context"].rsplit(maxsplit=1)[-1] + row["target"] in row["context"]
    for row in bits:
        assert row["text"] in texts[row["source"].rsplit(":", 1)[0]] and len(row["text"]) <= 800


@pytest.fixture(scope="module")
def manager():
    return open_tasks(["cascade_tiny"], "evals/tasks/tiny")


def test_an_oracle_is_right_everywhere(manager):
    results = score(Knowing(right=True), ["cascade_tiny"], manager)
    values = {task: result["value"] for task, result in results.items()}
    assert values == {"cascade_tiny_bits": 0.0, "cascade_tiny_continuation": 1.0, "cascade_tiny_copy": 1.0}


def test_an_anti_oracle_is_right_nowhere(manager):
    results = score(Knowing(right=False), TASKS, manager)
    assert results["cascade_tiny_continuation"]["value"] == results["cascade_tiny_copy"]["value"] == 0.0
    assert results["cascade_tiny_bits"]["value"] > 10


def test_who_knows_nothing_scores_at_chance(manager):
    results = score(Uniform(), TASKS, manager)
    for task in ("cascade_tiny_continuation", "cascade_tiny_copy"):
        result = results[task]
        assert abs(result["value"] - result["chance"]) <= 3 * result["stderr"], task
    assert results["cascade_tiny_bits"]["value"] == pytest.approx(1 / math.log(2))


def test_length_gives_nothing_away():
    """Always the longest or the shortest choice: no better than chance by 3 standard errors."""
    questions = read("continuation")
    for pick in (max, min):
        right = sum(
            pick(row["choices"], key=lambda c: len(c.encode())) == row["choices"][row["answer"]] for row in questions
        )
        assert abs(right / len(questions) - 0.25) < 3 * math.sqrt(0.25 * 0.75 / len(questions))


def test_a_models_scores_equal_a_computation_by_hand(manager, tokenizer):
    """One BOS in front, the continuation's tokens scored, per byte; what lm-eval does is easily doubled."""
    model = tiny_model(3, max_position_embeddings=1024)

    def log_likelihood(context: str, continuation: str) -> float:
        ids = tokenizer(context + continuation)["input_ids"]
        given = len(tokenizer(context)["input_ids"])
        assert ids[:given] == tokenizer(context)["input_ids"] and ids.count(tokenizer.bos_token_id) == 1
        with torch.no_grad():
            logs = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        return sum(logs[place - 1, ids[place]].item() for place in range(given, len(ids)))

    shares = []
    results = run_tasks(model, tokenizer, TASKS, manager, batch_size=4, limit=12, report=shares.append)
    passages = [row["text"] for row in read("bits")[:12]]
    bits = [-log_likelihood("", text) / math.log(2) / len(text.encode()) for text in passages]
    assert results["cascade_tiny_bits"]["value"] == pytest.approx(sum(bits) / 12, rel=1e-5)
    right = 0
    for row in read("continuation")[:12]:
        scores = [log_likelihood(row["context"], choice) / len(choice.encode()) for choice in row["choices"]]
        right += scores.index(max(scores)) == row["answer"]
    assert results["cascade_tiny_continuation"]["value"] == pytest.approx(right / 12)
    assert {result["rows"] for result in results.values()} == {12}
    assert shares[-1] == 1.0 and shares[0] > 0


def test_tasks_are_found_from_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    manager = open_tasks(TASKS, "evals/tasks/tiny")
    assert set(manager.load(["cascade_tiny"])["tasks"]) == set(TASKS)


def test_an_unknown_task_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="hellaswag.*allowed are cascade_tiny, cascade_tiny_bits"):
        open_tasks(["hellaswag"], "evals/tasks/tiny")
    with pytest.raises(FileNotFoundError, match="no/such"):
        open_tasks(["cascade_tiny"], "no/such")


def test_the_readmes_table_is_the_folder(manager):
    lines = (FOLDER / "README.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| `")]
    tasks = manager.load(["cascade_tiny"])["tasks"]
    assert {row[0].strip("`") for row in cells} == set(tasks)
    for name, count, _, metric, chance in cells:
        config = tasks[name.strip("`")].config
        assert int(count) == len(tasks[name.strip("`")].eval_docs)
        assert metric.startswith(f"`{config.metric_list[0]['metric']}`")
        assert (float(chance) if chance else None) == config.metadata.get("chance")


def test_task_files_name_rows_that_exist():
    files = sorted(FOLDER.glob("*.yaml"))
    assert len(files) == 4
    assert sum("dataset_kwargs: {file: evals/tasks/tiny/" in path.read_text() for path in files) == 3
    assert all(json.loads(line) for path in FOLDER.glob("*.jsonl") for line in path.read_text().splitlines())
