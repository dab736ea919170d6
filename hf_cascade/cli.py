"""`hf-cascade`: one word a stage, and `run` for a whole recipe."""

import argparse
import difflib
import os
import sys
import textwrap

from hf_cascade import __version__, assets, fields, flag_help
from hf_cascade.recipe import check_config

BAD_INPUT = 2
WORDS = {
    "run": "run a recipe: every stage in order, finished ones not again",
    "plan": "what a recipe makes, and what each stage takes on a machine",
    "prune": "prune a model to an exact smaller shape",
    "pretrain": "train a model from a random start (trainers/pretrain.py)",
    "distill": "distil a student from a teacher (trainers/distill.py)",
    "sft": "train on conversations with a teacher's logits, or without (trainers/sft.py)",
    "pwrm": "train a pairwise reward model, which says which of two responses is better (trainers/pwrm.py)",
    "odpo": "Online DPO: two responses a prompt, weighed by a reward model (trainers/odpo.py)",
    "difficulty": "which prompts a model solves sometimes: pass rates over many responses, and the prompts that stay",
    "grpo": "reinforcement learning on rewards, by Magistral's recipe (trainers/grpo.py)",
    "serve_teacher": "serve a teacher's hidden states to students elsewhere (trainers/serve_teacher.py)",
    "cache_teacher": "write a teacher's most likely tokens to disk (trainers/cache_teacher.py)",
    "lengths": "how long the documents of a stage's text are, before it is trained on",
    "evaluate": "measure models: perplexity, divergence, benchmarks beside the paper's; table and plots",
    "fp8": "the FP8 twin of a finished model, and how far it is from the BF16 one",
    "contamination": "which benchmark rows stand in the text that a model was trained on",
    "card": "write and check a finished model's card",
    "publish": "finished models to the Hub, behind a gate, each in one commit with its card",
}

GROUPS = {
    "a family, by a recipe": ("run", "plan"),
    "one stage": ("prune", "pretrain", "distill", "sft", "pwrm", "odpo", "grpo"),
    "text, prompts and teachers": ("lengths", "difficulty", "cache_teacher", "serve_teacher"),
    "what came of it": ("evaluate", "contamination"),
    "release": ("card", "fp8", "publish"),
}
OWN = ("run", "plan")  # words whose flags are read here; the others' are their own commands'
READ_FROM_SOURCE = (*fields.DATACLASSES, *fields.COMMANDS)  # words whose flags are dataclasses
CONFORMANCE = "--conformance"  # of evaluate, with flags of its own


def overview() -> str:
    """What `hf-cascade --help` prints: all words, by what they are for."""
    lines = ["Make a family of smaller models from a good one: prune, distil, measure, publish.", ""]
    lines += ["usage: hf-cascade WORD [FLAG ...]", "       hf-cascade WORD --help", "       hf-cascade --version"]
    for title, words in GROUPS.items():
        lines += ["", title]
        for word in words:
            first, *rest = textwrap.wrap(WORDS[word], 82)
            lines += [f"  {word:<16}{first}", *(" " * 18 + line for line in rest)]
    return "\n".join(
        [*lines, "", "A first look, without a GPU: hf-cascade plan recipes/ministral3 --machine 8xh100-80gb"]
    )


def make_parser() -> argparse.ArgumentParser:
    """The parser of `run` and `plan`; the other words' flags are their own commands'."""
    parser = argparse.ArgumentParser(prog="hf-cascade", allow_abbrev=False)
    words = parser.add_subparsers(dest="word", metavar="WORD", required=True)
    for word in OWN:
        one = words.add_parser(word, help=WORDS[word], description=WORDS[word], allow_abbrev=False)
        one.add_argument("recipe", metavar="RECIPE", help="a cascade.yaml, or its folder")
        one.add_argument(
            "--output_dir", help="folder for all stages; default runs/DIR of DIR/cascade.yaml, runs/NAME of NAME.yaml"
        )
        one.add_argument(
            "--set", action="append", default=[], metavar="STAGE.FLAG=VALUE", help="change one flag; may be repeated"
        )
        if word == "run":
            one.add_argument("--dry_run", action="store_true", help="print the shapes and stop; `plan` says more")
        else:
            _add_machine(one)
    return parser


def _add_machine(plan: argparse.ArgumentParser) -> None:
    """The flags of `plan` that say where the stages are to run."""
    plan.add_argument("--machine", help="a card of hf_cascade/machines.py with a count, as 8xh100-80gb; or cpu")
    plan.add_argument("--gpus", type=int, help="how many cards; before the machine's own count")
    plan.add_argument("--tflops", type=float, help="10^12 FLOP/s of a card that has no name here, dense")
    plan.add_argument("--memory", type=float, metavar="GB", help="memory of a card that has no name here")
    plan.add_argument("--mfu", type=float, default=0.4, help="share of the peak that training reaches; default 0.4")
    plan.add_argument("--sharding", help="none, fsdp2 or zero3; default fsdp2 over several cards")
    plan.add_argument(
        "--sequence_parallel",
        action="append",
        default=[],
        metavar="[STAGE=]N",
        help="GPUs that share a row, in all stages or in one; may be repeated",
    )
    plan.add_argument("--json", action="store_true", help="print the plan as JSON")


def main(argv: list[str] | None = None) -> int:
    """
    Run one word.

    Args:
        argv (`list[str]`, *optional*): arguments after the program's name. Unset, the command line's.

    Returns:
        `int`: exit status: 0 done, 1 refused or diverged, 2 bad input (one line says what), 75 stopped and can go on.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in flag_help.HELP:
        _show(overview(), sys.stdout if argv else sys.stderr)
        return 0 if argv else BAD_INPUT
    word, *rest = argv
    if word == "--version":
        print(f"hf-cascade {__version__}")
        return 0
    try:
        rest = _with_config(rest)
        if word not in WORDS:
            close = difflib.get_close_matches(word, WORDS, n=1)
            meant = f"; did you mean {close[0]}?" if close else ""
            raise ValueError(f"there is no word {word!r}{meant} (`hf-cascade --help` lists all)")
        if word in OWN:
            return _call(word, make_parser().parse_args(argv))
        if word in READ_FROM_SOURCE and CONFORMANCE not in rest:
            if flag_help.asked(rest):
                _show(flag_help.text(word, WORDS[word], everything="all" in rest), sys.stdout)
                return 0
            flag_help.check(word, rest)
        check_config(rest)
        return _call(word, rest)
    except (ValueError, OSError) as error:  # OSError: a file or model that is missing, a folder or disk that is full
        if os.environ.get("HF_CASCADE_TRACEBACK"):
            raise
        print(f"hf-cascade: error: {error}", file=sys.stderr)
        return BAD_INPUT


def _with_config(argv: list[str]) -> list[str]:
    """A command line with `--config FILE` as two words, which TRL's parser asks for, and FILE found from anywhere."""
    words = [part for word in argv for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
    if words[-1:] == ["--config"]:
        raise ValueError("--config needs a FILE after it")
    for place, word in enumerate(words[:-1], start=1):
        if word == "--config":
            try:
                words[place] = str(assets.find(words[place]))
            except FileNotFoundError:
                pass  # whoever reads it says so
    return words


def _show(text: str, file) -> None:
    """Print; `| head` may have seen enough before the end."""
    try:
        print(text, file=file, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())  # else Python complains once more as it ends


def _call(word: str, arguments) -> int:
    """Imports are here because planning and `--help` must not wait for torch."""
    if word == "run":
        from hf_cascade.run import main as run

        return run(arguments)
    if word == "plan":
        from hf_cascade.plan_report import main as plan

        return plan(arguments)
    if word == "prune":
        from hf_cascade.prune.command import main as prune

        return prune(arguments)
    if word == "lengths":
        from hf_cascade.data.report import main as lengths

        return lengths(arguments)
    if word == "evaluate":
        if CONFORMANCE in arguments:
            from hf_cascade.evaluate.conformance import command as conformance

            return conformance.main(arguments)
        from hf_cascade.evaluate.command import main as evaluate

        return evaluate(arguments)
    if word == "fp8":
        from hf_cascade.publish.fp8_command import main as fp8

        return fp8(arguments)
    if word == "contamination":
        from hf_cascade.evaluate.contamination.command import main as contamination

        return contamination(arguments)
    if word == "difficulty":
        from hf_cascade.grpo.difficulty_command import main as difficulty

        return difficulty(arguments)
    if word == "card":
        from hf_cascade.publish.card_command import main as card

        return card(arguments)
    if word == "publish":
        from hf_cascade.publish.command import main as publish

        return publish(arguments)
    script = str(assets.find(f"trainers/{word}.py"))
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, script, *arguments])


if __name__ == "__main__":
    sys.exit(main())
