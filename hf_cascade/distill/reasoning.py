"""Data of reasoning SFT (paper section 5): rows filtered for form, repetition and language; chains mixed.

Nothing here needs a trainer: `filter_reasoning` and `mix_chains` take rows of TRL's types and give rows and a report.
"""

import hashlib
import json
import math
import sys
from collections import Counter
from pathlib import Path

import numpy as np
from accelerate import PartialState
from datasets import Dataset, IterableDataset
from transformers import PreTrainedTokenizerBase, ProcessorMixin
from trl import SFTConfig
from trl.data_utils import maybe_convert_to_chatml

from hf_cascade import __version__
from hf_cascade.data.repetition import find_repetition
from hf_cascade.distill.chains import Turn, check_columns, read_turns, write_chains
from hf_cascade.distill.sft_arguments import FILTERS, LONG_MIN_TOKENS, SFTArguments, check_filters, check_long_fraction
from hf_cascade.rewards.language import detect, language_reward, windows

REPORT = "reasoning_data.json"
EXAMPLES = 3  # removed rows that a report shows for each filter
EXCERPT = 200  # characters of each


def filter_reasoning(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, filters: list[str] = FILTERS, num_proc: int | None = None
) -> tuple[Dataset, dict]:
    """
    Rows without those that fail a filter. Every turn that the row teaches is looked at, thinking and answer apart.

    `format`: one thinking block, first, closed, not empty, then an answer or a tool call (see [`read_turns`]).
    `repetition`: [`find_repetition`] finds nothing. `language`: both are in the language of the last user message,
    where it is told ([`LanguageReward`]).

    Args:
        rows (`Dataset`): `messages`, or `prompt` and `completion`.
        tokenizer (`PreTrainedTokenizerBase`): the student's; counts tokens.
        filters (`list[str]`, *optional*): which. All by default.
        num_proc (`int`, *optional*): processes.

    Returns:
        `tuple[Dataset, dict]`: the rows left, in their order, and a report: `before` and `after` (see below), and for
        each filter, in the order format, repetition, language, `removed` (rows that failed it and none before it),
        `failed` (rows that fail it by itself), `reasons`, and shortened `examples`. Before and after are `rows`,
        `thinking_tokens` and `answer_tokens` of a row (`total`, `mean`, `median`, `p90`, `max`), `repetitive_rows` and
        `rows_without_thinking`.

    Raises:
        ValueError: streamed rows, other columns, no such filter; no row is left.
    """
    check_filters(filters)
    check_rows(rows)
    found = measure(rows, tokenizer, filters, num_proc)
    kept, report = _filter(rows, found, tokenizer, filters)
    return rows.select(kept), report


def mix_chains(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    long_fraction: float,
    long_min_tokens: int = LONG_MIN_TOKENS,
    seed: int = 0,
    num_proc: int | None = None,
) -> tuple[Dataset, dict]:
    """
    As many rows as can be, of which `long_fraction` have a long chain of thought, to within one row; none twice.

    Which rows of a surplus are left out is drawn by their content and the seed, whatever their order.

    Args:
        rows (`Dataset`): `messages`, or `prompt` and `completion`.
        tokenizer (`PreTrainedTokenizerBase`): the student's; counts tokens.
        long_fraction (`float`): share of the rows, 0 to 1.
        long_min_tokens (`int`, *optional*, defaults to 1024): a row's thinking of so many tokens, all turns together,
            is long. Ours: paper silent.
        seed (`int`, *optional*, defaults to 0): of the draw.
        num_proc (`int`, *optional*): processes.

    Returns:
        `tuple[Dataset, dict]`: the rows left, in their order, and a report: `long_fraction`, `long_min_tokens`, and
        `before` and `after`: `long_rows`, `short_rows`, `long_fraction` and `long_token_fraction` (of the thinking
        tokens).

    Raises:
        ValueError: streamed rows, other columns, a share that is none; no long or no short rows where some are needed.
    """
    check_long_fraction(long_fraction, long_min_tokens)
    check_rows(rows)
    found = measure(rows, tokenizer, [], num_proc)
    kept, report = _mix(found, list(range(len(rows))), long_fraction, long_min_tokens, seed)
    return rows.select(kept), report


def prepare_reasoning(
    train: Dataset,
    held_out: Dataset | None,
    kit: PreTrainedTokenizerBase | ProcessorMixin,
    training_args: SFTConfig,
    sft_args: SFTArguments,
) -> tuple[Dataset, Dataset | None, dict | None]:
    """
    The rows of a reasoning stage: filtered, mixed, and in the notation of the student's template ([`write_chains`]).

    Without filters and fraction the rows stay as they are, and there is no report. The first process says on stderr
    what was left out.

    Args:
        train (`Dataset`): as [`filter_reasoning`]; `conversations` too.
        held_out (`Dataset`, *optional*): filtered in the same way, and not mixed.
        kit (`PreTrainedTokenizerBase` or `ProcessorMixin`): the student's, with its chat template.
        training_args (`SFTConfig`): `seed` draws rows of a surplus; `dataset_num_proc`.
        sft_args (`SFTArguments`): `filters`, `long_fraction`, `long_min_tokens`.

    Returns:
        `tuple`: both, and a report of the first: `before`, `filters`, `mix` (`None` without a fraction), `after`,
        `cut_off_rows` (those left whose thinking and answers are longer than `max_length`); as `held_out` that of the
        second.

    Raises:
        ValueError: as [`filter_reasoning`], [`mix_chains`] and [`write_chains`]; a chat template that TRL is to fetch.
    """
    if not sft_args.chooses_rows:
        return train, held_out, None
    check_rows(train)
    if training_args.chat_template_path is not None:
        raise ValueError(
            f"chat_template_path={training_args.chat_template_path}: filters and long_fraction need the template "
            "itself: give mistral (shipped) or a .jinja file"
        )
    train, report = _prepare(train, kit, sft_args, sft_args.long_fraction, training_args)
    report["held_out"] = None
    if held_out is not None:
        held_out, report["held_out"] = _prepare(held_out, kit, sft_args, None, training_args)
    if PartialState().is_main_process:
        print(summary(report), file=sys.stderr)
        if report["cut_off_rows"]:
            print(
                f"hf-cascade: warning: {report['cut_off_rows']:,} rows have more than max_length="
                f"{training_args.max_length} tokens, and lose the end of their thinking or answer: raise max_length",
                file=sys.stderr,
            )
    return train, held_out, report


def _prepare(rows, kit, sft_args, long_fraction, training_args) -> tuple[Dataset, dict]:
    seed, num_proc = training_args.seed, training_args.dataset_num_proc
    if "conversations" in rows.column_names:
        rows = rows.map(maybe_convert_to_chatml, remove_columns="conversations", num_proc=num_proc)
    tokenizer = getattr(kit, "tokenizer", kit)
    found = measure(rows, tokenizer, sft_args.filters or [], num_proc)
    kept, report = _filter(rows, found, tokenizer, sft_args.filters or [])
    report["mix"] = None
    if long_fraction is not None:
        kept, report["mix"] = _mix(found, kept, long_fraction, sft_args.long_min_tokens, seed)
        report["after"] = _describe(found, kept)
    lengths = zip(found["thinking_tokens"][:], found["answer_tokens"][:], strict=True)
    too_long = {number for number, tokens in enumerate(lengths) if sum(tokens) > (training_args.max_length or math.inf)}
    report["cut_off_rows"] = len(too_long.intersection(kept))
    return write_chains(rows.select(kept), kit, num_proc), report


def save_report(report: dict | None, folder: Path) -> dict:
    """Write a report of [`prepare_reasoning`], if there is one, into a folder; returns what its manifest is to keep."""
    if report is None:
        return {}
    (folder / REPORT).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    found = {"rows_before": report["before"]["rows"], "rows": report["after"]["rows"]}
    found |= {f"removed_{name}": one["removed"] for name, one in report["filters"].items()}
    if report["mix"] is not None:
        found["long_fraction"] = report["mix"]["after"]["long_fraction"]
    found |= {f"{kind}_mean": report["after"][kind]["mean"] for kind in ("thinking_tokens", "answer_tokens")}
    return {"reasoning_data": found}


def check_rows(rows: Dataset | IterableDataset) -> None:
    """Raise `ValueError` for rows that are streamed, which cannot be counted before training."""
    if not isinstance(rows, Dataset):
        raise ValueError(
            f"the rows are a {type(rows).__name__}: filters and long_fraction count rows before training; set "
            "streaming: false"
        )


def summary(report: dict) -> str:
    """A report of [`prepare_reasoning`] in a few lines."""
    before, after, mix = report["before"], report["after"], report["mix"]
    lines = [f"hf-cascade: reasoning data: {before['rows']:,} rows"]
    lines += [
        f"  {name}: {one['removed']:,} removed ({one['failed']:,} fail it)" for name, one in report["filters"].items()
    ]
    if mix is not None:
        for kind in ("long", "short"):
            there, left = (mix[when][f"{kind}_rows"] for when in ("before", "after"))
            lines.append(f"  {kind} chains of thought: {left:,} of {there:,}")
    lines.append(f"  {after['rows']:,} rows left; tokens a row, mean (median):")
    for kind in ("thinking_tokens", "answer_tokens"):
        numbers = [f"{one[kind]['mean']:,.0f} ({one[kind]['median']:,.0f})" for one in (before, after)]
        lines.append(f"    {kind.partition('_')[0]} {numbers[0]}, now {numbers[1]}")
    lines.append(f"    rows with heavy repetition {before['repetitive_rows']:,}, now {after['repetitive_rows']:,}")
    return "\n".join(lines)


def judge(
    turns: list[Turn], tokenizer: PreTrainedTokenizerBase, filters: list[str] = FILTERS
) -> tuple[dict[str, tuple[str, str]], dict[str, int]]:
    """
    What is wrong with a row, and how long it is.

    Args:
        turns (`list[Turn]`): of the row.
        tokenizer (`PreTrainedTokenizerBase`): counts tokens.
        filters (`list[str]`, *optional*): `language` is looked at only if it is one of them.

    Returns:
        `tuple`: by filter a reason and an excerpt, where the row fails it; and `thinking_tokens` and `answer_tokens`.
    """
    found, tokens = {}, {"thinking_tokens": 0, "answer_tokens": 0}
    if not turns:
        found["format"] = ("no assistant message", "")
    for turn in turns:
        if turn.fault:
            found.setdefault("format", (turn.fault, _shorten(turn.thinking + turn.answer)))
        for name, text in (("thinking", turn.thinking), ("answer", turn.answer)):
            ids = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
            tokens[f"{name}_tokens"] += len(ids)
            repetition = find_repetition(text, tokenizer, ids=ids)
            if repetition is not None:
                found.setdefault("repetition", (f"{repetition.kind} in the {name}", _shorten(repetition.excerpt)))
        if "language" in filters and language_reward([turn.prompt], [turn.completion]) == [0.0]:
            found.setdefault("language", _language_fault(turn))
    return found, tokens


def _language_fault(turn: Turn) -> tuple[str, str]:
    """The languages that were told, and a piece in one that most is not in."""
    pieces = [piece for text in (turn.thinking, turn.answer) for piece in windows(text)]
    told = [(language, piece) for piece in pieces if (language := detect(piece)) is not None]
    most = Counter(language for language, _ in told).most_common(1)[0][0]
    odd = next((piece for language, piece in told if language != most), told[0][1])
    return "in " + " and ".join(sorted({language for language, _ in told})), _shorten(odd)


def measure(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, filters: list[str] = FILTERS, num_proc: int | None = None
) -> Dataset:
    """
    What filters and mix need to know of each row: by filter what is wrong ("": nothing), `thinking_tokens`,
    `answer_tokens`, and a `digest` of what it teaches.

    Raises:
        ValueError: other columns or types.
    """
    columns = check_columns(rows)

    def of_row(row: dict, number: int, version: str) -> dict:
        turns = read_turns(row, number, tokenizer.eos_token)
        found, tokens = judge(turns, tokenizer, filters)
        said = repr([(turn.prompt, turn.thinking, turn.answer) for turn in turns])
        reasons = {name: found[name][0] if name in found else "" for name in FILTERS}
        return reasons | tokens | {"digest": hashlib.sha256(said.encode(errors="surrogatepass")).hexdigest()}

    rows = rows.select_columns(list(columns))  # no image is decoded
    options = {"fn_kwargs": {"version": __version__}, "remove_columns": rows.column_names}  # a cache is of a version
    with PartialState().main_process_first():
        return rows.map(of_row, with_indices=True, num_proc=num_proc, **options)


def _filter(rows: Dataset, found: Dataset, tokenizer, filters: list[str]) -> tuple[list[int], dict]:
    everything = list(range(len(rows)))
    kept, report = everything, {"before": _describe(found, everything), "filters": {}}
    for name in (name for name in FILTERS if name in filters):
        faults = found[name][:]
        removed = [number for number in kept if faults[number]]
        kept = [number for number in kept if not faults[number]]
        shown = [
            (n, judge(read_turns(rows[n], n, tokenizer.eos_token), tokenizer)[0][name]) for n in removed[:EXAMPLES]
        ]
        report["filters"][name] = {
            "removed": len(removed),
            "failed": sum(map(bool, faults)),
            "reasons": dict(Counter(fault for fault in faults if fault).most_common()),
            "examples": [{"row": n, "reason": reason, "text": text} for n, (reason, text) in shown],
        }
    if not kept:
        counts = ", ".join(f"{name} {one['removed']}" for name, one in report["filters"].items())
        raise ValueError(
            f"no row is left of {len(rows)}: removed were {counts}. Look at the rows, or leave a filter out"
        )
    report["after"] = _describe(found, kept)
    return kept, report


def _mix(found: Dataset, numbers: list[int], fraction: float, min_tokens: int, seed: int) -> tuple[list[int], dict]:
    thinking, digests = found["thinking_tokens"][:], found["digest"][:]
    kinds = {"long": [n for n in numbers if thinking[n] >= min_tokens]}
    kinds["short"] = [n for n in numbers if thinking[n] < min_tokens]
    for kind, share in (("long", fraction), ("short", 1 - fraction)):
        if share > 0 and not kinds[kind]:
            raise ValueError(
                f"long_fraction={fraction} needs {kind} chains of thought, and of {len(numbers)} rows none is {kind}: "
                f"{min_tokens} tokens and more are long (long_min_tokens), the longest has "
                f"{max((thinking[n] for n in numbers), default=0)}"
            )
    total = largest_mix(len(kinds["long"]), len(kinds["short"]), fraction)
    wanted = {"long": _long_rows(total, fraction), "short": total - _long_rows(total, fraction)}
    kept = []
    for kind, rows in kinds.items():
        drawn = sorted(rows, key=lambda n: (hashlib.sha256(f"{seed} {digests[n]}".encode()).digest(), n))
        kept += drawn[: wanted[kind]]

    def share(rows: list[int]) -> dict:
        long = [n for n in rows if thinking[n] >= min_tokens]
        tokens = sum(thinking[n] for n in rows)
        return {
            "long_rows": len(long),
            "short_rows": len(rows) - len(long),
            "long_fraction": len(long) / len(rows),
            "long_token_fraction": sum(thinking[n] for n in long) / tokens if tokens else 0.0,
        }

    report = {"long_fraction": fraction, "long_min_tokens": min_tokens, "before": share(numbers), "after": share(kept)}
    return sorted(kept), report


def largest_mix(long: int, short: int, fraction: float) -> int:
    """The most rows of which `fraction`, rounded, are long, from so many long and short ones."""
    low, high = 0, long + short  # both kinds grow with the whole
    while low < high:
        middle = (low + high + 1) // 2
        wanted = _long_rows(middle, fraction)
        low, high = (middle, high) if wanted <= long and middle - wanted <= short else (low, middle - 1)
    return low


def _long_rows(total: int, fraction: float) -> int:
    return int(total * fraction + 0.5)


def _describe(found: Dataset, numbers: list[int]) -> dict:
    part = found.select(numbers)
    return {
        "rows": len(part),
        **{name: _statistics(part[name][:]) for name in ("thinking_tokens", "answer_tokens")},
        "repetitive_rows": sum(map(bool, part["repetition"])),
        "rows_without_thinking": sum(not tokens for tokens in part["thinking_tokens"]),
    }


def _statistics(tokens: list[int]) -> dict:
    counts = np.array(tokens or [0])
    named = {"mean": counts.mean(), "median": np.median(counts), "p90": np.quantile(counts, 0.9)}
    return {
        "total": int(counts.sum()),
        **{name: round(float(v), 1) for name, v in named.items()},
        "max": int(counts.max()),
    }


def _shorten(text: str) -> str:
    half = EXCERPT // 2
    return text if len(text) <= EXCERPT else f"{text[:half]} ... {text[-half:]}"
