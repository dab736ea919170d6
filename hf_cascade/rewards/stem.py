"""The reward of the paper's STEM stage: form, then correctness and language (section 5)."""

from collections.abc import Callable

from hf_cascade.rewards.form import format_reward
from hf_cascade.rewards.language import language_reward
from hf_cascade.rewards.maths import maths_reward
from hf_cascade.rewards.programs import program_reward
from hf_cascade.rewards.visual import visual_reward


class StemReward:
    """
    form + correct + language, each weighed, where a completion has the form; else 0, and nothing else is looked at.

    Rows with `tests` are programs; of the others, those with images or an `answer_type` go to [`VisualReward`], the
    rest to [`MathsReward`].

    ```python
    >>> mine = StemReward(correct=0.8, language=0.2)  # in mine.py; in YAML, reward_funcs: [mine.py:mine]
    ```

    Args:
        form (`float`): weight of [`FormatReward`]; the paper's.
        correct (`float`): weight of [`MathsReward`], [`ProgramReward`] or [`VisualReward`]; the paper's.
        language (`float`): weight of [`LanguageReward`]; the paper's.

    Raises:
        ValueError: a negative weight.
    """

    def __init__(self, form: float = 0.1, correct: float = 0.9, language: float = 0.1):
        self.__name__ = "stem_reward"
        self.weigh(form, correct, language)

    def weigh(self, form: float = 0.1, correct: float = 0.9, language: float = 0.1) -> None:
        """Set the weights; those left out are the paper's. Raises `ValueError` for a negative one, or no number."""
        weights = (form, correct, language)
        if not all(isinstance(weight, int | float) and weight >= 0 for weight in weights):
            raise ValueError(f"weights are {form}, {correct} and {language}: give 0 or more")
        self.form, self.correct, self.language = weights

    def __call__(
        self,
        prompts: list,
        completions: list,
        answer: list | None = None,
        tests: list | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns,
    ) -> list[float | None]:
        """
        Rewards of a batch; `None` for a row with neither answer nor tests, and where correctness could not be told.

        Args:
            prompts (`list`): text, or lists of messages.
            completions (`list`): text, or lists of messages, of which the last assistant message counts.
            answer (`list`, *optional*): see [`MathsReward`], and [`VisualReward`], also for the columns beside it.
            tests (`list`, *optional*): see [`ProgramReward`]; also its `setup`.
            log_metric (`Callable`, *optional*): TRL's. Gets the metrics of the parts, and the means of `form`,
                `correct` and `language`, the last two of completions with the form, under `stem_reward/`.
            **columns: go to the parts. A row of `images` (or `image`) that is not empty has images.

        Raises:
            ValueError: neither column is there.
        """
        self.check_columns([name for name, column in (("answer", answer), ("tests", tests)) if column is not None])
        count = len(prompts)
        columns |= {"answer": answer or [None] * count, "tests": tests or [None] * count}
        batch = {"prompts": prompts, "completions": completions, **columns}

        def ask(reward: Callable, rows: list[int]) -> dict[int, float | None]:
            """Row to what `reward` gives it, asked of these rows alone."""
            if not rows:
                return {}
            own = {k: [v[i] for i in rows] if isinstance(v, list) and len(v) == count else v for k, v in batch.items()}
            return dict(zip(rows, reward(**own, log_metric=log_metric), strict=True))

        judged = [i for i in range(count) if columns["tests"][i] or columns["answer"][i] is not None]
        form = ask(format_reward, judged)
        formed = [i for i in judged if form[i]]
        correct = ask(program_reward, [i for i in formed if columns["tests"][i]])
        answered = [i for i in formed if not columns["tests"][i]]
        seen = [i for i in answered if any(_holds(columns.get(name), i) for name in ("images", "image", "answer_type"))]
        correct |= ask(visual_reward, seen) | ask(maths_reward, [i for i in answered if i not in seen])
        language = ask(language_reward, formed)
        if log_metric is not None:
            for name, part in (("form", form), ("correct", correct), ("language", language)):
                known = [value for value in part.values() if value is not None]
                if known:
                    log_metric(f"{self.__name__}/{name}", sum(known) / len(known))

        def total(i: int) -> float | None:
            """The paper's sum of one row: nothing without the form, no reward without a verdict."""
            if i not in correct:
                return 0.0 if i in form else None
            if correct[i] is None:
                return None
            return self.form + self.correct * correct[i] + self.language * language[i]

        return [total(i) for i in range(count)]

    def check_columns(self, names: list[str]) -> None:
        """
        What the signature does not say: one of two columns is needed.

        Raises:
            ValueError: neither is there.
        """
        if not {"answer", "tests"} & set(names):
            raise ValueError("stem_reward needs a column: `answer` for mathematics, `tests` for programs")


def _holds(column: list | None, row: int) -> bool:
    """Whether a column has something in a row: no empty text or list."""
    value = None if column is None else column[row]
    return value is not None and not (isinstance(value, str | list | tuple) and not value)


stem_reward = StemReward()
