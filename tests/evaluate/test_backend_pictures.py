"""Images beside prompts: the batch, the marks, the messages."""

import base64
import io

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from PIL import Image

from hf_cascade.evaluate.backends.hf import HFBackend
from hf_cascade.evaluate.backends.pictures import (
    QWEN,
    as_messages,
    encode,
    encode_within,
    image_token,
    rgb,
    split_marks,
)
from tests.data import tiny
from tests.prune.families import _build

CONTEXTS = ["ab <image> c <image>", "hello", "<image>x", "q <image>"]


@pytest.fixture(scope="module")
def processor():
    return tiny.processor()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return _build("mistral3").eval()


def images():
    return [[tiny.image(20, 20, 1), tiny.image(9, 20, 2)], [], [tiny.image(20, 20, 3)], [tiny.image(20, 9, 4)]]


def test_one_prompt_is_what_transformers_makes_of_the_messages(processor):
    """Reference: the processor's own rendering and tokenization of one message with two images."""
    own = images()[0]
    messages = [{"role": "user", "content": split_marks(CONTEXTS[0], own)}]
    theirs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, return_tensors="pt")
    ours = encode(processor, [processor.apply_chat_template(messages, tokenize=False)], [own], chat=True)
    assert ours["input_ids"].tolist() == theirs["input_ids"].tolist()
    assert torch.equal(ours["pixel_values"], theirs["pixel_values"])


@torch.no_grad()
def test_batch_equals_one_by_one(processor, model):
    batch = encode(processor, CONTEXTS, images(), chat=False)
    together = model(**batch).logits[:, -1]
    for place, (context, own) in enumerate(zip(CONTEXTS, images(), strict=True)):
        alone = encode(processor, [context], [own], chat=False)
        assert alone["input_ids"][0].tolist() == batch["input_ids"][place][-alone["input_ids"].shape[1] :].tolist()
        torch.testing.assert_close(model(**alone).logits[0, -1], together[place], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_the_image_counts(processor, model):
    logits = [
        model(**encode(processor, ["<image>x"], [[tiny.image(20, 20, seed)]], chat=False)).logits[0, -1]
        for seed in (3, 33)
    ]
    assert (logits[0] - logits[1]).abs().max() > 0.1


@torch.no_grad()
def test_generation_equals_one_by_one(processor, model):
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    batch = encode(processor, CONTEXTS, images(), chat=False)
    together = model.generate(**batch, **settings)[:, batch["input_ids"].shape[1] :]
    for place, (context, own) in enumerate(zip(CONTEXTS, images(), strict=True)):
        alone = encode(processor, [context], [own], chat=False)
        assert (
            model.generate(**alone, **settings)[0, alone["input_ids"].shape[1] :].tolist() == together[place].tolist()
        )


@pytest.mark.parametrize("chat", (True, False))
@pytest.mark.parametrize("longest, kept", ((40, 2), (20, 1), (3, 0)))
def test_of_a_prompt_that_does_not_fit_the_left_is_left_out(processor, chat, longest, kept):
    """What stays is the end of the whole prompt's tokens, with whole images; prompts that fit are as they were."""
    long, own = "x" * 30 + " <image> " + "y" * 12 + " <image> zz", [tiny.image(20, 20, 1), tiny.image(9, 20, 2)]
    contexts, pictures = [long, "hello", "<image>x"], [own, [], [tiny.image(20, 20, 3)]]
    whole = encode(processor, contexts, pictures, chat)
    full = whole["attention_mask"].sum(1).tolist()
    assert full[0] > 50 and max(full[1:]) < 12
    batch, lengths, cut = encode_within(processor, contexts, pictures, chat, 50, longest)
    assert cut == [True, False, False] and lengths[1:] == full[1:] and lengths[0] <= longest
    assert lengths[0] == longest or kept < 2  # no more is left out than whole images need
    rows = [batch["input_ids"][row][batch["attention_mask"][row] == 1].tolist() for row in range(3)]
    for row, length in enumerate(lengths):
        assert rows[row] == whole["input_ids"][row][-length:].tolist()
    assert torch.equal(
        batch["pixel_values"],
        encode(processor, ["<image>"] * (kept + 1), _each(own, pictures, kept), chat)["pixel_values"],
    )
    assert batch["input_ids"].shape[1] == max(lengths)
    same, lengths, cut = encode_within(processor, contexts, pictures, chat, full[0] + 1, longest)
    assert not any(cut) and lengths == full and torch.equal(same["input_ids"], whole["input_ids"])


def _each(own, pictures, kept):
    return [[picture] for picture in [*own[len(own) - kept :], *pictures[2]]]


@torch.no_grad()
def test_a_prompt_with_images_that_does_not_fit_is_answered_from_its_end(processor):
    model = _build("mistral3", max_position_embeddings=32).eval()
    lm = HFBackend(model, processor.tokenizer, processor, batch_size=2)
    picture = tiny.image(20, 20, 3)

    def ask(text, *images):
        given = (text, {"max_gen_toks": 4, "until": []}, {"visual": list(images)})
        return Instance("generate_until", {}, given, 0, ("t", 0, 1))

    cut, fits = lm.generate_until([ask("x" * 40 + "<image> what", picture), ask("<image> what", picture)])
    assert cut.cut_prompt and cut.tokens and not fits.cut_prompt
    encoded = encode(processor, ["x" * 40 + "<image> what"], [[picture]], chat=False)
    encoded = {**encoded, **{name: encoded[name][:, -28:] for name in ("input_ids", "attention_mask")}}
    ids = model.generate(**encoded, max_new_tokens=4, do_sample=False, pad_token_id=0)[0, 28:]
    assert cut == processor.tokenizer.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("chat", (True, False))
def test_one_bos_and_padding_on_the_left(processor, chat):
    contexts = CONTEXTS
    if chat:
        contexts = [
            processor.apply_chat_template([{"role": "user", "content": split_marks(context)}], tokenize=False)
            for context in CONTEXTS
        ]
    batch = encode(processor, contexts, images(), chat=chat)
    assert (batch["input_ids"] == 1).sum(1).tolist() == [1] * 4
    assert batch["attention_mask"][:, -1].all() and not batch["attention_mask"][1, 0]
    assert [row[row != 0][0].item() for row in batch["input_ids"]] == [1] * 4
    assert processor.tokenizer.padding_side == tiny.processor().tokenizer.padding_side


def test_a_bos_written_out_is_not_doubled(processor):
    written = encode(processor, ["<s>ab", "c"], [[], []], chat=False)
    assert written["input_ids"].tolist() == encode(processor, ["ab", "c"], [[], []], chat=False)["input_ids"].tolist()


def test_marks_and_images_must_agree(processor):
    for context, own in (("<image> a", []), ("a", images()[2]), ("[IMG] <image>", images()[2])):
        with pytest.raises(ValueError, match=r"context 1 has \d marks for \d images"):
            encode(processor, ["fine", context], [[], own], chat=False)
    with pytest.raises(ValueError, match="2 contexts with images for 1"):
        encode(processor, ["a", "b"], [[]], chat=False)
    with pytest.raises(ValueError, match="marks for"):
        as_messages("<image> <image>", images()[2])
    with pytest.raises(ValueError, match="marks for"):
        split_marks("a", images()[2])


def test_token_of_other_processors(processor):
    class Text:
        pass

    with pytest.raises(ValueError, match="Text takes no images"):
        image_token(Text())
    assert image_token(processor) == "[IMG]"
    other = tiny.processor()
    other.image_token = QWEN[0]
    assert image_token(other) == "<|vision_start|><|image_pad|><|vision_end|>"


def test_parts_in_order():
    parts = split_marks("a<image><image>b<image>")
    assert parts == [
        {"type": "text", "text": "a"},
        {"type": "image"},
        {"type": "image"},
        {"type": "text", "text": "b"},
        {"type": "image"},
    ]
    assert split_marks("") == [{"type": "text", "text": ""}]


def test_messages_for_servers():
    first, second, third = (Image.new("RGB", (3, 2), colour) for colour in ("red", "green", "blue"))
    chat = [{"role": "system", "content": "s"}, {"role": "user", "content": "<image>a<image>"}]
    chat += [{"role": "assistant", "content": "b"}, {"role": "user", "content": "c<image>", "name": "n"}]
    sent = as_messages(chat, [first, second, third])
    assert sent[0] == chat[0] and sent[2] == chat[2] and sent[3]["name"] == "n"
    assert [part["type"] for part in sent[1]["content"]] == ["image_url", "text", "image_url"]
    urls = [part["image_url"]["url"] for message in sent for part in message["content"] if isinstance(part, dict)
            and part["type"] == "image_url"]  # fmt: skip
    assert all(url.startswith("data:image/png;base64,") for url in urls)
    opened = [Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) for url in urls]
    assert [image.getpixel((0, 0)) for image in opened] == [(255, 0, 0), (0, 128, 0), (0, 0, 255)]
    assert chat[1]["content"] == "<image>a<image>", "the messages given stay as they are"
    assert as_messages("text", []) == [{"role": "user", "content": "text"}]


def test_modes_become_rgb():
    clear = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    clear.putpixel((1, 0), (10, 20, 30, 255))
    assert [rgb(clear).getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (10, 20, 30)]
    palette = Image.new("P", (1, 1), 0)
    palette.putpalette([7, 8, 9])
    assert rgb(palette).getpixel((0, 0)) == (7, 8, 9)
    palette.info["transparency"] = 0
    assert rgb(palette).getpixel((0, 0)) == (255, 255, 255)
    assert rgb(Image.new("L", (1, 1), 77)).getpixel((0, 0)) == (77, 77, 77)
    assert rgb(Image.new("LA", (1, 1), (77, 0))).getpixel((0, 0)) == (255, 255, 255)
    assert rgb(Image.new("1", (1, 1), 1)).getpixel((0, 0)) == (255, 255, 255)
    assert rgb(Image.new("CMYK", (1, 1), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    deep = Image.fromarray(np.array([[0, 257, 32896, 65535]], dtype=np.uint16))
    assert [rgb(deep).getpixel((x, 0))[0] for x in range(4)] == [0, 1, 128, 255]
    shares = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    assert [rgb(shares).getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


def test_exif_turns_the_image():
    file, image = io.BytesIO(), Image.new("RGB", (3, 1), "red")
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees
    image.save(file, "PNG", exif=exif)
    assert rgb(Image.open(file)).size == (1, 3)


def test_large_and_narrow_images_pass(processor):
    own = [Image.new("L", (3000, 2000)), Image.new("RGBA", (40, 4))]
    batch = encode(processor, ["<image> and <image>"], [own], chat=False)
    assert batch["pixel_values"].shape[0] == 2
