"""`hf-cascade card`: files written whole, problems a line each and exit status 1, nothing written on bad input."""

import pytest

from hf_cascade.publish import page
from hf_cascade.publish.card_command import main
from tests.publish.card_folders import evals, line, task


def test_a_card_with_pictures_and_a_page(tmp_path, capsys):
    model = line(tmp_path / "runs", "base")
    (model / "README.md").write_text("---\ntags:\n- generated_from_trainer\n---\nTRL's card")
    evals(model, ["table2"], {"cascade_mmlu_redux": task(0.6), "cascade_math": task(0.5)})
    arguments = ["--model", str(model), "--license", "mit", "--repo_id", "org/small"]
    assert main([*arguments, "--page", str(tmp_path / "pages" / "card.html")]) == 0
    assert "a card of kind base, 0 problems" in capsys.readouterr().out
    text = (model / "README.md").read_text()
    assert text.startswith("---\nlicense: mit\n") and "\n# small\n" in text
    assert (model / "card" / "kl.png").is_file() and not list(model.glob(".*.partial"))
    shown = (tmp_path / "pages" / "card.html").read_text()
    assert 'src="../runs/small/card/kl.png"' in shown and "<details><summary>How it was measured" in shown


def test_a_readme_that_someone_wrote_is_not_lost(tmp_path):
    model = line(tmp_path / "runs", "base")
    for text in ("# What I found out", "---\nlicense: mit\n---\nMade with hf-cascade."):
        (model / "README.md").write_text(text)
        with pytest.raises(ValueError, match="written by hand and would be lost: give --output FILE"):
            main(["--model", str(model), "--license", "mit"])
        assert (model / "README.md").read_text() == text and not (model / "card").exists()
    assert main(["--model", str(model), "--license", "mit", "--output", str(tmp_path / "README.md")]) == 0


def test_problems_one_a_line(tmp_path, capsys):
    model = line(tmp_path / "runs", "base")
    output = tmp_path / "out" / "README.md"
    assert main(["--model", str(model), "--output", str(output)]) == 1
    told = capsys.readouterr()
    (line_,) = told.err.splitlines()
    assert line_.startswith(f"{output}: license: it is not known; give it with --license")
    assert output.is_file() and not (model / "README.md").exists()


def test_the_license_of_the_parents_card_is_named(tmp_path, capsys):
    model = line(tmp_path / "runs", "base")
    (tmp_path / "runs" / "parent" / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    assert main(["--model", str(model), "--output", str(tmp_path / "README.md")]) == 0
    assert "license cc-by-nc-4.0: from the card of parent" in capsys.readouterr().out


def test_an_unfinished_folder_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(FileNotFoundError, match="has not finished"):
        main(["--model", str(tmp_path), "--output", str(tmp_path / "out" / "README.md")])
    assert list(tmp_path.iterdir()) == []


def test_a_page_shows_foreign_html_as_text():
    shown = page.render(
        "---\nlicense: <b>x</b>\n---\n# <i>t</i>\n\n<script>1</script>\n\n<details><summary>s</summary>\n\n</details>"
    )
    assert "<script>" not in shown and "<i>" not in shown and "<b>x" not in shown
    assert "<details><summary>s</summary>" in shown
