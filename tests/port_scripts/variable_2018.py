from __future__ import print_function
import torch
import torch.nn as nn
from torch.autograd import Variable


class AverageMeter(object):
    def __init__(self):
        self.avg, self.sum, self.count = 0, 0, 0

    def update(self, val, n=1):
        self.sum += val * n
        self.count += n
        self.avg = self.sum / self.count


def accuracy(output, target, topk=(1,)):
    maxk = max(topk)
    _, pred = output.topk(maxk, 1, True, True)
    pred = pred.t()
    correct = pred.eq(target.view(1, -1).expand_as(pred))
    return [correct[:k].view(-1).float().sum(0) / target.size(0) for k in topk]


torch.manual_seed(4)
torch.cuda.manual_seed_all(4)
model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.AvgPool2d(6))
head = nn.Linear(5 * 25, 10).cuda()
model = torch.nn.DataParallel(model).cuda()
criterion = nn.CrossEntropyLoss().cuda()
optimizer = torch.optim.SGD(list(model.parameters()) + list(head.parameters()), 0.1)
losses = AverageMeter()
batches = [(torch.rand(8, 3, 32, 32), torch.arange(8))] * 2
for i, (input, target) in enumerate(batches):
    target = target.cuda(async=True)
    input_var = torch.autograd.Variable(input.cuda())
    target_var = torch.autograd.Variable(target)
    output = head(model(input_var).view(8, -1))
    loss = criterion(output, target_var)
    prec1, prec5 = accuracy(output.data, target, topk=(1, 5))
    losses.update(loss.data[0], input.size(0))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print('loss', repr(float(losses.sum)))

# validate
input_var = Variable(batches[0][0].cuda(async=True), volatile=True)
output = head(model(input_var).view(8, -1))
print('loss', repr(float(accuracy(output.data, batches[0][1].cuda(), topk=(5,))[0])))
