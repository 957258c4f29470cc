"""A training with exact numerics in a script of one's own: the same fingerprint on every device and with any number of workers.

Alone: python docs/examples/library.py. With three workers: torchrun --nproc-per-node=3 docs/examples/library.py.
"""

import os

import torch
import torch.distributed
from torch import nn

from pipeline import exact

if "WORLD_SIZE" in os.environ:
    torch.distributed.init_process_group("gloo")
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

with exact.initial_values(seed=0):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.1), nn.Linear(2048, 10)
    )  # fmt: skip
model.to(device)
pixels = torch.arange(100 * 3 * 32 * 32).reshape(100, 3, 32, 32)
images, labels = (pixels * pixels % 251).to(torch.uint8), torch.arange(100) % 10
optimizer = exact.AdamW(model.parameters(), lr=0.01)

for step in range(5):
    mine = exact.share(len(images))
    loss = exact.cross_entropy(model, images[mine].to(device), labels[mine].to(device), step=step)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()

if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
    print(f"loss {loss.item():.6f}, weights {exact.fingerprint(model)}")
if torch.distributed.is_initialized():
    torch.distributed.destroy_process_group()
