"""Native numerics are PyTorch's own: its module, autograd, stock kernels and optimizer."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.numerics.native import Native
from pipeline.workers import Group
from tests.dispatched import Names
from tests.networks import batch, equal, step
from tests.steps import drawn_set, run_steps, trainer


def normalised() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


def by_autograd(model: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    model.zero_grad()
    loss = nn.CrossEntropyLoss()(model(images.float() / 255), labels)
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


def test_a_native_step_calls_pytorchs_own_kernels_forward_and_backward():
    given = trainer("native")
    with Names() as names:
        given.step()
    assert names.called >= {
        "convolution", "max_pool2d_with_indices", "relu", "addmm", "_log_softmax", "nll_loss_forward",
        "convolution_backward", "max_pool2d_with_indices_backward", "threshold_backward", "mm", "_log_softmax_backward_data",
    }  # fmt: skip


@pytest.mark.parametrize("model", [lambda: trainer("native").model, normalised], ids=["SimpleCNN", "BatchNorm"])
def test_native_gradients_are_autograds_bit_for_bit(model):
    assert equal(step(model(), *batch(64), "native"), by_autograd(model(), *batch(64)))


def test_native_weights_are_those_of_a_loop_written_with_torch_optim():
    given, data = trainer("native", data=drawn_set(64), batch_size=64), drawn_set(64)
    other = trainer("native").model
    optimizer = torch.optim.SGD(other.parameters(), lr=0.01, momentum=0.9)
    images, labels = torch.from_numpy(data.train_images), torch.from_numpy(data.train_labels).long()
    for _ in range(3):
        run_steps(given, 1)
        by_autograd(other, images[given.order[:64]], labels[given.order[:64]])
        optimizer.step()
    assert all(torch.equal(own, theirs) for own, theirs in zip(given.model.parameters(), other.parameters(), strict=True))


def test_a_frozen_weight_stays_and_one_that_takes_no_part_has_no_gradient():
    model = normalised()
    model[0].weight.requires_grad_(False)
    model.register_parameter("unused", nn.Parameter(torch.ones(3)))
    _, *gradients = step(model, *batch(8), "native")
    named = dict(zip([name for name, _ in model.named_parameters()], gradients, strict=True))
    assert named["0.weight"] is None
    assert named["unused"] is None
    assert named["5.weight"].any()


class Second(Group):
    """Worker 1 of two, the first of which has told it its buffers, and gives nothing."""

    rank, count = 1, 2

    def copy_first(self, tensor: Tensor) -> None:
        tensor.fill_(7)


@pytest.mark.parametrize("images", [0, 5])
def test_native_workers_have_the_buffers_of_worker_0_and_one_without_an_image_leaves_them(images):
    model, (pixels, labels) = normalised(), batch(5)
    loss, *gradients = step(model, pixels[:images], labels[:images], "native", Second(), 10)
    assert torch.equal(model[1].running_mean, torch.full((4,), 7.0)) == (images == 0)
    assert (loss == 0) == (images == 0)
    assert any(gradient is not None and gradient.any() for gradient in gradients) == (images > 0)


def test_a_workers_share_weighs_as_much_as_it_has_of_the_batch():
    images, labels = batch(5)
    loss, *_ = step(trainer().model, images, labels, "native", Second(), 20)
    assert torch.allclose(loss, F.cross_entropy(trainer().model(images.float() / 255), labels) / 4)


def test_of_equal_confidences_the_class_is_that_of_the_larger_logit_as_predict_says():
    logits = torch.tensor([[-1.0, 0.0, 1e-9], [1.0, 1.0, 0.0]])
    assert torch.softmax(logits, 1)[0, 1] == torch.softmax(logits, 1)[0, 2]
    _, predicted, confidences = Native().scores(logits, torch.tensor([0, 0]))
    assert predicted.tolist() == np.argsort(-logits.numpy(), kind="stable")[:, 0].tolist() == [2, 0]
    assert torch.equal(confidences, torch.softmax(logits, 1).amax(1))
