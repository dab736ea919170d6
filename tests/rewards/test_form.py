r"""rewards/form.py and rewards/stem.py: the form by hand for every way to write it; the total is the paper's sum."""

import pytest

from hf_cascade.rewards import stem
from hf_cascade.rewards.form import FormatReward, format_reward, thinking_and_answer
from hf_cascade.rewards.stem import StemReward
from hf_cascade.rewards.verifiable import load_reward

BOX = r"It is \boxed{5}."
PROGRAM = "So:\n```python\nprint(5)\n```"


def message(content, **keys):
    return [{"role": "assistant", "content": content, **keys}]


def parts(*kinds):
    return message([{"type": kind, kind: text} for kind, text in kinds])


TOOL = [*message("", tool_calls=[{"function": {"name": "f", "arguments": {}}}]), {"role": "tool", "content": "5"}]
GOOD = [
    f"[THINK]2 + 3[/THINK]{BOX}",
    f"\n [THINK]2 + 3[/THINK]\n\n{BOX}</s>",
    f"<think>\n2 + 3\n</think>\n\n{BOX}<|im_end|>",
    message(f"[THINK]2 + 3[/THINK]{BOX}"),
    message(BOX, reasoning_content="2 + 3"),
    message(BOX, thinking="2 + 3"),
    parts(("thinking", "2 + 3"), ("text", BOX)),
    message([{"type": "thinking", "thinking": [{"type": "text", "text": "2 + 3"}]}, {"type": "text", "text": BOX}]),
    [*TOOL, *message(BOX, reasoning_content="2 + 3")],
    [*message("no form", reasoning_content="x"), {"role": "user", "content": "?"}, *message(f"<think>a</think>{BOX}")],
]
BAD = [
    "",
    BOX,
    f"2 + 3[/THINK]{BOX}",  # not opened
    f"[THINK]2 + 3 {BOX}",  # not closed
    r"[THINK]\boxed{5}[/THINK]It is 5.",
    f"[THINK][/THINK]{BOX}",
    f"[THINK] \n[/THINK]{BOX}",
    f"Well. [THINK]2 + 3[/THINK]{BOX}",  # not first
    f"[THINK]2[/THINK][THINK]3[/THINK]{BOX}",
    f"[THINK]2[/THINK]{BOX}<think>3</think>",
    f"[THINK]2 [THINK]3[/THINK]{BOX}",
    f"[THINK]2[/THINK][/THINK]{BOX}",
    f"[THINK]2</think>{BOX}",
    f"[/THINK]2[THINK]{BOX}",
    r"[THINK]2 + 3[/THINK]It is \boxed{5",
    f"[THINK]2 + 3[/THINK]{PROGRAM}",
    [],
    message(BOX),
    message(None, reasoning_content="2 + 3"),
    message("", reasoning_content=BOX),
    message(BOX, reasoning_content=" "),
    message(BOX, reasoning_content="2 [THINK] 3"),
    message(f"[THINK]again[/THINK]{BOX}", reasoning_content="2 + 3"),
    parts(("text", BOX), ("thinking", "2 + 3")),
    parts(("thinking", "2"), ("thinking", "3"), ("text", BOX)),
    [*message(BOX, reasoning_content="2 + 3"), *TOOL],  # the last message calls a tool
]


@pytest.mark.parametrize(("completions", "expected"), [(GOOD, 1), (BAD, 0)])
def test_form(completions, expected):
    given = format_reward([""] * len(completions), completions, trainer_state=None)
    assert [c for c, reward in zip(completions, given, strict=True) if reward != expected] == []


def test_the_prompt_may_open_the_thinking():
    assert format_reward(["Q<|assistant|><think>\n"], [f"2 + 3</think>{BOX}"]) == [1]
    assert format_reward(["Q<|assistant|><think>\n"], [f"<think>2 + 3</think>{BOX}"]) == [0]
    assert format_reward(["Q [THINK]a[/THINK]"], [f"2 + 3[/THINK]{BOX}"]) == [0]
    assert thinking_and_answer("2</think>5", "<think>") == ("2", "5")


def test_rows_with_tests_want_a_program_and_metrics():
    logged = {}
    completions = [f"[THINK]a[/THINK]{text}" for text in (PROGRAM, BOX, BOX, "none")] + [BOX]
    tests = [["assert f()"], ["assert f()"], None, [], None]
    assert format_reward([""] * 5, completions, tests=tests, log_metric=logged.__setitem__) == [1, 0, 1, 0, 0]
    assert logged == {"format_reward/thinking": 1 / 5, "format_reward/answer": 2 / 4}


class Tokenizer:
    """A token is a character."""

    eos_token = "</s>"

    def decode(self, ids, skip_special_tokens):
        assert not skip_special_tokens
        return "".join(map(chr, ids))


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (f"[THINK]2 + 3[/THINK]{BOX}</s>", 1),
        (f"[THINK]2 + 3[/THINK]{BOX}", 1),
        (f"[THINK]2[/THINK][THINK] + 3[/THINK]{BOX}</s>", 0),  # parsed, it is one block
        (f"Well. [THINK]2 + 3[/THINK]{BOX}</s>", 0),  # parsed, the text follows the block
        (f"[THINK]a[/THINK][TOOL_CALLS]f[ARGS]{{}}</s>[TOOL_RESULTS]5[/TOOL_RESULTS][THINK]2 + 3[/THINK]{BOX}</s>", 1),
        (f"[THINK]a[/THINK][TOOL_CALLS]f[ARGS]{{}}</s>[TOOL_RESULTS]5[/TOOL_RESULTS]{BOX}</s>", 0),
        (f"2 + 3[/THINK]{BOX}</s>", 1),  # the template opens it: the parsed message has it
    ],
)
def test_tokens_tell_what_parsed_messages_do_not(tokens, expected):
    parsed = message(BOX, reasoning_content=None if tokens.endswith(f"RESULTS]{BOX}</s>") else "2 + 3")
    ids = [[ord(character) for character in tokens]]
    assert FormatReward(Tokenizer())([""], [parsed], completion_ids=ids) == [expected]


@pytest.mark.parametrize(
    ("template", "expected"), [("<|im_start|>assistant\n<think>\n", 1), ("assistant", 0), (None, 0)]
)
def test_a_template_may_open_the_thinking_of_messages_that_are_not_parsed(template, expected):
    """As ChatML with a template of one's own: TRL gives the text behind the tag as content."""

    class Opening(Tokenizer):
        chat_template = template

        def apply_chat_template(self, messages, add_generation_prompt, tokenize):
            assert add_generation_prompt and not tokenize
            return template

    texts = [f"2 + 3\n</think>{BOX}", "2 + 3", f"<think>2 + 3</think>{BOX}", f"2</think>3</think>{BOX}"]
    ids = [[*map(ord, f"{text}</s>")] for text in texts]
    given = FormatReward(Opening())([[{"role": "user", "content": "Q"}]] * 4, [*map(message, texts)], ids)
    assert given == [expected, 0, 1, 0]


# The total


@pytest.fixture
def parts_by_hand(monkeypatch):
    """Parts that say what the completion says: form, correct, language; `N`: no verdict."""

    def saying(place, name):
        def reward(prompts, completions, log_metric=None, **columns):
            assert all(len(columns[key]) == len(prompts) for key in ("answer", "tests", "other"))
            asked.append((name, list(completions)))
            return [None if text[place] == "N" else float(text[place]) for text in completions]

        return reward

    asked = []
    names = {"format_reward": 0, "maths_reward": 1, "program_reward": 1, "language_reward": 2}
    for name, place in names.items():
        monkeypatch.setattr(stem, name, saying(place, name))
    return asked


def test_total_is_the_papers_sum(parts_by_hand):
    completions = ["111", "110", "101", "100", "011", "1N1", "111", "101", "111"]
    answer = ["5"] * 6 + [None, None, None]
    tests = [None] * 6 + [["t"], ["t"], []]
    logged = {}
    given = stem.stem_reward(
        [""] * 9, completions, answer=answer, tests=tests, other=list("abcdefghi"), log_metric=logged.__setitem__
    )
    assert given == [pytest.approx(v) if v is not None else None for v in (1.1, 1, 0.2, 0.1, 0, None, 1.1, 0.2, None)]
    assert dict(parts_by_hand) == {
        "format_reward": completions[:8],
        "program_reward": ["111", "101"],
        "maths_reward": ["111", "110", "101", "100", "1N1"],  # what has no form is not compared
        "language_reward": ["111", "110", "101", "100", "1N1", "111", "101"],
    }
    assert logged == {
        "stem_reward/form": 7 / 8,
        "stem_reward/correct": 3 / 6,
        "stem_reward/language": 5 / 7,
    }


def test_images_and_types_go_to_the_visual_reward(parts_by_hand, monkeypatch):
    asked = []

    def visual(prompts, completions, log_metric=None, **columns):
        asked.append((list(completions), columns["answer_type"], columns["images"]))
        return [1.0] * len(prompts)

    monkeypatch.setattr(stem, "visual_reward", visual)
    kinds, images = ["choice", None, None, "", None], [[], ["picture"], [], None, None]
    columns = {"answer": list("abcde"), "answer_type": kinds, "images": images, "other": list("abcde")}
    completions = ["111", "110", "101", "100", "011"]
    assert stem.stem_reward([""] * 5, completions, **columns) == [1.1, 1, pytest.approx(0.2), 0.1, 0]
    assert asked == [(["111", "110"], ["choice", None], [[], ["picture"]])]
    assert dict(parts_by_hand)["maths_reward"] == ["101", "100"]
    program = {"tests": [["t"]], "answer": [None], "images": [["picture"]], "other": ["a"]}
    assert stem.stem_reward([""], ["111"], **program) == [1.1]  # a row with tests is a program


def test_weights(parts_by_hand):
    mine = StemReward(form=0.0, correct=2, language=0.5)
    assert mine(["", ""], ["111", "110"], answer=["5", "5"], other=[1, 2]) == [2.5, 2]
    with pytest.raises(ValueError, match="give 0 or more"):
        StemReward(language=-0.1)
    with pytest.raises(ValueError, match="needs a column"):
        mine([""], ["111"])


def test_the_real_parts_together(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("from hf_cascade.rewards.stem import StemReward\nmine = StemReward(correct=0.5)\n")
    prompt = "How many apples do they have if Anna has two of them and Tom has the other three?"
    english = "First we add the two apples that Anna has and the three of Tom, so there are five of them in all."
    german = (
        "Zuerst zählen wir die zwei Äpfel von Anna und die drei von Tom, also sind es zusammen fünf und nicht mehr."
    )
    completions = [
        message(BOX, reasoning_content=english),
        message(BOX, reasoning_content=german),
        message(r"\boxed{6}", reasoning_content=english),
        message(BOX),
    ]
    rows = {"prompts": [prompt] * 4, "completions": completions, "answer": ["#### 5"] * 4}
    assert load_reward("stem_reward")(**rows) == pytest.approx([1.1, 1, 0.2, 0])
    assert load_reward(f"{file}:mine")(**rows) == pytest.approx([0.7, 0.6, 0.2, 0])
    assert load_reward("format_reward") is format_reward
