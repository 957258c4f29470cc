"""A native step walked back by the tape that exact numerics have: PyTorch's kernels, without its autograd.

ReLU, max-pooling and changes of shape round nothing, so their exact forms serve here too; what is multiplied has forms of its own.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.numerics import registry
from pipeline.numerics.tape import Tape, refusal
from pipeline.numerics.tiles import pair


def loss_and_gradients(model: nn.Module, inputs: Tensor, labels: Tensor, batch_images: int) -> list[Tensor]:
    """The sum of the images' cross-entropies over `batch_images`, 0-dim, and its gradients, one a parameter of the model, in their order.

    Raises:
        UserError: the model does what has no form here; autograd has a way.
    """
    weights = dict(model.named_parameters())
    with torch.no_grad():
        tape = Tape(inputs, weights)
        with registry.Forms(tape, _FORM_OF):
            logits = model(inputs)
        logits = tape.input(logits, "the loss")
        if logits.dim() != 2:
            raise refusal(f"the loss of {logits.dim()} dimensions", "2")
        logarithms = torch.log_softmax(logits, 1)
        loss = F.nll_loss(logarithms, labels, reduction="sum") / batch_images
        hot = labels.unsqueeze(1)
        gradient = logarithms.exp_().scatter_add_(1, hot, torch.full_like(hot, -1, dtype=torch.float32)).div_(batch_images)
        tape.walk_back(logits, gradient)
    if missing := weights.keys() - tape.gradients.keys():
        raise refusal(f"a weight that takes no part in the loss, as '{min(missing)}' does not")
    return [loss, *(tape.gradients[name] for name in weights)]


def linear(tape: Tape, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch.nn.functional.linear, for x [N, I]."""
    x = tape.input(x, "linear")
    if x.dim() != 2:
        raise refusal(f"linear on {x.dim()} dimensions", "2")
    names = _names(tape, "linear", weight, bias)

    def backward(g: Tensor) -> tuple[Tensor | None]:
        tape.gradients.update(zip(names, (g.t() @ x, g.sum(0)), strict=False))
        return (None if x is tape.images else g @ weight,)

    return tape.record(F.linear(x, weight, bias), (x,), backward)


def conv2d(tape: Tape, x: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
           groups: int = 1) -> Tensor:  # fmt: skip
    """torch.nn.functional.conv2d, for x [N, I, H, W]."""
    x = tape.input(x, "conv2d")
    if x.dim() != 4 or isinstance(padding, str):
        raise refusal(f"conv2d on {x.dim()} dimensions with padding={padding!r}", "4, a padding in pixels")
    names = _names(tape, "conv2d", weight, bias)

    def gradients(g: Tensor, x: Tensor, wanted: list[bool]) -> tuple[Tensor, Tensor, Tensor]:
        """Those of x, weight and bias that are wanted."""
        result: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
            g, x, weight, [len(weight)], pair(stride), pair(padding), pair(dilation), False, (0, 0), groups, wanted
        )
        return result

    def backward(g: Tensor) -> tuple[Tensor | None]:
        # with the channels last, conv2's weight gradient takes 0.7 ms, not 1.0 (AVX2); conv1's, of 3 channels, gains nothing, and the
        # input's gradient takes longer
        arranged = x if x is tape.images else x.contiguous(memory_format=torch.channels_last)
        tape.gradients.update(zip(names, gradients(g, arranged, [False, True, bias is not None])[1:], strict=False))
        return (None if x is tape.images else gradients(g, x, [True, False, False])[0],)

    return tape.record(torch.conv2d(x, weight, bias, stride, padding, dilation, groups), (x,), backward)


def _names(tape: Tape, what: str, *weights: Tensor | None) -> list[str]:
    return [tape.weight(weight, what) for weight in weights if weight is not None]


_FORM_OF = {**registry.FORM_OF, torch.conv2d: conv2d, F.linear: linear}
