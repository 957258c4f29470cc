import torch


class AverageMeter:
    def __init__(self):
        self.sum, self.count = 0.0, 0

    def update(self, value):
        self.sum += value
        self.count += 1


def setup(gpu):
    torch.cuda.set_device(gpu)
    torch.cuda.empty_cache()


def to_gpu(x):
    # modules and tensors
    return x.cuda()
