"""assets.py: the same names work from any directory; an existing path goes first; errors name what was tried."""

import pytest

from hf_cascade import assets


def test_root_is_the_checkout():
    assert (assets.root() / "recipes").is_dir()
    assert (assets.root() / "trainers").is_dir()


def test_finds_shipped_files_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert assets.find("recipes/tiny/data/README.md").read_text().startswith("# Text")


def test_a_path_that_exists_goes_before_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipes").mkdir()
    assert assets.find("recipes").resolve() == tmp_path / "recipes"
    assert assets.find(tmp_path / "recipes") == tmp_path / "recipes"


def test_names_both_places_tried(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        assets.find("recipes/nothing.yaml")
    assert str(tmp_path / "recipes/nothing.yaml") in str(error.value)
    assert str(assets.root() / "recipes/nothing.yaml") in str(error.value)


def test_installed_assets_go_before_the_checkout(tmp_path, monkeypatch):
    (tmp_path / "hf_cascade" / "_assets").mkdir(parents=True)
    monkeypatch.setattr(assets, "_PACKAGE", tmp_path / "hf_cascade")
    assert assets.root() == tmp_path / "hf_cascade" / "_assets"


def test_locate_tells_folders_from_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert assets.locate("recipes/tiny/data") == str(assets.root() / "recipes/tiny/data")
    assert assets.locate("mistralai/Mistral-Small-3.1-24B-Base-2503") == "mistralai/Mistral-Small-3.1-24B-Base-2503"
    for no_hub_id in ("recipes/typo", "a/b/c", "./model", "/model"):
        with pytest.raises(FileNotFoundError):
            assets.locate(no_hub_id)
