"""A tokenizer of single characters, a processor with it, and texts and images of all lengths, made in memory."""

import random
import string

import numpy as np
from datasets import Dataset, Features, List, Value
from datasets import Image as Stored
from PIL import Image
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil

from hf_cascade.data.documents import Documents
from hf_cascade.data.image_documents import ImageDocuments
from hf_cascade.data.image_packing import PackedImageText
from hf_cascade.data.packing import PackedText, document_tokens
from hf_cascade.data.pixtral import PixtralProcessor

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>"]  # ids 0 to 3, as in tests/prune/families.py
IMAGE_SPECIAL = ["[IMG]", "[IMG_BREAK]", "[IMG_END]"]  # from id 3 on, the image token of tests/prune/families.py
CHAT = (  # as Mistral's templates: a BOS of its own, images and texts in the order of the blocks
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
    "{% if m.content is string %}{{ m.content }}{% else %}{% for b in m.content %}{{ b.text }}{% endfor %}{% endif %}"
    "{{ eos_token }}{% endgeneration %}{% else %}{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for b in m.content %}{% if b.type == 'image' %}[IMG]{% else %}{{ b.text }}{% endif %}{% endfor %}{% endif %}"
    "{{ '\n' }}{% endif %}{% endfor %}"
)


def tokenizer(characters: str = string.ascii_lowercase + " .\n", images: bool = False) -> PreTrainedTokenizerFast:
    """One id a character, BOS in front; with `images` the three tokens of images are whole."""
    names = [*SPECIAL[:3], *(IMAGE_SPECIAL if images else []), *SPECIAL[3:], *characters]
    core = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    if images:
        special["additional_special_tokens"] = IMAGE_SPECIAL
    return PreTrainedTokenizerFast(tokenizer_object=core, **special)


def processor(longest_edge: int = 16) -> PixtralProcessor:
    """For tests/prune/families.py's "mistral3": an image is 1 to 4 merged patches of 8 pixels, in 2 to 6 tokens."""
    kit = tokenizer(images=True)
    return PixtralProcessor(
        PixtralImageProcessorPil(size={"longest_edge": longest_edge}, patch_size=4), kit, 4, 2, chat_template=CHAT
    )


def image(height: int, width: int, seed: int = 0) -> Image.Image:
    """Noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def image_rows(count: int = 30, seed: int = 0, longest: int = 30) -> list[dict]:
    """
    Rows of `text` with 0 to 2 images in it, at any place, and `images`, each of two merged patches at least:
    transformers 5.23 fails on a batch with one in all.
    """
    draw, rows = random.Random(seed), []
    for number, text in enumerate(texts(count, seed, longest)):
        images = [image(draw.randint(4, 20), draw.randint(9, 20), number) for _ in range(draw.randint(0, 2))]
        words = [*text, *(["[IMG]"] * len(images))]
        draw.shuffle(words)
        rows.append({"text": "".join(words), "images": images})
    return rows


def packed_images(max_length: int = 16, start=(0, 0), rows=None, **kwargs) -> PackedImageText:
    """Packed text of `image_rows()`."""
    rows = image_rows() if rows is None else rows
    data = Dataset.from_list(rows, features=Features({"text": Value("string"), "images": List(Stored())}))
    return PackedImageText(ImageDocuments(data, **kwargs), processor(), max_length, start)


def texts(count: int = 40, seed: int = 0, longest: int = 60) -> list[str]:
    """Documents of 0 to `longest` letters."""
    draw = random.Random(seed)
    return ["".join(draw.choices(string.ascii_lowercase, k=draw.randrange(longest + 1))) for _ in range(count)]


def documents(count: int = 40, seed: int = 0, longest: int = 60, **kwargs) -> Documents:
    """`texts` as `Documents`."""
    return Documents(Dataset.from_dict({"text": texts(count, seed, longest)}), **kwargs)


def packed(max_length: int = 16, start=(0, 0), **kwargs) -> PackedText:
    """Packed text of `documents(**kwargs)`."""
    return PackedText(documents(**kwargs), tokenizer(), max_length, start)


def all_tokens(docs: Documents) -> list[int]:
    """Every token of every document, in reading order."""
    kit = tokenizer()
    return [token for _, text in docs.read() for token in document_tokens(kit, text)]
