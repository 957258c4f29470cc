"""Refuses to run without a GPU, and loads what a GPU has saved from a model that was wrapped there."""
import sys

import torch
import torch.nn as nn
from torch.utils.data import DataLoader, TensorDataset

if not torch.cuda.is_available():
    print("a GPU is needed")
    sys.exit(1)
torch.cuda.init()


def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 7))


def pretrained(path):
    torch.manual_seed(15)
    torch.save({"module." + k: v for k, v in build().state_dict().items()}, path)


def main(path="gpu.pth"):
    pretrained(path)
    torch.manual_seed(16)
    model = build().to("cuda")
    if torch.cuda.device_count() > 1:
        model = nn.DataParallel(model)
    state = torch.load(path, map_location=lambda storage, loc: storage.cuda())
    model.load_state_dict(state)
    loader = DataLoader(TensorDataset(torch.rand(8, 3, 8, 8), torch.arange(8) % 7), batch_size=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = iter(loader)
    for step in range(2):
        images, labels = batches.next()
        images, labels = images.cuda(), labels.cuda()
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        noise = torch.zeros(1).cuda(images.get_device())
        print("loss", repr((loss + noise).item()))


if __name__ == "__main__":
    main()
