"""The data of the tiny reasoning recipe: right answers, chains that lead to them, true verdicts, the same files."""

import gzip
import json
import re
import runpy
from collections import Counter
from pathlib import Path

import pytest

from hf_cascade import RubricReward
from hf_cascade.completions import text_of
from hf_cascade.rewards.stem import stem_reward

TINY = Path(__file__).parents[1] / "recipes" / "tiny"
make = runpy.run_path(str(TINY / "make_reasoning.py"))
PARTS = tuple(make["ROWS"])


def shipped(part: str) -> list[dict]:
    with gzip.open(TINY / "data" / f"reasoning_{part}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def said(messages: list[dict]) -> str:
    (message,) = messages
    return message["content"]


def solve(prompt: str) -> int | None:
    """The answer of a sum, worked out from its text alone."""
    found = re.fullmatch(r"What is ([\d+-]+)\?", prompt)
    return found and eval(found[1])


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.split("words ")[-1].replace(" and ", " "))


@pytest.mark.parametrize("part", PARTS)
def test_the_files_are_what_the_script_makes(part):
    rows, made = shipped(part), make["rows"](part)
    assert len(rows) == make["ROWS"][part]
    for number, row in enumerate(rows):
        assert row == next(made), number


def test_no_prompt_is_in_two_parts():
    seen = {}
    for part in set(PARTS) - {"judge"}:
        for row in shipped(part):
            assert seen.setdefault(said(row["prompt"]), part) == part


@pytest.mark.parametrize("part", ["general", "prompts", "heldout"])
def test_answers_and_rubrics_are_right(part):
    rows = shipped(part)
    sums = [row for row in rows if row["answer"] is not None]
    assert not sums if part == "prompts" else 0.4 < len(sums) / len(rows) < 0.8
    for row in rows:
        prompt = said(row["prompt"])
        if row["answer"] is None:
            assert row["words"] == words_of(prompt)
            stop = "It ends with a full stop."
            assert row["rubric"] == [*(f"It has the word {word}." for word in row["words"]), stop]
        else:
            assert int(row["answer"]) == solve(prompt) in range(10)
            assert row["words"] is row["rubric"] is None


def test_few_problems_have_a_wrong_answer():
    wrong = [row for row in shipped("problems") if int(row["answer"]) != solve(said(row["prompt"]))]
    assert 0.02 < len(wrong) / make["ROWS"]["problems"] < 0.06


def test_chains_lead_to_the_answer_and_few_are_spoilt():
    rows = [row for row in shipped("sft") if solve(said(row["prompt"])) is not None]
    whole = [row for row in rows if not row["spoilt"]]
    right = stem_reward(
        prompts=[row["prompt"] for row in whole],
        completions=[row["completion"] for row in whole],
        answer=[str(solve(said(row["prompt"]))) for row in whole],
    )
    assert set(right) == {1.1}
    for row in whole:
        if row["chain"] == "long":
            thinking = said(row["completion"]).removeprefix("[THINK]").partition("[/THINK]")[0]
            first, *rest = re.findall(r"[+-]?\d", thinking)
            total = int(first)
            for change, reached in zip(rest[::2], rest[1::2], strict=True):
                total += int(change)
                assert total == int(reached)
    assert 0.4 < Counter(row["chain"] for row in whole)["long"] / len(whole) < 0.6
    assert set(Counter(row["spoilt"] for row in shipped("sft"))) == {"", *make["SPOILT"]}


def test_verdicts_are_true():
    verdicts = Counter()
    for row in shipped("judge"):
        response, word = re.fullmatch(
            r"(.*) It (?:has the word (\w+)|ends with a full stop)\.", said(row["prompt"])
        ).groups()
        true = word in re.findall(r"\w+", response) if word else response.endswith(".")
        assert said(row["completion"]) == ("yes" if true else "no")
        verdicts[word is None, true] += 1
    assert min(verdicts.values()) > 0.1 * make["ROWS"]["judge"]


def test_the_judge_was_trained_on_the_question_that_it_is_asked():
    import yaml

    template = yaml.safe_load((TINY / "general.yaml").read_text())["judge_template"]
    asked = []

    class Grader:
        def grade(self, questions):
            asked.extend(questions)
            return [True] * len(questions)

    reward = RubricReward(Grader(), template)
    row = next(row for row in shipped("general") if row["rubric"])
    completion = [{"role": "assistant", "content": "[THINK]so[/THINK]The tree and list."}]
    assert reward(prompts=[row["prompt"]], completions=[completion], rubric=[row["rubric"]]) == [1.0]
    assert asked == [f"The tree and list. {criterion}" for criterion in row["rubric"]]


def test_the_exact_rule_for_rubrics():
    completions = [[{"role": "assistant", "content": "[THINK]tree list[/THINK]The tree, code and line."}]] * 2
    assert text_of(completions[0]) == "The tree, code and line."
    given = [make["rubric"](["tree", "code", "list", "line"]), None]
    assert make["rubric_met"]([""] * 2, completions, given) == [0.8, None]


def test_pairs_prefer_the_stop_and_the_order():
    for row in shipped("pairs"):
        words, sides = words_of(said(row["prompt"])), [said(row[side]) for side in ("chosen", "rejected")]
        worth = []
        for side in sides:
            given = [word for word in re.findall(r"\w+", side) if word in words]
            worth.append(side.endswith(".") + 0.5 * (given == [word for word in words if word in given]))
        assert worth[0] > worth[1]


def test_files_are_small():
    for part in PARTS:
        assert (TINY / "data" / f"reasoning_{part}.jsonl.gz").stat().st_size < 200_000
