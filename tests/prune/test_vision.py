"""Image-text calibration of a vision-language model: what the decoder sees, and what the projector becomes."""

import json

import pytest
import torch

from hf_cascade import PruneConfig, prune_model
from hf_cascade.prune.calibration import Calibration
from hf_cascade.prune.images import project_images
from hf_cascade.prune.model import as_batches, prune_with_report
from hf_cascade.prune.parent import Parent
from hf_cascade.prune.pipeline import rebuild
from hf_cascade.prune.state import NoState
from tests.prune.families import build, ids, save_tokenizer

IMAGE = 3


def sample(seed: int, words: int = 20) -> dict:
    """What a processor returns for one image of four merged patches among words."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(4, 97, (1, words), generator=generator)
    tokens[0, 5:9] = IMAGE
    pixels = torch.randn(1, 3, 16, 16, generator=generator)
    return {"input_ids": tokens, "pixel_values": pixels, "image_sizes": torch.tensor([[16, 16]])}


def logits(model, part):
    with torch.no_grad():
        return model(**part, use_cache=False).logits


@pytest.mark.parametrize("family", ["mistral3", "mistral3_ministral3"])
def test_the_stream_at_the_exit_is_the_models_own_with_images(family):
    """Layer by layer on projected images, against the stock forward."""
    model = build(family, dtype=torch.float32)
    parent, parts = Parent.from_model(model), [sample(1), sample(2)]
    batches, images = as_batches([*parts, ids(2, 20)], 8)
    text = Calibration(parent, batches, images=project_images(parent, images).features)

    class Watcher:
        """Takes no layer and makes the parent run."""

        fits = True
        plan = type("Plan", (), {"intermediate_size": 80})

        def keeps(self, number):
            return False

        def enter(self, *_):
            pass

        attend = feed = settle = enter

    x, _ = rebuild(text, [Watcher()], PruneConfig(), [], NoState(), lambda count: None)
    with torch.no_grad():
        for stream, part in zip(x, [*parts, {"input_ids": batches[2]}], strict=True):
            ours = model.lm_head(model.model.language_model.norm(stream))
            torch.testing.assert_close(ours, logits(model, part), rtol=1e-4, atol=1e-4)


def test_fitting_on_images_brings_the_child_nearer_on_images():
    parent = build("mistral3", dtype=torch.float32)
    config = PruneConfig(hidden_size=36, intermediate_size=64)
    text, parts = list(ids(40, 20).split(8)), [sample(seed) for seed in range(40)]
    new = [sample(seed) for seed in range(100, 110)]

    def error(child):
        return float(sum((logits(child, part) - logits(parent, part)).square().mean() for part in new))

    blind, seeing = prune_model(parent, config, text), prune_model(parent, config, [*parts, *text])
    assert error(seeing) < 0.9 * error(blind)
    for name, value in parent.model.vision_tower.state_dict().items():
        assert torch.equal(seeing.model.vision_tower.state_dict()[name], value)


def test_images_that_do_not_fit_their_tokens_are_refused():
    part = sample(1)
    part["input_ids"][0, 5] = 7
    with pytest.raises(ValueError, match="batch 0 has 3 image tokens and images that make 4"):
        prune_model(build("mistral3", dtype=torch.float32), PruneConfig(hidden_size=36), [part])
    with pytest.raises(ValueError, match="Qwen3ForCausalLM reads no images"):
        prune_model(build("qwen3", dtype=torch.float32), PruneConfig(hidden_size=36), [sample(1)])


def test_held_out_images_are_measured():
    parent = build("mistral3", dtype=torch.float32)
    text = [*(sample(seed) for seed in range(20)), *ids(40, 20).split(8)]
    _, report = prune_with_report(parent, PruneConfig(hidden_size=36), text, held_out=[sample(50), sample(51)])
    assert report["held_out"]["tokens"] == 40 and report["held_out"]["kl"] < report["held_out"]["kl_uncompensated"]


class Processor:
    """Says what a processor says; the stock one needs torchvision, which is not everywhere."""

    image_processor = True

    def apply_chat_template(self, messages, tokenize):
        return messages[0]["content"]

    def __call__(self, text, images, return_tensors, add_special_tokens):
        pixels = torch.stack([torch.tensor(list(image.tobytes())).float().view(16, 16, 3) for image in images])
        words = [word.split("w")[-1] for word in text.split()]
        tokens = [token for word in words for token in ([IMAGE] * 4 if word == "[IMG]" else [int(word)])]
        sizes = torch.tensor([[16, 16]] * len(images))
        pixels = pixels.permute(0, 3, 1, 2) / 255
        return {"input_ids": torch.tensor([tokens]), "pixel_values": pixels, "image_sizes": sizes}


def test_the_command_calibrates_on_image_text(tmp_path, monkeypatch, capsys):
    from PIL import Image

    from hf_cascade.cli import main as hf_cascade
    from hf_cascade.data import image_text

    build("mistral3", dtype=torch.float32).save_pretrained(tmp_path / "parent")
    save_tokenizer(tmp_path / "parent")
    (tmp_path / "text.txt").write_text(" ".join(f"w{n}" for n in ids(1, 900)[0].tolist()))
    rows = []
    for number in range(6):
        picture = Image.effect_noise((16, 16), 90).convert("RGB")
        picture.save(tmp_path / f"{number}.png")
        content = "w5 [IMG] " + " ".join(f"w{n}" for n in ids(1, 20 + 300 * (number == 5), seed=number)[0].tolist())
        row = {"messages": [{"role": "user", "content": content}], "images": [str(tmp_path / f"{number}.png")]}
        rows.append(json.dumps(row))
    (tmp_path / "pairs.jsonl").write_text("\n".join(rows))
    command = ["prune", "--model", tmp_path / "parent", "--calibration", tmp_path / "text.txt", "--hidden_size", 36]
    command += ["--calibration_length", 20, "--calibration_images", tmp_path / "pairs.jsonl"]
    command = [*map(str, command), "--output_dir", str(tmp_path / "child")]

    assert hf_cascade(command) == 2  # the folder has no processor
    assert (
        "has no processor for images that opens here" in capsys.readouterr().err and not (tmp_path / "child").exists()
    )
    monkeypatch.setattr(image_text, "load_processor", lambda model: Processor())
    assert hf_cascade(command) == 0
    report = json.loads((tmp_path / "child/prune_report.json").read_text())
    assert report["calibration_tokens"] % 20 == 5 * 25 % 20  # five samples fit the window of 256, one does not
