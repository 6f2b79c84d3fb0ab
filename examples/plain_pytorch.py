"""Distil in a plain PyTorch loop that goes on in the middle of an epoch after a kill.

python examples/plain_pytorch.py build/digits-cache.zarr build/digits build/plain
"""

import argparse
from pathlib import Path

import timm
import torch
from timm.models import save_for_hf

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
mean, std = student.pretrained_cfg["mean"], student.pretrained_cfg["std"]
batches = kdcache.Batches(
    cache, args.data, batch_size=64, views_per_epoch=10, seed=args.seed, mean=mean, std=std
)
student.to(batches.device)
optimizer = torch.optim.AdamW(student.parameters(), lr=4e-3, weight_decay=0.05)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.epochs * len(batches))

args.out.mkdir(parents=True, exist_ok=True)
checkpoint = args.out / "checkpoint.pt"
state = {"student": student, "optimizer": optimizer, "schedule": schedule, "batches": batches}
if checkpoint.exists():
    for name, saved in torch.load(checkpoint, weights_only=True).items():
        state[name].load_state_dict(saved)

for epoch in range(batches.epoch, args.epochs):
    batches.set_epoch(epoch)
    for images, targets in batches:
        loss = kdcache.kd_loss(student(images), targets, temperature=4.0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if schedule.last_epoch % 5 == 0:
            torch.save({k: v.state_dict() for k, v in state.items()}, f"{checkpoint}.partial")
            Path(f"{checkpoint}.partial").replace(checkpoint)
    print(f"epoch {epoch}: loss {loss.item():.4f}")
save_for_hf(student, str(args.out / "model"), safe_serialization=True)
