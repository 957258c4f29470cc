"""An option says which GPU."""
import argparse
import os
import warnings

import torch
import torch.backends.cudnn as cudnn
import torch.nn as nn

warnings.filterwarnings('ignore')


def get_args():
    parser = argparse.ArgumentParser(description='PyTorch ImageNet Training')
    parser.add_argument('--epochs', default=1, type=int, metavar='N')
    parser.add_argument('--lr', default=0.1, type=float)
    parser.add_argument('--gpu', default=0, type=int, help='GPU id to use.')
    parser.add_argument('--resume', default='last.pth', type=str)
    return parser.parse_args([])


def main():
    args = get_args()
    os.environ['CUDA_VISIBLE_DEVICES'] = str(args.gpu)
    main_worker(args.gpu, args)


def main_worker(gpu, args):
    print("Use GPU: {} for training".format(gpu))
    torch.manual_seed(12)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 100, 10))
    torch.cuda.set_device(args.gpu)
    model = model.cuda(args.gpu)
    criterion = nn.CrossEntropyLoss().cuda(args.gpu)
    optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=0.9)
    cudnn.benchmark = True
    if os.path.isfile(args.resume):
        # Map model to be loaded to specified single gpu.
        loc = 'cuda:{}'.format(args.gpu)
        checkpoint = torch.load(args.resume, map_location=loc)
        model.load_state_dict(checkpoint['state_dict'])

    for epoch in range(args.epochs):
        for step in range(2):
            images, target = torch.rand(4, 3, 12, 12), torch.arange(4)
            images = images.cuda(args.gpu, non_blocking=True)
            target = target.cuda(args.gpu, non_blocking=True)
            loss = criterion(model(images), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            print('loss', repr(loss.item()))
        torch.save({'epoch': epoch + 1, 'state_dict': model.state_dict()}, args.resume)


if __name__ == '__main__':
    main()
