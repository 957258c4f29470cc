"""A class that owns the loop, and reports about its GPU."""
import logging

import torch
from torch import nn

logger = logging.getLogger(__name__)


class Trainer:
    def __init__(self, model, lr):
        self.device = torch.device("cuda:0")
        self.model = model.to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=lr, capturable=True)
        properties = torch.cuda.get_device_properties(0)
        logger.info("training on %s", properties)
        logger.info(f"{torch.cuda.get_device_name(0)} has {torch.cuda.get_device_properties(0).total_memory / 2**30:.1f} GB")

    def batches(self):
        for step in range(2):
            g = torch.Generator().manual_seed(step)
            yield torch.rand(4, 3, 9, 9, generator=g).pin_memory(), torch.arange(4)

    def fit(self):
        torch.cuda.reset_peak_memory_stats()
        for images, labels in self.batches():
            images = images.to(self.device, non_blocking=True)
            labels = labels.to(device="cuda:0")
            loss = nn.functional.cross_entropy(self.model(images), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            torch.cuda.synchronize()
            print("loss", repr(loss.item()))
        peak = torch.cuda.max_memory_allocated() / 2**20
        return peak


def main():
    torch.manual_seed(13)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Flatten(), nn.Linear(4 * 49, 4))
    trainer = Trainer(net, lr=1e-2)
    trainer.fit()


if __name__ == "__main__":
    main()
