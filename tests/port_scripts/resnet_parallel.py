# A ResNet on CIFAR-sized images, over all GPUs, with resume.
import os

import torch
import torch.nn as nn
import torch.optim as optim
import torchvision.models as models
from torch.utils.data import DataLoader, TensorDataset

CHECKPOINT = 'checkpoint.pth'


def get_loader():
    g = torch.Generator().manual_seed(1)
    images = torch.rand(8, 3, 32, 32, generator=g)
    labels = torch.randint(0, 10, (8,), generator=g)
    return DataLoader(TensorDataset(images, labels), batch_size=4, pin_memory=True)


def save(net, epoch):
    torch.save({'net': net.state_dict(), 'epoch': epoch}, CHECKPOINT)


def train(net, loader, optimizer, criterion):
    net.train()
    for inputs, targets in loader:
        inputs, targets = inputs.cuda(), targets.cuda()   # to the first GPU
        optimizer.zero_grad()
        loss = criterion(net(inputs), targets)
        loss.backward()
        optimizer.step()
        print('loss', repr(loss.item()))


torch.manual_seed(0)
net = models.resnet18(num_classes=10)
net = torch.nn.DataParallel(net).cuda()
start = 0
if not os.path.exists(CHECKPOINT):
    save(net, 0)
checkpoint = torch.load(CHECKPOINT)
net.load_state_dict(checkpoint['net'])
start = checkpoint['epoch']
criterion = nn.CrossEntropyLoss().cuda()
optimizer = optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
for epoch in range(start, 1):
    train(net, get_loader(), optimizer, criterion)
