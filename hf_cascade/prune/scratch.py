"""Streams that wait for the way back: the inputs of every layer, in memory or, for a model that is not, on its disk."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


class LayerInputs:
    """
    A stack of streams.

    Args:
        folder (`Path`, *optional*): where they wait; unset, in memory.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.kept: list[list[Tensor]] = []
        self.count = 0

    def __len__(self) -> int:
        return self.count

    def _file(self) -> Path:
        return self.folder / f"inputs-{self.count:05}.safetensors"

    def push(self, stream: list[Tensor]) -> None:
        """
        Keep the batches of a stream.

        Raises:
            OSError: the disk is full.
        """
        if self.folder is None:
            self.kept.append(list(stream))
        else:
            tensors = {str(number): part.contiguous() for number, part in enumerate(stream)}
            try:
                save_file(tensors, self._file())
            except SafetensorError as error:  # the disk is full
                raise OSError(f"{self._file()} cannot be written: {error}") from error
        self.count += 1

    def pop(self) -> list[Tensor]:
        """Take back the stream that was kept last."""
        self.count -= 1
        if self.folder is None:
            return self.kept.pop()
        tensors = load_file(self._file())
        self._file().unlink()
        return [tensors[str(number)] for number in range(len(tensors))]
