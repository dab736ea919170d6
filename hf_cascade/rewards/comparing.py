"""Compares two answers with math-verify; run as a script it is a worker of `maths.py`, which kills it when it hangs.

A line of standard input is a JSON list [right, given]; its answer is a line of JSON: true, false or null (not judged).
It imports nothing of this package, so that it starts in a second.
"""

import json
import logging
import os
import resource
import signal
import sys

MEMORY_BYTES = 2**31  # address space of a worker; ours: paper silent


def compare(right: str, given: str) -> bool | None:
    """
    Whether two expressions, LaTeX or plain, are equal; `None` where the right one cannot be read.

    Raises:
        MemoryError: too large.
    """
    from math_verify import parse, verify

    def read(text: str) -> list:
        try:
            return parse(f"\\boxed{{{text}}}", parsing_timeout=None, raise_on_error=True)
        except MemoryError:
            raise
        except Exception:  # whatever math-verify, antlr or sympy raise: it is no expression to them
            return []

    rights, givens = read(right), read(given)
    if all(isinstance(entry, str) for entry in rights):
        return None
    return bool(verify(rights, givens, allow_set_relation_comp=True, timeout_seconds=None, raise_on_error=True))


def main() -> None:
    """Answer line by line; after `seconds` of one comparison the kernel ends this process with SIGALRM."""
    seconds = float(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # antlr prints
    logging.disable(logging.CRITICAL)
    compare("1", "x=1")  # imports, and tables that are built at first use
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, seconds)  # no handler: the default action kills, whatever runs
        try:
            verdict = compare(*json.loads(line))
        except Exception:  # a failure inside math-verify or sympy is no verdict
            verdict = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(json.dumps(verdict), file=answers, flush=True)


if __name__ == "__main__":
    main()
