"""The folder a child grows in: beside its place, taken up again after a kill, moved there whole."""

import json
import os
import shutil
from pathlib import Path

from transformers import PreTrainedModel

from hf_cascade.prune.shards import ShardWriter
from hf_cascade.prune.state import FolderState

SETTINGS, SEARCH = "settings.json", "search.json"
SPARE_BYTES = 64 * 2**20  # for everything that is no weight; ours
SECONDS_VARIABLE = "HF_CASCADE_PRUNE_SAVE_SECONDS"  # between two savings of the streams; for tests


class Draft:
    """
    A child that is not finished.

    Args:
        target (`Path`): the folder it will be.
        identity (`dict`): what it is made of; a draft of anything else is thrown away.
    """

    def __init__(self, target: Path, identity: dict):
        self.target = target
        self.folder = target.with_name(f".{target.name}.partial")
        text = json.dumps(identity, sort_keys=True, default=str)
        settings = self.folder / SETTINGS
        self.is_resumed = settings.is_file() and settings.read_text() == text
        if not self.is_resumed:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            settings.write_text(text)
        seconds = os.environ.get(SECONDS_VARIABLE)
        self.state = FolderState(self.folder, None if seconds is None else float(seconds))

    @property
    def name(self) -> str:
        """Of the folder it will be."""
        return self.target.name

    def writer(self, child: PreTrainedModel, dtype_of, max_shard_size: str) -> ShardWriter:
        """
        Where the child's weights go.

        Raises:
            OSError: the disk has no room for them.
        """
        writer = ShardWriter(self.folder, child, dtype_of, max_shard_size)
        if not writer.is_created():
            self.state.remove()  # what was decided for weights that are not there
            writer.create()
        return writer

    def check_room(self, needed_bytes: int) -> None:
        """
        See to it that the disk has room for the whole work; what a draft that goes on already holds counts as room.

        Raises:
            OSError: it has not; a draft without work in it is gone.
        """
        held = sum(file.stat().st_size for file in self.folder.iterdir())
        free, needed = shutil.disk_usage(self.folder).free + held, needed_bytes + SPARE_BYTES
        if free < needed:
            if not self.is_resumed:
                self.discard()
            raise OSError(
                f"{self.target} and the work on it need {needed / 1e9:,.2f} GB and its disk has {free / 1e9:,.2f} GB "
                "free: make room, or name a folder elsewhere"
            )

    def discard(self) -> None:
        """Throw it away."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def publish(self) -> None:
        """Move it to its place: a folder that exists is complete."""
        self.state.remove()
        for name in (SETTINGS, SEARCH):
            (self.folder / name).unlink(missing_ok=True)
        if self.target.is_dir():
            self.target.rmdir()
        os.replace(self.folder, self.target)
