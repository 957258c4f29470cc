"""The tutorial's training on a CPU, in one page. `diff train_gpu.py train_cpu.py` shows everything that changes from a GPU."""

import sys

import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.optim as optim
import torchvision
import torchvision.transforms as transforms


class SimpleCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.view(-1, 16 * 5 * 5)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        return self.fc3(x)


def main(trainset, epochs=2):
    torch.manual_seed(0)
    # 1. Select the device.
    device = torch.device("cpu")
    loader = torch.utils.data.DataLoader(trainset, batch_size=64, shuffle=True, num_workers=2)
    # 2. Move the model.
    model = SimpleCNN().to(device)
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    for epoch in range(epochs):
        for inputs, labels in loader:
            # 3. Move the data.
            inputs, labels = inputs.to(device), labels.to(device)
            # 4. Train.
            optimizer.zero_grad()
            loss = criterion(model(inputs), labels)
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.4f}")
    torch.save(model.state_dict(), "model.pt")


if __name__ == "__main__":
    transform = transforms.Compose([transforms.ToTensor()])
    main(torchvision.datasets.CIFAR10(root=sys.argv[1], train=True, download=True, transform=transform))
