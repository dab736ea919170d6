"""`.eval_results`: the Hub's own format, for listed benchmarks that were run whole, on these weights."""

import json

import yaml
from huggingface_hub import parse_eval_result_entries

from hf_cascade.publish import eval_results, facts
from tests.publish.card_folders import evals, line, task

GPQA = "cascade_gpqa_diamond_cot"
DATA = {"Idavidrein/gpqa/gpqa_diamond/train": {"rows": 198, "full_rows": 198, "revision": "6" * 40}}


def sampled(**changes) -> dict:
    told = {"metric": "avg_at_k", "samples_per_row": 16, "num_fewshot": 0, "rows": 198, "rows_full": 198, "data": DATA}
    return task(0.7123, **{**told, "protocol": {"temperature": 0.7, "top_p": 0.95, "chat": True}, **changes})


def test_a_listed_benchmark(tmp_path):
    model = line(tmp_path, "reasoning")
    evals(model, ["table5"], {GPQA: sampled(), "cascade_aime24": sampled()})
    found = eval_results.files(facts.read(model, repo_id="org/model"))
    assert list(found) == [".eval_results/gpqa.yaml"]
    (entry,) = parse_eval_result_entries(yaml.safe_load(found[".eval_results/gpqa.yaml"]))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("Idavidrein/gpqa", "diamond", 71.23)
    assert entry.dataset_revision == "6" * 40 and entry.source_url == "https://huggingface.co/org/model"
    assert entry.notes == "avg@16; T 0.7, top_p 0.95, chat; 0 shots; ± 0.78 (95%)"


def test_parts_of_a_benchmark_and_old_figures_make_none(tmp_path):
    model = line(tmp_path, "reasoning")
    evals(model, ["table5"], {GPQA: sampled(rows=8)})
    assert eval_results.files(facts.read(model)) == {}
    evals(model, ["table5"], {GPQA: sampled()})
    assert len(eval_results.files(facts.read(model))) == 1
    record = json.loads((model / "evals.json").read_text())
    (model / "evals.json").write_text(json.dumps({**record, "manifest_sha256": "0" * 64}))
    assert eval_results.files(facts.read(model)) == {}


def test_not_evaluated(tmp_path):
    assert eval_results.files(facts.read(line(tmp_path, "base"))) == {}
