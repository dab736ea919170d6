"""`Targets`: what a model must reach before it is published, from a flat YAML file as recipes/tiny/targets.yaml."""

import difflib
from dataclasses import dataclass, field, fields
from pathlib import Path

from hf_cascade import assets
from hf_cascade.evaluate.suite import suites as shipped
from hf_cascade.recipe import read_yaml

PERPLEXITY = "perplexity"  # key of `retention` for held-out text; other keys are labels of rows
_SHARES = ("unparsed", "unfinished", "truncated", "distinct", "judge_failures", "swap_agreement")
MOSTLY = "mostly"


@dataclass(frozen=True, kw_only=True)
class Targets:
    """
    Limits of the gate. All shares are from 0 to 1. The defaults that name no other source are ours: the paper has no
    gate.

    Args:
        suites (`tuple[str, ...]`): suites that must have run, every row of them. Empty: whatever was run counts.
        optional (`tuple[str, ...]`): labels of rows of those suites that may be "not run"; the card says so.
        paper (`bool`): whether a model of one of the paper's sizes is held to its figures (Tables 2 to 5), in rows
            whose protocol the paper tells.
        retention (`float` or `dict[str, float]`, *optional*): least part of the parent's figure: for all rows and the
            held-out perplexity, or by label and `perplexity`. `{}` asks for none.
        floors (`dict[str, float]`): least figures by label, in the row's own unit, or by the name of a reward of the
            model's answers (`--prompts`).
        points (`float`): a row may miss its target by so much, of 100; or by
        within_problem_errors (`float`): so many standard errors from sampling alone, where that is more.
        unparsed (`float`): most responses without an answer that can be read.
        unfinished (`float`, *optional*): most responses whose thinking never closes; unset, they are only counted.
        truncated (`float`, *optional*): most responses cut off at the token limit; unset, they are only counted.
        distinct (`float`): least share of different responses among a problem's samples.
        judge_failures (`float`): most questions to which the judge gave no usable answer.
        swap_agreement (`float`): least share of pairs about which the judge does not name opposite winners when they
            are swapped.
        contamination (`dict[str, float]` or `False`): a report of the training text must be there; `{mostly: 0.01}`
            also limits the share of rows that mostly stand in it. `False` asks for none.

    Raises:
        ValueError: a value that cannot be.
    """

    suites: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    paper: bool = True
    retention: float | dict[str, float] | None = None
    floors: dict[str, float] = field(default_factory=dict)
    points: float = 1.0
    within_problem_errors: float = 2.0
    unparsed: float = 0.02
    unfinished: float | None = None
    truncated: float | None = None
    distinct: float = 0.9
    judge_failures: float = 0.01
    swap_agreement: float = 0.7
    contamination: dict[str, float] | bool = field(default_factory=dict)

    def __post_init__(self):
        for name in ("suites", "optional"):
            value = getattr(self, name)
            if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
                raise ValueError(f"{name}={value!r}: give a list of names")
            object.__setattr__(self, name, tuple(value))
        if unknown := [name for name in self.suites if name not in shipped.names()]:
            raise ValueError(f"suites={', '.join(unknown)}: allowed are {', '.join(shipped.names())}")
        if not isinstance(self.paper, bool):
            raise ValueError(f"paper={self.paper!r}: give true or false")
        for name in _SHARES:
            value = getattr(self, name)
            if value is not None or name not in ("unfinished", "truncated"):
                _check_number(name, value, most=1)
        for name in ("points", "within_problem_errors"):
            _check_number(name, getattr(self, name))
        if isinstance(self.retention, dict):
            for label, value in self.retention.items():
                _check_number(f"retention of {label}", value)
        elif self.retention is not None:
            _check_number("retention", self.retention)
        if not isinstance(self.floors, dict):
            raise ValueError(f"floors={self.floors!r}: give a mapping of labels to least figures")
        for label, value in self.floors.items():
            _check_number(f"floors, {label}", value)
        self._check_contamination()

    def _check_contamination(self) -> None:
        given = {} if self.contamination is True else self.contamination
        if given is not False and (not isinstance(given, dict) or set(given) - {MOSTLY}):
            raise ValueError(f"contamination={given!r}: give true, false, or {{{MOSTLY}: share}}")
        for value in given.values() if given else ():
            _check_number(f"contamination, {MOSTLY}", value, most=1)
        object.__setattr__(self, "contamination", given)


def load(name: str | Path) -> Targets:
    """
    Read a targets file.

    Args:
        name (`str` or `Path`): found as by [`assets.find`].

    Raises:
        FileNotFoundError: it is not there.
        ValueError: no YAML mapping, an unknown key, or a value that cannot be; says which, and what is allowed.
    """
    path = assets.find(name)
    given = read_yaml(path)
    known = [one.name for one in fields(Targets)]
    if unknown := [str(key) for key in given if key not in known]:
        near = difflib.get_close_matches(unknown[0], known, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{path}: there is no key {', '.join(unknown)}{hint}. Allowed are {', '.join(known)}")
    try:
        return Targets(**given)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_number(name: str, value, most: float | None = None) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 <= value <= (most if most is not None else float("inf")) or value == float("inf"):
        raise ValueError(f"{name}={value!r}: give a number from 0" + (f" to {most}" if most else ""))
