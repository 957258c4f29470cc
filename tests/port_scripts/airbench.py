# Everything on the GPU, in half precision, timed with events.
import torch
import torch.nn.functional as F
from torch import nn

hyp = {
    'opt': {'lr': 0.05, 'momentum': 0.85},
    'net': {'width': 8},
}


class CifarLoader:
    def __init__(self, batch_size=4):
        g = torch.Generator().manual_seed(5)
        images = (torch.rand(8, 3, 32, 32, generator=g) * 255).to(torch.uint8)
        self.images = (images.cuda().half() / 255).to(memory_format=torch.channels_last)
        self.labels = torch.arange(8).cuda() % 10
        self.batch_size = batch_size

    def __iter__(self):
        for i in range(len(self.images) // self.batch_size):
            chosen = slice(i * self.batch_size, (i + 1) * self.batch_size)
            yield self.images[chosen], self.labels[chosen]


def make_net():
    width = hyp['net']['width']
    net = nn.Sequential(
        nn.Conv2d(3, width, 3, padding='same', bias=False), nn.BatchNorm2d(width), nn.GELU(),
        nn.MaxPool2d(4), nn.Flatten(), nn.Linear(width * 64, 10, bias=False),
    )
    net = net.half().cuda()
    net = net.to(memory_format=torch.channels_last)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.float()
    return net


def main():
    torch.manual_seed(2)
    model = make_net()
    optimizer = torch.optim.SGD(model.parameters(), **hyp['opt'], nesterov=True)
    starter = torch.cuda.Event(enable_timing=True)
    ender = torch.cuda.Event(enable_timing=True)
    starter.record()
    for inputs, labels in CifarLoader():
        loss = F.cross_entropy(model(inputs), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        print('loss', repr(loss.item()))
    ender.record()
    torch.cuda.synchronize()
    assert 1e-3 * starter.elapsed_time(ender) > 0


print(torch.cuda.get_device_name(torch.cuda.current_device()))
main()
