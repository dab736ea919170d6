"""`push_draft`: a finished stage to the Hub by `--push_to_hub`, in one commit, with the complete card, and no gate."""

import sys
from pathlib import Path

from huggingface_hub import HfApi

from hf_cascade import __version__, pushing

FAILED = 1


def push_draft(trainer, status: int) -> int:
    """
    What a training script does last. The card says that nothing was asked of the model; `hf-cascade publish` asks.

    Args:
        trainer (`AtomicPush`): its stage's folder is finished.
        status (`int`): of `stage.train`; unless 0, nothing is pushed.

    Returns:
        `int`: `status`, or 1 when the Hub did not take the model: the folder is finished all the same.
    """
    args = trainer.args
    if status != 0 or not args.push_to_hub or not trainer.is_world_process_zero():
        return status
    from hf_cascade.publish.family_file import Planned  # for those who push: it takes a second
    from hf_cascade.publish.prepare import everything
    from hf_cascade.secrets import scrub

    trainer._finish_current_push()
    folder, repo_id = Path(args.output_dir), trainer.hub_model_id
    try:
        _, card, files, _ = everything(Planned(folder, repo_id), None)
        if not files:
            raise ValueError(f"{folder} holds what is not published; `hf-cascade publish` names it")
        content = {file.path_in_repo: file.content if file.path is None else file.path for file in files}
        api = HfApi(library_name="hf-cascade", library_version=__version__, token=args.hub_token)
        pushing.commit(api, repo_id, content, "End of training", args.hub_revision)
    except (ValueError, OSError) as error:
        print(
            f"hf-cascade: {folder} is finished, and was not pushed: {scrub(str(error))}\nhf-cascade: when it is "
            f"evaluated: hf-cascade publish --model {folder} --repo_id {repo_id}",
            file=sys.stderr,
        )
        return FAILED
    (folder / pushing.CARD).write_text(card, encoding="utf-8")
    return status
