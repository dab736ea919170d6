"""Packed images: the processor's own tokens and pixels, every token once, no image cut, documents that keep apart."""

import io
import json

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets, load_dataset
from PIL import Image
from trl import DatasetMixtureConfig
from trl.scripts.utils import DatasetConfig

from hf_cascade.data.config import TextArguments
from hf_cascade.data.image_documents import ImageDocuments, ImageTokens, check_processor, image_column, stored_size
from hf_cascade.data.image_packing import PackedImageText
from hf_cascade.data.image_text import load_processor
from hf_cascade.data.ledger import text_sha256
from hf_cascade.data.streams import open_stream, stream_sha256
from tests.data import tiny
from tests.prune import families

IMAGE, BREAK, END = 3, 4, 5


def read(stream, count=None) -> list[dict]:
    rows = []
    for row in stream.rows_to_the_end():
        rows.append(row)
        if len(rows) == count:
            break
    return rows


def flat(rows: list[dict]) -> list[int]:
    """All tokens without the padding."""
    return [token for row in rows for token in row["input_ids"][: sum(row["seq_lengths"])]]


def reference(rows: list[dict], kit) -> list[list[int]]:
    """Ids of each document by the processor's own call."""
    ids = [kit(text=row["text"], images=row["images"] or None, return_tensors=None)["input_ids"][0] for row in rows]
    return [list(map(int, document)) + [2] for document in ids]


def ordered(rows: list[dict]) -> list[dict]:
    """`rows` in the order of `ImageDocuments`."""
    numbers = Dataset.from_dict({"number": list(range(len(rows)))}).shuffle(seed=0)["number"]
    return [rows[number] for number in numbers]


def test_ids_are_the_processors_and_each_once_and_in_order():
    rows = ordered(tiny.image_rows())
    expected = [token for ids in reference(rows, tiny.processor()) for token in ids]
    packed = read(tiny.packed_images())
    found = flat(packed)
    assert found == expected[: len(found)] and len(expected) - len(found) < 16
    assert sum(row["input_ids"][sum(row["seq_lengths"]) :] != [] for row in packed) > 3, "some rows are padded"
    images = [image for row in rows for image in row["images"]]
    stored = [np.asarray(Image.open(io.BytesIO(image["bytes"]))) for row in packed for image in row["images"]]
    assert len(stored) > 20 and all(np.array_equal(a, b) for a, b in zip(images, stored, strict=False))


def test_no_image_is_cut_and_padding_comes_only_before_one():
    packed = read(tiny.packed_images())
    for row, following in zip(packed, packed[1:], strict=False):
        ids, length = row["input_ids"], sum(row["seq_lengths"])
        assert len(ids) == 16 and min(row["seq_lengths"]) > 0
        assert ids.count(END) == len(row["images"]) and ids[0] not in (BREAK, END)
        assert ids[-1] not in (IMAGE, BREAK)
        if length < 16:
            assert set(ids[length:]) == {0}
            first = following["input_ids"]
            assert first[0] == IMAGE and first.index(END) + 1 > 16 - length, "it would not have fitted"


def test_restart_at_every_row():
    whole = read(tiny.packed_images())
    for number, row in enumerate(whole):
        assert read(tiny.packed_images(start=tuple(row["cursor"]))) == whole[number + 1 :], f"after row {number}"


@pytest.mark.parametrize("second", [7, 24, 64])
def test_a_later_stage_with_another_window_goes_on_exactly(second):
    whole = read(tiny.packed_images())
    expected = [token for ids in reference(ordered(tiny.image_rows()), tiny.processor()) for token in ids]
    for count in range(1, len(whole), 5):
        left = expected[len(flat(whole[:count])) :]
        rest = flat(read(tiny.packed_images(second, tuple(whole[count - 1]["cursor"]))))
        assert rest == left[: len(rest)] and len(left) - len(rest) < second


def test_text_alone_is_packed_as_without_images():
    rows = [{"text": text, "images": []} for text in tiny.texts()]
    packed = read(tiny.packed_images(rows=rows))
    data = tiny.documents()
    plain = list(tiny.PackedText(data, tiny.tokenizer(images=True), 16).rows_to_the_end())
    assert [{**row, "images": []} for row in plain] == packed and len(packed) > 50


def test_rows_go_through_a_streamed_dataset_and_held_out():
    stream = tiny.packed_images()
    assert list(stream.dataset(9)) == read(stream, 9)
    assert list(stream.held_out()) == read(stream)


@pytest.mark.parametrize("padding_free", [False, True])
def test_batch(padding_free):
    stream = tiny.packed_images()
    packed = read(stream)
    first = next(number for number, row in enumerate(packed) if sum(row["seq_lengths"]) < 16)
    rows = packed[first : first + 8]
    assert len(rows) == 8
    out = stream.collator(padding_free)(rows)
    labels, positions = out["labels"].view(8, 16), out["position_ids"].view(8, 16)
    images = []
    for row, labels_T, positions_T in zip(rows, labels.tolist(), positions.tolist(), strict=True):
        start = 0
        for length in [*row["seq_lengths"], 16 - sum(row["seq_lengths"])]:
            assert positions_T[start : start + length] == list(range(length))
            start += length
        for place, token in enumerate(row["input_ids"]):
            silent = positions_T[place] == 0 or token in (IMAGE, BREAK, END) or place >= sum(row["seq_lengths"])
            assert labels_T[place] == (-100 if silent else token)
        images += [Image.open(io.BytesIO(image["bytes"])) for image in row["images"]]
    expected = tiny.processor()(images=images, return_tensors="pt")
    assert torch.equal(out["pixel_values"], expected["pixel_values"])
    assert torch.equal(out["image_sizes"], expected["image_sizes"])
    assert next(iter(out)) == "input_ids" and out["cursor"].tolist() == rows[-1]["cursor"]
    without = stream.collator()([row for row in packed if not row["images"]])
    assert "pixel_values" not in without and "image_sizes" not in without


def pieces(rows: list[dict]):
    """Row number, first and last position, and images of every document's piece."""
    for number, row in enumerate(rows):
        start, images = 0, list(row["images"])
        for length in row["seq_lengths"]:
            count = row["input_ids"][start : start + length].count(END)
            yield number, start, start + length, images[:count]
            start, images = start + length, images[count:]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", ["mistral3", "mistral3_ministral3"])
def test_documents_and_their_images_do_not_see_each_other(family, attention):
    model = families.build(family)
    model.set_attn_implementation(attention)
    stream = tiny.packed_images(24)
    rows = read(stream, 8)
    names = ("input_ids", "position_ids", "pixel_values", "image_sizes")
    seen = 0
    with torch.no_grad():
        batch = stream.collator()(rows)
        hidden = model.base_model(**{name: batch[name] for name in names}, use_cache=False).last_hidden_state
        for row, start, end, images in pieces(rows):
            inputs = {"input_ids": batch["input_ids"][row : row + 1, start:end]}
            if images:
                images = [Image.open(io.BytesIO(image["bytes"])) for image in images]
                inputs.update(stream.processor(images=images, return_tensors="pt"))
                seen += 1
            alone = model.base_model(**inputs, use_cache=False).last_hidden_state[0]
            torch.testing.assert_close(hidden[row, start:end], alone, rtol=0, atol=1e-5)
    assert seen > 5


# --- where images come from


def test_paths_one_image_a_row_and_messages(tmp_path):
    tiny.image(16, 24).save(tmp_path / "a.png")
    messages = [{"role": "user", "content": "what"}, {"role": "assistant", "content": "that"}]
    rows = [{"messages": messages, "image": str(tmp_path / "a.png")}, {"messages": messages, "image": None}]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    kit = tiny.processor()
    for streaming in (False, True):
        data = load_dataset("json", data_files=str(tmp_path / "a.jsonl"), split="train", streaming=streaming)
        assert image_column(data) == "image"
        found = dict(ImageDocuments(data, seed=3).read())
        ids = sorted([ImageTokens(kit)(number, *content)[0] for number, content in found.items()], key=len)
        words = [kit.tokenizer.convert_tokens_to_ids(list(word)) for word in ("what\n", "that")]
        assert ids[0] == [1, *words[0], *words[1], 2], "the template's BOS alone"
        assert ids[1] == [1, 3, 3, 4, 3, 3, 5, *words[0], *words[1], 2]


def test_mixtures_with_text_alone():
    both = concatenate_datasets(
        [
            tiny.packed_images().documents.dataset.with_format(None),
            Dataset.from_dict({"text": ["abc"] * 5}),
        ]
    )
    found = list(ImageDocuments(both).read())
    assert len(found) == 35 and sum(content == ("abc", []) for _, content in found) == 5


def test_size_is_told_from_the_header_as_the_image_will_be_seen():
    for orientation, expected in ((1, (10, 30)), (3, (10, 30)), (6, (30, 10)), (8, (30, 10))):
        picture, file = tiny.image(10, 30), io.BytesIO()
        exif = picture.getexif()
        exif[0x0112] = orientation
        picture.save(file, "JPEG", exif=exif)
        assert stored_size({"bytes": file.getvalue(), "path": None}) == expected


@pytest.mark.parametrize("height", [3, 7, 8, 9, 16, 17, 40, 333])
def test_size_after_resizing_is_the_processors(height):
    kit = tiny.processor(40)
    for width in (9, 39, 41, 100):
        made = kit(images=[tiny.image(height, width)], return_tensors="pt")["image_sizes"][0].tolist()
        assert list(ImageTokens(kit).resized(height, width)) == made


# --- what is refused


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "ab[IMG]", "images": []}, r"document 0 has 0 images and 1 times \[IMG\]"),
        ({"text": "ab", "images": [1]}, "document 0 has 1 images and 0 times"),
        ({"text": "a[IMG]b[IMG_BREAK]", "images": [1]}, "document 0 has tokens of images in its text that belong"),
        ({"text": "a[IMG]b[IMG_END]", "images": [1]}, "document 0 has tokens of images in its text that belong"),
        ({"text": None, "images": [1]}, "document 0 has no 'text'"),
    ],
)
def test_images_that_do_not_fit_their_text(row, message):
    row = {**row, "images": [tiny.image(8, 8) for _ in row["images"]]}
    with pytest.raises(ValueError, match=message):
        read(tiny.packed_images(rows=[row]))


def test_image_longer_than_a_row_and_start_inside_an_image():
    rows = [{"text": "abc[IMG]" + "d" * 30, "images": [tiny.image(16, 16)]}]
    with pytest.raises(ValueError, match="document 0 has an image of 6 tokens, and rows have 5: raise max_length"):
        read(tiny.packed_images(5, rows=rows))
    assert read(tiny.packed_images(6, (0, 4), rows=rows))[0]["input_ids"] == [3, 3, 4, 3, 3, 5]
    with pytest.raises(ValueError, match="token 5 of document 0 is inside an image"):
        read(tiny.packed_images(6, (0, 5), rows=rows))


def test_image_whose_shorter_side_vanishes():
    """The processor fails on it in the middle of a run."""
    with pytest.raises(ValueError, match="document 0 has an image of 1 x 17 pixels, of which nothing is left"):
        read(tiny.packed_images(rows=[{"text": "[IMG]", "images": [tiny.image(1, 17)]}]))


def test_file_that_is_no_image(tmp_path):
    (tmp_path / "a.png").write_text("no")
    for path in (tmp_path / "a.png", tmp_path / "b.png"):
        data = Dataset.from_dict({"text": ["[IMG]"], "images": [[str(path)]]})
        with pytest.raises(ValueError, match=f"document 0: an image does not open.*{path.name}"):
            read(PackedImageText(ImageDocuments(data), tiny.processor(), 16))


def test_dataset_without_images():
    with pytest.raises(ValueError, match="no column of images"):
        ImageDocuments(Dataset.from_dict({"text": ["a"]}))


def test_processor_of_another_model():
    config = families.build("mistral3").config
    check_processor(tiny.processor(), config)
    config.vision_config.patch_size = 14
    with pytest.raises(ValueError, match=r"\(3, 4, 2\), and the model \(3, 14, 2\)"):
        check_processor(tiny.processor(), config)


# --- the processor on disk, and the identity of a text


def test_processor_opens_from_a_folder(tmp_path):
    tiny.processor().save_pretrained(tmp_path)
    opened = load_processor(str(tmp_path))
    rows = [row for row in tiny.image_rows() if row["images"]]
    assert reference(rows, opened) == reference(rows, tiny.processor())
    assert json.loads((tmp_path / "processor_config.json").read_text())["processor_class"] == "PixtralProcessor"
    with pytest.raises(ValueError, match="has no processor for images that opens here"):
        load_processor("recipes/tiny/parent")


def test_processor_is_transformers_own_where_torchvision_is():
    pytest.importorskip("torchvision")
    from transformers import PixtralProcessor

    ours = tiny.processor()
    theirs = PixtralProcessor(ours.image_processor, ours.tokenizer, 4, 2)
    rows = [row for row in tiny.image_rows() if row["images"]]
    assert reference(rows, theirs) == reference(rows, ours)


def test_identity_of_a_text_with_images():
    mixture = DatasetMixtureConfig(datasets=[DatasetConfig(path="json", data_files="a.jsonl")])

    def identity(kit, **kwargs):
        stream = tiny.packed_images(**kwargs)
        stream.processor = kit
        return stream_sha256(stream, mixture.datasets)

    same = identity(tiny.processor())
    assert same == identity(tiny.processor(), max_length=64)
    other = tiny.processor()
    other.spatial_merge_size = 1
    assert len({same, identity(tiny.processor(), seed=1), identity(tiny.processor(24)), identity(other)}) == 4
    assert stream_sha256(tiny.packed(), mixture.datasets) == text_sha256(tiny.packed(), mixture.datasets)


def test_stream_has_images_where_the_dataset_has(tmp_path):
    tiny.processor().save_pretrained(tmp_path)
    config, kit = families.build("mistral3").config, tiny.tokenizer(images=True)
    text = Dataset.from_dict({"text": tiny.texts()})
    stream = open_stream(text, TextArguments(min_document_tokens=9), "text", 16, kit, "nowhere", config)
    assert type(stream) is tiny.PackedText and stream.min_document_tokens == 9
    images = tiny.packed_images().documents.dataset.with_format(None)
    stream = open_stream(images, TextArguments(), "text", 16, kit, str(tmp_path), config)
    assert read(stream) == read(tiny.packed_images())
    config.spatial_merge_size = 1
    with pytest.raises(ValueError, match="not of one model"):
        open_stream(images, TextArguments(), "text", 16, kit, str(tmp_path), config)
    with pytest.raises(ValueError, match="the data has images, and the model .llama. reads none.*columns: .text"):
        open_stream(images, TextArguments(), "text", 16, kit, "nowhere", families.build("llama").config)
