"""How to run a model, for a card: which classes open it, how it is asked, and with which sampling."""

from dataclasses import dataclass

from hf_cascade.publish.facts import Facts
from hf_cascade.shape import text_config

# What the released Ministral 3 cards advise for these kinds (paper section 7): temperature, top_p
ADVISED = {"instruct": (0.15, None), "reasoning": (0.7, 0.95)}
NEW_TOKENS = {"base": 64, "instruct": 512, "reasoning": 32768}  # ours: enough to see an answer
ADVICE = "what the released Ministral 3 models of this kind advise; it was not tuned for this model"
OWN = "its generation config"


@dataclass(frozen=True)
class Usage:
    """
    What a snippet needs.

    Attributes:
        model_id (`str`): what `from_pretrained` is given.
        model_class (`str`), opener_class (`str`): of transformers.
        opener (`str`): the variable's name: tokenizer or processor.
        chat (`bool`): whether it is asked through its chat template.
        thinking (`tuple[str, str]`, *optional*): marks around its thinking.
        images (`bool`): whether the snippet shows an image.
        temperature, top_p (`float`, *optional*): recommended sampling; `sampling_source` says whose.
        new_tokens (`int`): of an answer.
        window (`int`, *optional*): positions.
    """

    model_id: str
    model_class: str
    opener_class: str
    opener: str
    chat: bool
    thinking: tuple[str, str] | None
    images: bool
    temperature: float | None
    top_p: float | None
    sampling_source: str | None
    new_tokens: int
    window: int | None

    @property
    def sampling(self) -> str:
        """Arguments of `generate`."""
        told = ["do_sample=True", f"temperature={self.temperature:g}"] if self.temperature else []
        return ", ".join([*told, *([f"top_p={self.top_p:g}"] if self.top_p else [])])


def usage_of(facts: Facts) -> Usage:
    """How a model is run, by its architecture, its chat template and its generation config."""
    images = facts.takes_images and facts.has_processor
    chat = facts.chat is not None and facts.kind != "base"
    own = facts.generation if facts.generation.get("do_sample") else {}
    temperature, top_p = ADVISED.get(facts.kind, (None, None))
    if own.get("temperature"):
        temperature, top_p = own["temperature"], own.get("top_p")
    window = text_config(facts.config).get("max_position_embeddings")
    return Usage(
        model_id=facts.repo_id or facts.name,
        model_class="AutoModelForImageTextToText" if facts.takes_images else "AutoModelForCausalLM",
        opener_class="AutoProcessor" if images else "AutoTokenizer",
        opener="processor" if images else "tokenizer",
        chat=chat,
        thinking=facts.chat.thinking if chat and facts.kind == "reasoning" else None,
        images=images,
        temperature=temperature,
        top_p=top_p if top_p not in (None, 1) else None,
        sampling_source=(OWN if own.get("temperature") else ADVICE) if temperature else None,
        new_tokens=min(NEW_TOKENS[facts.kind], window // 2) if window else NEW_TOKENS[facts.kind],
        window=window,
    )
