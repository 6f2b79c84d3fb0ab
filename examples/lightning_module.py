"""Distil in a LightningModule: Lightning saves and restores the place in the epoch by itself.

python examples/lightning_module.py build/digits-cache.zarr build/digits build/lightning
"""

import argparse
import zipfile
from pathlib import Path

import lightning
import timm
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from timm.models import save_for_hf

import kdcache


class Distillation(lightning.LightningModule):
    """A student that learns from a cache."""

    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__()
        self.args = args
        classes = kdcache.open(args.cache).num_classes
        self.student = timm.create_model("test_efficientnet", num_classes=classes)

    def setup(self, stage: str) -> None:
        """Open the batches once the processes are joined: each has its share."""
        options = {name: self.student.pretrained_cfg[name] for name in ("mean", "std")}
        options |= {"batch_size": 64, "views_per_epoch": 10, "seed": self.args.seed}
        device = self.trainer.strategy.root_device
        self.batches = kdcache.Batches(self.args.cache, self.args.data, device=device, **options)

    def train_dataloader(self) -> kdcache.Batches:
        return self.batches

    def training_step(self, batch: tuple[torch.Tensor, kdcache.SoftTargets]) -> torch.Tensor:
        return kdcache.kd_loss(self.student(batch[0]), batch[1], temperature=4.0)

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = torch.optim.AdamW(self.student.parameters(), lr=4e-3, weight_decay=0.05)
        steps = self.args.epochs * len(self.batches)  # estimated_stepping_batches loses their place
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name, kind in {"cache": str, "data": str, "out": Path}.items():
        parser.add_argument(name, type=kind)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    lightning.seed_everything(args.seed)
    module = Distillation(args)
    saver = ModelCheckpoint(args.out, filename="{step}", every_n_train_steps=5)
    trainer = lightning.Trainer(max_epochs=args.epochs, callbacks=[saver], logger=False)
    # written in the system's temporary folder, and from another disk copied: one may be cut short
    whole = [path for path in args.out.glob("*.ckpt") if zipfile.is_zipfile(path)]
    last = max(whole, key=lambda path: path.stat().st_mtime_ns, default=None)
    trainer.fit(module, ckpt_path=last)
    save_for_hf(module.student, str(args.out / "model"), safe_serialization=True)
