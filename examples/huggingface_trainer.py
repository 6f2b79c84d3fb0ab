"""Distil with the Trainer of Hugging Face transformers.

python examples/huggingface_trainer.py build/digits-cache.zarr build/digits build/hf
"""

import argparse
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import timm
from timm.models import save_for_hf
from transformers import Trainer, TrainingArguments, set_seed

import kdcache


class Distiller(Trainer):
    """A Trainer whose batches and targets come from a cache."""

    def get_train_dataloader(self) -> Any:
        """Batches are on the device, and each process's share, already."""
        return self.train_dataset

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        logits = model(inputs["pixel_values"])
        loss = kdcache.kd_loss(logits, inputs["teacher"], temperature=4.0)
        return (loss, logits) if return_outputs else loss


def last_whole(out: Path) -> Path | None:
    """Find the newest checkpoint whose last file is whole: Trainer writes in place."""
    for path in sorted(out.glob("checkpoint-*"), key=lambda p: -int(p.name.split("-")[1])):
        with suppress(OSError, ValueError):
            json.loads((path / "trainer_state.json").read_text())
            return path
    return None


parser = argparse.ArgumentParser()
parser.add_argument("cache")
parser.add_argument("data")
parser.add_argument("out", type=Path)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--epochs", type=int, default=10)
args = parser.parse_args()

settings = TrainingArguments(
    str(args.out), num_train_epochs=args.epochs, learning_rate=4e-3, weight_decay=0.05,
    lr_scheduler_type="cosine", max_grad_norm=0.0, save_steps=5, save_total_limit=2,
    ignore_data_skip=True, seed=args.seed, report_to="none",
)  # fmt: skip
set_seed(args.seed)
cache = kdcache.open(args.cache)
student = timm.create_model("test_efficientnet", num_classes=cache.num_classes)
batches = kdcache.Batches(
    *(cache, args.data), batch_size=64, views_per_epoch=10, seed=args.seed, device=settings.device,
    mean=student.pretrained_cfg["mean"], std=student.pretrained_cfg["std"], as_dict=True,
)  # fmt: skip
if last := last_whole(args.out):  # checkpoint-37: so many steps are done
    batches.set_epoch(*divmod(int(last.name.split("-")[1]), len(batches)))
Distiller(student, settings, train_dataset=batches).train(resume_from_checkpoint=last and str(last))
save_for_hf(student, str(args.out / "model"), safe_serialization=True)
