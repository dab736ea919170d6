"""`hf-cascade publish` against a Hub on this machine: the decision first, then whole models; a family at once."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_cascade import assets, cli, fields
from hf_cascade.publish import command, family_file, gate, targets
from hf_cascade.publish.config import PublishArguments
from tests.publish import finished
from tests.publish.hub import TOKEN

DEMO = Path(__file__).parents[2] / "runs" / "tiny"
NAMES = ("14b", "8b", "3b")
HELD_OUT = {"perplexity": 40.0, "bits_per_byte": 1.9, "tokens": 1000, "max_length": 32, "kl": 0.1, "nll": 3.7}
HELD_OUT |= {"top1_agreement": 0.8}
FORGIVING = {"suites": ["tiny"], "contamination": False, "retention": {"perplexity": 0.5}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folders of three finished and evaluated models, a family file, and targets that they reach."""
    root = tmp_path_factory.mktemp("family")
    for seed, name in enumerate(NAMES):
        folder = finished.model_folder(root / "run" / name)
        if seed:  # other weights
            model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
            model.lm_head.weight.data += seed
            model.save_pretrained(folder)
        finished.record(folder, heldout=HELD_OUT)
    (root / "targets.yaml").write_text(yaml.safe_dump(FORGIVING))
    models = [{"model": name, "repo_id": f"tiny-{name}"} for name in NAMES]
    models[1]["base_model"] = "14b"
    told = {"collection": "Tiny", "targets": str(root / "targets.yaml"), "license": "apache-2.0", "models": models}
    (root / "family.yaml").write_text(yaml.safe_dump(told | {"kind": "base", "language": ["en"]}))
    return root


@pytest.fixture
def root(made, tmp_path):
    """A copy to change."""
    shutil.copytree(made, tmp_path / "work")
    text = (tmp_path / "work" / "family.yaml").read_text().replace(str(made), str(tmp_path / "work"))
    (tmp_path / "work" / "family.yaml").write_text(text)
    return tmp_path / "work"


@pytest.fixture
def offline(monkeypatch):
    """Every connection is an error."""
    import socket

    def refuse(*_, **__):
        raise AssertionError("a connection was made")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def one(root, *more: str) -> list[str]:
    """The words for one model."""
    words = ["publish", "--model", str(root / "run" / "14b"), "--repo_id", "org/tiny-14b", "--license", "apache-2.0"]
    return [*words, "--targets", str(root / "targets.yaml"), *more]


def whole(root, *more: str) -> list[str]:
    """The words for the family."""
    words = ["publish", "--family", str(root / "family.yaml"), "--run_dir", str(root / "run"), "--namespace", "org"]
    return [*words, *more]


def fail_gate(root, name: str = "14b") -> None:
    """Another model than the one that was evaluated."""
    config = root / "run" / name / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))


def test_a_dry_run_shows_everything_and_connects_to_nothing(root, offline, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    assert cli.main(one(root, "--dry_run")) == 0
    said = capsys.readouterr().out
    assert "GATE PASSED" in said and "nothing was sent" in said
    size = (root / "run" / "14b" / "model.safetensors").stat().st_size
    assert f"{size:,}" in said and "publish.json" in said and "# tiny-14b" in said
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_a_closed_gate_ends_with_1_before_any_connection(root, offline, capsys):
    fail_gate(root)
    assert cli.main(one(root)) == 1
    said = capsys.readouterr()
    assert "FAILED  evaluation is of these weights" in said.out and "mend:" in said.out
    assert "org/tiny-14b cannot be published" in said.err
    assert cli.main(one(root, "--dry_run")) == 1
    said = capsys.readouterr().out
    assert "GATE CLOSED" in said and "model.safetensors" in said and "# tiny-14b" in said


def test_one_closed_gate_keeps_the_whole_family_here(root, offline, capsys):
    fail_gate(root, "3b")
    assert cli.main(whole(root)) == 1
    assert "org/tiny-3b cannot be published" in capsys.readouterr().err


def test_a_family_goes_to_the_hub_with_one_command(root, hub, capsys):
    assert cli.main(whole(root, "--tag", "v1.0")) == 0
    said = capsys.readouterr()
    for name in NAMES:
        repo = hub.repo(f"org/tiny-{name}")
        files = repo.files()
        folder = root / "run" / name
        assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
        assert set(repo.tags) == {"v1.0"} and repo.private
        card = ModelCard(files["README.md"].decode())
        assert card.data.license == "apache-2.0" and card.data.language == ["en"]
        assert json.loads(files["publish.json"])["gate"]["passed"] is True
        assert not [path for path in files if path.endswith((".bin", ".py", ".pkl"))]
        assert f"{hub.url}/org/tiny-{name}" in said.out
    assert ModelCard(hub.repo("org/tiny-8b").files()["README.md"].decode()).data.base_model == ["org/tiny-14b"]
    (shelf,) = hub.collections.values()
    assert shelf.title == "Tiny" and shelf.private
    assert not hub.leaks and TOKEN not in said.out + said.err

    state = {name: hub.repo(f"org/tiny-{name}").files() for name in NAMES}
    commits = len(hub.asked("POST", "/commit/"))
    assert commits == len(NAMES)
    assert cli.main(whole(root, "--tag", "v1.0")) == 0  # nothing is made twice
    assert {name: hub.repo(f"org/tiny-{name}").files() for name in NAMES} == state
    assert len(hub.asked("POST", "/commit/")) == commits


def test_the_published_model_opens_from_the_hub(root, hub, tmp_path):
    assert cli.main(one(root)) == 0
    model = AutoModelForCausalLM.from_pretrained("org/tiny-14b", trust_remote_code=False)
    tokenizer = AutoTokenizer.from_pretrained("org/tiny-14b", trust_remote_code=False)
    here = AutoModelForCausalLM.from_pretrained(root / "run" / "14b", trust_remote_code=False)
    ids = tokenizer("abc abc", return_tensors="pt").input_ids
    assert torch.equal(model(ids).logits, here(ids).logits)


def test_an_override_is_loud_and_on_the_card(root, hub, capsys):
    (root / "targets.yaml").write_text(yaml.safe_dump(FORGIVING | {"retention": 0.99}))
    assert cli.main(one(root)) == 1
    assert not hub.repos
    assert cli.main(one(root, "--override", "a try with few tokens")) == 0
    assert "!!! GATE OVERRIDDEN" in capsys.readouterr().out
    files = hub.repo("org/tiny-14b").files()
    assert "a try with few tokens" in files["README.md"].decode()
    assert json.loads(files["publish.json"])["gate"]["override"] == "a try with few tokens"


def test_no_override_publishes_what_is_not_safe(root, offline, capsys):
    (root / "run" / "14b" / "training_args.bin").write_bytes(b"\x80\x04.")
    assert cli.main(one(root, "--override", "please")) == 1
    assert "training_args.bin" in capsys.readouterr().out


@pytest.mark.parametrize("fault", [503, 403, "drop before"])
def test_a_fault_leaves_old_or_new_and_the_same_command_completes_it(root, hub, fault, capsys):
    hub.fail("POST", "/merge", fault, times=None)
    assert cli.main(one(root)) == 75
    said = capsys.readouterr().err
    assert "hf-cascade: stopped: org/tiny-14b: merging failed" in said and "he same command goes on" in said
    assert TOKEN not in said
    main = hub.repo("org/tiny-14b").files()
    assert list(main) == [".gitattributes"] or "publish.json" in main
    hub.mend()
    assert cli.main(one(root)) == 0
    assert "publish.json" in hub.repo("org/tiny-14b").files()


def test_public_and_gated_only_when_told(root, hub):
    assert cli.main(one(root)) == 0
    assert hub.repo("org/tiny-14b").private
    assert cli.main(one(root, "--private", "false", "--gated", "manual")) == 0
    repo = hub.repo("org/tiny-14b")
    assert not repo.private and repo.gated == "manual"
    assert cli.main(one(root)) == 0  # a republished model is not hidden
    assert not hub.repo("org/tiny-14b").private


def test_who_is_not_logged_in_is_told_how(root, offline, monkeypatch, capsys):
    monkeypatch.setattr(command, "get_token", lambda: None)
    assert cli.main(one(root)) == 2
    assert "hf auth login" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words, said",
    [
        (["--model", "x"], "repo_id not given"),
        (["--model", "missing/x", "--repo_id", "org/x"], "missing/x"),
        (["--model", ".", "--repo_id", "x"], "give ORG/NAME"),
        (["--model", ".", "--repo_id", "a/b/c"], "give ORG/NAME"),
        (["--family", "f.yaml", "--model", "x"], "leave out --model"),
        (["--model", "x", "--repo_id", "a/b", "--run_dir", "r"], "give --family too"),
        (["--model", "x", "--repo_id", "a/b", "--override", " "], "give the reason"),
        (["--model", ".", "--repo_id", "org/x", "--base_model", "y"], "base_model=y: give a Hub id"),
        (["--model", ".", "--repo_id", "org/x", "--targets", "gone.yaml"], "gone.yaml"),
    ],
)
def test_bad_input(words, said, offline, capsys):
    assert cli.main(["publish", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, said",
    [
        ({"titel": "x"}, "titel: unknown key"),
        ({"privat": False}, "privat: unknown key; did you mean private?"),
        ({"private": "no"}, "private: 'no' is str"),
        ({"models": []}, "models: must be a list"),
        ({"models": [{"model": "14b"}]}, r"models\[0\]: must be a mapping with at least model and repo_id"),
        (
            {"models": [{"model": "14b", "repo_id": "a", "knd": "base"}]},
            r"models\[0\].knd: unknown key; did you mean kind",
        ),
        (
            {"models": [{"model": "14b", "repo_id": "a", "kind": "chat"}]},
            r"models\[0\].kind: 'chat' is not one of base",
        ),
        ({"models": [{"model": "14b", "repo_id": "a"}, {"model": "8b", "repo_id": "a"}]}, "more than one model"),
        ({"models": [{"model": "99b", "repo_id": "a"}]}, "run the recipe first"),
        ({"hub_token": "hf_" + "x" * 30}, "hub_token: unknown key"),
    ],
)
def test_a_family_file_is_checked_whole(root, change, said):
    told = yaml.safe_load((root / "family.yaml").read_text()) | change
    (root / "family.yaml").write_text(yaml.safe_dump(told))
    arguments = PublishArguments(family=str(root / "family.yaml"), run_dir=str(root / "run"), namespace="org")
    with pytest.raises(ValueError if "99b" not in str(change) else FileNotFoundError, match=said) as error:
        family_file.read(arguments)
    assert "hf_" not in str(error.value)


def test_a_model_s_key_goes_before_the_flag_and_that_before_the_file_s(root):
    told = yaml.safe_load((root / "family.yaml").read_text())
    told["models"][0]["license"] = "mit"
    (root / "family.yaml").write_text(yaml.safe_dump(told))
    words = {"family": str(root / "family.yaml"), "run_dir": str(root / "run"), "namespace": "org"}
    planned, terms = family_file.read(PublishArguments(**words, license="cc-by-4.0", tag="v2", private=False))
    assert [entry.license for entry in planned] == ["mit", "cc-by-4.0", "cc-by-4.0"]
    assert (terms.tag, terms.private, terms.collection) == ("v2", False, "Tiny")


@pytest.mark.parametrize("name, count", [("tiny", 3), ("ministral3", 9)])
def test_shipped_family_files_name_the_last_stages_of_their_recipes(name, count, tmp_path, monkeypatch):
    file = assets.find(f"recipes/{name}/publish.yaml").resolve()
    content = yaml.safe_load(file.read_text())
    monkeypatch.chdir(tmp_path)
    for model in content["models"]:
        stage = Path(model["model"]).name
        recipe = {"runs/instruct": "instruct", "runs/reasoning": "reasoning"}.get(str(Path(model["model"]).parent))
        stages = yaml.safe_load((file.parent / f"{recipe or 'cascade'}.yaml").read_text())
        assert stages[stage]["run"] in ("distill", "odpo")
        folder = Path(model["model"]) if "/" in model["model"] else Path("runs", name, stage)
        folder.mkdir(parents=True)
    planned, terms = family_file.read(PublishArguments(family=f"recipes/{name}/publish.yaml", namespace="org"))
    assert len(planned) == count and terms.private is None and len(terms.collection) < 60
    assert all(targets.load(one.targets).suites for one in planned)
    others = [one.repo_id for one in planned]
    assert [one.base_model for one in planned[:3]] == [None, others[0], others[1]]


def test_every_flag_is_described():
    flags = fields.class_fields("hf_cascade.publish.config", "PublishArguments")
    assert len(flags) <= 20 and set(family_file.OF_A_MODEL + family_file.OF_ALL) <= set(flags)
    assert not [name for name in flags if f"{name} (`" not in PublishArguments.__doc__]


@pytest.mark.slow
@pytest.mark.skipif(not (DEMO / "3b" / "evals.json").is_file(), reason="needs the folders of `make demo`")
def test_the_demo_s_family_goes_to_a_hub_with_one_command(hub, tmp_path):
    shutil.copytree(DEMO, tmp_path / "tiny")
    words = ["publish", "--family", "recipes/tiny/publish.yaml", "--run_dir", str(tmp_path / "tiny")]
    assert cli.main([*words, "--namespace", "org"]) == 0
    for name in NAMES:
        repo_id = f"org/hf-cascade-tiny-{name}"
        there = AutoModelForCausalLM.from_pretrained(repo_id, trust_remote_code=False).state_dict()
        here = AutoModelForCausalLM.from_pretrained(tmp_path / "tiny" / name, trust_remote_code=False).state_dict()
        assert there and all(torch.equal(there[key], here[key]) for key in here)
        assert "# hf-cascade-tiny" in hub.repo(repo_id).files()["README.md"].decode()


def test_the_readme_s_gate_is_the_gate():
    """Every line that the gate can say is in the table, and no other."""
    readme = (Path(gate.__file__).parent / "README.md").read_text()
    table = readme.partition("| line | asks |")[2].partition("\n\n")[0]
    told = re.findall(r"^\| ([a-z][^|:]*?)(?: \||:)", table, re.MULTILINE)
    sources = "".join(path.read_text() for path in Path(gate.__file__).parent.glob("gate*.py"))
    assert len(told) > 10
    for name in told:
        assert f'"{name}' in sources or name == "each row", name
    said = set(re.findall(r'(?:Line\(|_at_most\(|_at_least\(|name, limit = |name, path = )"([a-z][\w -]+)"', sources))
    assert said - {"evaluation can be read", "rows have a target"} <= set(told), said - set(told)


def test_help_names_every_flag(capsys):
    assert cli.main(["publish", "--help"]) == 0
    said = capsys.readouterr().out
    assert not [
        name for name in fields.class_fields("hf_cascade.publish.config", "PublishArguments") if name not in said
    ]
