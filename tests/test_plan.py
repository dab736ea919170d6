"""The plan: exact shapes and sizes of every stage before anything runs, and refusal of impossible ones."""

import io
import json

import pytest
import yaml
from rich.console import Console

from hf_cascade import assets
from hf_cascade.plan import _vocabulary, make_plan, table
from hf_cascade.recipe import RecipeError, load_recipe
from hf_cascade.shape import count_parameters

TINY = json.loads(assets.find("recipes/tiny/pretrain_config.json").read_text())
TABLE_1 = {"14b": 13_506_073_600, "8b": 8_489_553_920, "3b": 3_429_006_336}  # paper.md section 1, without vision


def plan(tmp_path, stages: dict, parent: dict | str | None = TINY):
    """The plan of a recipe beside the folder of its parent."""
    (tmp_path / "parent").mkdir(exist_ok=True)
    if parent is not None:
        text = parent if isinstance(parent, str) else json.dumps(parent)
        (tmp_path / "parent" / "config.json").write_text(text)
    path = tmp_path / "cascade.yaml"
    path.write_text(yaml.safe_dump(stages, sort_keys=False))
    return make_plan(load_recipe(str(path)))


def prune(source: str, **flags) -> dict:
    return {"run": "prune", "inputs": {"model": source}, "set": {"calibration": "org/text", **flags}}


def shown(planned, width: int, states: dict | None = None) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(table(planned, states or {}))
    return console.file.getvalue()


def test_the_papers_recipe_has_the_papers_sizes():
    planned = make_plan(load_recipe("recipes/ministral3"))
    sizes = {part.stage.name: count_parameters(part.config) for part in planned if part.stage.run != "evaluate"}
    assert sizes == {f"{size}{stage}": TABLE_1[size] for size in TABLE_1 for stage in ("-pruned", "-short", "")}
    text = shown(planned, 120)
    for word in (*(f"{count:,}" for count in TABLE_1.values()), "26 x 3072 / 9216 tied", "262,144", "27,000,000,000"):
        assert word in text


def test_the_tiny_recipe_plans():
    planned = {part.stage.name: part for part in make_plan(load_recipe("recipes/tiny"))}
    sizes = [count_parameters(planned[name].config) for name in ("14b-pruned", "8b-pruned", "3b-pruned")]
    parent = count_parameters(json.loads(assets.find("recipes/tiny/parent/config.json").read_text()))
    assert parent > sizes[0] > sizes[1] > sizes[2]
    assert planned["3b"].config["tie_word_embeddings"] and planned["report"].config is None


def test_a_random_start_is_planned_from_its_config():
    planned = make_plan(load_recipe("recipes/tiny/parent.yaml"))
    assert [count_parameters(part.config) for part in planned] == [1_771_104] * 2
    assert "a random start" in shown(planned, 120)


def test_shapes_follow_the_stages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stages = {
        "one": prune("./parent", intermediate_size=256),
        "two": prune("one", num_hidden_layers=5, hidden_size=64),
        "other": prune("./parent", tie_word_embeddings=True),
        "report": {"run": "evaluate", "inputs": {"model": ["./parent", "two"]}, "set": {"tasks": ["a"]}},
    }
    planned = plan(tmp_path, stages)
    shapes = [
        (c["num_hidden_layers"], c["hidden_size"], c["intermediate_size"], c["tie_word_embeddings"])
        for c in (part.config for part in planned[:3])
    ]
    assert shapes == [(8, 96, 256, False), (5, 64, 256, False), (8, 96, 512, True)]
    assert planned[3].config is None
    text = shown(planned, 120, {"one": "done"})
    assert "8 x 96 / 512 tied" in text and "2 models" in text and "done" in text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"num_hidden_layers": 9}, "num_hidden_layers=9: allowed are whole numbers from 1 to 8, the parent's"),
        ({"hidden_size": 97}, "hidden_size=97: allowed are whole numbers from 1 to 96"),
        ({"intermediate_size": 0}, "intermediate_size=0: allowed are whole numbers from 1 to 512"),
    ],
)
def test_impossible_shapes(tmp_path, monkeypatch, flags, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="cascade.yaml: small: impossible child shape") as caught:
        plan(tmp_path, {"small": prune("./parent", **flags)})
    assert words in str(caught.value)


def test_a_child_is_the_next_ones_limit_and_all_problems_are_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stages = {
        "one": prune("./parent", intermediate_size=256),
        "two": prune("one", intermediate_size=300),
        "three": prune("./parent", hidden_size=200),
    }
    with pytest.raises(RecipeError) as caught:
        plan(tmp_path, stages)
    assert "from 1 to 256" in str(caught.value) and "hidden_size=200" in str(caught.value)


@pytest.mark.parametrize(
    ("parent", "words"),
    [
        (None, "config.json does not exist: a model's folder holds its config.json"),
        ("{", "config.json is not JSON"),
        ("[]", "config.json is no language model's config"),
        ({"model_type": "gpt2", "n_embd": 8}, "model_type 'gpt2' is not one hf-cascade can count"),
        ({"model_type": "llama"}, "is no language model's config: 'num_attention_heads' is missing"),
    ],
)
def test_parents_that_cannot_be_read(tmp_path, monkeypatch, parent, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError) as caught:
        plan(tmp_path, {"small": prune("./parent", hidden_size=64)}, parent)
    assert words in str(caught.value)


def test_a_parent_on_the_hub(tmp_path):
    """Without its config.json beside the recipe sizes stay open; with it they are checked."""
    (unknown,) = plan(tmp_path, {"small": prune("org/parent", hidden_size=64)})
    assert unknown.config is None and "small" in shown([unknown], 120)
    (tmp_path / "parent_config.json").write_text(json.dumps(TINY))
    (known,) = plan(tmp_path, {"small": prune("org/parent", hidden_size=64)})
    assert known.config["hidden_size"] == 64
    with pytest.raises(RecipeError, match="hidden_size=97"):
        plan(tmp_path, {"small": prune("org/parent", hidden_size=97)})


def test_models_of_other_shapes_on_the_hub(tmp_path):
    """NAME.json in configs/ goes before the parent's; a reward model's shape is followed too."""
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "small.json").write_text(json.dumps({**TINY, "num_hidden_layers": 2, "dtype": "bfloat16"}))
    (tmp_path / "parent_config.json").write_text(json.dumps(TINY))
    rows = {"datasets": [{"path": "org/rows"}]}
    odpo = {"run": "odpo", "inputs": {"model_name_or_path": "org/other", "reward_model": "judge"}, "set": rows}
    judge = {"run": "pwrm", "inputs": {"model_name_or_path": "org/small"}, "set": {**rows, "test_split_size": 0.1}}
    judged, trained = plan(tmp_path, {"judge": judge, "odpo": odpo})
    assert judged.config["num_hidden_layers"] == 2 and trained.config["num_hidden_layers"] == 8
    assert trained.reward == judged.config and judged.reward is None
    assert judged.source["dtype"] == "bfloat16" and judged.config["dtype"] == "float32"  # as it is saved


def test_a_smaller_shape_needs_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match="small: pruning to a smaller shape needs text: set calibration"):
        plan(tmp_path, {"small": prune("./parent", hidden_size=64, calibration=None)})
    assert plan(tmp_path, {"same": prune("./parent", hidden_size=96, rope_theta=2e4, calibration=None)})


def test_a_searched_shape_is_not_known_yet(tmp_path, monkeypatch):
    """Nor is what is made of it; the rest of the recipe plans."""
    monkeypatch.chdir(tmp_path)
    stages = {"small": prune("./parent", target_parameters="40%"), "smaller": prune("small", hidden_size=64)}
    planned = plan(tmp_path, stages)
    assert [part.config for part in planned] == [None, None] and "small" in shown(planned, 120)
    with pytest.raises(RecipeError, match="needs text"):
        plan(tmp_path, {"small": prune("./parent", target_memory="40%", calibration=None)})


def tokenizer(folder, vocabulary, added=()):
    """A tokenizer.json with this vocabulary."""
    folder.mkdir(exist_ok=True)
    content = {"model": {"vocab": vocabulary}, "added_tokens": [{"content": c, "id": i} for c, i in added]}
    (folder / "tokenizer.json").write_text(json.dumps(content))


def test_a_teacher_with_other_tokens_is_refused_before_anything_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = [{"path": "org/text"}]
    teachers = {"model_name_or_path": "small", "teacher_model_name_or_path": "./teacher"}
    stages = {
        "small": prune("./parent", hidden_size=64),
        "short": {"run": "distill", "inputs": teachers, "set": {"datasets": text}},
        "report": {
            "run": "evaluate",
            "inputs": {"model": ["./parent", "short"], "teacher": "./teacher"},
            "set": {"dataset": "org/text"},
        },
    }
    tokenizer(tmp_path / "parent", {"a": 0, "b": 1}, added=[("<s>", 2)])
    tokenizer(tmp_path / "teacher", [["a", -1.0], ["b", -2.0], ["<s>", 0.0]])  # another kind, the same tokens
    assert plan(tmp_path, stages)
    _vocabulary.cache_clear()
    tokenizer(tmp_path / "teacher", {"a": 1, "b": 0, "<s>": 2})
    with pytest.raises(RecipeError) as caught:
        plan(tmp_path, stages)
    said = str(caught.value)
    assert "short: ./parent and its teacher ./teacher have different tokenizers: 2 tokens differ ('a': 0 and 1," in said
    assert said.count("report: ./parent and its teacher") == 1
    _vocabulary.cache_clear()
    (tmp_path / "teacher" / "tokenizer.json").write_text("[]")
    with pytest.raises(ValueError, match="tokenizer.json is no tokenizer"):
        plan(tmp_path, stages)


@pytest.fixture(autouse=True)
def _fresh():
    _vocabulary.cache_clear()
