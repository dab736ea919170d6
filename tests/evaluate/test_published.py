"""The paper's figures, typed a second time from its tables, and which of its models a config is."""

import re

import pytest

from hf_cascade.evaluate.suite import published

# Each line as the paper's table has it.
TABLE_2 = """
Qwen 3 14B | 83.7 | 70.3 | 62.0 | 66.1 | 75.4
Ministral 3 14B | 82.0 | 74.9 | 67.6 | 64.8 | 74.2
Gemma 3 12B | 76.6 | 78.8 | 48.7 | 58.7 | 69.0
Qwen 3 8B | 79.4 | 63.9 | 57.6 | 59.6 | 70.0
Ministral 3 8B | 79.3 | 68.1 | 62.6 | 59.1 | 70.6
Gemma 3 4B | 62.6 | 64.0 | 29.4 | 43.0 | 51.6
Qwen 3 4B | 75.9 | 53.0 | 40.5 | 57.0 | 67.7
Ministral 3 3B | 73.5 | 59.2 | 60.1 | 51.1 | 65.2
"""
# A line a benchmark: 24B, 14B, 8B, 3B.
TABLE_3 = """
MMLU 5-shot | 81.0 | 79.4 | 76.1 | 70.7
MMLU-Redux 5-shot | 82.7 | 82.0 | 79.3 | 73.5
ARC-Challenge | 91.6 | 89.9 | 88.0 | 85.5
RACE High | 52.1 | 52.3 | 49.7 | 49.3
TriviaQA 5-shot | 79.3 | 74.9 | 68.1 | 59.2
NaturalQS 5-shot | 34.4 | 29.9 | 25.8 | 21.9
MATH CoT 2-shot | 55.8 | 67.6 | 62.6 | 60.1
GPQA Diamond 0-shot | 36.9 | 39.9 | 39.9 | 33.8
MBPP 3-shot | 71.6 | 71.6 | 70.0 | 63.0
Multilingual MMLU European 5-shot | 78.8 | 76.9 | 73.4 | 68.4
Multilingual MMLU Chinese 5-shot | 75.7 | 75.1 | 71.3 | 64.1
Multilingual MMLU Japanese 5-shot | 76.7 | 75.9 | 72.2 | 65.7
Multilingual MMLU Korean 5-shot | 59.3 | 59.0 | 55.3 | 48.9
MMMU 2-shot | 59.1 | 59.9 | 55.1 | 52.4
MathVista | 51.3 | 43.6 | 35.7 | 23.3
"""
TABLE_4 = """
Qwen3 14B non-thinking | 42.7 | 65.1 | 87.0 | n/a
Ministral 3 14B | 55.1 | 68.5 | 90.4 | 84.9
Gemma3-12B-Instruct | 43.6 | 63.2 | 85.4 | 67.0
Qwen3-VL-8B-Instruct | 52.8 | 66.3 | 94.6 | 80.0
Ministral 3 8B | 50.9 | 66.8 | 87.6 | 80.8
Gemma3-4B-Instruct | 31.8 | 49.1 | 75.9 | 52.3
Qwen3-VL-4B-Instruct | 43.8 | 56.8 | 90.0 | 80.1
Ministral 3 3B | 30.5 | 56.8 | 83.0 | 78.3
Qwen3-VL-2B-Instruct | 16.3 | 42.2 | 78.6 | 63.6
"""
# A line a benchmark: Qwen 3 14B, M3 14B, Qwen3-VL 8B, M3 8B, Qwen3-VL 4B, M3 3B.
TABLE_5 = """
AIME 2024 | 83.7 | 89.8 | 86.0 | 86.0 | 72.9 | 77.5
AIME 2025 | 73.7 | 85.0 | 79.8 | 78.7 | 69.7 | 72.1
HMMT 2025 | 55.8 | 67.5 | 57.5 | 55.8 | 50.8 | 51.7
GPQA Diamond | 66.3 | 71.2 | 67.1 | 66.8 | 60.1 | 53.4
PhyBench | 22 | 26 | 22 | 20 | 9 | 15
LiveCodeBench v6 | 59.3 | 64.6 | 58.0 | 61.6 | 51.3 | 54.8
"""
ROWS_2 = ["MMLU-Redux 5-shot", "TriviaQA 5-shot", "MATH CoT 2-shot", "AGIEval 5-shot", "Multilingual MMLU 5-shot"]
ROWS_4 = ["Arena Hard", "WildBench", "MATH maj@1", "MM-MT-Bench"]
MODELS_3 = ["Mistral Small 3.1 24B", "Ministral 3 14B", "Ministral 3 8B", "Ministral 3 3B"]
MODELS_5 = ["Qwen 3 14B", "Ministral 3 14B", "Qwen3-VL 8B", "Ministral 3 8B", "Qwen3-VL 4B", "Ministral 3 3B"]


def typed(text: str, columns: list[str], by_model: bool) -> dict:
    """Model to row to value."""
    found = {}
    for line in text.strip().splitlines():
        head, *cells = [cell.strip() for cell in line.split("|")]
        for column, cell in zip(columns, cells, strict=True):
            model, row = (head, column) if by_model else (column, head)
            found.setdefault(model, {})[row] = None if cell == "n/a" else float(cell)
    return found


@pytest.mark.parametrize(
    ("name", "expected", "count"),
    [
        ("table2", typed(TABLE_2, ROWS_2, True), 40),
        ("table3", typed(TABLE_3, MODELS_3, False), 60),
        ("table4", typed(TABLE_4, ROWS_4, True), 36),
        ("table5", typed(TABLE_5, MODELS_5, False), 36),
    ],
)
def test_every_figure_is_the_papers(name, expected, count):
    table = published.load(name)
    assert table.models == expected
    assert sum(len(values) for values in table.models.values()) == count
    assert table.arxiv == "2601.08584"
    for row, told in table.protocol.items():
        if named := re.search(r"(\d+)-shot", row):
            assert told["shots"] == int(named[1])


def test_multilingual_mmlu_is_the_mean_over_eight_languages():
    """Table 2's column, of Table 3's four rows, of which one is a mean of five languages."""
    for model in MODELS_3[1:]:
        values = published.load("table3").models[model]
        european, *asian = [value for row, value in values.items() if row.startswith("Multilingual")]
        mean = (5 * european + sum(asian)) / 8
        assert mean == pytest.approx(published.value(("table2", "Multilingual MMLU 5-shot"), model), abs=0.15)


def test_sampled_scores_lie_on_the_grid_of_a_mean_of_16():
    """Of any of 16 they would lie on the grid of 1/30: why the metric is called avg@16."""
    table = published.load("table5")
    values = [table.models[model][row] for model in table.models for row in list(table.protocol)[:3]]
    on_grid = {steps: sum(abs(v - 100 * round(v * steps / 100) / steps) < 0.051 for v in values) for steps in (30, 480)}
    assert (len(values), on_grid[30], on_grid[480]) == (18, 0, 17)
    assert {told["metric"] for told in table.protocol.values()} == {"avg@16", "avg@5"}


def test_a_model_is_recognised_by_its_exact_sizes():
    sizes = {"num_hidden_layers": 34, "hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 131072}
    assert published.row_for(sizes) == "Ministral 3 8B"
    assert published.row_for({**sizes, "num_hidden_layers": 33}) is None
    assert published.row_for({**sizes, "vocab_size": 32768}) is None
    assert published.row_for(dict.fromkeys(sizes)) is None
    shapes = {"Mistral Small 3.1 24B": (40, 5120, 32768), "Ministral 3 14B": (40, 5120, 16384)}
    shapes["Ministral 3 3B"] = (26, 3072, 9216)
    for name, shape in shapes.items():
        assert published.row_for(dict(zip(sizes, (*shape, 131072), strict=True))) == name


def test_what_the_paper_does_not_have():
    assert published.value(("table3", "MMLU 5-shot"), "Ministral 3 8B") == 76.1
    assert published.value(("table2", "AGIEval 5-shot"), "Mistral Small 3.1 24B") is None
    assert published.value(("table4", "MM-MT-Bench"), "Qwen3 14B non-thinking") is None
    assert (
        published.value(None, "Ministral 3 8B") is None and published.value(("table2", "AGIEval 5-shot"), None) is None
    )
    with pytest.raises(ValueError, match="table9.*allowed are table2, table3, table4, table5"):
        published.load("table9")
    with pytest.raises(ValueError, match="HellaSwag.*MMLU 5-shot"):
        published.check("table3", "HellaSwag")
    with pytest.raises(ValueError, match="Ministral 4.*Ministral 3 8B"):
        published.check_model("Ministral 4")
