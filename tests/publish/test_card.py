"""Cards: their order, what they say and leave out, hostile text, code that runs; and what validation finds."""

import json
import re

import pytest
import yaml
from huggingface_hub import ModelCard

from hf_cascade.publish import facts
from hf_cascade.publish.card import render, validate
from hf_cascade.publish.verdict import Decision, Line
from tests.publish import finished
from tests.publish.card_folders import THINKING, evals, folder, line, task

SECTIONS = ["Results", "How to use", "Dimensions", "How it was made", "Limitations", "Contamination"]
SECTIONS += ["Citation", "Environment"]


def read(path, **given) -> facts.Facts:
    return facts.read(path, **{"license": "apache-2.0", "repo_id": "org/model", **given})


def front(text: str) -> dict:
    return yaml.safe_load(text.split("---\n")[1])


@pytest.mark.parametrize("kind", facts.KINDS)
def test_every_kind_without_any_figure(tmp_path, kind):
    text = render(read(line(tmp_path, kind)))
    assert validate(text, set()) == [] and "distilled on the logits of `parent`" in text
    assert [name for name in re.findall(r"^## (.+)$", text, re.MULTILINE)] == SECTIONS
    assert "Not evaluated" in text and "It was not evaluated" in text and "Not checked" in text
    data = front(text)
    assert data["license"] == "apache-2.0" and data["library_name"] == "transformers"
    assert {"pruned", "distillation", "cascade-distillation"} <= set(data["tags"])
    assert data["datasets"] == ["HuggingFaceFW/fineweb-edu"] and "model-index" not in data
    assert ModelCard(text).data.license == "apache-2.0"
    assert ("[THINK]" in text) == (kind == "reasoning")
    assert ("apply_chat_template" in text) == (kind != "base")
    assert ("temperature" in text.split("## Dimensions")[0]) == (kind != "base")


def test_a_model_that_was_not_pruned_or_distilled_is_no_cascade(tmp_path):
    text = render(read(folder(tmp_path / "parent", "pretrain")))
    assert front(text)["tags"] == ["hf-cascade"] and "Cascade Distillation (" not in text and "pruned" not in text


def test_results_beside_the_papers_and_the_parents(tmp_path):
    model = line(tmp_path, "base")
    names = ["table2"]
    tasks = {
        "cascade_mmlu_redux": task(0.6),
        "cascade_math": task(0.5, data={"org/math/test": {"rows": 5, "full_rows": 9, "sha256": "e" * 64}}),
    }
    above = evals(tmp_path / "parent", names, {"cascade_mmlu_redux": task(0.75)})
    evals(model, names, tasks, "Ministral 3 14B", above)
    text = render(read(model, language=["en"], base_model="org/parent"))
    assert validate(text, set()) == []
    header, _, *rows = [row for row in text.split("### Table 2")[1].split("\n") if row.startswith("|")][:7]
    assert header == "| benchmark | model | parent | kept | Ministral 3 14B (paper) | minus paper | chance |"
    cells = {
        row.split("|")[1].strip(): [cell.strip().replace("\xa0", " ") for cell in row.split("|")[2:-1]] for row in rows
    }
    assert cells["MMLU-Redux 5-shot"] == ["**60.0** ± 0.8", "75.0 ± 0.8", "80.0%", "82.0", "−22.0 (outside)", "25.0"]
    assert cells["TriviaQA 5-shot"] == ["not run", "–", "–", "74.9", "–", "–"]
    assert cells["MATH CoT 2-shot"][0] == "**50.0** ± 0.8 †" and cells["MATH CoT 2-shot"][4] == "not comparable"
    assert "set HF_CASCADE_DATA" in text and "org/math test: 5 of 9 rows" in text
    assert "**41.2**" in text and "38.3" in text  # perplexity, the parent's by retention
    data = front(text)
    assert data["base_model"] == ["org/parent"] and data["base_model_relation"] == "finetune"
    (entry,) = data["model-index"][0]["results"]  # a part of a benchmark is not in it
    assert entry["dataset"] == {
        "name": "MMLU-Redux 5-shot",
        "type": "openai/MMMLU",
        "config": "default",
        "split": "test",
        "revision": "f" * 40,
    }
    metric = entry["metrics"][0]
    assert metric["value"] == 60.0 and metric["args"]["stderr"] == 0.4 and metric["verified"] is False
    assert "less than 90% of parent: MMLU-Redux 5-shot (80.0%)" in text


def test_rows_of_one_dataset_stay_apart_in_the_model_index(tmp_path):
    model = line(tmp_path, "base")
    entry = {"rows": 9, "full_rows": 9, "revision": None, "sha256": "e" * 64}
    tasks = {
        f"cascade_mmmlu_{code}": task(0.5, data={f"openai/MMMLU/{code}/test": entry}) for code in ("zh", "ja", "ko")
    }
    evals(model, ["table3"], tasks)
    found = front(render(read(model)))["model-index"][0]["results"]
    assert [(one["dataset"]["config"], len(one["metrics"])) for one in found] == [("zh", 1), ("ja", 1), ("ko", 1)]
    assert len({one["dataset"]["name"] for one in found}) == 3


def test_figures_of_another_version_are_named(tmp_path):
    model = line(tmp_path, "base")
    evals(model, ["table2"], {"cascade_mmlu_redux": task(0.6)})
    record = json.loads((model / "evals.json").read_text())
    del record["suites"]["table2"]["rows"]["MMLU-Redux 5-shot"]["protocol"]
    (model / "evals.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="small: a file lacks .*protocol.*evaluate the model again"):
        render(read(model))


def test_limitations_come_from_the_figures(tmp_path):
    model = line(tmp_path, "reasoning")
    shares = {"looped": 0.12, "unfinished": 0.31, "truncated": 0.001, "chance": 0.2, "stderr": 0.1}
    shares |= {"metric": "avg_at_k", "protocol": {"temperature": 0.7, "chat": True}}
    evals(model, ["table5"], {"cascade_aime24": task(0.3, **shares)})
    told = render(read(model)).split("## Limitations")[1].split("\n## ")[0]
    assert "512 tokens of context, and only the first 256 were trained on" in told
    assert "12.0% looped" in told and "31.0% never closed their thinking" in told and "token limit" not in told
    assert "On AIME 2024 it cannot be told from chance" in told
    assert "Not run: AIME 2025; HMMT 2025;" in told and "Which languages" in told


def test_an_override_stands_at_the_very_top(tmp_path):
    lines = [Line("conformance", True, "green", "green"), Line("hash", False, "aa|bb", "cc", "measure again")]
    text = render(read(line(tmp_path, "base")), Decision(lines, "deadline | <b>now</b>"))
    assert validate(text, set()) == []
    top = text.split("---\n")[2].split("\n# ")[0]
    assert "did not pass" in top and "aa\\|bb" in top and "&lt;b&gt;now" in top
    assert "1 of 2 lines failed" in text and "**failed**" in text
    assert "did not pass" not in render(read(line(tmp_path, "base")), Decision(lines[:1]))


def test_contamination_and_conformance(tmp_path):
    model = line(tmp_path, "base")
    split = {"rows": 200, "too_short": 3, "overlapping": 2, "mostly": 1, "examples": []}
    report = {"words": 5000, "documents": 12, "text": ["a"], "splits": {"cais/mmlu/test": split}}
    report |= {"unknown_text": ["org/parent"], "not_checked": {"cascade_math": "no rows"}}
    (model / "contamination.json").write_text(json.dumps(report))
    (model / "conformance.json").write_text(json.dumps({"tasks": {"a": {"status": "green"}, "b": {"status": "red"}}}))
    evals(model, ["table2"], {"cascade_mmlu_redux": task(0.6)})
    text = render(read(model))
    assert "| cais/mmlu/test | 200 | 3 | 2 | 1 |" in text and "`cascade_math`: no rows" in text
    assert "scorers of 1 of 2 tasks" in text


def test_images_and_quantization(tmp_path):
    config = {"vision_config": {"num_hidden_layers": 3}, "quantization_config": {"quant_method": "fp8"}}
    model = folder(tmp_path / "twin", "sft", config=config, inputs={"model_name_or_path": "org/base"})
    (model / "processor_config.json").write_text("{}")
    (model / "chat_template.jinja").write_text(THINKING)
    text = render(read(model))
    assert validate(text, set()) == []
    data = front(text)
    assert data["base_model_relation"] == "quantized" and data["pipeline_tag"] == "image-text-to-text"
    assert "fp8" in data["tags"] and "AutoModelForImageTextToText, AutoProcessor" in text
    compile(snippet(text), "card", "exec")
    (model / "processor_config.json").unlink()
    text = render(read(model))
    assert "AutoModelForImageTextToText, AutoTokenizer" in text and "can be given text only" in text


HOSTILE = (
    "x|y`z`\n# head\n---\nlicense: mit\n{{ 7*7 }} <script>alert(1)</script> [a](javascript:b) ![i](http://e/i.png)"
)


def test_hostile_text_stays_text(tmp_path):
    root = tmp_path / "a"
    model = line(root, "instruct")
    evals(model, ["table4"], {})
    for name in ("cascade.json", "evals.json"):
        text = (model / name).read_text()
        record = json.loads(text)
        if name == "cascade.json":
            record["stage"] = HOSTILE
            record["versions"] = {HOSTILE: HOSTILE}
            record["config"] = {"datasets": [{"path": HOSTILE, "name": HOSTILE}], "note": "```\n# out"}
            record["inputs"] = {"model_name_or_path": HOSTILE, "teacher_model_name_or_path": [HOSTILE]}
            record["hardware"] = {"cpu": HOSTILE, "cores": 2, "accelerator": HOSTILE}
            record["git_sha"] = HOSTILE
        else:
            record["name"] = record["teacher"] = HOSTILE
            for row in record["suites"]["table4"]["rows"].values():
                row["reason"] = HOSTILE
            record["suites"][HOSTILE] = {"rows": {HOSTILE: {"status": "not run", "reason": HOSTILE}}, "tasks": {}}
        (model / name).write_text(json.dumps(record))
    report = {"words": 1, "documents": 1, "splits": {}, "unknown_text": [HOSTILE], "not_checked": {HOSTILE: HOSTILE}}
    (model / "contamination.json").write_text(json.dumps(report))
    found = read(model)
    text = render(found, Decision([Line(HOSTILE, False, HOSTILE, HOSTILE, "x")], HOSTILE))
    assert validate(text, set()) == []
    plain = re.sub(r"^(`{3,})[^\n]*\n.*?^\1\s*$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert front(text)["license"] == "apache-2.0" and re.findall(r"^# .*$", plain, re.MULTILINE) == ["# model"]
    from hf_cascade.publish.page import render as page

    shown = page(text)
    assert "<script" not in shown and 'href="javascript' not in shown and "<img" not in shown


def test_a_hostile_base_model_cannot_write_front_matter(tmp_path):
    name = "org/x\nlicense: mit\ntags: [a]\n---\n# owned"
    with pytest.raises(ValueError, match="a Hub id is ORG/NAME"):
        render(read(line(tmp_path, "base"), base_model=name))
    data = front(render(read(line(tmp_path, "base"), license=None)))
    assert "license" not in data


def test_nothing_is_printed_for_a_missing_value():
    from hf_cascade.publish import escaping

    with pytest.raises(TypeError, match="cannot print None"):
        escaping.finalize(None)
    assert escaping.finalize(1234567) == "1,234,567"
    assert escaping.code("a`b|c") == "``a`b\\|c``"
    assert escaping.fence("```\nx").startswith("````")
    assert escaping.escape("/home/ann/x.json of cascade_math_1 and _x_") == "x.json of cascade_math_1 and \\_x\\_"


def snippet(text: str) -> str:
    return re.search(r"```python\n(.*?)```", text, re.DOTALL).group(1)


@pytest.mark.parametrize("kind", facts.KINDS)
def test_the_code_of_the_card_runs(tmp_path, kind, capsys):
    """On a model of a few thousand weights; the repository's id is its folder here."""
    model = finished.model_folder(tmp_path / "model")
    text = render(read(model, kind=kind, repo_id=str(model)))
    code = snippet(text)
    if kind == "reasoning":
        (model / "chat_template.jinja").write_text("{{ messages[0].content }}{# [THINK] [/THINK] #}\n")
        code = snippet(render(read(model, kind=kind, repo_id=str(model))))
        assert 'partition("[/THINK]")' in code
    exec(compile(code, "card", "exec"), {})
    assert capsys.readouterr().out.strip()


GOOD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
base_model:
- org/parent
base_model_relation: finetune
tags:
- pruned
---

# model

## Results

| a | b |
| --- | ---: |
| x | 1 |

![plot](card/kl.png)

## How to use

```python
{{ this is code }}
```

## How it was made
## Limitations
## Citation
"""


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("---\nlicense", "license", "front matter: there is none"),
        ("license: apache-2.0", "license: [apache", "no YAML"),
        ("license: apache-2.0\n", "", "license: it is not known"),
        ("license: apache-2.0", "licence: apache-2.0", "license: it is not known"),
        ("license: apache-2.0", "license: my-own", "does not know 'my-own'"),
        ("license: apache-2.0", "license: other", "license_name and license_link"),
        ("library_name: transformers", "library_name: trl", "library_name"),
        ("pipeline_tag: text-generation", "pipeline_tag: chat", "pipeline_tag"),
        ("- org/parent", "- ../parent", "no Hub id"),
        ("base_model:\n- org/parent", "base_model: org/parent", "no list of Hub ids"),
        ("base_model:\n- org/parent\n", "", "without base_model"),
        ("base_model_relation: finetune", "base_model_relation: child", "base_model_relation"),
        ("tags:\n- pruned", "tags: []", "tags"),
        ("tags:", "language: [english]\ntags:", "language: 'english'"),
        ("tags:", "datasets: [rows.jsonl]\ntags:", "datasets: 'rows.jsonl'"),
        ("tags:", "model-index: [{name: x}]\ntags:", "does not read it"),
        (
            "tags:",
            "model-index: [{name: x, results: [{task: {type: t}, dataset: {type: d, name: D}, "
            "metrics: [{type: acc, value: .nan}]}]}]\ntags:",
            "no finite number",
        ),
        ("# model", "# model\n\n# another", "2 titles"),
        ("## Limitations\n", "", "section Limitations"),
        ("| x | 1 |", "| x | 1 | 2 |", "3 cells instead of 2"),
        ("| x | 1 |", "| x | None |", "None stands"),
        ("| x | 1 |", "| {{ x }} | 1 |", "not filled in"),
        ("| x | 1 |", "| <script>x</script> | 1 |", "<script>"),
        ("| x | 1 |", "| [x](javascript:y) | 1 |", "runs a script"),
        ("card/kl.png", "card/gone.png", "no such file"),
        ("card/kl.png", "https://x.org/kl.png", "file of the repository"),
        ("![plot]", "![]", "no text for those"),
        ("| x | 1 |", "| hf_abcdefghijklmnopqrstuvwxyz0123456789 | 1 |", "Hugging Face token"),
    ],
)
def test_validation_finds(old, new, words):
    assert validate(GOOD, {"card/kl.png"}) == []
    assert old in GOOD
    problems = validate(GOOD.replace(old, new, 1), {"card/kl.png"})
    assert any(words in problem for problem in problems), problems
