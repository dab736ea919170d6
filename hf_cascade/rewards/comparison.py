"""The question that a pairwise reward model answers with one label token, in the form of `pipeline("decision")`.

A comparison is a `choice` question of transformers' decision models: the history is its state, the two responses are
its options. The template that writes it is saved beside the model, so that training, scoring and `transformers serve`
read the same tokens.
"""

import copy
import itertools
import json
from pathlib import Path

from transformers import DecisionConfig, PreTrainedTokenizerBase
from transformers.decision import label_token_ids
from transformers.utils import cached_file

from hf_cascade import assets

KIND = "choice"  # of a decision model's questions
FILE = "decision.json"
MARKER = "pairwise"  # key in FILE of what is ours
CUT = " [...] "  # where text was left out
SPARE = 8  # tokens that may stay unused where text is left out
QUESTION = "Which response is better?"
LABELS = ("A", "B")

# `state`, `question` and `instruction` are the only text that is not ours; transformers splits control tokens in it.
BODY = """{{ state }}

Response {{ question.labels[0] }}:
{{ question.descriptions[0] }}

Response {{ question.labels[1] }}:
{{ question.descriptions[1] }}

{{ question.instructions or default_question }}
Answer with {{ question.labels[0] }} or {{ question.labels[1] }} only."""


def request(history: str, first: str, second: str) -> dict:
    """A comparison as `pipeline("decision")` and `/v1/systemone` take it; answers are in `probabilities`."""
    return {
        "state": history,
        "questions": {"preference": {"type": KIND, "criteria": {"first": first, "second": second}}},
    }


class Comparison:
    """
    Writes comparisons as tokens.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the model's; stays as it is.
        config (`DecisionConfig`): template, labels and temperature.
        max_length (`int`, *optional*): most tokens of a comparison in training.

    Raises:
        ValueError: a label is no single token, or the tokenizer makes control tokens of plain text.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: DecisionConfig, max_length: int | None = None):
        self.config = config
        self.max_length = max_length
        self.tokenizer = copy.deepcopy(tokenizer)  # `prepare_inputs` adds two marks
        self.label_ids = _label_ids(tokenizer, tuple(config.labels[KIND]))
        try:
            self.encode(" ".join(tokenizer.added_tokens_encoder), "", "")
        except ValueError as error:
            raise ValueError(f"this tokenizer cannot tell text from control tokens: {error}") from error

    @classmethod
    def new(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        labels: tuple[str, str] = LABELS,
        question: str = QUESTION,
        max_length: int | None = None,
    ) -> "Comparison":
        """
        A comparison in the tokenizer's chat template, or as plain text where it has none.

        Raises:
            ValueError: not two labels, or as the class.
        """
        if len(labels) != 2 or len(set(labels)) != 2:
            raise ValueError(f"labels={list(labels)}: give two that differ, such as {list(LABELS)}")
        body = f"{{%- set default_question = {json.dumps(question, ensure_ascii=False)} -%}}\n"
        if tokenizer.chat_template is not None:
            body += f"{{%- set body -%}}{BODY}{{%- endset -%}}\n"
            body += "{%- set messages = [{'role': 'user', 'content': body}] -%}\n" + tokenizer.get_chat_template()
        else:
            starts = tokenizer.bos_token is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]
            body += "{{- bos_token -}}\n" * starts + BODY + "\nAnswer:"
        return cls(tokenizer, DecisionConfig(labels={KIND: list(labels)}, chat_template=body), max_length)

    @classmethod
    def from_pretrained(cls, folder: str, tokenizer: PreTrainedTokenizerBase) -> "Comparison":
        """
        The comparison that a pairwise reward model was trained on.

        Raises:
            ValueError: the folder or Hub id holds no pairwise reward model.
        """
        place = assets.locate(folder)
        what = f"{folder} is no pairwise reward model of trainers/pwrm.py: "
        file = cached_file(place, FILE, _raise_exceptions_for_missing_entries=False)
        if file is None:
            raise ValueError(f"{what}it has no {FILE}")
        ours = json.loads(Path(file).read_text(encoding="utf-8")).get(MARKER)
        config = DecisionConfig.from_pretrained(place)
        labels = config.labels.get(KIND, [])
        if ours is None or config.chat_template is None or len(labels) != 2:
            raise ValueError(
                f"{what}its {FILE} is another decision model's, with the labels {labels} for a {KIND} (two are needed)"
                f", the key {MARKER!r} {'missing' if ours is None else 'there'}"
            )
        return cls(tokenizer, config, ours["max_length"])

    @property
    def temperature(self) -> float:
        """By which the difference of the two logits is divided."""
        return float(self.config.temperature.get(KIND, 1.0))

    @temperature.setter
    def temperature(self, value: float) -> None:
        """Kept in `decision.json` by `save_pretrained`."""
        self.config.temperature[KIND] = float(value)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write decision.json and decision_template.jinja."""
        self.config.save_pretrained(folder)
        file = Path(folder) / FILE
        settings = json.loads(file.read_text(encoding="utf-8")) | {MARKER: {"max_length": self.max_length}}
        file.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def encode(self, history: str, first: str, second: str) -> list[int]:
        """Tokens of a comparison; the model's next token is a label."""
        ((inputs, _),) = self.config.prepare_inputs(request(history, first, second), self.tokenizer)
        return inputs["input_ids"][0].tolist()

    def encode_both(self, history: str, first: str, second: str) -> tuple[list[int], list[int]]:
        """The comparison in both orders."""
        return self.encode(history, first, second), self.encode(history, second, first)

    def encode_within(self, max_length: int, history: str, first: str, second: str) -> tuple[tuple, bool]:
        """
        Both orders in at most `max_length` tokens, and whether text was left out.

        First the history's beginning goes, then the middle of the responses, both cut to one number of characters.

        Raises:
            ValueError: not even empty responses fit.
        """
        both = self.encode_both(history, first, second)
        if _longest(both) <= max_length:
            return both, False

        def with_history(characters: int):
            return self.encode_both(CUT.lstrip() + history[len(history) - characters :], first, second)

        def with_responses(characters: int):
            return self.encode_both(CUT.strip(), *(_without_middle(text, characters) for text in (first, second)))

        cut = _most(with_history, len(history), max_length, _longest(both))
        cut = cut or _most(with_responses, max(len(first), len(second)), max_length, _longest(both))
        if cut is None:
            raise ValueError(f"max_length={max_length} is too short: an empty comparison does not fit; lengthen it")
        return cut, True


def _longest(both: tuple[list[int], list[int]]) -> int:
    return max(len(ids) for ids in both)


def _most(write, high: int, max_length: int, high_tokens: int):
    """
    `write(n)` that fits, with the largest n < high but for `SPARE` tokens; `None` where not even 0 fits.

    Tokens are nearly proportional to characters, so that the next n is interpolated; every third is halfway.
    """
    best, low = write(0), 0
    low_tokens = _longest(best)
    if low_tokens > max_length:
        return None
    for attempt in itertools.count(1):
        if high - low <= 1 or max_length - low_tokens <= SPARE:
            return best
        share = 0.5 if attempt % 3 == 0 else (max_length - low_tokens) / max(high_tokens - low_tokens, 1)
        middle = min(max(low + int(share * (high - low)), low + 1), high - 1)
        both = write(middle)
        if _longest(both) <= max_length:
            best, low, low_tokens = both, middle, _longest(both)
        else:
            high, high_tokens = middle, _longest(both)


def _without_middle(text: str, characters: int) -> str:
    if len(text) <= characters:
        return text
    start = (characters + 1) // 2
    return text[:start] + CUT + text[len(text) - (characters - start) :]


def _label_ids(tokenizer: PreTrainedTokenizerBase, labels: tuple[str, ...]) -> list[int]:
    try:
        return label_token_ids(tokenizer, labels)
    except ValueError as error:
        split = {label: tokenizer.tokenize(label) for label in labels}
        raise ValueError(
            f"each label must be one token of its own in the model's tokenizer, and they are {split}: set labels to "
            "two such tokens"
        ) from error
