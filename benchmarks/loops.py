"""How well and how fast `hf_cascade.completions.find_loop` tells infinite loops, on constructed and on generated text.

    OMP_NUM_THREADS=1 python benchmarks/loops.py --texts texts/*.jsonl > benchmarks/results/loops_cpu.md

`--texts` are JSON lines with a `text` each. Constructed loops stand behind the beginning of such a document; what is no
loop are documents cut off anywhere. Generated are 512 tokens after 32 of a document by recipes/tiny/parent, which loops
readily; those that ended with EOS are left out. Whether they loop is said by a criterion that shares nothing with the
detector (`reference`): brute force over periods with 10% of the tokens free to differ, or text that zlib packs well.
"""

import argparse
import json
import random
import re
import statistics
import sys
import time
import zlib
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_cascade import assets
from hf_cascade.completions import LoopRule, find_loop

PERIODS = (1, 2, 5, 13, 50, 200, 900)  # tokens
BODIES = (8, 16, 32, 64, 128)  # tokens that stay the same in a counter loop, in front of a number of 2 and more
TEMPERATURES = (0.0, 0.3, 0.7, 1.0)
PROMPT, NEW = 32, 512  # tokens
SCALES = ((128, 32), (256, 64), (512, 128))  # tokens at the end, longest period in them: four repeats
TOLERATED, PACKED = 0.1, 0.2  # share of tokens that may differ; zlib's size over the text's, in the last 256 tokens
LONG = 80_000  # tokens of the longest response, the paper's second GRPO stage
SWEEP = (
    {},
    {"min_repeats": 3},
    {"min_repeats": 6},
    {"min_tokens": 32},
    {"min_tokens": 128},
    {"ngram": 3},
    {"ngram": 6},
    {"window_tokens": 512},
    {"ngram_fraction": 0.5},
    {"ngram_fraction": 0.6},
    {"ngram_fraction": 0.7},
    {"ngram_fraction": 0.8},
    {"ngram_fraction": 0.9},
)


def read_documents(paths: list[str], tokenizer, count: int) -> dict[str, list[list[int]]]:
    """Tokens of up to `count` documents of each file, of 1,100 and more tokens where the file has them."""
    documents = {}
    for path in paths:
        texts = [json.loads(line)["text"][:40_000] for line in Path(path).read_text().splitlines()]
        texts = random.Random(0).sample(texts, min(4 * count, len(texts)))
        encoded = tokenizer(texts, add_special_tokens=False).input_ids
        documents[Path(path).stem] = sorted(encoded, key=len, reverse=True)[:count]
    return documents


def windows(document: list[int], drawn: random.Random, count: int) -> list[list[int]]:
    """Responses that were cut off: stretches of a document of 256 to 4,096 tokens."""
    found = []
    for _ in range(count):
        start = drawn.randrange(max(1, len(document) - 256))
        found.append(document[start : start + drawn.randrange(256, 4096)])
    return found


def constructed(documents: list[list[int]], tokenizer, drawn: random.Random, count: int) -> dict[str, tuple]:
    """Kind -> responses and whether they loop."""
    kinds = {}

    def stretch(tokens: int) -> list[int]:
        document = drawn.choice([document for document in documents if len(document) >= tokens])
        start = drawn.randrange(len(document) - tokens + 1)
        return document[start : start + tokens]

    def repeated(period: int, times: int) -> list[int]:
        body = stretch(period)
        return stretch(drawn.randrange(1, 800)) + body * times + body[: drawn.randrange(period)]

    def counting(body: int) -> list[int]:
        text, number = tokenizer.decode(stretch(body)), drawn.randrange(1, 20)
        lines = "".join(f"{number + line}. {text}\n" for line in range(1500 // body + 4))
        return stretch(drawn.randrange(1, 800)) + tokenizer(lines, add_special_tokens=False).input_ids

    for period in PERIODS:
        times = max(4, 64 // period + 1)
        kinds[f"period of {period}"] = [repeated(period, times + drawn.randrange(4)) for _ in range(count)], True
    for body in BODIES:
        kinds[f"counter, {body} tokens stay"] = [counting(body) for _ in range(count)], True
    kinds["3 repeats of 13 to 200"] = [repeated(drawn.randrange(13, 200), 3) for _ in range(count)], False
    escaped = [repeated(drawn.randrange(1, 50), 30)[-600:] + stretch(300) for _ in range(count)]
    kinds["a loop, then 300 new tokens"] = escaped, False
    return kinds


@torch.inference_mode()
def generate(prompts: list[list[int]], temperature: float, model, batch: int = 64) -> list[list[int]]:
    """New tokens after each prompt, of those that did not end with EOS."""
    torch.manual_seed(0)
    sampling = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    found = []
    for start in range(0, len(prompts), batch):
        ids = torch.tensor(prompts[start : start + batch])
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, use_cache=True, **sampling)
        found += whole[:, PROMPT:].tolist()
    return [new for new in found if model.config.eos_token_id not in new and len(new) == NEW]


def reference(tokens: list[int], tokenizer) -> bool:
    """Whether a response loops, by another road than the detector's."""
    for count, longest in SCALES:
        end = tokens[-count:]
        for period in range(1, longest + 1):
            differ = sum(now != before for now, before in zip(end[period:], end[:-period], strict=True))
            if len(end) == count and differ <= TOLERATED * (count - period):
                return True
    text = tokenizer.decode(tokens[-256:]).encode()
    return len(zlib.compress(text, 9)) < PACKED * len(text)


def score(responses: list[list[int]], truths: list[bool], rule: LoopRule) -> dict[str, int]:
    """True and false positives, false negatives, and of the true ones how many the period told."""
    counts = dict.fromkeys(("n", "loops", "tp", "fp", "fn", "period"), 0)
    for tokens, truth in zip(responses, truths, strict=True):
        loop = find_loop(tokens, rule)
        counts["n"] += 1
        counts["loops"] += truth
        counts["tp"] += bool(loop and truth)
        counts["fp"] += bool(loop and not truth)
        counts["fn"] += bool(truth and not loop)
        counts["period"] += bool(loop and truth and loop.kind == "period")
    return counts


def ratio(part: int, whole: int) -> str:
    return f"{part / whole:.3f}" if whole else "-"


def cells(counts: dict[str, int]) -> str:
    """n, loops, found by the period, precision, recall, false alarms."""
    precision, recall = ratio(counts["tp"], counts["tp"] + counts["fp"]), ratio(counts["tp"], counts["loops"])
    return f"{counts['n']} | {counts['loops']} | {counts['period']} | {precision} | {recall} | {counts['fp']}"


def by_slices(tokens: list[int]) -> bool:
    """Naive: four equal slices at the end, for every period up to a quarter of the tokens."""
    for period in range(1, len(tokens) // 4 + 1):
        last = tokens[-period:]
        if all(tokens[-place * period : -(place - 1) * period] == last for place in (2, 3, 4)) and 4 * period >= 64:
            return True
    return False


def by_walking(tokens: list[int], max_period: int = 1024) -> bool:
    """Naive: how far each period reaches back, token by token, until one reaches far enough."""
    for period in range(1, max_period + 1):
        covered = period
        while covered < len(tokens) and tokens[-covered - 1] == tokens[-covered - 1 + period]:
            covered += 1
        if covered >= max(64, 4 * period):
            return True
    return False


def by_regex(text: str) -> bool:
    """Naive: a group that comes three times again at the end of the text."""
    return re.search(r"(.+?)\1{3,}\Z", text, re.DOTALL) is not None


def milliseconds(function, *arguments, times: int = 5) -> float:
    """Median over `times` calls."""
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        function(*arguments)
        taken.append(1000 * (time.perf_counter() - start))
    return statistics.median(taken)


def print_times(document: list[int], tokenizer) -> None:
    """How long one response takes, beside naive detectors."""
    prose = (document * (LONG // len(document) + 1))[:LONG]
    responses = {
        "no loop": prose,
        "period of 1 from the start": [7] * LONG,
        "period of 900 in the last half": prose[: LONG // 2] + document[:900] * (LONG // 1800),
        "one token 3,000 times, then 63 of another": prose[: LONG - 3063] + [7] * 3000 + [8] * 63,
    }
    print(f"\n## Time of a response of {LONG:,} tokens, ms (median of 5; naive slices and walk: once)\n")
    print("| response | find_loop | naive slices | ratio | naive walk | ratio |\n|---|---|---|---|---|---|")
    for name, tokens in responses.items():
        ours = milliseconds(find_loop, tokens)
        slices, walk = milliseconds(by_slices, tokens, times=1), milliseconds(by_walking, tokens, times=1)
        print(f"| {name} | {ours:.1f} | {slices:.3g} | {slices / ours:.3g} | {walk:.3g} | {walk / ours:.3g} |")
    short = prose[:2000]
    ours, naive = milliseconds(find_loop, short), milliseconds(by_regex, tokenizer.decode(short), times=1)
    print(f"\nA regex for repeats at the end, on 2,000 tokens without a loop: {naive:.0f} ms, find_loop {ours:.1f} ms.")


def main() -> None:
    """Build, generate, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", nargs="+", required=True, help="JSON lines with a `text` each")
    parser.add_argument(
        "--count", type=int, default=20, help="documents of a file, and responses of a constructed kind"
    )
    parser.add_argument("--generations", type=int, default=64, help="prompts at each temperature")
    parser.add_argument("--show", type=int, default=0, help="of a kind, wrong answers to print to stderr")
    settings = parser.parse_args()
    drawn = random.Random(0)
    tokenizer = AutoTokenizer.from_pretrained(assets.find("recipes/tiny/tokenizer"))
    model = AutoModelForCausalLM.from_pretrained(assets.find("recipes/tiny/parent")).eval()
    documents = read_documents(settings.texts, tokenizer, settings.count)
    long = [document for several in documents.values() for document in several if len(document) >= 1100]

    groups = {"constructed": {}, "real text, cut off": {}, "generated": {}}
    for kind, (responses, truth) in constructed(long, tokenizer, drawn, settings.count).items():
        groups["constructed"][kind] = responses, [truth] * len(responses)
    for name, several in documents.items():
        responses = [cut for document in several for cut in windows(document, drawn, max(4, 240 // len(several)))]
        groups["real text, cut off"][name] = responses, [False] * len(responses)
    prompts = [document[start : start + PROMPT] for document in long for start in (0, 400, 700)]
    prompts = drawn.sample(prompts, min(settings.generations, len(prompts)))
    for temperature in TEMPERATURES:
        responses = generate(prompts, temperature, model)
        truths = [reference(tokens, tokenizer) for tokens in responses]
        groups["generated"][f"temperature {temperature}"] = responses, truths

    print("# Infinite loops: precision, recall and time of `find_loop`")
    for group, kinds in groups.items():
        print(f"\n## {group.capitalize()}\n")
        print("| kind | n | loops | told by the period | precision | recall | false alarms |")
        print("|---|---|---|---|---|---|---|")
        for kind, (responses, truths) in kinds.items():
            print(f"| {kind} | {cells(score(responses, truths, LoopRule()))} |", flush=True)
            shown = settings.show
            for tokens, truth in zip(responses, truths, strict=True):
                if (find_loop(tokens) is not None) is not truth and shown:
                    shown -= 1
                    text = tokenizer.decode(tokens[-256:])
                    print(f"{kind}, a loop {truth}, found {find_loop(tokens)}: {text!r}\n", file=sys.stderr)

    print("\n## Other thresholds\n\nRecall and false alarms of each group.\n")
    print("| rule | " + " | ".join(f"{group}: recall | false alarms" for group in groups) + " |\n|---|" + "---|" * 6)
    for change in SWEEP:
        row = [", ".join(f"{name} {number}" for name, number in change.items()) or "*the defaults*"]
        for kinds in groups.values():
            counts = [score(*both, LoopRule(**change)) for both in kinds.values()]
            row += [ratio(*(sum(one[key] for one in counts) for key in ("tp", "loops")))]
            row += [f"{sum(one['fp'] for one in counts)} of {sum(one['n'] - one['loops'] for one in counts)}"]
        print(f"| {' | '.join(row)} |", flush=True)
    print_times(long[0], tokenizer)


if __name__ == "__main__":
    main()
