"""Rows and micro-batches without an image among others that have some, as TRL's online trainers meet them."""

from torch import Tensor


def list_images(rows: list[dict]) -> list[dict]:
    """Rows without an image have an empty list; with `None` the base asks the processor for images in a text batch."""
    if "images" in rows[0]:
        return [{**row, "images": row["images"] or []} for row in rows]
    if "image" in rows[0]:
        return [{**row, "images": [] if row["image"] is None else [row["image"]]} for row in rows]
    return rows


def drop_no_images(model, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """A forward hook: a micro-batch without images has none, rather than pixels of no image, on which models fail."""
    return args, {
        name: value for name, value in kwargs.items() if not (isinstance(value, Tensor) and not value.numel())
    }
