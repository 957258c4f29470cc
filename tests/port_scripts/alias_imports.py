"""PyTorch under other names, and a function of the user's own that is called cuda."""
import torch as th
import torch.nn as nn
from torch import cuda as gpu
from torch import device as dev
from torch.cuda import current_device, synchronize

WORDS = ["cuda", "x.cuda()", 'torch.device("cuda")']


def cuda(text):
    """Not PyTorch's .cuda()."""
    return text.upper()


class Store:
    def cuda(self):
        return "mine"


def net():
    th.manual_seed(14)
    return nn.Sequential(
        nn.Conv2d(1, 3, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(3 * 36, 4),
    ).to(
        dev("cuda")
    )


def main():
    model = net()
    store = Store()
    optimizer = th.optim.SGD(model.parameters(), lr=0.2)
    print(cuda("words"), store.cuda(), *WORDS)
    gpu.set_device(0)
    for step in range(2):
        x = (th.rand(4, 1, 8, 8)
             .cuda()
             .mul(2))
        y = th.arange(4, device=current_device())
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad(); loss.backward(); optimizer.step(); synchronize()
        print("loss", repr(loss.item()))


if __name__ == "__main__":
    main()
