"""Distil with timm's building blocks: its optimizer, schedule and moving average.

python examples/timm_blocks.py build/digits-cache.zarr build/digits build/timm
"""

import argparse
from pathlib import Path

import timm
import torch
from timm.models import save_for_hf
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3

import kdcache

parser = argparse.ArgumentParser()
parser.add_argument("cache")
parser.add_argument("data")
parser.add_argument("out", type=Path)
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--epochs", type=int, default=10)
args = parser.parse_args()

torch.manual_seed(args.seed)
cache = kdcache.open(args.cache)
student = timm.create_model("test_efficientnet", num_classes=cache.num_classes)
config = timm.data.resolve_data_config(model=student)
options = {"seed": args.seed, "mean": config["mean"], "std": config["std"]}
batches = kdcache.Batches(cache, args.data, batch_size=64, views_per_epoch=10, **options)
student.to(batches.device)
optimizer = create_optimizer_v2(student, opt="adamw", lr=4e-3, weight_decay=0.05)
updates = {"step_on_epochs": False, "updates_per_epoch": len(batches)}
schedule, _ = create_scheduler_v2(optimizer, "cosine", args.epochs, warmup_epochs=0, **updates)
average = ModelEmaV3(student, decay=0.9)

args.out.mkdir(parents=True, exist_ok=True)
checkpoint = args.out / "checkpoint.pt"
state = {"student": student, "optimizer": optimizer, "average": average, "batches": batches}
if checkpoint.exists():
    for name, saved in torch.load(checkpoint, weights_only=True).items():
        state[name].load_state_dict(saved)

for epoch in range(batches.epoch, args.epochs):
    batches.set_epoch(epoch)
    for images, targets in batches:
        step = batches.epoch * len(batches) + batches.step
        schedule.step_update(step - 1)
        loss = kdcache.kd_loss(student(images), targets, temperature=4.0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(student, step=step)
        if step % 5 == 0:
            torch.save({k: v.state_dict() for k, v in state.items()}, f"{checkpoint}.partial")
            Path(f"{checkpoint}.partial").replace(checkpoint)
    print(f"epoch {epoch}: loss {loss.item():.4f}")
save_for_hf(student, str(args.out / "model"), safe_serialization=True)
save_for_hf(average.module, str(args.out / "model-ema"), safe_serialization=True)
