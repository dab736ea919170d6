"""What a difficulty filter found, for people: report.md, a picture, and the error where no prompt stays."""

from collections import Counter
from pathlib import Path

from matplotlib import pyplot as plt
from matplotlib.ticker import PercentFormatter

from hf_cascade.grpo.difficulty import KEPT
from hf_cascade.plots import COLOURS, INK, STYLE, UNDER_TITLE, key, save
from hf_cascade.rewards.maths import gold

PICTURE = "difficulty.png"
MOST_BARS = 21  # of the histogram
EXAMPLES = 10  # contradicted prompts that the report shows
SHOWN = 160  # characters of a prompt or an answer
MEANING = {
    KEPT: "stay",
    "too_easy": "passed more often than max_pass_rate",
    "too_hard": "passed less often than min_pass_rate",
    "contradicted": "most responses agree on another answer than the right one",
    "unjudged": "less than half of the responses came and were judged",
    "bad_prompt": "the prompt is empty, or does not end with what is to be answered",
    "no_answer": "no right answer or tests",
    "bad_answer": "the right answer or the tests cannot be read",
    "duplicate": "an earlier row has the same prompt",
}
ADVICE = {
    "too_hard": "a stronger model, a longer max_completion_length, or a lower min_pass_rate",
    "too_easy": "harder prompts, or a higher max_pass_rate",
    "contradicted": "see whether the right answers have the form that the reward compares, or raise majority_share",
    "unjudged": "see the warnings above: responses did not come, or the reward failed",
    "bad_prompt": "mend the column `prompt`",
    "no_answer": "give the rows what the reward needs, or another reward",
    "bad_answer": "mend the right answers, or give another reward",
    "duplicate": "give other prompts",
}
NO_SAMPLING = (
    "every prompt got one and the same response each time: does the server sample? `transformers serve` does where the "
    "model's generation_config.json has do_sample: true"
)


def histogram(rates: list[tuple[float, str]], samples_per_prompt: int) -> list[dict]:
    """
    Prompts by pass rate: a bar for every number of passes, or for every twentieth.

    Args:
        rates (`list[tuple[float, str]]`): pass rate and outcome of each prompt that was judged.
        samples_per_prompt (`int`): responses to each.

    Returns:
        `list[dict]`: `pass_rate` in the middle of a bar, `prompts` there, and how many of them are `kept` and
        `contradicted`.
    """
    bars = min(samples_per_prompt + 1, MOST_BARS)
    counts = Counter((round(rate * (bars - 1)), outcome) for rate, outcome in rates)
    return [
        {
            "pass_rate": bar / (bars - 1),
            "prompts": sum(count for (place, _), count in counts.items() if place == bar),
            KEPT: counts[bar, KEPT],
            "contradicted": counts[bar, "contradicted"],
        }
        for bar in range(bars)
    ]


def nothing_kept(results: dict) -> str:
    """What to say where no prompt stays: why, the histogram, and what would help."""
    dropped = {reason: count for reason, count in results["outcomes"].items() if count}
    most = max(dropped, key=dropped.get)
    said = f"none of {results['rows']} prompts stays: {_listed(dropped)}"
    bars = {f"{bar['pass_rate']:.2g}": bar["prompts"] for bar in results["histogram"] if bar["prompts"]}
    if bars:
        said += f"; prompts by pass rate: {_listed(bars)}"
    for name, words in (("cut_off", "were cut off"), ("without_answer", "gave no final answer")):
        if results["responses"][name]:
            said += f"; {100 * results['responses'][name]:.0f}% of the responses {words}"
    if results["responses"]["all_equal"] == 1 and results["settings"]["url"]:
        return f"{said}; {NO_SAMPLING}"
    return f"{said}. What would help: {ADVICE[most]}"


def report(results: dict, dropped: list[dict]) -> str:
    """
    report.md.

    Args:
        results (`dict`): what difficulty.json holds.
        dropped (`list[dict]`): rows that do not stay, with `reason`.
    """
    settings, responses = results["settings"], results["responses"]
    lines = [
        "# Difficulty of prompts",
        "",
        f"{settings['samples_per_prompt']} responses of `{settings['model'] or settings['served_model']}` to each "
        f"prompt of `{settings['prompts']}`, judged by `{settings['reward']}`: a response passes with a reward above "
        f"{settings['pass_above']:g}. Prompts with pass rates from {settings['min_pass_rate']:g} to "
        f"{settings['max_pass_rate']:g} stay.",
        "",
        "| outcome | prompts | share | meaning |",
        "|---|---|---|---|",
    ]
    for outcome, count in results["outcomes"].items():
        lines.append(f"| {outcome} | {count} | {100 * count / results['rows']:.1f}% | {MEANING[outcome]} |")
    lines += ["", f"![Prompts by pass rate]({PICTURE})", ""]
    if responses["judged"]:
        length = "" if responses["tokens"] is None else f", {responses['tokens']:.0f} tokens on average"
        lines += [
            f"{responses['judged']} of {responses['asked']} responses were judged{length}; "
            f"{100 * responses['cut_off']:.1f}% were cut off at {settings['max_completion_length']} tokens, "
            f"{100 * responses['without_answer']:.1f}% gave no final answer. To "
            f"{100 * responses['all_equal']:.1f}% of the prompts all responses were equal.",
            "",
        ]
    if results["examples"]:
        lines += ["## How responses end", "", "| prompt | end of the first response |", "|---|---|"]
        lines += [f"| {_cell(_text(one['prompt']))} | {_cell(one['end'], end=True)} |" for one in results["examples"]]
        lines.append("")
    contradicted = [row for row in dropped if row["reason"] == "contradicted"]
    if contradicted:
        lines += ["## Right answers that the majority contradicts", "", "| prompt | right answer | majority |"]
        lines += ["|---|---|---|"]
        for row in contradicted[:EXAMPLES]:
            cells = (_text(row["prompt"]), gold(str(row["answer"])), row["majority_answer"])
            lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
        lines.append("")
    return "\n".join(lines)


def draw(results: dict, folder: Path) -> None:
    """Write the picture: prompts by pass rate, and the window."""
    settings, bars = results["settings"], results["histogram"]
    width = 0.8 / (len(bars) - 1)
    at = [bar["pass_rate"] for bar in bars]
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7.2, 4.0))
        bottom = [0] * len(bars)
        for label, colour in ((KEPT, COLOURS[0]), ("contradicted", COLOURS[1]), ("outside", "#BBBBBB")):
            counts = [bar[label] if label in bar else bar["prompts"] - bar[KEPT] - bar["contradicted"] for bar in bars]
            axes.bar(at, counts, width, bottom=bottom, color=colour)
            bottom = [below + count for below, count in zip(bottom, counts, strict=True)]
        for edge in (settings["min_pass_rate"], settings["max_pass_rate"]):
            axes.axvline(edge, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        names = (("stay", COLOURS[0]), ("contradicted", COLOURS[1]), ("go", "#BBBBBB"))
        axes.legend(handles=[key(name, colour, "s") for name, colour in names], **UNDER_TITLE, ncols=3)
        axes.set_title("Prompts by pass rate (dashed: the window)", pad=26)
        axes.set(xlabel="share of responses that pass", ylabel="prompts", xlim=(-0.06, 1.06))
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.yaxis.get_major_locator().set_params(integer=True)
        save(figure, folder / PICTURE)


def _listed(counts: dict) -> str:
    return ", ".join(f"{name}: {count}" for name, count in counts.items())


def _text(prompt: str | list[dict]) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _cell(value, end: bool = False) -> str:
    """One line of a table, cut at its end, or at its beginning where its `end` counts."""
    text = " ".join(str(value).split())
    if len(text) > SHOWN:
        text = "..." + text[3 - SHOWN :] if end else text[: SHOWN - 3] + "..."
    return text.replace("|", "\\|")
