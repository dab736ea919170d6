"""Tools, and a policy that writes what it is told: text of each row's first turn, then of each turn after a tool."""

import threading

from transformers import AutoTokenizer

from hf_cascade.data.chat import prepare_chat

CALL = '[TOOL_CALLS]{}[ARGS]{{"number": 7}}</s>'


def triple(number: int) -> str:
    """
    Three times a number.

    Args:
        number: the number.
    """
    return f"it is {3 * number}"


def hang(number: int) -> str:
    """
    Never answers.

    Args:
        number: any.
    """
    threading.Event().wait(60)


def chat_kit(policy):
    """The policy's tokenizer with Mistral's template."""
    kit = AutoTokenizer.from_pretrained(policy)
    prepare_chat(kit, "mistral")
    return kit


def tell(trainer, first: list[str], second: list[str]) -> list[list[str]]:
    """Let the policy write so; returns the prompts of every turn, as they come."""
    turns, kit = [], trainer.processing_class

    def generate(prompt_ids, images, fields, num_generations, has_tool_images=False):
        turns.append(kit.batch_decode(prompt_ids))
        texts = first if num_generations == trainer.num_generations else second
        return [kit.encode(text, add_special_tokens=False) for text in texts[: len(prompt_ids)]], None

    trainer._generate_single_turn = generate
    return turns
