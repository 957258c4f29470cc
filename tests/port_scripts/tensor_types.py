"""Tensors are made by types of CUDA."""
import torch
import torch.nn as nn

torch.set_default_tensor_type('torch.cuda.FloatTensor')
dtype = torch.cuda.FloatTensor
seed = 6


class Noise(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = torch.cuda.FloatTensor([scale])

    def forward(self, x):
        return x * (1 + self.scale)


def draw(n):
    images = [((i * 37) % 101) / 101 for i in range(n * 3 * 8 * 8)]
    return torch.FloatTensor(images).view(n, 3, 8, 8)


def main():
    torch.manual_seed(seed)
    model = nn.Sequential(Noise(0.25), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 6))
    model.type(dtype)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for step in range(2):
        images = draw(6).type(torch.cuda.FloatTensor)
        labels = torch.cuda.LongTensor([0, 1, 2, 3, 4, 5])
        loss = nn.CrossEntropyLoss()(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert isinstance(labels, torch.Tensor)
        print('loss', repr(loss.item()))


if __name__ == '__main__':
    main()
