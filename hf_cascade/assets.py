"""Where the shipped scripts, recipes, tasks and cards are: beside the package in a checkout, inside it in a wheel."""

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def root() -> Path:
    """Folder that holds `trainers/`, `recipes/`, `evals/` and `hub_cards/`: `hf_cascade/_assets` in an installed wheel,
    the checkout otherwise."""
    installed = _PACKAGE / "_assets"
    return installed if installed.is_dir() else _PACKAGE.parent


def find(name: str | Path) -> Path:
    """
    Find a file or folder by its path in the project, from any working directory.

    Args:
        name (`str` or `Path`):
            A path that exists as given (relative to the working directory) wins; else one under [`root`], such as
            `recipes/tiny/parent`.

    Raises:
        FileNotFoundError: neither exists; the message names both places.
    """
    given = Path(name)
    shipped = root() / given  # an absolute `name` stays itself
    for place in (given, shipped):
        if place.exists():
            return place
    places = dict.fromkeys(map(str, (given.absolute(), shipped)))  # one, where it is absolute
    raise FileNotFoundError(f"{given} does not exist: looked at {' and '.join(places)}")


def locate(model: str) -> str:
    """
    A model, tokenizer or dataset as its user named it: the path of a folder found as by [`find`], else a Hub id.

    Raises:
        FileNotFoundError: it is no folder here and cannot be a Hub id (`ORG/NAME` or `NAME`).
    """
    try:
        return str(find(model))
    except FileNotFoundError:
        if model.startswith((".", "/", "~", "recipes/", "runs/")) or model.count("/") > 1:
            raise
        return model
