"""`AtomicPush`: `push_to_hub` of a trainer as one commit of allow-listed files, with a card of ours.

The base's own uploads the folder in several commits, `training_args.bin` among them, which is a pickle that holds the
token, and TRL's card has a licence key that the Hub does not know. A finished model is better released by
`hf-cascade publish`; what a trainer pushes is a draft, and its card says so.
"""

import fnmatch
import os
from pathlib import Path

import accelerate
import huggingface_hub
import torch
import transformers
import trl
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, ModelCardData
from transformers.trainer_utils import HubStrategy
from transformers.utils import PushInProgress, logging

from hf_cascade import __version__, file_contents
from hf_cascade.loading import COMPANIONS

logger = logging.get_logger(__name__)

CARD = "README.md"
RELEASE = "publish.json"  # what `hf-cascade publish` leaves in a repository
# What goes to the Hub. Nothing here can be a pickle, a program or a record of the machine.
ALLOWED = ("config.json", "*.safetensors", "*.safetensors.index.json", "adapter_config.json", "decision.json", CARD)
ALLOWED += COMPANIONS
# strategies that would upload optimizer and random states, which are pickles
REFUSED = (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS)


class AtomicPush:
    """
    Mixed into a [`~transformers.Trainer`] before its class: every push is one commit, and holds no pickle.

    Repositories that it creates are private unless `hub_private_repo=False` says otherwise: the model in them has not
    been evaluated.
    """

    _name = "Trainer"
    _paper: dict = {}
    _tag_names: list[str] = []

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """
        As the base, and private by default.

        Raises:
            ValueError: `hub_strategy` would upload the states of the optimizer and of random numbers.
        """
        if self.args.hub_strategy in REFUSED:
            raise ValueError(
                f"hub_strategy={self.args.hub_strategy.value} uploads checkpoints, whose optimizer and random states "
                "are pickles: set every_save (the model at each save) or end"
            )
        for wanted in (private, self.args.hub_private_repo, True):
            if wanted is not None:
                return super().init_hf_repo(token=token, private=wanted)

    def create_model_card(
        self,
        model_name: str | None = None,
        dataset_name: str | None = None,
        tags: str | list[str] | None = None,
    ) -> None:
        """
        Write `README.md` into the output folder: what the model is made from and with, and that it is not evaluated.

        Args:
            model_name (`str`, *optional*): the heading; unset, the folder's name.
            dataset_name (`str`, *optional*): Hub id of the data.
            tags (`str` or `list[str]`, *optional*): beside the trainer's own.
        """
        if not self.is_world_process_zero():
            return
        folder = Path(self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        tags = [tags] if isinstance(tags, str) else list(tags or [])
        card = draft_card(self, model_name or folder.absolute().name, dataset_name, tags)
        (folder / CARD).write_text(card, encoding="utf-8")

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs,
    ):
        """As the base, in one commit of the model, its tokenizer and its card; `kwargs` are the card's."""
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = self.args.hub_token if token is None else token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)  # on all processes: a sharded model is gathered
        if not self.is_world_process_zero():
            return None
        name = kwargs.pop("model_name", None) or (self.args.hub_model_id or self.args.output_dir).split("/")[-1]
        self.create_model_card(model_name=name, **kwargs)
        self._finish_current_push()
        revision = self.args.hub_revision if revision is None else revision
        api = HfApi(library_name="hf-cascade", library_version=__version__, token=token)
        work = (commit_folder, api, self.hub_model_id, Path(self.args.output_dir), None, commit_message, revision)
        return work[0](*work[1:]) if blocking else api.run_as_future(*work)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push the model of a checkpoint while training goes on; the push before is waited for."""
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        self._finish_current_push()  # its checkpoint may be deleted next
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        message = f"Training in progress, step {self.state.global_step}"
        card = (Path(self.args.output_dir) / CARD).read_bytes()
        api = HfApi(library_name="hf-cascade", library_version=__version__, token=self.args.hub_token)
        revision = self.args.hub_revision
        job = api.run_as_future(commit_folder, api, self.hub_model_id, Path(checkpoint_folder), card, message, revision)
        job.add_done_callback(_warn_of_failure)
        self.push_in_progress = PushInProgress([job])


def _warn_of_failure(job) -> None:
    """A push that fails leaves the Hub as it was, and must not end hours of training."""
    if not job.cancelled() and job.exception() is not None:
        logger.warning(f"the model was not pushed, the repository is as it was: {job.exception()}")


def commit_folder(api: HfApi, repo_id: str, folder: Path, card: bytes | None, message: str, revision: str | None):
    """
    Make a repository hold the model of `folder`, as [`commit`] does.

    Args:
        folder (`Path`): files that `ALLOWED` names are uploaded, the others are not.
        card (`bytes`, *optional*): instead of the folder's own.

    Raises:
        ValueError: what [`check_files`] finds in the folder.
    """
    files: dict[str, Path | bytes] = {path.name: path for path in sorted(folder.iterdir()) if is_allowed(path.name)}
    check_files(folder, files)
    if card is not None:
        files[CARD] = card
    return commit(api, repo_id, files, message, revision)


def commit(api: HfApi, repo_id: str, files: dict[str, Path | bytes], message: str, revision: str | None):
    """
    Put files into a repository in one commit on the state that it has now; the model of an earlier push goes.

    Args:
        api (`HfApi`): where to, and as whom.
        repo_id (`str`): the repository; it exists.
        files (`dict`): path in the repository to file or content.
        message (`str`): of the commit.
        revision (`str`, *optional*): branch; unset, main.

    Returns:
        `CommitInfo`: what the Hub answers.

    Raises:
        ValueError: the repository holds a release, which a draft must not replace.
    """
    state = api.repo_info(repo_id, revision=revision)
    names = [found.rfilename for found in state.siblings]
    if RELEASE in names:
        raise ValueError(
            f"{repo_id} holds a model that `hf-cascade publish` released ({RELEASE}), and a trainer's push is a draft: "
            "give another hub_model_id, or publish the new model"
        )
    stale = [name for name in names if is_allowed(name) and name not in files]  # shards of a larger model, for one
    operations = [
        CommitOperationAdd(name, part if isinstance(part, bytes) else str(part)) for name, part in files.items()
    ]
    operations += [CommitOperationDelete(name) for name in stale]
    return api.create_commit(repo_id, operations, commit_message=message, revision=revision, parent_commit=state.sha)


def is_allowed(name: str) -> bool:
    """Whether a file at a folder's top goes to the Hub."""
    return "/" not in name and any(fnmatch.fnmatchcase(name, pattern) for pattern in ALLOWED)


def check_files(folder: Path, files: dict[str, Path]) -> None:
    """
    Raise `ValueError` for a folder that is no model, or not safe to open for those who download it: a link, a pickle by
    another name, a config that asks for code, a token in a text.
    """
    if not any(name.endswith(".safetensors") for name in files):
        raise ValueError(f"{folder} holds no *.safetensors, and nothing else is uploaded as weights")
    links = [name for name, path in files.items() if path.is_symlink() or not path.is_file()]
    if links:
        raise ValueError(f"{folder}: {', '.join(links)} is no file of its own: replace links by what they lead to")
    texts = {name: path for name, path in files.items() if not name.endswith(".safetensors")}
    if problems := [line for name, path in texts.items() for line in file_contents.faults(path, name)]:
        raise ValueError(f"{folder}: nothing was pushed: " + "; ".join(problems))


def draft_card(trainer, name: str, dataset_name: str | None, tags: list[str]) -> str:
    """The text of a trainer's card: front matter that the Hub knows, what was done, and what was not."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    is_adapter = hasattr(model, "peft_config")
    source = getattr(model.config, "_name_or_path", "") or ""
    base = source if source and not os.path.isdir(source) and not os.path.isabs(source) else None
    data = ModelCardData(
        library_name="peft" if is_adapter else "transformers",
        license=known_license(source),
        base_model=base,
        base_model_relation=base and ("adapter" if is_adapter else "finetune"),
        datasets=dataset_name,
        tags=list(dict.fromkeys([*trainer._tag_names, *tags])),
    )
    paper = trainer._paper and f", of [{trainer._paper['title']}](https://huggingface.co/papers/{trainer._paper['id']})"
    state, versions = trainer.state, {"hf-cascade": __version__, "TRL": trl.__version__}
    versions |= {"Transformers": transformers.__version__, "PyTorch": torch.__version__}
    versions |= {"Accelerate": accelerate.__version__, "huggingface_hub": huggingface_hub.__version__}
    shown = f"[{base}](https://huggingface.co/{base})" if base else Path(source).name or "a model in memory"
    lines = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {name}\n",
        "A draft: what a trainer left, after "
        f"{state.global_step:,} of {state.max_steps:,} steps. **It has not been evaluated.**\n",
        f"- made from: {shown}",
        f"- trained with: {trainer._name} (`{type(trainer).__name__}`){paper or ''}",
        *([f"- data: [{dataset_name}](https://huggingface.co/datasets/{dataset_name})"] if dataset_name else []),
        f"- versions: {', '.join(f'{package} {version}' for package, version in versions.items())}\n",
        "`hf-cascade evaluate` measures such a model, and `hf-cascade publish` releases it with its figures, lineage "
        "and data.",
    ]
    return "\n".join(lines) + "\n"


def known_license(source: str) -> str | None:
    """The licence on the card of the model that was trained: beside it, or in the Hub's cache. Nothing is fetched."""
    if not source:
        return None
    if os.path.isdir(source):
        card = os.path.join(source, CARD)
    else:
        card = huggingface_hub.try_to_load_from_cache(source, CARD)
    if not isinstance(card, str) or not os.path.isfile(card):
        return None
    found = ModelCard(Path(card).read_text(encoding="utf-8"), ignore_metadata_errors=True).data.license
    return found if isinstance(found, str) else None
