"""Native forms: on a CPU what SimpleCNN does, in float32 on a tape, as the exact forms do it, but rounded as PyTorch rounds.

The batch is innermost in memory. Convolutions are the exact forms' own products (reductions.py); what only compares, adds or changes
shapes is theirs altogether. PyTorch's kernels fill blocks of 8 or 16 channels, of which SimpleCNN's first layers have 3 and 6; its
max-pooling comes after ReLU, of four times the elements; and autograd notes each call (docs/performance.md has the figures).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.exact import elementwise, registry, tiles
from pipeline.exact.errors import refusal
from pipeline.exact.reductions import ConvolutionByRows, in_lines
from pipeline.exact.tape import Tape

BY_ROWS = ConvolutionByRows()


def logits(tape: Tape, images: Tensor, model: nn.Module) -> Tensor:
    """What the model says of float32 images [N, C, H, W], those that the tape is of. Raises UserError where it does what has no form."""
    with registry.Forms(tape, _FORM_OF):
        given = model(images)
    return tape.input(given, "the logits")


def images(pixels: Tensor) -> Tensor:
    """Uint8 images [N, C, H, W] -> float32 in [0, 1], with the batch innermost. The bytes are put in order."""
    rows = pixels.permute(2, 1, 3, 0).contiguous().float().div_(255)  # [H, C, W, N]
    return rows.permute(3, 1, 0, 2)


def loss_and_gradients(model: nn.Module, pixels: Tensor, labels: Tensor, batch_images: int) -> list[Tensor]:
    """The cross-entropy of uint8 images, as a part of the mean of `batch_images`, and the gradients of model.parameters().

    Raises:
        UserError: the model does what has no form; nothing was changed, but for what the model itself did before.
    """
    weights, given = dict(model.named_parameters()), images(pixels)
    if any(not weight.requires_grad or weight._backward_hooks for weight in weights.values()):
        raise refusal("a weight that is frozen, or has a hook")
    tape = Tape(given, weights, batch_images)
    logarithms = torch.log_softmax(of_images := logits(tape, given, model), 1)
    loss = F.nll_loss(logarithms, labels, reduction="sum") / batch_images
    gradient = logarithms.exp_().scatter_add_(1, labels.unsqueeze(1), logarithms.new_full((1, 1), -1).expand(len(labels), 1))
    tape.walk_back(of_images, gradient.div_(batch_images))
    if missing := weights.keys() - tape.gradients.keys():
        raise refusal(f"a weight that takes no part in the loss, as '{min(missing)}' does not")
    return [loss, *(tape.gradients[name] for name in weights)]


def conv2d(tape: Tape, x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
           groups: int = 1) -> Tensor:  # fmt: skip
    """The native form of torch.nn.functional.conv2d. Raises UserError for other types, strides, dilations and groups, padding by name."""
    plain = x.dim() == 4 and groups == 1 and not isinstance(padding, str) and {*tiles.pair(stride), *tiles.pair(dilation)} == {1}
    if not plain or not _fit(x, weight, bias):
        raise refusal("conv2d of these arguments")
    height, width = tiles.pair(padding)
    if x.shape[2] + 2 * height < weight.shape[2] or x.shape[3] + 2 * width < weight.shape[3] or x.shape[1] != weight.shape[1]:
        raise refusal("conv2d of these shapes")
    names = [tape.weight(each, "conv2d") for each in (weight, bias) if each is not None]
    x = tape.input(x, "conv2d")
    lines = in_lines(x.permute(2, 1, 3, 0), x.dtype, (height, width))
    y = BY_ROWS.forward(lines, weight)

    def backward(g: Tensor) -> tuple[Tensor | None]:
        tape.gradients[names[0]] = BY_ROWS.weight_gradient(g, lines, weight.shape)
        if bias is not None:
            tape.gradients[names[1]] = BY_ROWS.bias_gradient(g)
        if not tape.leads_to_weights(x):
            return (None,)
        padded = BY_ROWS.input_gradient(g, weight, lines.permute(3, 1, 0, 2).shape)
        return (padded[:, :, height : height + x.shape[2], width : width + x.shape[3]] if height or width else padded,)

    return tape.record(y if bias is None else y.add_(bias.view(-1, 1, 1)), (x,), backward)


def linear(tape: Tape, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The native form of torch.nn.functional.linear, for x [N, I]. Raises UserError for other dimensions and types."""
    if x.dim() != 2 or not _fit(x, weight, bias):
        raise refusal("linear of these arguments")
    names = [tape.weight(each, "linear") for each in (weight, bias) if each is not None]
    x = tape.input(x, "linear")

    def backward(g: Tensor) -> tuple[Tensor]:
        tape.gradients[names[0]] = g.t() @ x
        if bias is not None:
            tape.gradients[names[1]] = g.sum(0)
        return (g @ weight,)

    return tape.record(F.linear(x, weight, bias), (x,), backward)


def relu(tape: Tape, x: Tensor, inplace: bool = False) -> Tensor:
    """The native form of torch.relu. Raises UserError where it is to be in place: x may be used again."""
    if inplace:
        raise refusal("relu in place")
    return elementwise.relu(tape, x)


def _fit(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether all are float32 and the bias is one number an output."""
    return x.dtype == weight.dtype == torch.float32 and (bias is None or (bias.dtype == torch.float32 and bias.shape == weight.shape[:1]))


_FORM_OF: dict[Any, registry.Form] = {
    **registry.FORM_OF,
    torch.conv2d: conv2d,
    F.linear: linear,
    **dict.fromkeys(registry.FORMS["relu"][1], relu),
}
