"""The bound lines hide in utils.py."""
import torch
import torch.nn as nn

from utils import AverageMeter, setup, to_gpu


def build():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 7 * 7, 5),
    )


def main():
    setup(gpu=0)
    model = to_gpu(build())
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    meter = AverageMeter()
    weights = torch.ones(5, device="cuda")

    for step in range(2):
        images, labels = torch.rand(4, 3, 16, 16), torch.arange(4)
        images, labels = to_gpu(images), to_gpu(labels)

        output = model(images) * weights
        loss = criterion(output, labels)

        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        meter.update(loss.item())
        print("loss", repr(loss.item()))

    assert meter.count == 2


if __name__ == "__main__":
    main()
