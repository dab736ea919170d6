"""What `hf-cascade evaluate` measured, as tables for a person: Markdown for report.md, plain text for the terminal."""

from hf_cascade.evaluate.verbosity import RIGHT

MISSING = "–"
NOTES = """\
- **perplexity**: exp of the mean next-token loss over the held-out text; every token of it is predicted once, in
  windows of {max_length:,} tokens that never cross documents.
- **retention**: the parent's perplexity over the model's, in percent. 100 is the parent itself.
- **KL**: forward Kullback-Leibler divergence KL(parent || model) of the next-token distributions, nats per token.
- **agreement**: share of tokens at which both models' likeliest next token is the same.
- **bits per byte**: the same loss in bits, over the text's UTF-8 bytes; comparable across tokenizers.
- **tokens** and **seconds**: of the stage in "Stage by stage", of all stages of the child in the first table, its
  pruning and post-training with them. What the models it was pruned from cost is not in them.
"""

ANSWER_NOTES = """\
- **win**: how often the model's answer is preferred to {baseline}'s to the same prompt, {samples} a prompt: by a reward
  model the mean probability over both orders, by a reward the share of higher ones and half the equal ones. In brackets
  the 95% interval over prompts drawn anew; 50% is no difference.
- **loops**: answers cut off at {length:,} tokens inside an infinite loop. **cut off**: those cut off elsewhere.
- **tokens**: mean length; **drift**: against the baseline.
- **KL**: KL(model || {baseline}), nats, estimated on the model's own answers (sampled at temperature {temperature:g},
  top_p {top_p:g}, scored at 1). – where the tokenizers differ.
- **mean**: of the reward, for rewards of 0 and 1 the accuracy; the mean over prompts of their answers' mean, in
  brackets the 95% interval over prompts drawn anew, as for the tokens of **all** answers.
- **thinking**, **answer**: mean tokens up to the end of the thinking, and after it. **unfinished**: answers whose
  thinking never closes.
- **right**, **wrong**: mean tokens of answers with a reward above {right:g}, and of the others.
"""
COST_NOTES = """\
- **tokens** and **seconds** of the first table: of all stages since the model's pruning, or since its pretraining.
"""


def summary(results: dict) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the parent, then each child after its last stage."""
    header = ["model", "parameters", "weights"]
    if results["heldout"]:
        header += ["perplexity", *(["retention", "KL", "agreement"] if results["teacher"] else []), "bits per byte"]
    costs = any(model[cost] is not None for model in results["models"] for cost in ("child_tokens", "child_seconds"))
    header += ["tokens", "seconds"] * costs
    rows = []
    for model in headline_models(results):
        heldout = model["heldout"] or {}
        row = [model["name"], count(model["num_parameters"]), size(model["bytes"])]
        if results["heldout"]:
            row.append(figure(heldout.get("perplexity")))
            if results["teacher"]:
                row += [percent(model["retention"]), fixed(heldout.get("kl"), 3), share(heldout.get("top1_agreement"))]
            row.append(fixed(heldout.get("bits_per_byte"), 3))
        rows.append([*row, *[count(model["child_tokens"]), seconds(model["child_seconds"])] * costs])
    return header, rows


def stages(results: dict) -> tuple[list[str], list[list[str]]]:
    """Header and rows: a block of rows for each child, one row after each of its stages."""
    by_name = {model["name"]: model for model in results["models"]}
    long = results["heldout"]["long_max_length"]
    header = ["child", "after", "perplexity"]
    header += [f"at {long:,} tokens"] if long else []
    header += ["retention", "KL", "agreement"] if results["teacher"] else []
    rows = []
    for child in results["children"]:
        for index, stage in enumerate(child["stages"]):
            model = by_name[stage["model"]]
            heldout = model["heldout"] or {}
            row = [child["name"] if index == 0 else "", stage["step"], figure(heldout.get("perplexity"))]
            if long:
                row.append(figure((model["long"] or {}).get("perplexity")))
            if results["teacher"]:
                row += [percent(model["retention"]), fixed(heldout.get("kl"), 3), share(heldout.get("top1_agreement"))]
            rows.append([*row, count(model["tokens"]), seconds(model["seconds"])])
    return [*header, "tokens", "seconds"], rows


def shapes(results: dict) -> tuple[list[str], list[list[str]]]:
    """Header and rows: the sizes of the parent and of each child."""
    header = ["model", "layers", "hidden", "FFN", "vocabulary", "embeddings"]
    keys = ("num_hidden_layers", "hidden_size", "intermediate_size", "vocab_size")
    rows = [
        [model["name"], *(f"{model[key]:,}" for key in keys), "tied" if model["tie_word_embeddings"] else "separate"]
        for model in headline_models(results)
        if model["num_hidden_layers"]  # unknown of a model behind a server
    ]
    return header, rows


def tasks(results: dict) -> tuple[list[str], list[list[str]]]:
    """Header and rows: every model's lm-eval scores, plus or minus one standard error, and what they mean."""
    names = task_names(results)
    scored = [model for model in results["models"] if model["tasks"]]
    rows = [[model["name"], *(score(model["tasks"].get(name)) for name in names)] for model in scored]
    first = [scored[0]["tasks"][name] for name in names]
    rows.append(["*chance*", *(fixed(task["chance"], 3) for task in first)])
    rows.append(["*metric*", *(task["metric"] for task in first)])
    rows.append(["*better*", *("higher" if task["higher_is_better"] else "lower" for task in first)])
    rows.append(["*rows*", *(f"{task['rows']:,}" for task in first)])
    return ["model", *names], rows


def answers(results: dict) -> tuple[list[str], list[list[str]]]:
    """Header and rows: every model's own answers, compared with the baseline's."""
    first = results["models"][0]["preference"]
    wins = list(dict.fromkeys(key for model in results["models"] for key in model["preference"]["wins"]))
    header = ["model", *(f"win: {name}" for name in wins), *first["rewards"], "loops", "cut off", "tokens", "drift"]
    rows = []
    for model in results["models"]:
        found = model["preference"]
        base = model["name"] == results["comparison"]["baseline"]
        row = [f"{model['name']} (baseline)" if base else model["name"]]
        row += [win_rate(found["wins"].get(name)) for name in wins]
        row += [fixed(value, 3) for value in found["rewards"].values()]
        row += [share(found["loop_rate"]), share(found["truncated_rate"]), f"{found['tokens']:,.1f}"]
        row.append(MISSING if base else f"{found['tokens_drift']:+,.1f} ({found['tokens_drift_percent']:+.1f}%)")
        rows.append([*row, fixed(found["kl_response"], 3), fixed(found["kl_token"], 4)])
    return [*header, "KL a response", "KL a token"], rows


def verbosity(results: dict) -> tuple[list[str], list[list[str]]]:
    """Header and rows: what every model's answers are worth, and how many tokens they take; a row a reward."""
    header = ["model", "reward", "mean", "all tokens", "thinking", "answer", "right", "wrong", "unfinished", "loops"]
    rows = []
    for model in results["models"]:
        spent, name = model["preference"]["verbosity"], model["name"]
        for reward, gain in (spent["rewards"] or {MISSING: None}).items():
            row = [name, reward, bracketed(gain, 3), bracketed(spent["tokens"], 1)]
            row += [f"{spent[key]:,.1f}" for key in ("thinking_tokens", "answer_tokens")]
            row += [fixed(gain and gain[key], 1) for key in ("right_tokens", "wrong_tokens")]
            rows.append([*row, share(spent["unfinished_rate"]), share(model["preference"]["loop_rate"])])
            name = ""
    return header, rows


def report(results: dict, plots: list[str], suites: list[str] = (), suite_notes: str = "") -> str:
    """report.md; `plots` are the names of the pictures beside it, `suites` the suites' sections."""
    parts = [f"# {models(results)}, measured\n"]
    heldout = results["heldout"]
    if heldout:
        teacher = f" The parent, and the model the others are compared with, is {results['teacher']}."
        parts.append(
            f"Held-out text: {heldout['dataset']}, {heldout['documents']:,} documents, {heldout['bytes']:,} bytes."
            + teacher * bool(results["teacher"])
            + "\n"
        )
    parts += [markdown(*summary(results)), *suites]
    if heldout and results["children"]:
        parts.append("## Stage by stage\n\n" + markdown(*stages(results)))
    if task_names(results):
        limited = f"\nOnly the first {results['limit']} rows of each task were run.\n" * bool(results["limit"])
        parts.append("## lm-eval\n\n" + markdown(*tasks(results)) + limited)
    if results["comparison"]:
        told = results["comparison"]
        ranked = f" Ranked by {told['reward_model']}." * bool(told["reward_model"])
        parts.append(
            f"## Answers\n\n{told['rows']:,} prompts of {told['prompts']}.{ranked} "
            f"All answers are in completions.jsonl.\n\n{markdown(*answers(results))}"
        )
        parts.append("## Verbosity\n\n" + markdown(*verbosity(results)))
    if shapes(results)[1]:
        parts.append("## Shapes\n\n" + markdown(*shapes(results)))
    parts += [f"![{name.removesuffix('.png').replace('_', ' ')}]({name})\n" for name in plots]
    costs = any(model["child_seconds"] is not None for model in results["models"])
    notes = NOTES.format(max_length=heldout["max_length"]) if heldout else COST_NOTES * costs
    if told := results["comparison"]:
        names = {"baseline": told["baseline"], "samples": told["samples_per_prompt"]}
        names |= {"length": told["max_completion_length"], "temperature": told["sampling_temperature"]}
        names |= {"top_p": told["top_p"], "right": RIGHT}
        notes += ANSWER_NOTES.format(**names)
    notes += suite_notes
    if notes:
        parts.append("## What the columns mean\n\n" + notes)
    return "\n".join(parts)


def models(results: dict) -> str:
    """`1 model`, `3 models`."""
    count = len(results["models"])
    return f"{count} model{'s' * (count != 1)}"


def summary_text(results: dict) -> str:
    """The first table, and that of the answers, for a terminal."""
    return "\n\n".join(text(*table(results)) for table in (summary, *[answers] * bool(results["comparison"])))


def text(header: list[str], rows: list[list[str]]) -> str:
    """A table for a terminal: first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    lines = []
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells))
    return "\n".join(lines)


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, numbers to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def headline_models(results: dict) -> list[dict]:
    """The models that are nobody's stage, such as the parent, and each child's last stage; in the order measured."""
    inner = {stage["model"] for child in results["children"] for stage in child["stages"]}
    inner -= {child["name"] for child in results["children"]}
    return [model for model in results["models"] if model["name"] not in inner]


def task_names(results: dict) -> list[str]:
    """All lm-eval tasks that were run."""
    return list(dict.fromkeys(name for model in results["models"] for name in model["tasks"]))


def score(task: dict | None) -> str:
    """`0.335 ± 0.033`."""
    if task is None:
        return MISSING
    return fixed(task["value"], 3) + ("" if task["stderr"] is None else f" ± {fixed(task['stderr'], 3)}")


def win_rate(win: dict | None) -> str:
    """`62.5% [51.0, 73.2]`."""
    if win is None or win["rate"] is None:
        return MISSING
    return f"{share(win['rate'])} [{100 * win['low']:.1f}, {100 * win['high']:.1f}]"


def bracketed(interval: dict | None, digits: int) -> str:
    """`0.625 [0.510, 0.732]`."""
    if interval is None or interval["rate"] is None:
        return MISSING
    rate, low, high = (f"{interval[key]:,.{digits}f}" for key in ("rate", "low", "high"))
    return f"{rate} [{low}, {high}]"


def count(number: float | None) -> str:
    """`352`, `352K`, `1.18M`, `13.9B`: three digits."""
    if number is None:
        return MISSING
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= 0.9995 * unit:
            return _three_digits(number / unit) + name
    return str(round(number))


def size(number: int | None) -> str:
    """Bytes as `6.3 MB`."""
    return MISSING if number is None else f"{number / 1e6:,.1f} MB" if number < 1e9 else f"{number / 1e9:,.1f} GB"


def figure(number: float | None) -> str:
    """`34.3`, `946`, `12,300`: three digits."""
    return MISSING if number is None else f"{number:,.0f}" if number >= 1000 else _three_digits(number)


def fixed(number: float | None, digits: int) -> str:
    """A number of fixed precision."""
    return MISSING if number is None else f"{number:.{digits}f}"


def percent(number: float | None) -> str:
    """`97.7%` of a percentage."""
    return MISSING if number is None else f"{number:.1f}%"


def share(number: float | None) -> str:
    """`88.1%` of a share."""
    return MISSING if number is None else f"{100 * number:.1f}%"


def seconds(number: float | None) -> str:
    """Whole seconds."""
    return MISSING if number is None else f"{number:,.0f}"


def _three_digits(number: float) -> str:
    return f"{number:.{max(0, 2 - len(str(int(number))) + 1)}f}"
