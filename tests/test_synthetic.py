import numpy as np
import pytest

from pipeline.data import dataset, synthetic


@pytest.fixture
def one_thread():
    """PyTorch on one thread: its threads wait for each other for minutes where the machine is busy."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data():
    return synthetic.make()


def test_the_bytes_are_the_same_everywhere(data):
    assert data.digest == "c1ca335c8d82f1e7cde1fb4f6ab1ea4aea5d53f4e8ef6cf7becb3d4e3c04a08e"


def test_there_are_10000_training_and_2000_test_images_of_ten_balanced_classes(data):
    assert data.name == "synthetic"
    assert len(set(data.classes)) == 10
    assert data.train_images.shape == (10_000, 3, 32, 32)
    assert data.test_images.shape == (2_000, 3, 32, 32)
    assert np.bincount(data.train_labels).tolist() == [1000] * 10
    assert np.bincount(data.test_labels).tolist() == [200] * 10


def test_no_test_image_is_among_the_training_images(data):
    training = {image.tobytes() for image in data.train_images}
    assert len(training) == 10_000
    assert not any(image.tobytes() in training for image in data.test_images)


def test_a_brighter_pattern_than_its_ground_is_all_that_tells_a_class(data):
    """Means over a class's images show its pattern: each has its own, and the corners, which no pattern reaches, tell nothing."""
    means = np.stack([data.train_images[data.train_labels == c].mean((0, 1)) for c in range(10)])  # float64 [10, 32, 32]
    assert np.ptp(means[:, :2, :2].mean((1, 2))) < 5
    apart = np.abs(means[:, None] - means[None]).max((2, 3)) + 255 * np.eye(10)
    assert apart.min() > 20


def test_simple_cnn_learns_it_in_three_epochs_but_not_perfectly(data, one_thread):
    import torch

    from pipeline.exact.draws import permutation
    from pipeline.exact.initialisation import initialise
    from pipeline.models.simple_cnn import SimpleCNN

    model = SimpleCNN()
    initialise(model, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.from_numpy(data.train_images).float() / 255, torch.from_numpy(data.train_labels).long()
    for epoch in range(3):
        for batch in torch.from_numpy(permutation(f"order/0/{epoch}", len(labels))).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    with torch.inference_mode():
        predicted = model(torch.from_numpy(data.test_images).float() / 255).argmax(1).numpy()
    assert 0.60 < (predicted == data.test_labels).mean() < 0.98


def test_a_saved_set_is_the_same_file_each_time_and_reads_back_the_same(data, tmp_path):
    files = []
    for n in range(8):
        data.save(tmp_path / str(n))
        files.append((tmp_path / str(n)).read_bytes())
    assert len(set(files)) == 1
    read = dataset.load(tmp_path / "0")
    assert (read.name, read.classes, read.digest) == (data.name, data.classes, data.digest)
