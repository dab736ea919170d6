"""What trainers put on the Hub: one commit, no pickle, no token, a card of ours; for every trainer class."""

import inspect
import json

import pytest
from datasets import Dataset
from huggingface_hub import HfApi, ModelCard
from peft import LoraConfig
from transformers.utils import hub as transformers_hub
from trl import GRPOTrainer, SFTTrainer

from hf_cascade import pushing
from hf_cascade.grpo.config import CascadeGRPOConfig
from hf_cascade.grpo.trainer import CascadeGRPOTrainer
from hf_cascade.odpo.config import CascadeODPOConfig
from hf_cascade.odpo.trainer import CascadeODPOTrainer
from hf_cascade.pushing import AtomicPush
from hf_cascade.rewards.trainer import CascadePairwiseTrainer
from tests.distill import setting
from tests.online.scene import maker, policy  # noqa: F401, a fixture
from tests.publish.conftest import hub  # noqa: F401, a fixture
from tests.publish.hub import TOKEN
from tests.rewards import scene as rewards

REPO = "org/draft"
CLASSES = ["sft", "distillation", "pairwise", "odpo", "grpo"]
TRL_TEXT = ("licence", "Quick start", "generated_from_trainer", "vonwerra", "If you had a time machine")


@pytest.fixture
def make(policy, tmp_path, hub, monkeypatch):  # noqa: F811
    """Builds a trainer of each class, in a folder of its own."""
    monkeypatch.setattr(transformers_hub, "_hf_api", None)  # it remembers the first endpoint
    folder = tmp_path / "out"

    def build(kind: str, **settings):
        settings = {"hub_model_id": REPO, "hub_token": TOKEN, "max_steps": 1, **settings}
        if kind == "sft":
            return setting.sft(folder, **settings)
        if kind == "distillation":
            return setting.distiller(folder, **settings)
        if kind == "pairwise":
            pairs = {"prompt": ["a b", "c d"], "chosen": ["yes", "no"], "rejected": ["no", "yes"]}
            args = pushing_sft_config(folder, settings)
            kit = rewards.tokenizer()
            return CascadePairwiseTrainer(rewards.model(), args, Dataset.from_dict(pairs), processing_class=kit)
        online = {"odpo": (CascadeODPOTrainer, CascadeODPOConfig), "grpo": (CascadeGRPOTrainer, CascadeGRPOConfig)}
        rows = {"per_device_train_batch_size": 4, "num_generations": 2}
        return maker(*online[kind], policy, folder, **rows)(**settings)

    return build


def pushing_sft_config(folder, settings):
    """TRL's own, since the pairwise trainer takes any."""
    from trl import SFTConfig

    return SFTConfig(output_dir=str(folder), **{**setting.COMMON, "max_length": 300, **settings})


def check_state(repo) -> str:
    """What must hold for everything a trainer leaves on the Hub; returns the card."""
    files = repo.files()
    names = [name for name in files if name != ".gitattributes"]
    assert names and all(pushing.is_allowed(name) for name in names), names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".py"))]
    assert "model.safetensors" in names and "tokenizer_config.json" in names
    assert not [name for name, content in files.items() if TOKEN.encode() in content]
    text = files["README.md"].decode()
    assert not [words for words in TRL_TEXT if words in text]
    card = ModelCard(text)
    assert card.data.library_name == "transformers" and "hf-cascade" in card.data.tags
    assert "not been evaluated" in text
    return text


@pytest.mark.parametrize("kind", CLASSES)
def test_a_push_is_one_commit_without_pickles_and_with_our_card(make, hub, kind, tmp_path):  # noqa: F811
    trainer = make(kind)
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    trainer.push_to_hub()
    assert (tmp_path / "out" / "training_args.bin").exists()  # transformers writes it; it stays here
    assert len(hub.asked("POST", f"/api/models/{REPO}/commit/")) == 1
    text = check_state(hub.repo(REPO))
    assert "notes.txt" not in hub.repo(REPO).files()
    assert hub.repo(REPO).private and not hub.leaks
    assert str(tmp_path) not in text and type(trainer).__name__ in text


@pytest.mark.parametrize("kind", ["sft", "grpo"])
def test_saves_in_training_are_pushed_one_commit_each(make, hub, kind):  # noqa: F811
    settings = {"push_to_hub": True, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 1}
    trainer = make(kind, **settings, max_steps=3)
    trainer.train()
    trainer._finish_current_push()
    commits = hub.asked("POST", f"/api/models/{REPO}/commit/")
    assert len(commits) == 3
    assert "3 of 3 steps" in check_state(hub.repo(REPO))


def test_a_failed_push_in_training_ends_nothing(make, hub, capfd):  # noqa: F811
    hub.fail("POST", "/commit/", 500, times=None)
    trainer = make("sft", push_to_hub=True, save_strategy="steps", save_steps=1, max_steps=2)
    assert trainer.train().global_step == 2
    assert list(hub.repo(REPO).files()) == [".gitattributes"]


def test_a_failed_push_leaves_the_old_state(make, hub):  # noqa: F811
    trainer = make("sft")
    trainer.push_to_hub()
    before = hub.repo(REPO).files()
    trainer.model.lm_head.weight.data += 1
    hub.fail("POST", "/commit/", 403, times=None)
    with pytest.raises(OSError):
        trainer.push_to_hub()
    assert hub.repo(REPO).files() == before


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_checkpoints_are_not_uploaded(make, hub, strategy):  # noqa: F811
    with pytest.raises(ValueError, match="pickles.*every_save"):
        make("sft", push_to_hub=True, hub_strategy=strategy)
    assert not hub.repos


def test_a_repository_is_public_only_when_told(make, hub):  # noqa: F811
    make("sft", hub_private_repo=False).push_to_hub()
    assert not hub.repo(REPO).private


def test_shards_of_an_earlier_push_go(make, hub):  # noqa: F811
    trainer = make("sft")
    trainer.push_to_hub()
    trainer.args.output_dir += "-sharded"
    save = trainer.model.save_pretrained
    trainer.model.save_pretrained = lambda folder, **rest: save(folder, max_shard_size="4KB", **rest)
    trainer.push_to_hub()
    names = list(hub.repo(REPO).files())
    assert "model.safetensors.index.json" in names and "model.safetensors" not in names


def test_code_and_links_are_refused(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_text(json.dumps({"auto_map": {"AutoModel": "mine.Model"}}))
    files = {path.name: path for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="config.json has the key auto_map: code from a checkpoint"):
        pushing.check_files(tmp_path, files)
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"auto_map": {"AutoModel": "mine.Model"}}}))
    with pytest.raises(ValueError, match="config.json has the key auto_map"):  # a library reads it there too
        pushing.check_files(tmp_path, files)
    large = {"auto_map": {"AutoTokenizer": ["mine.Tokenizer", None]}, "added_tokens_decoder": {"0": "x" * 2**21}}
    (tmp_path / "config.json").write_text(json.dumps(large))
    with pytest.raises(ValueError, match="config.json has the key auto_map"):
        pushing.check_files(tmp_path, files)
    (tmp_path / "config.json").write_text(json.dumps({"note": "hf_" + "x" * 30}))
    with pytest.raises(ValueError, match="looks like a token .Hugging Face token.") as raised:
        pushing.check_files(tmp_path, files)
    assert "xxx" not in str(raised.value)
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match="config.json is no file of its own"):
        pushing.check_files(tmp_path, files)


def test_the_card_names_its_base_and_licence(make, tmp_path, monkeypatch):
    trainer = make("sft")
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    trainer.model.config._name_or_path = str(base)
    trainer.create_model_card("child", dataset_name="org/rows", tags="mine")
    text = (tmp_path / "out" / "README.md").read_text()
    data = ModelCard(text).data
    assert data.license == "mit" and data.base_model is None and str(tmp_path) not in text
    assert data.datasets == "org/rows" and "mine" in data.tags
    trainer.model.config._name_or_path = "org/parent"
    trainer.create_model_card("child")
    data = ModelCard((tmp_path / "out" / "README.md").read_text()).data
    assert (data.base_model, data.base_model_relation, data.license) == ("org/parent", "finetune", None)


@pytest.mark.parametrize("name", ["create_model_card", "push_to_hub", "_push_from_checkpoint", "init_hf_repo"])
def test_overridden_methods_keep_the_base_s_parameters(name):
    mine = inspect.signature(getattr(AtomicPush, name)).parameters
    for base in (SFTTrainer, GRPOTrainer):
        assert list(mine) == list(inspect.signature(getattr(base, name)).parameters)


def test_a_release_is_not_replaced_by_a_draft(make, hub):  # noqa: F811
    trainer = make("sft")
    trainer.push_to_hub()
    state = hub.repo(REPO)
    HfApi(endpoint=hub.url, token=TOKEN).upload_file(path_or_fileobj=b"{}", path_in_repo="publish.json", repo_id=REPO)
    before = state.files()
    with pytest.raises(ValueError, match="holds a model that `hf-cascade publish` released"):
        trainer.push_to_hub()
    assert hub.repo(REPO).files() == before


def test_an_adapter_is_pushed_as_one(make, hub, tmp_path):  # noqa: F811
    adapter = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    settings = {"hub_model_id": REPO, "hub_token": TOKEN, "max_steps": 1}
    trainer = setting.distiller(tmp_path / "out", trainer={"peft_config": adapter}, **settings)
    trainer.push_to_hub()
    files = hub.repo(REPO).files()
    assert {"adapter_config.json", "adapter_model.safetensors", "README.md"} <= set(files)
    assert "training_args.bin" not in files
    text = files["README.md"].decode()
    assert ModelCard(text).data.library_name == "peft" and "not been evaluated" in text
