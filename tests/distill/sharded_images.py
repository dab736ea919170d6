"""A distillation step on two sharded processes of which one has no image, against one process.

torchrun --nproc_per_node 2 tests/distill/sharded_images.py
"""

import copy
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from hf_cascade.distill.blank_images import keep_ranks_in_step
from tests.data import tiny
from tests.distill import setting


def main() -> None:
    """Accelerate cannot shard on a CPU, so the models are sharded after the trainer is made."""
    rows = [
        {"text": "a[IMG]bcd[IMG]" + "e" * 6, "images": [tiny.image(16, 16), tiny.image(8, 16)]},
        {"text": "f" * 30, "images": []},
    ]
    data = tiny.packed_images(24, rows=rows)
    model, parent = setting.student("mistral3"), setting.teacher("mistral3")
    kit = {"processing_class": data.processor}
    with tempfile.TemporaryDirectory() as folder:
        single = setting.distiller(folder, copy.deepcopy(model), copy.deepcopy(parent), data, kit, max_length=24)
        trainer = setting.distiller(folder, model, parent, data, kit, max_length=24)
    packed = sorted(data.held_out(), key=lambda row: not row["images"])[:2]
    assert [len(row["images"]) for row in packed] == [2, 0]
    whole = data.collator()(packed)
    count = (whole["labels"][:, 1:] != -100).sum()
    expected = single.compute_loss(single.model, dict(whole), num_items_in_batch=count) / 2  # times the processes
    expected.backward()

    mesh = init_device_mesh("cpu", (2,))
    for part in (trainer.model, trainer.teacher.model):
        keep_ranks_in_step(part)
        for layer in (*part.model.language_model.layers, *part.model.vision_tower.transformer.layers):
            fully_shard(layer, mesh=mesh)
        fully_shard(part, mesh=mesh)
    rank = trainer.accelerator.process_index
    own = data.collator()(packed[rank : rank + 1])
    loss = trainer.compute_loss(trainer.model, own, num_items_in_batch=count)
    loss.backward()
    total = trainer.accelerator.reduce(loss.detach() / 2, reduction="sum")
    assert abs(float(total - expected.detach())) < 1e-9, (total, expected)
    for (name, one), other in zip(trainer.model.named_parameters(), single.model.parameters(), strict=True):
        assert ("vision_tower" in name) == (other.grad is None), name
        if other.grad is not None:
            assert (one.grad.full_tensor() - other.grad).abs().max() < 1e-9, name
    print(f"process {rank}: equal")


if __name__ == "__main__":
    main()
