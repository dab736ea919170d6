"""All that is known about the answers of the tasks in `evals/tasks`, gathered from the benchmarks' modules."""

from importlib import import_module
from pkgutil import iter_modules

from hf_cascade.evaluate import benchmarks
from hf_cascade.evaluate.conformance.case import Case
from hf_cascade.evaluate.conformance.knowing import answer_of

TINY = {
    "cascade_tiny_continuation": Case(gold=answer_of, metric="acc_bytes", chance=0.25),
    "cascade_tiny_copy": Case(gold=answer_of, chance=0.0),
    "cascade_tiny_bits": Case(gold=answer_of, metric="bits_per_byte", oracle=0.0, anti=None),
}


def all_cases() -> dict[str, Case]:
    """
    Task name to its case.

    Raises:
        ValueError: two modules know the same task.
    """
    cases = dict(TINY)
    for module in iter_modules(benchmarks.__path__, f"{benchmarks.__name__}."):
        found = getattr(import_module(module.name), "CASES", {})
        if both := cases.keys() & found.keys():
            raise ValueError(f"{module.name}: {', '.join(sorted(both))} has a case in another module too")
        cases |= found
    return cases
