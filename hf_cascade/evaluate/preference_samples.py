"""Prompts, a model's own responses to them, and any model's log-probabilities of those (ours: paper silent).

B rows of a batch, T tokens, D hidden size.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from datasets import load_dataset
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed

from hf_cascade import assets
from hf_cascade.completions import LoopRule, is_looping
from hf_cascade.data.prompts import SOLUTION
from hf_cascade.data.text_files import BUILDERS, one_line_error
from hf_cascade.evaluate.heldout import CHUNK_BYTES, CHUNK_ROWS, IGNORED, Scorer, Windows
from hf_cascade.evaluate.verbosity import thinking_tokens
from hf_cascade.rewards.answers import opening_tag

LOOPS = LoopRule()
SEED = 0  # ours
THINKING = "think"  # special tokens with it in their name stay in the text, for what removes thinking


@dataclass
class Response:
    """
    One response of a model.

    Attributes:
        row (`int`): index of its prompt.
        prompt_ids (`list[int]`): the prompt's tokens.
        token_ids (`list[int]`): the response's tokens, EOS among them.
        text (`str`): the response with its thinking, without other special tokens.
        looped (`bool`): it was cut off inside an infinite loop.
        truncated (`bool`): it was cut off elsewhere.
        opened (`str`): the tag with which the prompt opened the thinking, "" where it did not.
        thinking_tokens (`int`): tokens up to the end of the thinking, its tags among them.
        unfinished (`bool`): the thinking never closed.
        log_prob (`float`, *optional*): of the whole response, by the model itself at temperature 1, nats.
    """

    row: int
    prompt_ids: list[int]
    token_ids: list[int]
    text: str
    looped: bool
    truncated: bool
    opened: str = ""
    thinking_tokens: int = 0
    unfinished: bool = False
    log_prob: float | None = None


def load_prompts(source: str, split: str = "train", limit: int | None = None) -> list[dict]:
    """
    Rows of [`load_rows`] whose prompts can all be answered.

    Raises:
        FileNotFoundError: neither a file nor a Hub id.
        ValueError: no rows, no `prompt` column, or a prompt that nobody can answer.
    """
    rows = load_rows(source, split, limit)
    for number, row in enumerate(rows):
        prompt, where = row["prompt"], f"prompts={source}, row {number}"
        if not isinstance(prompt, str | list) or type(prompt) is not type(rows[0]["prompt"]) or not prompt:
            raise ValueError(f"{where}: a prompt is text, or messages, in all rows alike, and never empty")
        if isinstance(prompt, list) and prompt[-1].get("role") not in ("user", "tool"):
            raise ValueError(f"{where}: the prompt must end with what is to be answered, the role user or tool")
    return rows


def load_rows(source: str, split: str = "train", limit: int | None = None) -> list[dict]:
    """
    Rows with a column `prompt`, and whatever columns rewards ask for; what the prompts hold is not looked at. TRL's
    `solution` is an `answer` too, where there is none.

    Args:
        source (`str`): a `.jsonl`, `.json`, `.parquet` or `.csv` file (also `.gz`), or a Hub id.
        split (`str`, *optional*, defaults to `"train"`): split of a Hub dataset.
        limit (`int`, *optional*): rows to read at most.

    Raises:
        FileNotFoundError: neither a file nor a Hub id.
        ValueError: no rows, or no `prompt` column.
    """
    place = Path(assets.locate(source))
    kind = place.with_suffix("").suffix if place.suffix == ".gz" else place.suffix
    if place.is_file() and BUILDERS.get(kind, "text") == "text":
        raise ValueError(f"prompts={source}: allowed are .jsonl, .json, .parquet and .csv files, each also with .gz")
    if place.is_dir() or not place.is_file() and kind in BUILDERS:
        raise FileNotFoundError(f"prompts={source} is no file: give a file of prompts or a dataset's Hub id")
    if place.is_file() and place.stat().st_size == 0:
        raise ValueError(f"prompts={source} holds no rows: the file is empty")
    data = {"data_files": str(place), "split": "train"} if place.is_file() else {"split": split, "streaming": True}
    with one_line_error(f"prompts={source}"):
        rows = load_dataset(BUILDERS[kind] if place.is_file() else source, **data)
    rows = [_without_none(row) for row in islice(rows, limit)]
    if not rows or "prompt" not in rows[0]:
        columns = f"it has {sorted(rows[0])}" if rows else "it has no rows"
        raise ValueError(f"prompts={source} has no column `prompt`: {columns}; rename yours")
    if SOLUTION in rows[0] and "answer" not in rows[0]:
        rows = [row | {"answer": row[SOLUTION]} for row in rows]
    return rows


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str | list[dict]) -> list[int]:
    """A prompt's tokens; messages go through the chat template, up to where the answer begins."""
    if isinstance(prompt, str):
        return tokenizer(prompt, verbose=False)["input_ids"]
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    max_length: int,
    temperature: float,
    per_prompt: int,
    batch_size: int,
    report: Callable[[float], None],
    loop_rule: LoopRule = LOOPS,
    top_p: float = 1.0,
    seed: int = SEED,
) -> list[Response]:
    """
    A model's responses: plain sampling, whatever its generation config says, from one seed.

    Args:
        model (`PreTrainedModel`): the model; its generation config is replaced.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        prompts (`list[list[int]]`): tokens of each prompt.
        max_length (`int`): tokens of a response at most.
        temperature (`float`): 0 takes the likeliest token.
        per_prompt (`int`): responses to each prompt.
        batch_size (`int`): responses at once.
        report (`Callable[[float], None]`): called with the share that is done.
        loop_rule (`LoopRule`, *optional*): what counts as an infinite loop.
        top_p (`float`, *optional*, defaults to `1.0`): the likeliest tokens of this probability together are drawn
            from.
        seed (`int`, *optional*, defaults to `0`): of the draws.

    Returns:
        `list[Response]`: those to the first prompt, then those to the second, ...
    """
    eos = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(eos if isinstance(eos, list) else [eos])} - {None}
    pad = next((id_ for id_ in (tokenizer.pad_token_id, *sorted(ends)) if id_ is not None), 0)
    how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": top_p} if temperature else {}
    model.generation_config = GenerationConfig(
        max_new_tokens=max_length, eos_token_id=sorted(ends) or None, pad_token_id=pad, **how
    )
    set_seed(seed)
    model.eval()
    rows = [row for row in range(len(prompts)) for _ in range(per_prompt)]
    order = sorted(range(len(rows)), key=lambda place: len(prompts[rows[place]]))  # little padding
    responses: list[Response | None] = [None] * len(rows)
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = [prompts[rows[place]] for place in places]
        width = max(map(len, batch))
        inputs_BT = torch.tensor([[pad] * (width - len(ids)) + ids for ids in batch], device=model.device)
        mask_BT = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in batch], device=model.device)
        answers_BT = model.generate(input_ids=inputs_BT, attention_mask=mask_BT)[:, width:].tolist()
        for place, answer in zip(places, answers_BT, strict=True):
            responses[place] = _response(rows[place], prompts[rows[place]], answer, ends, tokenizer, loop_rule)
        report((start + len(places)) / len(order))
    return responses


def log_probs(model: PreTrainedModel, responses: list[Response], batch_size: int) -> list[float]:
    """
    Log-probability of each whole response after its prompt, at temperature 1, nats.

    Raises:
        ValueError: logits of this model are more than a linear head's ([`Scorer`]).
    """
    windows = _windows(responses)
    scorer = Scorer(model, windows, batch_size)
    chunk = max(CHUNK_ROWS, CHUNK_BYTES // (4 * scorer.weight_VD.shape[0]))
    parts = []
    for batch in range(len(scorer)):
        hidden, labels = scorer.hidden(batch), scorer.labels(batch)
        for start in range(0, len(labels), chunk):
            rows = slice(start, start + chunk)
            parts.append(scorer.log_probs(hidden[rows]).gather(1, labels[rows, None]).double().cpu()[:, 0])
    by_response = torch.cat(parts).split([len(response.token_ids) for response in responses])
    return [float(part.sum()) for part in by_response]


class _ResponseWindows(Windows):
    """Rows whose labels begin after the prompt; padding on the right. In their own order, so batches keep it."""

    def batches(self, batch_size: int) -> list[tuple[Tensor, Tensor]]:
        """Inputs and labels [B, T] of each batch, as wide as its longest row."""
        widths = [int((row != IGNORED).nonzero().max()) + 1 for row in self.labels]
        cuts = [(i, max(widths[i : i + batch_size])) for i in range(0, len(widths), batch_size)]
        return [(self.inputs[i : i + batch_size, :width], self.labels[i : i + batch_size, :width]) for i, width in cuts]


def _windows(responses: list[Response]) -> Windows:
    rows = [(response.prompt_ids + response.token_ids, len(response.prompt_ids)) for response in responses]
    width = max(len(ids) for ids, _ in rows) - 1
    inputs_BT = torch.tensor([ids[:-1] + [0] * (width + 1 - len(ids)) for ids, _ in rows])
    labels = [[IGNORED] * (start - 1) + ids[start:] + [IGNORED] * (width + 1 - len(ids)) for ids, start in rows]
    return _ResponseWindows(inputs_BT, torch.tensor(labels), width, len(rows), 0)


def _response(row: int, prompt: list[int], answer: list[int], ends: set[int], tokenizer, rule=LOOPS) -> Response:
    end = next((place for place, id_ in enumerate(answer) if id_ in ends), None)
    token_ids = answer if end is None else answer[: end + 1]
    looped = is_looping(token_ids, None, ends, rule)
    text = tokenizer.decode(token_ids)
    for token in tokenizer.all_special_tokens:
        text = text if THINKING in token.lower() else text.replace(token, "")
    opened = opening_tag(tokenizer.decode(prompt))
    thinking, unfinished = thinking_tokens(token_ids, tokenizer, opened)
    truncated = end is None and not looped
    return Response(row, prompt, token_ids, text, looped, truncated, opened, thinking, unfinished)


def _without_none(value):
    """`datasets` gives every row the keys of all; templates ask which keys are there. Columns stay, for rewards."""
    prompt = value.get("prompt")
    if isinstance(prompt, list):
        prompt = [{key: part for key, part in message.items() if part is not None} for message in prompt]
        return value | {"prompt": prompt}
    return value
