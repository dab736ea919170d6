"""distill/reasoning.py: what each filter removes, counted by hand; shares exact, and the most rows that they allow."""

import json
import random
from types import SimpleNamespace

import pytest
from datasets import Dataset

from hf_cascade.data.chat import prepare_chat
from hf_cascade.distill.reasoning import (
    filter_reasoning,
    largest_mix,
    mix_chains,
    prepare_reasoning,
    save_report,
    summary,
)
from hf_cascade.distill.sft_arguments import SFTArguments
from hf_cascade.loading import load_tokenizer

ASKED = "A farmer has twelve cows and sells three of them. How many cows are left in the field after that?"
THOUGHT = (
    "Let us think about it. The farmer has twelve cows, and three of them are sold, so there are nine left. "
    "Wait, we should check this: if we add the three that were sold to the nine, it is twelve again."
)
GERMAN = (
    "Denken wir nach. Der Bauer hat zwölf Kühe, und drei davon werden verkauft, also sind es noch neun. "
    "Das prüfen wir: Wenn man die drei verkauften Kühe zu den neun addiert, dann sind es wieder zwölf."
)
ANSWER = "There are nine cows left in the field."
LOOP = THOUGHT + " So it is nine, I think." * 40


def row(thinking=THOUGHT, answer=ANSWER, asked=ASKED, **keys) -> dict:
    content = {"role": "assistant", "content": answer, "reasoning_content": thinking, **keys}
    return {"messages": [{"role": "user", "content": asked}, content]}


def text_row(content: str) -> dict:
    return {"messages": [{"role": "user", "content": ASKED}, {"role": "assistant", "content": content}]}


ROWS = {
    "good": row(),
    "good with tags": text_row(f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"),
    "good again": text_row(f"[THINK]{THOUGHT}[/THINK]{ANSWER}"),
    "calls": row(answer="", tool_calls=[{"function": {"name": "count", "arguments": {"cows": 3}}}]),
    "none": text_row(ANSWER),
    "open": text_row(f"[THINK]{THOUGHT} {ANSWER}"),
    "no answer": row(answer=" "),
    "open and loops": text_row(f"<think>{LOOP}"),
    "loops": row(LOOP),
    "loops in the middle": row(f"{LOOP} {THOUGHT}"),
    "answer loops": row(answer=ANSWER + " Nine." * 40),
    "loops in German": row(GERMAN + " Also sind es neun, denke ich." * 40),
    "German": row(GERMAN),
    "German answer": row(answer=GERMAN),
    "turns to German": row(f"{THOUGHT} {GERMAN} {GERMAN}"),
}
REMOVED = {
    "format": ["none", "open", "no answer", "open and loops"],
    "repetition": ["loops", "loops in the middle", "answer loops", "loops in German"],
    "language": ["German", "German answer", "turns to German"],
}
FAILED = {"format": 4, "repetition": 5, "language": 4}


def dataset(rows) -> Dataset:
    return Dataset.from_list(list(rows), on_mixed_types="use_json")


@pytest.fixture(scope="module")
def kit():
    kit = load_tokenizer("recipes/tiny/parent")
    prepare_chat(kit, "mistral")
    return kit


@pytest.fixture(scope="module")
def filtered(kit):
    return filter_reasoning(dataset(ROWS.values()), kit)


def names(rows: Dataset) -> list[str]:
    """Which of `ROWS` they are, told by what the assistant says."""
    said = {repr(messages_of(given)): name for name, given in ROWS.items()}
    return [said[repr(messages_of(given))] for given in rows]


def messages_of(given: dict) -> list:
    return [sorted((k, v) for k, v in message.items() if v is not None) for message in given["messages"]]


# --- filters


def test_each_removes_what_it_is_for(filtered):
    rows, report = filtered
    gone = [name for group in REMOVED.values() for name in group]
    assert names(rows) == [name for name in ROWS if name not in gone]
    assert {name: one["removed"] for name, one in report["filters"].items()} == {k: len(v) for k, v in REMOVED.items()}
    assert {name: one["failed"] for name, one in report["filters"].items()} == FAILED
    assert list(report["filters"]) == list(REMOVED)
    order = list(ROWS)
    for name, one in report["filters"].items():
        assert [order[shown["row"]] for shown in one["examples"]] == REMOVED[name][:3]
        assert sum(one["reasons"].values()) == FAILED[name]
        assert all(shown["text"] and len(shown["text"]) < 210 for shown in one["examples"])
    assert report["filters"]["format"]["reasons"] == {
        "thinking is not closed": 2,
        "no thinking": 1,
        "no answer": 1,
    }
    assert report["filters"]["language"]["examples"][0]["reason"] == "in de and en"  # the answer is not
    assert json.loads(json.dumps(report)) == report


def test_before_and_after(filtered, kit):
    _, report = filtered

    def count(text):
        return len(kit(text, add_special_tokens=False)["input_ids"])

    assert report["after"]["rows"] == 4 and report["before"]["rows"] == len(ROWS)
    assert report["after"]["repetitive_rows"] == 0 and report["before"]["repetitive_rows"] == FAILED["repetition"]
    assert report["after"]["rows_without_thinking"] == 0 and report["before"]["rows_without_thinking"] == 1
    plain, padded = count(THOUGHT), count(f"\n{THOUGHT}\n")
    assert report["after"]["thinking_tokens"]["total"] == 3 * plain + padded
    assert report["after"]["thinking_tokens"]["median"] == plain
    assert report["after"]["thinking_tokens"]["max"] == padded
    assert report["after"]["answer_tokens"]["total"] == 2 * count(ANSWER) + count(f"\n\n{ANSWER}")
    assert report["before"]["thinking_tokens"]["max"] == count(f"{GERMAN}" + " Also sind es neun, denke ich." * 40)


@pytest.mark.parametrize("chosen", [["language"], ["repetition", "format"], ["language", "format", "repetition"]])
def test_some_filters_in_any_order(kit, chosen):
    rows, report = filter_reasoning(dataset(ROWS.values()), kit, chosen)
    alone = {
        "format": {"none", "open", "no answer", "open and loops"},
        "repetition": {"open and loops", "loops", "loops in the middle", "answer loops", "loops in German"},
        "language": {"loops in German", "German", "German answer", "turns to German"},
    }
    assert names(rows) == [name for name in ROWS if not any(name in alone[one] for one in chosen)]
    assert list(report["filters"]) == [name for name in alone if name in chosen]


def test_the_order_of_rows_does_not_matter(kit, filtered):
    order = list(ROWS)
    random.Random(0).shuffle(order)
    rows, report = filter_reasoning(dataset(ROWS[name] for name in order), kit)
    assert names(rows) == [name for name in order if name in names(filtered[0])]
    assert (report["before"], report["after"]) == (filtered[1]["before"], filtered[1]["after"])
    counts = [{name: one["removed"] for name, one in each["filters"].items()} for each in (report, filtered[1])]
    assert counts[0] == counts[1]


def test_every_turn_counts(kit):
    user, good = ROWS["good"]["messages"]
    earlier = [
        {"role": "assistant", "content": ANSWER},  # without thinking, which templates leave out of earlier turns
        {"role": "assistant", "content": f"[THINK]{THOUGHT}"},
        {"role": "assistant", "content": ANSWER, "reasoning_content": LOOP},
        {"role": "assistant", "content": GERMAN},
    ]
    rows, report = filter_reasoning(dataset({"messages": [user, turn, user, good]} for turn in earlier), kit)
    assert len(rows) == 1 and [one["removed"] for one in report["filters"].values()] == [1, 1, 1]
    prompts = [{"prompt": [user, turn, user], "completion": [good]} for turn in earlier]  # not taught
    assert len(filter_reasoning(dataset(prompts), kit)[0]) == 4


def test_text_rows(kit):
    prompt = f"[INST]{ASKED}[/INST]"
    completions = [f"<think>{THOUGHT}</think>{ANSWER}</s>", ANSWER, f"[THINK]{LOOP}[/THINK]{ANSWER}"]
    completions += [f"[THINK]{GERMAN}[/THINK]{ANSWER}", f"[THINK]{THOUGHT}[/THINK]</s>"]
    rows, report = filter_reasoning(dataset({"prompt": prompt, "completion": text} for text in completions), kit)
    assert rows["completion"][:] == completions[:1]
    assert [one["removed"] for one in report["filters"].values()] == [2, 1, 1]


def test_filters_that_cannot_be(kit):
    rows = dataset([ROWS["none"], ROWS["open"]])
    with pytest.raises(ValueError, match="there is no 'speed'; allowed are format, repetition, language"):
        filter_reasoning(rows, kit, ["format", "speed"])
    with pytest.raises(ValueError, match="no row is left of 2: removed were format 2"):
        filter_reasoning(rows, kit)
    with pytest.raises(ValueError, match=r"the columns \['text'\]"):
        filter_reasoning(dataset([{"text": "a"}]), kit)
    for function in (filter_reasoning, lambda *given: mix_chains(*given, 0.5)):
        with pytest.raises(ValueError, match="IterableDataset: .* count rows before training; set streaming: false"):
            function(rows.to_iterable_dataset(), kit)


# --- the mix


@pytest.mark.parametrize("fraction", [0, 0.1, 1 / 3, 0.5, 0.625, 0.9, 1])
@pytest.mark.parametrize(("long", "short"), [(7, 7), (1, 20), (20, 1), (13, 40), (100, 3)])
def test_the_largest_mix_against_brute_force(long, short, fraction):
    total = largest_mix(long, short, fraction)
    allowed = [
        count + other
        for count in range(long + 1)
        for other in range(short + 1)
        if -0.5 < count - fraction * (count + other) <= 0.5
    ]
    assert total == max(allowed)


def chains(long: int, short: int, seed: int = 0) -> Dataset:
    """Rows of 60 and more tokens, and of fewer, in any order."""
    made = [row(f"{number} " * 30, str(number)) for number in range(long)]
    made += [row(f"{number} ", str(number)) for number in range(long, long + short)]
    random.Random(seed).shuffle(made)
    return dataset(made)


def kept(rows: Dataset) -> list[int]:
    return [int(given["messages"][1]["content"]) for given in rows]


@pytest.mark.parametrize(
    ("fraction", "long", "short"), [(0.5, 10, 10), (0.25, 10, 30), (0.8, 10, 3), (0, 0, 30), (1, 10, 0)]
)
def test_the_share_is_exact(kit, fraction, long, short):
    rows, report = mix_chains(chains(10, 30), kit, fraction, long_min_tokens=60)
    numbers = kept(rows)
    assert (
        (sum(n < 10 for n in numbers), sum(n >= 10 for n in numbers))
        == (long, short)
        == (
            report["after"]["long_rows"],
            report["after"]["short_rows"],
        )
    )
    assert abs(long - fraction * len(numbers)) < 1 and len(set(numbers)) == len(numbers)
    order = [n for n in kept(chains(10, 30)) if n in numbers]
    assert numbers == order  # as they were
    assert report["after"]["long_fraction"] == long / (long + short)
    assert report["before"]["long_rows"] == 10 and report["before"]["short_rows"] == 30


def test_tokens_are_counted(kit):
    rows = chains(3, 3)
    _, report = mix_chains(rows, kit, 0.5, long_min_tokens=60)
    counts = [
        len(kit(given["messages"][1]["reasoning_content"], add_special_tokens=False)["input_ids"]) for given in rows
    ]
    long = [count for count in counts if count >= 60]
    assert len(long) == 3
    assert report["after"]["long_token_fraction"] == sum(long) / sum(counts)
    _, report = mix_chains(rows, kit, 1, long_min_tokens=max(counts))  # so many is long
    assert report["after"]["long_rows"] >= 1


def test_the_draw_is_by_content_and_seed(kit):
    first = kept(mix_chains(chains(10, 30), kit, 0.5, 60, seed=3)[0])
    assert first == kept(mix_chains(chains(10, 30), kit, 0.5, 60, seed=3)[0])
    assert sorted(first) == sorted(kept(mix_chains(chains(10, 30, seed=9), kit, 0.5, 60, seed=3)[0]))
    assert sorted(first) != sorted(kept(mix_chains(chains(10, 30), kit, 0.5, 60, seed=4)[0]))


def test_equal_rows_are_rows(kit):
    rows, report = mix_chains(dataset([row("1 " * 60)] * 3 + [row("1")] * 9), kit, 0.5, 60)
    assert len(rows) == 6 and report["after"]["long_rows"] == 3


@pytest.mark.parametrize(
    ("long", "short", "given", "message"),
    [
        (0, 4, {"long_fraction": 0.1}, "needs long chains of thought, and of 4 rows none is long: 60 tokens and more"),
        (4, 0, {"long_fraction": 0.9}, "needs short chains of thought, and of 4 rows none is short"),
        (4, 4, {"long_fraction": 1.5}, "long_fraction=1.5: give a share of the rows, 0 to 1"),
        (4, 4, {"long_fraction": 0.5, "long_min_tokens": 0}, "long_min_tokens=0: give 1 token or more"),
    ],
)
def test_mixes_that_cannot_be(kit, long, short, given, message):
    with pytest.raises(ValueError, match=message):
        mix_chains(chains(long, short), kit, **{"long_min_tokens": 60, **given})


# --- together


def settings(**given) -> tuple:
    training = SimpleNamespace(seed=0, dataset_num_proc=None, chat_template_path=None, max_length=None)
    return training, SFTArguments(**given)


def test_off_by_default(kit):
    rows = dataset(ROWS.values())
    assert prepare_reasoning(rows, None, kit, *settings()) == (rows, None, None)
    streamed = rows.to_iterable_dataset()
    assert prepare_reasoning(streamed, rows, kit, *settings())[0] is streamed
    assert save_report(None, None) == {}


def test_filter_then_mix_then_write(kit, tmp_path, capsys):
    rows = dataset([*ROWS.values(), *(row(f"{THOUGHT} {n}, and that is all.") for n in range(4)), row("Nine.")])
    chosen = settings(filters=["language", "format", "repetition"], long_fraction=0.8, long_min_tokens=20)
    train, held_out, report = prepare_reasoning(rows, dataset(ROWS.values()), kit, *chosen)
    assert len(train) == 7 and len(held_out) == 4  # 0.8 of 7 is 5.6, of 8 6.4: two short ones; no mix of held-out rows
    assert report["mix"]["after"] == {
        "long_rows": 6,
        "short_rows": 1,
        "long_fraction": 6 / 7,
        "long_token_fraction": report["mix"]["after"]["long_token_fraction"],
    }
    assert report["after"]["rows"] == 7 and report["held_out"]["after"]["rows"] == 4
    assert {k: v["removed"] for k, v in report["filters"].items()} == {k: len(v) for k, v in REMOVED.items()}
    for part in (train, held_out):
        for given in part:
            text = kit.apply_chat_template(given["messages"], tokenize=False)
            assert text.count("[THINK]") == text.count("[/THINK]") == 1 and "<think>" not in text
    said = capsys.readouterr().err
    assert said.count(summary(report)) == 1
    for line in ("20 rows", "format: 4 removed (4 fail it)", "repetition: 4 removed (5 fail it)", "7 rows left"):
        assert line in said
    assert "long chains of thought: 6 of 8" in said and "short chains of thought: 1 of 1" in said
    numbers = save_report(report, tmp_path)["reasoning_data"]
    assert json.loads((tmp_path / "reasoning_data.json").read_text()) == report
    assert {name: numbers[name] for name in ("rows_before", "rows", "removed_repetition", "long_fraction")} == {
        "rows_before": 20,
        "rows": 7,
        "removed_repetition": 4,
        "long_fraction": 6 / 7,
    }


def test_rows_that_are_cut_off_are_told(kit, capsys):
    training, chosen = settings(filters=["format"])
    tokens = [len(kit(text, add_special_tokens=False)["input_ids"]) for text in (THOUGHT, ANSWER)]
    for max_length, cut_off in ((sum(tokens) - 1, 2), (sum(tokens), 0), (None, 0)):
        training.max_length = max_length
        _, _, report = prepare_reasoning(dataset([row(), row(), row("So.")]), None, kit, training, chosen)
        assert report["cut_off_rows"] == cut_off
        assert (f"warning: 2 rows have more than max_length={max_length}" in capsys.readouterr().err) == bool(cut_off)


def test_conversations_and_a_template_to_fetch(kit):
    said = [{"from": "user", "value": ASKED}, {"from": "assistant", "value": f"<think>{THOUGHT}</think>{ANSWER}"}]
    training, chosen = settings(filters=["format"])
    train, _, _ = prepare_reasoning(dataset([{"conversations": said}]), None, kit, training, chosen)
    assert train.column_names == ["messages"]
    assert train[0]["messages"][1] == {"role": "assistant", "content": ANSWER, "reasoning_content": THOUGHT}
    training.chat_template_path = "a/folder"
    with pytest.raises(ValueError, match="chat_template_path=a/folder: .* give mistral .shipped. or a .jinja file"):
        prepare_reasoning(train, None, kit, training, chosen)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"filters": ["form"]}, "there is no 'form'; allowed are"),
        ({"long_fraction": -0.1}, "long_fraction=-0.1: give a share"),
        ({"long_fraction": float("nan")}, "long_fraction=nan: give a share"),
        ({"long_min_tokens": 0}, "long_min_tokens=0: give 1 token or more"),
    ],
)
def test_flags_are_checked_at_once(given, message):
    with pytest.raises(ValueError, match=message):
        SFTArguments(**given)
