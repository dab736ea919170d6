"""Images beside prompts: each `<image>` in a text stands for the next image, whatever the model's own token is."""

import base64
import io

from PIL import Image, ImageOps
from transformers import BatchFeature, ProcessorMixin

MARK = "<image>"  # lm-eval's, in every prompt that a task gives
QWEN = ("<|image_pad|>", "<|vision_start|>", "<|vision_end|>")  # Qwen's processors expand the first and add no others
PER_TOKEN = ("input_ids", "attention_mask", "token_type_ids", "mm_token_type_ids")  # of a batch, [B, T]
DEEP = ("I", "I;16", "I;16L", "I;16B", "I;16N", "F")  # modes with more than 8 bits


def encode(processor: ProcessorMixin, contexts: list[str], images: list[list[Image.Image]], chat: bool) -> BatchFeature:
    """
    A batch for `generate` or the forward of a vision-language model: padded on the left, one BOS in front of each.

    Args:
        processor (`ProcessorMixin`): the model's.
        contexts (`list[str]`): one with `<image>` where an image stands; one that a chat template rendered may have the
            processor's own image token there instead.
        images (`list[list[Image.Image]]`): of each context, in order; of any size and mode.
        chat (`bool`): whether a chat template rendered the contexts. It wrote what special tokens there are, so that
            none is added; lm-eval's `hf-multimodal` adds a second BOS.

    Returns:
        `BatchFeature`: `input_ids` [B, T], `attention_mask` [B, T], and, where there are images, the processor's
        `pixel_values` and what goes with it.

    Raises:
        ValueError: a context has not as many marks as images, or the processor takes no images.
    """
    token = image_token(processor)
    texts = [_marked(text, len(own), token, place) for place, (text, own) in enumerate(_pairs(contexts, images))]
    kit = processor.tokenizer
    bos = kit.bos_token or ""
    begun = [bool(bos) and text.startswith(bos) for text in texts]
    if not chat and any(begun) and not all(begun):  # one switch for all of a batch
        texts, begun = [text.removeprefix(bos) for text in texts], [False]
    if kit.pad_token is None:
        kit.pad_token = kit.eos_token
    return processor(
        text=texts,
        images=[[rgb(image) for image in own] for own in images] if any(images) else None,
        add_special_tokens=not chat and not all(begun),
        padding=True,
        padding_side="left",
        return_tensors="pt",
    )


def encode_within(
    processor: ProcessorMixin, contexts: list[str], images: list[list], chat: bool, window: int, longest: int
) -> tuple[BatchFeature, list[int], list[bool]]:
    """
    [`encode`] for a model of `window` positions. Of a prompt that does not fit, the left is left out, as of a text:
    what remains has at most `longest` tokens, and of an image all or none.

    Returns:
        `BatchFeature`, each prompt's tokens, and whether its left was left out.
    """
    batch = encode(processor, contexts, images, chat)
    lengths = batch["attention_mask"].sum(1).tolist()
    cut = [length >= window for length in lengths]
    if not any(cut):
        return batch, lengths, cut
    contexts, images = list(contexts), list(images)
    for row in [row for row, too_long in enumerate(cut) if too_long]:
        contexts[row], images[row] = _last_images(processor, contexts[row], images[row], chat, longest)
    batch = encode(processor, contexts, images, chat)
    lengths = batch["attention_mask"].sum(1).tolist()
    for row in [row for row, too_long in enumerate(cut) if too_long]:
        lengths[row] = min(lengths[row], longest)  # all of it text: the images are in what stays
        batch["attention_mask"][row, : -lengths[row]] = 0
        batch["input_ids"][row, : -lengths[row]] = processor.tokenizer.pad_token_id
    for name in [name for name in PER_TOKEN if name in batch]:
        batch[name] = batch[name][:, -max(lengths) :]
    return batch, lengths, cut


def image_token(processor: ProcessorMixin) -> str:
    """What a processor expands to the tokens of one image, with the tokens it wants around it."""
    token = getattr(processor, "image_token", None)
    if token is None or getattr(processor, "image_processor", None) is None:
        raise ValueError(
            f"{type(processor).__name__} takes no images: give a vision-language model, or leave out the tasks with "
            "images (their YAML has `needs: [images]`)"
        )
    return QWEN[1] + QWEN[0] + QWEN[2] if token == QWEN[0] else str(token)


def split_marks(text: str, images: list[Image.Image] | None = None) -> list[dict]:
    """
    A message's content for a chat template: its texts and images in order.

    Args:
        text (`str`): with `<image>` where an image stands.
        images (`list[Image.Image]`, *optional*): left out where the template needs the places alone.

    Returns:
        `list[dict]`: `{"type": "text", "text": ...}` and `{"type": "image"}`, the latter with `"image"` where given.
    """
    texts = text.split(MARK)
    if images is not None:
        _agree(len(texts) - 1, len(images), text, "the message")
    parts = []
    for place, words in enumerate(texts):
        if words or len(texts) == 1:
            parts.append({"type": "text", "text": words})
        if place < len(texts) - 1:
            parts.append({"type": "image"} if images is None else {"type": "image", "image": images[place]})
    return parts


def as_messages(messages_or_text: list[dict] | str, images: list[Image.Image]) -> list[dict]:
    """
    Messages for a server that speaks OpenAI's protocol, each image as a PNG in a data URI.

    Args:
        messages_or_text (`list[dict]` or `str`): messages whose content is text, or the text of one user message, with
            `<image>` where an image stands.
        images (`list[Image.Image]`): in order, over all messages.

    Returns:
        `list[dict]`: the messages; one without images keeps its text as it is.

    Raises:
        ValueError: there are not as many marks as images.
    """
    messages = messages_or_text
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    texts = [message["content"] if isinstance(message["content"], str) else "" for message in messages]
    _agree(sum(text.count(MARK) for text in texts), len(images), " ".join(texts), "the messages")
    left, ready = iter(images), []
    for message, text in zip(messages, texts, strict=True):
        if MARK in text:
            own = [next(left) for _ in range(text.count(MARK))]
            message = {**message, "content": [_for_server(part) for part in split_marks(text, own)]}
        ready.append(message)
    return ready


def rgb(image: Image.Image) -> Image.Image:
    """An image as models take it: turned as its EXIF says, 8 bits, RGB; what is transparent shows white (ours)."""
    image = ImageOps.exif_transpose(image)
    if image.mode in DEEP:
        deep, image = image.mode.startswith("I;16"), image.convert("F")
        lowest, highest = image.getextrema()
        scale = 255 / 65535 if deep or highest > 255 else 255 if lowest >= 0 and highest <= 1 else 1
        image = image.point(lambda value: value * scale + 0.5).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def data_uri(image: Image.Image) -> str:
    """`data:image/png;base64,...` of an image."""
    file = io.BytesIO()
    rgb(image).save(file, format="PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def _last_images(
    processor: ProcessorMixin, text: str, images: list, chat: bool, longest: int
) -> tuple[str, list[Image.Image]]:
    """A context from behind the last image that does not fit on, with the images that do."""
    token = image_token(processor)
    marked = _marked(text, len(images), token, 0)
    token = token if marked.count(token) == len(images) else QWEN[0]  # a template's own, without what goes around it
    texts = marked.split(token)
    for first in range(len(images)):
        rest = token + token.join(texts[first + 1 :])
        if encode(processor, [rest], [images[first:]], chat)["input_ids"].shape[1] <= longest:
            return texts[first] + rest, images[first:]
    return texts[-1], []


def _for_server(part: dict) -> dict:
    return part if part["type"] == "text" else {"type": "image_url", "image_url": {"url": data_uri(part["image"])}}


def _pairs(contexts: list[str], images: list[list]) -> zip:
    if len(contexts) != len(images):
        raise ValueError(f"{len(contexts)} contexts with images for {len(images)}: give each context a list of images")
    return zip(contexts, images, strict=True)


def _marked(text: str, count: int, token: str, place: int) -> str:
    """A context with the processor's token for each mark; tokens that a chat template wrote stay."""
    text = text.replace(MARK, token) if token != MARK else text
    core = QWEN[0] if QWEN[0] in token else token
    _agree(text.count(core), count, text, f"context {place}")
    return text


def _agree(marks: int, count: int, text: str, name: str) -> None:
    if marks != count:
        raise ValueError(
            f"{name} has {marks} marks for {count} images ({text[:80]!r} ...): each image stands where one {MARK} is"
        )
