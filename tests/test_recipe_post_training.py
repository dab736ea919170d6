"""Recipes with the stages after distillation: judges, reward models, prompts, chat templates."""

import json

import pytest

from hf_cascade.plan import make_plan, table
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
        (
            {},
            {"reward_funcs": ["exact_match", "rubric_reward"]},
            "odpo.set.reward_funcs: rubric_reward has no judge in odpo: name, as file.py:name, a RubricReward",
        ),
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
    rubrics = {"reward_funcs": ["mine.py:rubric_reward", "mine.rubric_reward"]}  # with their own graders
    for judge in ({"judge_url": "http://judge"}, {"reward_funcs": ["module.function"]}, rubrics):
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


def reasoning(book) -> dict:
    """The book's recipe with a difficulty filter and a GRPO stage on what it leaves; returns the last two stages."""
    post_training(book)
    asks = {"prompts": "text.jsonl", "reward": "maths_reward"}
    book.stages["difficulty"] = {"run": "difficulty", "inputs": {"model": "sft"}, "set": asks}
    inputs = {"model_name_or_path": "sft", "prompts_from": "difficulty"}
    book.stages["stem"] = {"run": "grpo", "inputs": inputs, "set": {"reward_funcs": ["maths_reward"]}}
    return book.stages["difficulty"], book.stages["stem"]


def test_grpo_on_what_a_difficulty_filter_leaves(book):
    difficulty, _ = reasoning(book)
    before = book.fingerprints()
    difficulty["set"]["max_pass_rate"] = 0.9
    after = book.fingerprints()
    assert {name for name in before if before[name] != after[name]} == {"difficulty", "stem"}
    difficulty["inputs"] = {}
    difficulty["set"] |= {"url": "http://host:8000/v1", "served_model": "org/model"}
    assert book.load()


def test_a_difficulty_filter_is_no_model_in_the_plan(book):
    difficulty, stem = reasoning(book)
    config = {"model_type": "mistral", "num_hidden_layers": 2, "hidden_size": 8, "intermediate_size": 16}
    config |= {"num_attention_heads": 1, "num_key_value_heads": 1, "head_dim": 8, "vocab_size": 32}
    (book.folder / "parent_config.json").write_text(json.dumps(config))
    rows = {row[0]: row for row in rows_of(make_plan(book.load()))}
    assert rows["difficulty"] == ["difficulty", "difficulty", "sft", "", "", "", ""]
    assert rows["stem"][3:5] == rows["sft"][3:5] != ["", ""]
    difficulty["inputs"] = {}
    difficulty["set"] |= {"url": "http://host:8000/v1", "served_model": "org/model"}
    assert rows_of(make_plan(book.load()))[-2][:3] == ["difficulty", "difficulty", "model"]


def rows_of(plan) -> list[list[str]]:
    """The cells of the plan's table, row by row."""
    columns = [list(column.cells) for column in table(plan).columns]
    return [list(row) for row in zip(*columns, strict=True)]


@pytest.mark.parametrize(
    ("inputs", "settings", "words"),
    [
        ({}, {}, "difficulty: difficulty needs one of inputs.model and set.url"),
        ({"model": "sft"}, {"url": "http://h/v1", "served_model": "m"}, "needs one of inputs.model and set.url"),
        ({}, {"url": "http://h/v1"}, "set.url and set.served_model"),
        ({"model": "sft"}, {"served_model": "m"}, "set.url and set.served_model"),
        ({"model": "sft"}, {"prompts": None}, "difficulty.set.prompts: missing, and difficulty needs it"),
        ({"model": "sft"}, {"reward": ""}, "difficulty.set.reward: missing, and difficulty needs it"),
        ({"model": "sft"}, {"prompts": "gone.jsonl"}, "difficulty.prompts: gone.jsonl does not exist"),
        ({"model": "sft"}, {"min_passrate": 0.1}, "unknown key; did you mean min_pass_rate?"),
        ({}, {"model": "sft"}, "difficulty.model: name it under `inputs`"),
    ],
)
def test_what_a_difficulty_filter_needs(book, inputs, settings, words):
    difficulty, _ = reasoning(book)
    difficulty["inputs"], difficulty["set"] = inputs, {**difficulty["set"], **settings}
    assert words in book.problems()


def test_prompts_from_is_a_difficulty_filter(book):
    _, stem = reasoning(book)
    stem["inputs"]["prompts_from"] = "sft"
    assert "stem.inputs.prompts_from: sft is made by sft: name a stage with run: difficulty" in book.problems()
    stem["inputs"]["prompts_from"] = "dificulty"
    assert "did you mean difficulty?" in book.problems()
    stem["inputs"] = {"model_name_or_path": "difficulty", "prompts_from": "difficulty"}
    assert "stem.inputs.model_name_or_path: difficulty is made by difficulty, which makes no model" in book.problems()
    stem["inputs"] = {"model_name_or_path": "sft", "prompts_from": "difficulty"}
    stem["set"]["datasets"] = TEXT
    assert "set.datasets and inputs.prompts_from are both given" in book.problems()
    del stem["inputs"]["prompts_from"], stem["set"]["datasets"]
    assert "stem.set.datasets: missing, and grpo needs prompts" in book.problems()


@pytest.mark.parametrize(
    ("inputs", "settings", "words"),
    [
        ({}, {}, "grpo: rubric_reward needs one of set.judge_url (with set.judge_model) and inputs.judge_model"),
        ({"judge_model_name_or_path": "sft"}, {"judge_url": "http://j/v1"}, "judge_url and judge_model_name_or_path"),
        ({}, {"judge_url": "http://j/v1"}, "grpo.set.judge_model: missing"),
        (
            {},
            {"judge_url": "http://j/v1", "judge_model": "m", "reward_funcs": ["exact_match"]},
            "without rubric_reward",
        ),
        ({"judge_model_name_or_path": "sft"}, {"reward_funcs": ["exact_match"]}, "judge_model_name_or_path without"),
        ({"judge_model_name_or_path": "sft"}, {"judge_cache": "c"}, "judge_cache without judge_url"),
        ({}, {"judge_model_name_or_path": "sft"}, "grpo.judge_model_name_or_path: name it under `inputs`"),
    ],
)
def test_rubrics_need_one_judge(book, inputs, settings, words):
    post_training(book)
    stage = {"run": "grpo", "inputs": {"model_name_or_path": "sft", **inputs}}
    book.stages["grpo"] = stage | {"set": {"datasets": TEXT, "reward_funcs": ["rubric_reward"], **settings}}
    assert words in book.problems()


@pytest.mark.parametrize(
    ("inputs", "settings"),
    [({}, {"judge_url": "http://j/v1", "judge_model": "m"}), ({"judge_model_name_or_path": "sft"}, {})],
)
def test_rubrics_with_a_judge(book, inputs, settings):
    post_training(book)
    stage = {"run": "grpo", "inputs": {"model_name_or_path": "sft", **inputs}}
    book.stages["grpo"] = stage | {"set": {"datasets": TEXT, "reward_funcs": ["rubric_reward"], **settings}}
    assert book.load()
