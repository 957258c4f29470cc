"""A stream of its own copies the next batch while the network works."""
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, TensorDataset


class DataPrefetcher:
    def __init__(self, loader):
        self.loader = iter(loader)
        self.stream = torch.cuda.Stream()
        self.mean = torch.tensor([0.485, 0.456, 0.406]).cuda().view(1, 3, 1, 1)
        self.preload()

    def preload(self):
        try:
            self.next_input, self.next_target = next(self.loader)
        except StopIteration:
            self.next_input = None
            self.next_target = None
            return
        with torch.cuda.stream(self.stream):
            self.next_input = self.next_input.cuda(non_blocking=True)
            self.next_target = self.next_target.cuda(non_blocking=True)
            self.next_input = self.next_input.sub_(self.mean)

    def next(self):
        torch.cuda.current_stream().wait_stream(self.stream)
        input, target = self.next_input, self.next_target
        if input is not None:
            input.record_stream(torch.cuda.current_stream())
        self.preload()
        return input, target


def main():
    torch.manual_seed(8)
    data = TensorDataset(torch.rand(8, 3, 10, 10), torch.arange(8) % 5)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(256, 5)).cuda()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    prefetcher = DataPrefetcher(DataLoader(data, batch_size=4, pin_memory=True))
    input, target = prefetcher.next()
    while input is not None:
        loss = nn.functional.cross_entropy(model(input), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print('loss', repr(loss.item()))
        input, target = prefetcher.next()


main()
