"""Facts: what a finished folder and its line say, and what they do not."""

import json

import pytest

from hf_cascade.publish import facts
from hf_cascade.publish.history import amount, commands, data_names, hub_datasets, line_table, longest_window
from tests.publish.card_folders import folder, line


@pytest.mark.parametrize("kind", facts.KINDS)
def test_kind_by_the_stages(tmp_path, kind):
    assert facts.read(line(tmp_path, kind)).kind == kind


def test_supervised_traces_alone_make_a_reasoning_model(tmp_path):
    sft = folder(tmp_path / "sft", "sft", config={}, inputs={"model_name_or_path": "org/base"})
    assert facts.read(sft).kind == "instruct"
    record = json.loads((sft / "cascade.json").read_text())
    record["config"] = {"filters": ["format", "language"]}
    (sft / "cascade.json").write_text(json.dumps(record))
    assert facts.read(sft).kind == "reasoning"
    assert facts.read(sft, kind="instruct").kind == "instruct"


def test_the_line_oldest_first_with_records(tmp_path):
    found = facts.read(line(tmp_path, "reasoning"))
    names = ["parent", "small-pruned", "small", "small-sft", "small-reasoning"]
    assert [stage.name for stage in found.stages] == names
    assert all(stage.record is not None for stage in found.stages)
    assert [shape.role for shape in found.shapes] == ["parent", "this model"]
    assert [shape.values["intermediate_size"] for shape in found.shapes] == [256, 128]
    assert found.prunings[0][0].name == "small-pruned" and found.logs[0][0].name == "small"
    assert found.chat.thinking == ("[THINK]", "[/THINK]") and found.chat.tools


def test_a_folder_of_another_hash_is_not_the_ancestor(tmp_path):
    model = line(tmp_path, "base")
    record = json.loads((tmp_path / "small-pruned" / "cascade.json").read_text())
    (tmp_path / "small-pruned" / "cascade.json").write_text(json.dumps({**record, "git_sha": "b" * 40}))
    found = facts.read(model)
    assert [stage.record is None for stage in found.stages] == [False, True, False]
    assert not found.prunings


def test_direct_and_original_parent(tmp_path):
    again = folder(tmp_path / "tiny-pruned", "prune", line(tmp_path, "base"), config={"intermediate_size": 64})
    found = facts.read(again)
    assert [(one.name, one.role) for one in found.shapes] == [
        ("parent", "original parent"),
        ("small", "direct parent"),
        ("tiny-pruned", "this model"),
    ]


def test_origin_on_the_hub_is_the_base_model(tmp_path):
    pruned = folder(tmp_path / "pruned", "prune", inputs={"model": "mistralai/Mistral-Small-3.1-24B-Base-2503"})
    found = facts.read(pruned)
    assert found.origin.hub_id == found.base_model == "mistralai/Mistral-Small-3.1-24B-Base-2503"
    assert facts.read(pruned, base_model="org/other").base_model == "org/other"
    twin = folder(tmp_path / "twin", "fp8", pruned)
    assert facts.read(twin).base_model is None  # the card would call it the origin's conversion
    assert facts.read(twin, base_model="org/pruned").base_model == "org/pruned"


def test_a_folder_is_no_base_model(tmp_path):
    assert facts.read(line(tmp_path, "base")).base_model is None
    gone = folder(tmp_path / "pruned", "prune", inputs={"model": "runs/gone"})
    assert facts.read(gone).base_model is None


def test_license_from_the_parents_card_or_given_or_unknown(tmp_path):
    model = line(tmp_path, "base")
    assert facts.read(model).legal == {}
    (tmp_path / "parent" / "README.md").write_text(
        "---\nlicense: other\nlicense_name: mrl\nlicense_link: https://x.org\nlanguage: [en, fr]\n---\n# parent\n"
    )
    found = facts.read(model)
    assert found.legal == {"license": "other", "license_name": "mrl", "license_link": "https://x.org"}
    assert found.legal_source == "the card of parent" and found.language == ["en", "fr"]
    given = facts.read(model, license="mit", language=["de"])
    assert given.legal == {"license": "mit"} and given.legal_source == "given" and given.language == ["de"]


def test_figures_of_an_older_manifest_are_stale(tmp_path):
    model = line(tmp_path, "base")
    (model / "evals.json").write_text(json.dumps({"manifest_sha256": "0" * 64, "suites": {}}))
    assert facts.read(model).stale


def test_data_tokens_window_and_datasets(tmp_path):
    stages = facts.read(line(tmp_path, "base")).stages
    assert amount(stages[-1].record) == "60.4K tokens"
    assert data_names(stages[-1].record) == ["HuggingFaceFW/fineweb-edu, sample-10BT, revision abc123"]
    assert hub_datasets(stages) == ["HuggingFaceFW/fineweb-edu"]
    assert longest_window(stages) == (256, "small")


def test_the_line_names_origin_revision_teacher_and_hash(tmp_path):
    inputs = {"model_name_or_path": "org/base", "teacher_model_name_or_path": ["org/one", "/home/ann/two"]}
    stage = folder(tmp_path / "sft", "sft", inputs=inputs, config={})
    record = json.loads((stage / "cascade.json").read_text())
    (stage / "cascade.json").write_text(json.dumps({**record, "config": {"model_revision": "abc|def"}}))
    stages = facts.read(stage).stages
    (row,) = line_table(stages)[1]
    assert row[1] == "fine-tuned on conversations, from `org/base`, model revision `abc\\|def`"
    assert row[3] == "`org/one`, `two`" and row[4] == f"`{stages[0].sha256[:12]}`"


def test_files_are_no_hub_datasets_and_private_paths_are_left_out(tmp_path):
    stage = folder(tmp_path / "sft", "sft", inputs={"model_name_or_path": "/home/ann/secret/base"})
    record = json.loads((stage / "cascade.json").read_text())
    record["config"] = {"datasets": [{"path": "json", "data_files": "/home/ann/secret/rows.jsonl"}]}
    (stage / "cascade.json").write_text(json.dumps(record))
    found = facts.read(stage)
    assert hub_datasets(found.stages) == [] and data_names(record) == ["rows.jsonl"]
    ((_, command, settings),) = commands(found.stages)
    assert command.startswith("hf-cascade sft --config sft.yaml") and "ann" not in json.dumps(settings)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda path: path.mkdir(), FileNotFoundError, "cascade.json does not exist"),
        (lambda path: (folder(path, "prune") / "config.json").unlink(), FileNotFoundError, "no config.json"),
        (lambda path: (folder(path, "prune") / "contamination.json").write_text("{"), ValueError, "not JSON"),
    ],
)
def test_what_cannot_be_read(tmp_path, make, error, words):
    make(tmp_path / "model")
    with pytest.raises(error, match=words):
        facts.read(tmp_path / "model")


def test_wrong_kind_and_parent(tmp_path):
    model = folder(tmp_path / "model", "prune")
    with pytest.raises(ValueError, match="allowed are base, instruct, reasoning"):
        facts.read(model, kind="chat")
    with pytest.raises(FileNotFoundError, match="no folder"):
        facts.read(model, tmp_path / "nowhere")
