"""All settings in one dict, the device among them."""
import torch
import torch.nn as nn

CONFIG = {
    "seed": 9,
    "lr": 3e-3,
    "steps": 2,
    "batch_size": 6,
    "device": "cuda",  # where to train
    "classes": 4,
}


def build_model(config):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32, config["classes"]),
    )
    return model.to(config["device"])


def batch(config, step):
    g = torch.Generator().manual_seed(step)
    images = torch.rand(config["batch_size"], 3, 16, 16, generator=g)
    labels = torch.randint(config["classes"], (config["batch_size"],), generator=g)
    return images.to(config["device"]), labels.to(config["device"])


def train(config):
    torch.manual_seed(config["seed"])
    model = build_model(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config["lr"])
    mean = torch.tensor([0.5, 0.4, 0.3], device=config["device"]).view(3, 1, 1)
    for step in range(config["steps"]):
        images, labels = batch(config, step)
        loss = nn.functional.cross_entropy(model(images - mean), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        print("loss", repr(loss.item()))


if __name__ == "__main__":
    train(CONFIG)
