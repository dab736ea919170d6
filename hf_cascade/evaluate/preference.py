"""Models compared by their own answers: win-rate against a baseline, rewards, loops, length, KL (ours: paper silent).

Each model answers while it is loaded; the baseline then scores all answers, and what ranks them ranks them.
"""

import inspect
import json
from collections.abc import Callable
from statistics import fmean

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_cascade import assets
from hf_cascade.completions import LoopRule, without_thinking
from hf_cascade.evaluate import preference_figures as figures
from hf_cascade.evaluate.config import EvaluateArguments
from hf_cascade.evaluate.preference_samples import Response, load_prompts, log_probs, prompt_tokens, sample
from hf_cascade.evaluate.verbosity import budget_grid, gain, spending
from hf_cascade.loading import load_tokenizer
from hf_cascade.rewards.comparison import Comparison
from hf_cascade.rewards.preference import PairwisePreference
from hf_cascade.rewards.verifiable import check_columns, load_reward

COMPLETIONS = "completions.jsonl"
_GIVEN = ("prompts", "completions", "completion_ids", "prompt")  # what is no column of the dataset


class Preference:
    """
    The answers of all models; making it checks everything that needs no weights.

    Args:
        arguments (`EvaluateArguments`): with `prompts`.
        baseline (`str`): name of the model to compare with.
        tokenizers (`dict[str, PreTrainedTokenizerBase]`): of every model, by its name.
        positions (`dict[str, int]`): tokens of each model's window; `None` where it has no end.

    Raises:
        ValueError, FileNotFoundError: bad prompts, rewards, reward model or chat template, or too few positions.
    """

    def __init__(
        self,
        arguments: EvaluateArguments,
        baseline: str,
        tokenizers: dict[str, PreTrainedTokenizerBase],
        positions: dict[str, int | None],
    ):
        self.arguments, self.baseline = arguments, baseline
        self.rows = load_prompts(arguments.prompts, arguments.dataset_split, arguments.limit)
        named = dict(zip(_short(arguments.reward), map(load_reward, arguments.reward), strict=True))
        self.judges = {name: reward for name, reward in named.items() if isinstance(reward, PairwisePreference)}
        self.rewards = {name: reward for name, reward in named.items() if name not in self.judges}
        for name, reward in self.rewards.items():
            check_reward(name, reward, self.rows)
        if arguments.reward_model is not None:
            place = assets.locate(arguments.reward_model)
            Comparison.from_pretrained(place, load_tokenizer(place))
        self.tokens: dict[str, list[list[int]]] = {}
        self.same_tokenizer = {name: _same(tokenizer, tokenizers[baseline]) for name, tokenizer in tokenizers.items()}
        for name, tokenizer in tokenizers.items():
            self.tokens[name] = self._prompt_tokens(name, tokenizer, positions[name])
        self.answers: dict[str, list[Response]] = {}

    def sample(self, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, report: Callable) -> None:
        """Let one model answer, and score its own answers; `report` is called with the share done."""
        flags = self.arguments
        self.answers[name] = responses = sample(
            model,
            tokenizer,
            self.tokens[name],
            flags.max_completion_length,
            flags.sampling_temperature,
            flags.samples_per_prompt,
            flags.batch_size,
            report,
            LoopRule(min_tokens=flags.loop_min_tokens),
            flags.top_p,
        )
        if self.same_tokenizer[name]:
            for response, value in zip(responses, log_probs(model, responses, flags.batch_size), strict=True):
                response.log_prob = value

    def finish(self, baseline: PreTrainedModel, report: Callable) -> tuple[dict[str, dict], list[dict]]:
        """
        Compare all answers.

        Args:
            baseline (`PreTrainedModel`): the baseline, loaded again.
            report (`Callable`): called with the share that is done.

        Returns:
            Figures by model, and the rows of completions.jsonl.
        """
        found, kept, steps = {}, {}, 2 * len(self.answers) - 1
        budgets = self._budgets()
        for done, (name, responses) in enumerate(self.answers.items(), 1):
            rewards = {key: self._reward(key, responses) for key in self.rewards}
            found[name] = figures.lengths_and_loops(responses, self.answers[self.baseline])
            found[name] |= {"kl_response": None, "kl_token": None, "wins": {}}
            found[name]["rewards"] = {key: figures.mean_reward(values) for key, values in rewards.items()}
            gains = {key: gain(values, responses, budgets) for key, values in rewards.items()}
            found[name]["verbosity"] = {**spending(responses), "rewards": gains}
            kept[name] = {"rewards": rewards, "win": {}}
            if self.same_tokenizer[name]:  # log-probabilities are of the same tokens
                own = [response.log_prob for response in responses]
                theirs = own if name == self.baseline else log_probs(baseline, responses, self.arguments.batch_size)
                tokens = [len(response.token_ids) for response in responses]
                found[name] |= figures.divergence(own, theirs, tokens)
            report(done / steps)
        if self.arguments.reward_model is not None:
            from hf_cascade.rewards.pairwise import PairwiseRewardModel

            place, device = assets.locate(self.arguments.reward_model), baseline.device
            dtype = "float32" if device.type == "cpu" else "auto"
            pwrm = PairwiseRewardModel.from_pretrained(place, dtype, device, self.arguments.batch_size)
            self.judges = {pwrm.__name__: pwrm, **self.judges}
        others = [name for name in self.answers if name != self.baseline]
        for done, name in enumerate(others, len(self.answers) + 1):
            kept[name]["win"] = self._wins(name, kept)
            rows = [response.row for response in self.answers[name]]
            found[name]["wins"] = {key: figures.interval(values, rows) for key, values in kept[name]["win"].items()}
            report(done / steps)
        return found, [line for name in self.answers for line in self._lines(name, kept[name])]

    def summary(self) -> dict:
        """What results.json says of the whole comparison."""
        flags = self.arguments
        return {
            "prompts": flags.prompts,
            "rows": len(self.rows),
            "baseline": self.baseline,
            "reward_model": flags.reward_model,
            "sampling_temperature": flags.sampling_temperature,
            "top_p": flags.top_p,
            "samples_per_prompt": flags.samples_per_prompt,
            "max_completion_length": flags.max_completion_length,
            "budgets": self._budgets(),
        }

    def _budgets(self) -> list[int]:
        """Tokens at which the answers of all models would be cut, for the curves of verbosity."""
        means = [fmean(len(response.token_ids) for response in responses) for responses in self.answers.values()]
        return budget_grid(means, self.arguments.max_completion_length)

    def _prompt_tokens(self, name: str, tokenizer: PreTrainedTokenizerBase, positions: int | None) -> list[list[int]]:
        if not isinstance(self.rows[0]["prompt"], str) and tokenizer.chat_template is None:
            raise ValueError(
                f"{name} has no chat template, and the prompts are messages: give prompts that are text, or a model "
                "after SFT"
            )
        tokens = [prompt_tokens(tokenizer, row["prompt"]) for row in self.rows]
        longest, room = max(map(len, tokens)), self.arguments.max_completion_length
        if positions is not None and longest + room > positions:
            raise ValueError(
                f"max_completion_length={room}: {name} has {positions} positions, and the longest prompt takes "
                f"{longest}; give {positions - longest} or less, or leave long prompts out"
            )
        return tokens

    def _completions(self, responses: list[Response]) -> list[str] | list[list[dict]]:
        """As TRL gives them: messages where the prompts are, with the tag by which a template opened the thinking."""
        if isinstance(self.rows[0]["prompt"], str):
            return [response.text for response in responses]
        return [[{"role": "assistant", "content": response.opened + response.text}] for response in responses]

    def _columns(self, responses: list[Response]) -> dict[str, list]:
        names = [name for name in self.rows[0] if name not in _GIVEN]
        return {name: [self.rows[response.row][name] for response in responses] for name in names}

    def _reward(self, name: str, responses: list[Response]) -> list[float | None]:
        values = self.rewards[name](
            prompts=[self.rows[response.row]["prompt"] for response in responses],
            completions=self._completions(responses),
            completion_ids=[response.token_ids for response in responses],
            **self._columns(responses),
        )
        if not isinstance(values, list) or len(values) != len(responses):
            raise ValueError(
                f"reward {name!r} must give a list of {len(responses)} numbers, and gave {str(values)[:80]}"
            )
        return values

    def _wins(self, name: str, kept: dict) -> dict[str, list[float | None]]:
        """Of each answer of a model against the baseline's of the same number to the same prompt."""
        ours, theirs = self.answers[name], self.answers[self.baseline]
        first, second = ([without_thinking(c) for c in self._completions(answers)] for answers in (ours, theirs))
        prompts = [self.rows[response.row]["prompt"] for response in ours]
        wins = {key: judge.compare(prompts, first, second, **self._columns(ours)) for key, judge in self.judges.items()}
        mine, base = kept[name]["rewards"], kept[self.baseline]["rewards"]
        return wins | {key: figures.share_of_wins(mine[key], base[key]) for key in self.rewards}

    def _lines(self, name: str, kept: dict) -> list[dict]:
        return [
            {
                "prompt": self.rows[response.row]["prompt"],
                "model": name,
                "completion": response.text,
                "tokens": len(response.token_ids),
                "thinking_tokens": response.thinking_tokens,
                "unfinished": response.unfinished,
                "looped": response.looped,
                "truncated": response.truncated,
                **{part: {key: values[place] for key, values in kept[part].items()} for part in ("rewards", "win")},
            }
            for place, response in enumerate(self.answers[name])
        ]


def completions_text(lines: list[dict]) -> str:
    """completions.jsonl."""
    return "".join(json.dumps(line, ensure_ascii=False, default=str) + "\n" for line in lines)


def check_reward(name: str, reward: Callable, rows: list[dict]) -> list[str]:
    """Every column that a reward cannot do without is there; returns those columns."""
    if inspect.iscoroutinefunction(reward):
        raise ValueError(f"reward {name!r} is asynchronous: give a plain function")
    return check_columns(name, reward, rows[0], _GIVEN)


def _short(names: list[str]) -> list[str]:
    """What tables call rewards: functions without their places, unless two would be called alike."""
    short = [name.rpartition(":" if ".py:" in name else ".")[2] for name in names]
    return short if len(set(short)) == len(short) else names


def _same(tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase) -> bool:
    return tokenizer.get_vocab() == other.get_vocab()
