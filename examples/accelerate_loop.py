"""Distil with Hugging Face Accelerate; `accelerate launch` starts it in several processes.

python examples/accelerate_loop.py build/digits-cache.zarr build/digits build/accelerate
"""

import argparse
import shutil
from pathlib import Path

import timm
import torch
from accelerate import Accelerator
from timm.models import save_for_hf

import kdcache

parser = argparse.ArgumentParser()
parser.add_argument("cache")
parser.add_argument("data")
parser.add_argument("out", type=Path)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--epochs", type=int, default=10)
args = parser.parse_args()

accelerator = Accelerator()
torch.manual_seed(args.seed)
cache = kdcache.open(args.cache)
student = timm.create_model("test_efficientnet", num_classes=cache.num_classes)
options = {"seed": args.seed, "device": accelerator.device}
options |= {name: student.pretrained_cfg[name] for name in ("mean", "std")}
# not to be prepared: it has this process's share of every batch already, on its device
batches = kdcache.Batches(cache, args.data, batch_size=64, views_per_epoch=10, **options)
optimizer = torch.optim.AdamW(student.parameters(), lr=4e-3, weight_decay=0.05)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * len(batches))
student, optimizer = accelerator.prepare(student, optimizer)
accelerator.register_for_checkpointing(batches, schedule)

partial = args.out / "partial"
if checkpoints := sorted(args.out.glob("checkpoint-*")):  # the last one is whole
    accelerator.load_state(str(checkpoints[-1]))

for epoch in range(batches.epoch, args.epochs):
    batches.set_epoch(epoch)
    for images, targets in batches:
        loss = kdcache.kd_loss(student(images), targets, temperature=4.0)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if schedule.last_epoch % 5 == 0:
            accelerator.save_state(str(partial), safe_serialization=True)
            accelerator.wait_for_everyone()  # each process writes its random states
            if accelerator.is_main_process:
                older = [*args.out.glob("checkpoint-*")]
                partial.rename(args.out / f"checkpoint-{schedule.last_epoch:08d}")
                for folder in older:
                    shutil.rmtree(folder)
            accelerator.wait_for_everyone()
    accelerator.print(f"epoch {epoch}: loss {loss.item():.4f}")
if accelerator.is_main_process:
    student = accelerator.unwrap_model(student)
    save_for_hf(student, str(args.out / "model"), safe_serialization=True)
