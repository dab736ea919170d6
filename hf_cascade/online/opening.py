"""What the scripts of online training open before their trainer, and complete behind it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trl import DatasetMixtureConfig, ModelConfig
from trl.data_utils import is_conversational

from hf_cascade.data.chat import holds_chat, prepare_chat
from hf_cascade.data.prompts import load_prompts
from hf_cascade.distill.merging import complete_folder, open_adapter
from hf_cascade.loading import load_config, load_model, open_processing
from hf_cascade.online.settings import OnlineConfig
from hf_cascade.online.trainer import check_prompts, check_rewards
from hf_cascade.rewards.verifiable import load_function


class Opening:
    """
    Prompts, `train` and `held_out`, and a policy of which all but the weights is open: `kit` is its tokenizer or
    processor.

    Args:
        training_args (`OnlineConfig`): the trainer's settings.
        script_args: with `tools` and `chat_template_path`.
        model_args (`ModelConfig`): the policy, and an adapter.
        mixture (`DatasetMixtureConfig`): TRL's `datasets:` block.
        prompts_from (`str`, *optional*): a folder of prompts instead.

    Raises:
        ValueError, FileNotFoundError: something is missing, or does not fit together.
    """

    def __init__(
        self,
        training_args: OnlineConfig,
        script_args,
        model_args: ModelConfig,
        mixture: DatasetMixtureConfig,
        prompts_from: str | None = None,
    ):
        self.policy, template = model_args.model_name_or_path, script_args.chat_template_path
        if self.policy is None:
            raise ValueError("give model_name_or_path (the policy)")
        self.tools = [load_function(name, "tool") for name in script_args.tools or []] or None
        self.train, self.held_out = (load_prompts(mixture, part, prompts_from) for part in ("train", "test"))
        if training_args.eval_strategy != "no" and self.held_out is None:
            strategy = training_args.eval_strategy.value
            raise ValueError(f"eval_strategy={strategy} needs held-out rows: set test_split_size")
        self.config = load_config(self.policy)
        self.kit = open_processing(self.policy, self.train)
        if is_conversational(next(iter(self.train))):
            prepare_chat(self.kit, template)
        elif template is not None:
            raise ValueError(
                f"chat_template_path={template} and prompts of text, to which no template is applied: leave it out, or "
                'give prompts of messages: [{"role": "user", "content": ...}]'
            )
        check_prompts(self.train, training_args, self.tools)
        self.adapter = open_adapter(model_args, self.config)
        self._dtype, self._attention = model_args.dtype or "float32", model_args.attn_implementation

    def check_rewards(self, rewards: list[Callable]) -> None:
        """
        Let rewards that can say what they lack do so before weights are loaded: by the columns among their arguments,
        and by a method `check_columns(names)`.

        Args:
            rewards (`list[Callable]`): TRL reward functions.

        Raises:
            ValueError: a reward lacks something.
        """
        for rows in filter(None, (self.train, self.held_out)):
            check_rewards(rewards, rows)

    def trainer_arguments(self) -> dict[str, Any]:
        """Keyword arguments of a trainer; loads the weights."""
        return {
            "model": load_model(self.policy, self._dtype, self.config, attn_implementation=self._attention),
            "train_dataset": self.train,
            "eval_dataset": self.held_out,
            "processing_class": self.kit,
            "peft_config": self.adapter,
            "tools": self.tools,
        }

    def complete(self, trainer, folder: Path) -> None:
        """Add to the folder what the trainer does not save: a merged adapter, companions, a chat template given."""
        complete_folder(trainer, self.policy, folder, self._dtype, self.config)
        if not holds_chat(folder, self.kit):  # given, or completed by `prepare_chat`
            self.kit.save_pretrained(folder)
