"""Responses whose difficulty is measured: who gives them, what is kept of each, and the file that survives a kill."""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from hf_cascade import assets
from hf_cascade.completions import THINKING_KEYS, THINKING_TAGS
from hf_cascade.evaluate.preference_samples import prompt_tokens, sample
from hf_cascade.grpo.difficulty import JUDGED_SHARE
from hf_cascade.grpo.difficulty_arguments import DifficultyArguments
from hf_cascade.loading import load_config, load_model, load_tokenizer
from hf_cascade.rewards.endpoint import ChatEndpoint, choices_of

ANSWER_SECONDS = 3600.0  # for one response of a server: 32K tokens take a quarter of an hour; ours: paper silent
CHUNK = 4  # batches of requests between two writes: a slow response holds up the others' successors; ours


@dataclass
class Drawn:
    """
    One response.

    Attributes:
        completion (`str` or `list[dict]`): as TRL gives it to rewards.
        tokens (`int`, *optional*): its length; `None`: the server did not say.
        cut_off (`bool`): it did not end by itself.
        token_ids (`list[int]`, *optional*): of a model in this process.
    """

    completion: str | list[dict]
    tokens: int | None
    cut_off: bool
    token_ids: list[int] | None = None


@dataclass
class Sample:
    """
    What is kept of one response.

    Attributes:
        came (`bool`): there is a response.
        reward (`float`, *optional*): `None`: no judgement.
        answer (`str`, *optional*): its final answer.
        tokens (`int`, *optional*): its length.
        cut_off (`bool`): it did not end by itself.
        digest (`str`, *optional*): tells equal responses.
        end (`str`, *optional*): its last characters, kept of the first response to a prompt.
    """

    came: bool = False
    reward: float | None = None
    answer: str | None = None
    tokens: int | None = None
    cut_off: bool = False
    digest: str | None = None
    end: str | None = None


class ModelSource:
    """
    Responses of a model in this process.

    Args:
        arguments (`DifficultyArguments`): with `model`.
        rows (`list[dict]`): all prompts that will be answered.

    Raises:
        ValueError: no chat template, or too few positions.
    """

    def __init__(self, arguments: DifficultyArguments, rows: list[dict]):
        self.arguments, self.model = arguments, None
        self.tokenizer = load_tokenizer(arguments.model)
        positions = load_config(arguments.model).get_text_config().max_position_embeddings
        if not isinstance(rows[0]["prompt"], str) and self.tokenizer.chat_template is None:
            raise ValueError(
                f"{arguments.model} has no chat template, and the prompts are messages: give prompts that are text, or "
                "a model after SFT"
            )
        self.lengths = [len(prompt_tokens(self.tokenizer, row["prompt"])) for row in rows]
        longest, room = max(self.lengths), arguments.max_completion_length
        if longest + room > positions:
            raise ValueError(
                f"max_completion_length={room}: {arguments.model} has {positions} positions, and the longest prompt "
                f"takes {longest}; give {positions - longest} or less, or leave long prompts out"
            )

    def chunks(self, places: list[int]) -> Iterator[list[int]]:
        """Indices of rows in the order and the portions in which they are answered: of similar length."""
        size = max(1, self.arguments.batch_size // self.arguments.samples_per_prompt)
        ordered = sorted(places, key=lambda place: self.lengths[place])
        return (ordered[start : start + size] for start in range(0, len(ordered), size))

    def draw(self, prompts: list, seed: int) -> list[list[Drawn | None]]:
        """Responses to each prompt."""
        flags = self.arguments
        if self.model is None:
            self.model = _load(flags)
        tokens = [prompt_tokens(self.tokenizer, prompt) for prompt in prompts]
        how = (flags.max_completion_length, flags.sampling_temperature, flags.samples_per_prompt, flags.batch_size)
        found: list[list[Drawn | None]] = [[] for _ in prompts]
        for response in sample(self.model, self.tokenizer, tokens, *how, report=lambda _: None, seed=seed):
            completion = response.text
            if not isinstance(prompts[response.row], str):  # rewards see whether a text prompt opened the thinking
                completion = [{"role": "assistant", "content": response.opened + response.text}]
            cut_off = response.truncated or response.looped
            found[response.row].append(Drawn(completion, len(response.token_ids), cut_off, response.token_ids))
        return found


class ServerSource:
    """
    Responses of an OpenAI-compatible server; of a request that failed there is none.

    Args:
        arguments (`DifficultyArguments`): with `url`.
        rows (`list[dict]`): all prompts that will be answered.

    Raises:
        ValueError: prompts that are no messages, or an address that cannot work.
    """

    def __init__(self, arguments: DifficultyArguments, rows: list[dict]):
        if isinstance(rows[0]["prompt"], str):
            raise ValueError(
                f"url={arguments.url}: a chat server answers messages, and the prompts are text: write each as "
                '[{"role": "user", "content": ...}], or give --model'
            )
        self.arguments = arguments
        self.endpoint = ChatEndpoint(
            arguments.url,
            arguments.served_model,
            concurrency=arguments.batch_size,
            timeout_seconds=ANSWER_SECONDS,
        )

    def chunks(self, places: list[int]) -> Iterator[list[int]]:
        """Indices of rows in the portions in which they are answered."""
        size = max(1, CHUNK * self.arguments.batch_size // self.arguments.samples_per_prompt)
        return (places[start : start + size] for start in range(0, len(places), size))

    def draw(self, prompts: list, seed: int) -> list[list[Drawn | None]]:
        """Responses to each prompt; `seed` goes to the server, another one with every response to a prompt."""
        flags = self.arguments
        count = flags.samples_per_prompt
        how = {"temperature": flags.sampling_temperature, "top_p": 1.0, "max_tokens": flags.max_completion_length}
        bodies = [{"messages": prompt, "seed": seed + number, **how} for prompt in prompts for number in range(count)]
        found = self.endpoint.ask(bodies, read_response)
        return [found[start : start + count] for start in range(0, len(found), count)]


def read_response(answer: dict) -> Drawn:
    """
    The first choice of a chat completion.

    Raises:
        UnusableAnswer: the answer is no chat completion.
    """
    choice, usage = choices_of(answer)[0], answer.get("usage")
    message = {"role": "assistant", "content": choice["message"].get("content") or ""}
    message |= {key: choice["message"][key] for key in THINKING_KEYS if choice["message"].get(key)}
    for begin, end in THINKING_TAGS:  # a template that opens the thinking in the prompt
        if end in message["content"] and begin not in message["content"]:
            message["content"] = begin + message["content"]
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return Drawn([message], tokens if isinstance(tokens, int) else None, choice.get("finish_reason") == "length")


class Journal:
    """
    `samples.jsonl`: a line with settings, then one for each prompt that was answered.

    A torn last line does not count, nor do prompts to which less than half of the responses came: they are asked again.

    Args:
        path (`Path`): where it is, or will be once something is added.
        settings (`dict`): what responses depend on.

    Attributes:
        samples (`dict[int, list[Sample]]`): by row.
        seconds (`float`): that all of them took.

    Raises:
        ValueError: the file was made with other settings, or is damaged.
    """

    def __init__(self, path: Path, settings: dict):
        self.path, self.settings = path, settings
        self.samples: dict[int, list[Sample]] = {}
        self.seconds = 0.0
        lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
        self._bytes = sum(len(line) + 1 for line in lines)
        if not lines:
            return
        try:
            before = json.loads(lines[0])["settings"]
            answered = [json.loads(line) for line in lines[1:]]
            found = {entry["row"]: [Sample(**given) for given in entry["samples"]] for entry in answered}
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{path} is damaged ({error!r}): delete it, or give another output_dir") from error
        if before != settings:
            names = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
            changed = ", ".join(f"{name}: {before.get(name)} then, {settings.get(name)} now" for name in names)
            raise ValueError(
                f"{path} holds responses made with other settings ({changed}): give another output_dir, or delete it"
            )
        self.seconds = sum(entry["seconds"] for entry in answered)
        for row, samples in found.items():
            if sum(one.came for one in samples) >= JUDGED_SHARE * len(samples):
                self.samples[row] = samples

    def add(self, samples: dict[int, list[Sample]], seconds: float) -> None:
        """Keep the responses to some rows, and how long they took: on disk when this returns."""
        each = seconds / len(samples)
        lines = [] if self._bytes else [{"settings": self.settings}]
        for row, given in samples.items():
            lines.append({"row": row, "seconds": each, "samples": [asdict(one) for one in given]})
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab") as file:
            file.truncate(self._bytes)  # what a kill left of a line
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        self._bytes += len(text)
        self.samples |= samples
        self.seconds += seconds


def all_equal(samples: list[Sample]) -> bool:
    """Whether several responses came, and are one text."""
    digests = [one.digest for one in samples if one.came]
    return len(digests) > 1 and len(set(digests)) == 1


def collect(
    journal: Journal, source, rows: list[dict], places: list[int], keep: Callable, report: Callable[[int], None]
) -> None:
    """
    Fill the journal: what is in it is not asked again.

    Portions and their seeds depend on rows alone, so that a run that was killed ends as one that was not.

    Args:
        journal ([`Journal`]): to be filled.
        source ([`ModelSource`] or [`ServerSource`]): gives responses.
        rows (`list[dict]`): all rows.
        places (`list[int]`): indices of those that are answered.
        keep (`Callable[[list[dict], list[list[Drawn | None]]], list[list[Sample]]]`): judges responses.
        report (`Callable[[int], None]`): called with the number of rows that are done.
    """
    report(len(journal.samples))
    for portion in source.chunks(list(range(len(places)))):
        some = [places[number] for number in portion]
        if not all(place in journal.samples for place in some):
            started = time.monotonic()
            drawn = source.draw([rows[place]["prompt"] for place in some], seed=some[0])
            found = dict(zip(some, keep([rows[place] for place in some], drawn), strict=True))
            journal.add(found, time.monotonic() - started)
            report(len(journal.samples))


def _load(arguments: DifficultyArguments):
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    dtype = "float32" if arguments.dtype == "auto" and device.type == "cpu" else arguments.dtype
    return load_model(assets.locate(arguments.model), dtype=dtype).to(device)
