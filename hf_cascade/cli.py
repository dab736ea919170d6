"""`hf-cascade`: one word a stage, and `run` for a whole recipe."""

import argparse
import os
import sys

from hf_cascade import __version__, assets

BAD_INPUT = 2
WORDS = {
    "run": "run a recipe: every stage in order, finished ones not again",
    "prune": "prune a model to an exact smaller shape",
    "pretrain": "train a model from a random start (trainers/pretrain.py)",
    "distill": "distil a student from a teacher (trainers/distill.py)",
    "evaluate": "measure models: perplexity, divergence, lm-eval tasks; table and plots",
}


def make_parser() -> argparse.ArgumentParser:
    """The parser of the first word, and of `run`; the other words' flags are their own commands'."""
    parser = argparse.ArgumentParser(prog="hf-cascade", description="Make a family of smaller models from a good one.")
    parser.add_argument("--version", action="version", version=f"hf-cascade {__version__}")
    words = parser.add_subparsers(dest="word", metavar="WORD", required=True)
    run = words.add_parser("run", help=WORDS["run"])
    run.add_argument("recipe", metavar="RECIPE", help="a cascade.yaml, or its folder")
    run.add_argument("--output_dir", help="folder for all stages; default runs/ and the recipe's folder name")
    run.add_argument("--dry_run", action="store_true", help="print the plan and stop")
    run.add_argument(
        "--set", action="append", default=[], metavar="STAGE.FLAG=VALUE", help="change one flag; may be repeated"
    )
    for word, text in WORDS.items():
        if word != "run":
            words.add_parser(word, help=text)  # for the list of words: `main` hands their flags on unread
    return parser


def main(argv: list[str] | None = None) -> int:
    """
    Run one word.

    Args:
        argv (`list[str]`, *optional*): arguments after the program's name. Unset, the command line's.

    Returns:
        `int`: exit status: 0 done, 2 bad input (one line says what), 75 stopped and can go on.
    """
    argv = sys.argv[1:] if argv is None else argv
    word = argv[0] if argv and argv[0] in WORDS and argv[0] != "run" else "run"
    arguments = make_parser().parse_args(argv) if word == "run" else None
    try:
        return _call(word, arguments if word == "run" else argv[1:])
    except (ValueError, OSError) as error:  # OSError: a file or model that is missing, a folder or disk that is full
        if os.environ.get("HF_CASCADE_TRACEBACK"):
            raise
        print(f"hf-cascade: error: {error}", file=sys.stderr)
        return BAD_INPUT


def _call(word: str, arguments) -> int:
    """Imports are here because planning and `--help` must not wait for torch."""
    if word == "run":
        from hf_cascade.run import main as run

        return run(arguments)
    if word == "prune":
        from hf_cascade.prune.command import main as prune

        return prune(arguments)
    if word == "evaluate":
        from hf_cascade.evaluate.command import main as evaluate

        return evaluate(arguments)
    script = str(assets.find(f"trainers/{word}.py"))
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, script, *arguments])


if __name__ == "__main__":
    sys.exit(main())
