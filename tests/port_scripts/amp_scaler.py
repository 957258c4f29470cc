"""Mixed precision with a gradient scaler."""
import time

import torch
from torch import nn
from torch.cuda.amp import GradScaler, autocast

torch.backends.cudnn.benchmark = True
torch.manual_seed(7)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(4),
        )
        self.head = nn.Linear(8 * 16, 10)

    def forward(self, x):
        return self.head(self.features(x).flatten(1))


def main():
    model = Net().cuda()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scaler = GradScaler()
    x = torch.rand(8, 3, 16, 16)
    y = torch.arange(8)
    torch.cuda.synchronize()
    start = time.time()
    for step in range(2):
        images = x.cuda(non_blocking=True)
        target = y.cuda(non_blocking=True)
        optimizer.zero_grad(set_to_none=True)
        with autocast():
            loss = nn.functional.cross_entropy(model(images), target)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        print('loss', repr(loss.item()))
    torch.cuda.synchronize()
    print(f'memory {torch.cuda.max_memory_allocated()}, time spent: {time.time() > start}')


if __name__ == '__main__':
    main()
