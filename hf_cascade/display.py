"""What a person sees of a run: a live list of stages on a terminal, plain lines elsewhere, a summary at the end."""

import json
import time
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.markdown import Markdown
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hf_cascade import manifest

SECONDS_BETWEEN_LINES = 10.0  # where there is no terminal to redraw


def make_console() -> Console:
    """Standard output; wide enough for tables where no terminal limits it."""
    plain = {"highlight": False, "markup": False, "emoji": False}  # paths may hold [brackets] and :colons:
    console = Console(**plain)
    return console if console.is_terminal else Console(**plain, width=120)


def clock(seconds: float) -> str:
    """`2:05` or `1:02:05`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def last_event(path: Path) -> dict | None:
    """The newest progress event of a stage, `None` before the first. Lines that are not whole are passed over."""
    if not path.exists():
        return None
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").split("\n")
    for line in reversed(lines[:-1]):  # the last piece is empty, or a line still being written
        try:
            return json.loads(line)
        except json.JSONDecodeError:  # torn by a full disk, or cut where reading began
            continue
    return None


class Display:
    """
    Shows the stages of a run while they run.

    Args:
        console (`Console`): where to.
        names (`list[str]`): stages in order.
        states (`dict[str, str]`): `done` for those that will not run again.
    """

    def __init__(self, console: Console, names: list[str], states: dict[str, str]):
        self.console, self.names = console, names
        self.notes = {name: Text("done before", "green") for name in names if states.get(name) == "done"}
        self.running, self.started, self._last_line = None, 0.0, 0.0
        self._first: tuple[float, int] | None = None  # time and step of the stage's first event
        self.live = Live(console=console, refresh_per_second=4, transient=True) if console.is_interactive else None

    def __enter__(self):
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_):
        if self.live:
            self.live.stop()

    def start(self, name: str) -> None:
        """A stage begins."""
        self.running, self.started, self._last_line = name, time.monotonic(), time.monotonic()
        self._first = None
        if not self.live:
            self.console.print(f"{name}: started")
        self.update(None)

    def update(self, event: dict | None) -> None:
        """Show the newest event of the running stage."""
        if event and self._first is None:
            self._first = (time.monotonic(), event["step"])
        if self.live:
            self.live.update(self._picture(event))
        elif event and time.monotonic() - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = time.monotonic()
            self.console.print(f"{self.running}: {self._figures(event)}", markup=False, soft_wrap=True)

    def stopping(self) -> None:
        """The user asked to stop; the running stage is told."""
        if self.running is not None:
            self.console.print(f"{self.running}: stopping, once it has saved its work")

    def finish(self, name: str, event: dict | None) -> None:
        """A stage is done."""
        seconds = time.monotonic() - self.started
        loss = f", {event['label'] or 'loss'} {event['loss']:.3f}" if event and event.get("loss") is not None else ""
        self.notes[name] = Text(f"done in {clock(seconds)}{loss}", "green")
        self.running = None
        if not self.live:
            self.console.print(f"{name}: {self.notes[name]}")

    def _figures(self, event: dict) -> str:
        share = event["step"] / max(event["total"], 1)
        parts = [f"{share:4.0%}"]
        if event.get("loss") is not None:
            parts.append(f"{event['label'] or 'loss'} {event['loss']:.3f}")
        elif event.get("label"):
            parts.append(event["label"])
        if event.get("tokens_per_second"):
            parts.append(f"{event['tokens_per_second']:,.0f} tokens/s")
        since, step = self._first  # a resumed stage begins with steps it has not just made
        if event["step"] > step:
            per_step = (time.monotonic() - since) / (event["step"] - step)
            parts.append(f"{clock(per_step * (event['total'] - event['step']))} left")
        return "  ".join(parts)

    def _picture(self, event: dict | None) -> Group:
        grid = Table.grid(padding=(0, 2))
        for name in self.names:
            if name == self.running:
                share = event["step"] / max(event["total"], 1) if event else 0.0
                text = self._figures(event) if event else f"starting {clock(time.monotonic() - self.started)}"
                line = Table.grid(padding=(0, 1))
                line.add_row(ProgressBar(total=1.0, completed=share, width=24), Text(text))
                grid.add_row(Text(name, "bold"), line)
            else:
                grid.add_row(Text(name), self.notes.get(name, Text("waits", "dim")))
        return Group(grid)


def closing_summary(console: Console, output_dir: Path, names: list[str], seconds: float) -> None:
    """What was made and where it is; the report's table when the run made one."""
    reports = [output_dir / name / "report.md" for name in names if (output_dir / name / "report.md").is_file()]
    for report in reports:
        # the tables with figures; shapes, pictures and definitions stay in the file
        console.print(Markdown(report.read_text().partition("\n## Shapes")[0]))
    width = max(len(str(output_dir / name)) for name in names)
    for name in names:
        record = manifest.read(output_dir / name)
        output = record.get("output")
        size = f"{output['num_parameters']:,} parameters" if output else record["run"]
        took = clock(record["metrics"].get("seconds", 0.0))
        # no table: it would cut long paths short
        console.print(f"{output_dir / name!s:<{width}}  {size:<25}  {took:>7}", soft_wrap=True)
    console.print(f"{len(names)} stages finished; this command took {clock(seconds)}.")
