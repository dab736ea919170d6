"""Several turns in the one text that an lm-eval request has: a transcript that backends read as messages again (ours).

lm-eval's tasks hand over a prompt as text, and a chat template would make it a single turn of the user. A backend calls
[`messages_of`] on the content of a user's message, and where it is a conversation takes the turns in its place; a model
that does not know of it reads a plain transcript. One turn alone is its own text.
"""

import hashlib
import json
import re

ROLES = ("system", "user", "assistant")
_HEAD = re.compile(rf"\[({'|'.join(ROLES)}) ([0-9a-f]{{12}})\](?:\n|\Z)")


def text_of(messages: list[dict]) -> str:
    """
    Messages as one text.

    Args:
        messages (`list[dict]`): each with `role` and `content`, a text. The place of an image is `<image>` in a text.

    Returns:
        `str`: the content of a single message of the user; else each message under a line `[role mark]`, where the mark
        is a hash of all messages: no content can hold it.

    Raises:
        ValueError: no messages, or one that is something else.
    """
    for message in messages:
        if message.get("role") not in ROLES or not isinstance(message.get("content"), str):
            raise ValueError(f"a message has a role of {', '.join(ROLES)} and a text as content, not {message!r:.200}")
    if not messages or messages[-1]["role"] != "user":
        raise ValueError("a conversation that a model is to go on with ends in a turn of the user")
    if len(messages) == 1:
        return messages[0]["content"]
    mark = _mark(messages)
    return "\n\n".join(f"[{message['role']} {mark}]\n{message['content']}" for message in messages)


def messages_of(context: str) -> list[dict] | None:
    """
    The messages of a text that [`text_of`] made of several; `None` for any other text.

    Args:
        context (`str`): a prompt, or the content of a user's message; spaces at its ends do not count.

    Returns:
        `list[dict]` of `role` and `content`, or `None`.
    """
    context = context.lstrip()
    first = _HEAD.match(context)
    if first is None:
        return None
    parts = re.split(rf"(?:\A|\n\n)\[({'|'.join(ROLES)}) {first[2]}\](?:\n|\Z)", context)
    messages = [{"role": role, "content": content} for role, content in zip(parts[1::2], parts[2::2], strict=True)]
    return messages if len(messages) > 1 and _mark(messages) == first[2] else None


def _mark(messages: list[dict]) -> str:
    turns = [[message["role"], message["content"].strip()] for message in messages]
    return hashlib.sha256(json.dumps(turns).encode()).hexdigest()[:12]
