"""Recipes with the stages after distillation: judges, reward models, prompts, chat templates."""

import pytest

from tests.test_recipe import TEXT, Book


@pytest.fixture
def book(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Book(tmp_path)


def post_training(book) -> dict:
    """The book's recipe, with the stages after distillation; returns the last."""
    rows = {"datasets": TEXT}
    sft = {"run": "sft", "inputs": book.stages["short"]["inputs"], "set": rows}
    pwrm = {"run": "pwrm", "inputs": {"model_name_or_path": "sft"}, "set": {**rows, "test_split_size": 0.1}}
    odpo = {"run": "odpo", "inputs": {"model_name_or_path": "sft", "reward_model": "pwrm"}, "set": rows}
    book.stages |= {"sft": sft, "pwrm": pwrm, "odpo": odpo}
    return odpo


def test_post_training(book):
    post_training(book)
    before, after = book.fingerprints(), book.fingerprints({"pwrm": {"learning_rate": 1e-6}})
    assert {name for name in before if before[name] != after[name]} == {"pwrm", "odpo"}


@pytest.mark.parametrize(
    ("inputs", "settings", "words"),
    [
        ({}, {}, "odpo: odpo needs one of inputs.reward_model, set.judge_url, set.reward_funcs, and has none"),
        ({"reward_model": "pwrm"}, {"judge_url": "http://j"}, "and has reward_model and judge_url"),
        ({"reward_model": "sft"}, {}, "odpo.inputs.reward_model: sft is made by sft: name a stage with run: pwrm"),
        ({"reward_model": "pwmr"}, {}, "'pwmr' is no earlier stage, path or Hub id; did you mean pwrm?"),
        ({"reward_model": "./plain"}, {}, "odpo.inputs.reward_model: ./plain has no decision.json"),
        ({}, {"reward_model": "pwrm"}, "odpo.reward_model: name it under `inputs`"),
        ({"reward_model": "pwrm"}, {"datasets": []}, "odpo.set.datasets: missing, and odpo needs prompts"),
        ({"reward_model": "pwrm"}, {"sample_from": "both"}, "'both' is not one of policy, reference"),
        ({"reward_model": "pwrm"}, {"max_length": 8}, "odpo.set.max_length: unknown key"),
    ],
)
def test_what_online_dpo_needs(book, inputs, settings, words):
    stage = post_training(book)
    (book.folder / "plain").mkdir()
    stage["inputs"] = {"model_name_or_path": "sft", **inputs}
    stage["set"] = {"datasets": TEXT, **settings}
    assert words in book.problems()


@pytest.mark.parametrize("source", ["org/reward-model", "./judge"])
def test_a_reward_model_may_be_a_folder_or_on_the_hub(book, source):
    post_training(book)["inputs"]["reward_model"] = source
    (book.folder / "judge").mkdir()
    (book.folder / "judge" / "decision.json").write_text("{}")
    assert book.load()


def test_other_judges(book):
    stage = post_training(book)
    del stage["inputs"]["reward_model"]
    for judge in ({"judge_url": "http://judge"}, {"reward_funcs": ["module.function"]}):
        stage["set"] = {"datasets": TEXT, **judge}
        assert book.load()


def test_a_reward_model_needs_held_out_pairs(book):
    post_training(book)
    del book.stages["pwrm"]["set"]["test_split_size"]
    assert "pwrm.set.test_split_size: missing, and pwrm sets its temperature on held-out pairs" in book.problems()
    book.stages["pwrm"]["set"] = {"test_split_size": 0.1}
    assert "pwrm needs pairs (prompt, chosen, rejected)" in book.problems()


def test_win_rates_without_held_out_text(book):
    post_training(book)
    inputs = {"model": ["sft", "odpo"], "baseline": "sft", "reward_model": "pwrm"}
    book.stages["report"] = {"run": "evaluate", "inputs": inputs, "set": {"prompts": "org/prompts"}}
    book.stages["report"] = book.stages.pop("report")  # after what it measures
    assert book.load()
    book.stages["report"]["set"]["prompts"] = "gone.jsonl"
    book.stages["report"]["inputs"] = {**inputs, "reward_model": "sft", "baseline": "stf"}
    said = book.problems()
    for words in ("report.prompts: gone.jsonl does not exist", "sft is made by sft", "did you mean sft?"):
        assert words in said


def test_chat_templates(book):
    post_training(book)
    book.stages["sft"]["set"] = {"datasets": TEXT, "chat_template_path": "mistral"}
    assert book.load()
    book.stages["sft"]["set"]["chat_template_path"] = "gone.jinja"
    said = book.problems()
    assert "sft.chat_template_path: gone.jinja does not exist" in said and "shipped are: mistral" in said
    (book.folder / "gone.jinja").write_text("")
    assert book.load()


def test_grpo_needs_rewards(book):
    post_training(book)
    book.stages["grpo"] = {"run": "grpo", "inputs": {"model_name_or_path": "sft"}, "set": {"datasets": TEXT}}
    assert "grpo.set.reward_funcs: missing, and grpo needs rewards" in book.problems()
    book.stages["grpo"]["set"]["reward_funcs"] = ["exact_match"]
    assert book.load()
