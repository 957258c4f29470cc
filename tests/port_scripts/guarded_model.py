'''The model asks whether there is a GPU; the data does not.'''
from __future__ import print_function

import argparse

import torch
import torch.nn as nn
import torch.nn.functional as F

parser = argparse.ArgumentParser(description='example')
parser.add_argument('--lr', type=float, default=0.01)
parser.add_argument('--no-cuda', action='store_true', default=False)
parser.add_argument('--seed', type=int, default=1)
args, _ = parser.parse_known_args([])
use_cuda = not args.no_cuda and torch.cuda.is_available()

torch.manual_seed(args.seed)
if use_cuda:
    torch.cuda.manual_seed(args.seed)


class Net(nn.Module):
    def __init__(self):
        super(Net, self).__init__()
        self.conv1 = nn.Conv2d(1, 4, kernel_size=5)
        self.fc1 = nn.Linear(4 * 12 * 12, 10)

    def forward(self, x):
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = x.view(x.size(0), -1)
        return F.log_softmax(self.fc1(x), dim=1)


model = Net()
if use_cuda:
    model.cuda()
optimizer = torch.optim.SGD(model.parameters(), lr=args.lr)


def train(epoch):
    model.train()
    for batch in range(2):
        data, target = torch.rand(4, 1, 28, 28), torch.arange(4)
        data = data.cuda()
        target = target.cuda()  # a comment that says .cuda()
        optimizer.zero_grad()
        loss = F.nll_loss(model(data), target)
        loss.backward()
        optimizer.step()
        print('loss', repr(loss.item()))


train(1)
