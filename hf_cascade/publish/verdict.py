"""`Line` and `Decision`: what a gate says, line by line, in a terminal and on a card."""

from dataclasses import dataclass

from hf_cascade.publish.paths import without_paths
from hf_cascade.secrets import scrub


@dataclass(frozen=True)
class Line:
    """
    One thing that a release needs.

    Attributes:
        name (`str`): what is asked.
        passed (`bool`): whether it holds.
        figure (`str`): what was found.
        limit (`str`): what is allowed.
        remedy (`str`): how to mend it: a command or what to change; empty where it passed.
        final (`bool`): no override lifts it.
    """

    name: str
    passed: bool
    figure: str
    limit: str
    remedy: str = ""
    final: bool = False


@dataclass(frozen=True)
class Decision:
    """
    Whether a folder may be published.

    Attributes:
        lines (`list[Line]`): everything that was asked.
        override (`str`, *optional*): why failed lines that are not final are let pass.

    Raises:
        ValueError: an override without a reason.
    """

    lines: list[Line]
    override: str | None = None

    def __post_init__(self):
        if self.override is not None and not self.override.strip():
            raise ValueError("override: it is written on the card, so give the reason in words")

    @property
    def failed(self) -> list[Line]:
        """The lines that do not hold, overridden or not."""
        return [line for line in self.lines if not line.passed]

    @property
    def overridden(self) -> list[Line]:
        """The failed lines that the override lets pass."""
        return [line for line in self.failed if self.override is not None and not line.final]

    @property
    def passed(self) -> bool:
        """Whether the folder may be published."""
        return bool(self.lines) and len(self.overridden) == len(self.failed)

    def text(self) -> str:
        """For a terminal: passed lines short, failed ones with figure, limit and how to mend them, then the verdict."""
        width = max((len(line.name) for line in self.lines), default=0)
        parts = [f"ok      {line.name:{width}}  {line.figure}".rstrip() for line in self.lines if line.passed]
        for line in self.failed:
            word = "FORCED" if line in self.overridden else "FAILED"
            parts.append(f"{word}  {line.name}\n          found:   {line.figure}\n          allowed: {line.limit}")
            parts[-1] += f"\n          mend:    {line.remedy}" * bool(line.remedy)
        return scrub("\n".join([*parts, self._verdict()]))

    def as_dict(self) -> dict:
        """For the card: no remedies, which name folders of this machine, and no paths in the rest."""
        lines = [
            {"name": line.name, "passed": line.passed, "figure": line.figure, "limit": line.limit, "final": line.final}
            for line in self.lines
        ]
        told = {
            "passed": self.passed,
            "override": self.override if self.overridden else None,
            "overridden": [line.name for line in self.overridden],
            "lines": lines,
        }
        return _plain(told)

    def _verdict(self) -> str:
        count, failed = len(self.lines), len(self.failed)
        if not failed:
            unused = " The override was not needed, and is not recorded." * (self.override is not None)
            return f"\nGATE PASSED: {count} of {count} lines hold.{unused}"
        if self.passed:
            names = "; ".join(line.name for line in self.overridden)
            return (
                f"\n!!! GATE OVERRIDDEN: {failed} of {count} lines fail ({names}).\n"
                f"!!! Reason given: {self.override}\n!!! The card says so."
            )
        final = [line.name for line in self.failed if line.final]
        note = f" No override lifts: {', '.join(final)}." * bool(final)
        return f"\nGATE CLOSED: {failed} of {count} lines fail; nothing is published.{note}"


def _plain(value):
    if isinstance(value, str):
        return scrub(without_paths(value))
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return {key: _plain(one) for key, one in value.items()} if isinstance(value, dict) else value
