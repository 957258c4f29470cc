"""Whatever arguments an operation is given, its exact form computes what PyTorch does with them, or refuses them."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.exact.errors import Unsupported
from pipeline.exact.registry import Forms
from pipeline.exact.tape import Tape

ROWS = torch.rand(2, 3, 4, generator=torch.Generator().manual_seed(1)) - 0.4
"""Two images."""
MAPS = torch.rand(2, 4, 6, 6, generator=torch.Generator().manual_seed(2)) - 0.4
MASK = torch.arange(12).view(3, 4) % 3 == 0
KNOWN = {"torch": torch, "F": F, "math": math, "MASK": MASK}
OF_ROWS = """
x.T
x.mT
x.t()
torch.t(x)
x[:, 0].t()
x.flatten(1).T
torch.einsum('nii,nij->nij', x[:, :, :3], x)
torch.einsum('nij,nji->nii', x[:, :, :3], x[:, :, :3])
torch.einsum('nij,njj->nij', x[:, :, :3], x[:, :, :3])
torch.einsum('nij,nkj->nik', x, x)
torch.einsum('nij,njk->nki', x[:, :, :3], x)
torch.einsum('nij,nkj->nki', x, x)
torch.einsum('nnj,nkj->nnk', x[:, :2], x)
torch.einsum('nij,nij->nij', x, x)
x[:, True]
x[:, [True, False, True]]
x[..., None, 1:, -1]
x[:, ::2, 1::2]
x[:, -2:]
torch.clamp(x, 0.9, 0.1)
x.clamp(max=0.2)
x.clamp(min=0.2)
x.clamp(torch.tensor(0.1), torch.tensor(0.2))
x.unflatten(2, (2, -1))
x.unflatten(-1, (2, 2))
x.unsqueeze(1).repeat(1, 2, 1, 1)
x.repeat(1, 2, 1)
x.roll((1, 1), (2, 2))
x.roll(-5, 2)
x.roll(1)
x.roll((1, 2), (1, 2))
x.roll((12,), ())
x.roll((), ())
x.sum(())
x.mean(())
x.amax(())
x.amin(())
x.flip(())
x.squeeze(())
x.movedim((), ())
torch.softmax(x, ())
x.unflatten(1, ())
x.repeat(())
x.expand(())
x.permute(())
x.reshape(())
x[()]
x[:, ()]
F.pad(x, ())
F.layer_norm(x, ())
x.mean((1, 1))
x.mean(-1, keepdim=True)
x.mean((1, 2))
x.mean(1, dtype=torch.float64)
x.amax(1)
x.amax((1, -1), keepdim=True)
x.amin(-1)
x.amax()
x.amax((1, 1))
x.amax(0)
(x > 0).float().amin((1, 2))
x.sum((-1, 2))
x.sum((-1, 1))
x.sum(1, True)
x.sum(2, dtype=torch.float64)
x.sum(-1, dtype=torch.int64)
torch.softmax(x, -1)
torch.softmax(x, 1, dtype=torch.float64)
F.softmax(x, dim=-2)
F.log_softmax(x, 2)
x.unsqueeze(1).squeeze(-3)
x.unsqueeze(1).squeeze((1, 2))
x.unsqueeze(-1).squeeze()
x.unsqueeze(-4)
x.movedim((1, 2), (2, 1))
x.movedim(-1, 1)
x.permute(0, -1, 1)
x.transpose(-1, 1)
x.swapaxes(1, 2)
x.chunk(3, 2)[-1]
x.chunk(0, 2)[-1]
x.chunk(9, 2)[-1]
x.split(0, 2)[-1]
x.split(3, -1)[-1]
x.split([1, 3], 2)[-1]
x.split([1, 2], 2)[-1]
x.unbind(-1)[-1]
x.select(-1, -1)
x.narrow(-1, -2, 2)
x.narrow(2, 1, 9)
x.flip(-1)
x.flip(1, 2)
x.flip((1, 1))
x ** 8
x ** (-1)
x ** 0.5
x ** 0
2 ** x
x.pow(2.0)
x.pow(x)
torch.rsub(x, 2.0)
torch.rsub(x, 2.0, alpha=2)
torch.add(x, x, alpha=2)
torch.sub(x, x, alpha=0.5)
1 - x
torch.div(x, 0.3, rounding_mode='floor')
x + torch.arange(4)
x + torch.arange(0.5, 4)
x + torch.arange(-1, 1, 0.5)
x + torch.arange(end=4)
x + torch.arange(1, end=5)
x + torch.arange(start=0.25, end=2.25, step=0.5)
x + torch.arange(2, step=-0.5, end=0)
x + torch.arange(2, 0, -0.5, dtype=torch.float64)
x + torch.arange(0, 2, 0.5, dtype=torch.int64)
x + torch.arange(2**25, 2**25 + 4)
x + torch.arange(2.0**25, 2.0**25 + 4, 1)
x + torch.arange(0, 2, 0.0)
x + torch.arange(0, 4, dtype=torch.bfloat16).float()
x + torch.arange(257, 261, dtype=torch.bfloat16).float()
x + torch.arange(0.5, 4, dtype=torch.float16).float()
x + torch.arange(0, float('inf'), 0.5)
x + torch.arange(0.5, 0.5).sum()
x + torch.zeros(4).add_(torch.ones(4), alpha=0.5)
x + torch.zeros(4).add_(0.5, torch.ones(4))
x + torch.zeros(4).add_(torch.ones(4), alpha=1)
x + torch.arange(4) // 3
x + torch.arange(4) % 3
x + torch.arange(4.0) % 0.3
x + torch.arange(4.0) // 0.3
torch.div(x, 0.3, rounding_mode='trunc')
1 / (x + 2)
x / x.abs()
F.gelu(x, approximate='tanh')
F.gelu(x)
F.layer_norm(x, [])
F.layer_norm(x, [4])
F.layer_norm(x, (3, 4), eps=0.1)
F.layer_norm(x, [4], torch.arange(4.0), torch.ones(4), 0.5)
F.normalize(x, dim=2)
F.normalize(x, p=1.0, dim=2)
F.normalize(x, dim=(1, 2))
F.leaky_relu(x, 0.3)
F.leaky_relu(x, -0.3)
F.hardtanh(x, 0.3, 0.2)
F.hardtanh(x, -0.1, 0.2)
F.elu(x, -1.0)
F.elu(x, 0.3)
F.celu(x, 0.5)
F.celu(x, -0.5)
F.selu(x)
F.softplus(x, 3.0, 0.1)
F.softplus(x, beta=0.5)
F.prelu(x, torch.tensor([0.3]))
F.prelu(x, torch.tensor([0.3, 0.4, 0.5]))
F.hardsigmoid(4 * x)
F.hardswish(4 * x)
F.relu6(20 * x)
F.mish(x)
F.silu(x)
x.where(MASK, 0.0)
x.where(x > 0, x * 2)
torch.where(MASK)
torch.narrow(x, 1, 1, 1)
torch.flip(x, (1,))
torch.permute(x, (0, 2, 1))
torch.mean(x, dim=1)
torch.sum(input=x, dim=1)
torch.clip(x, 0, 1)
torch.where(MASK, x, 0.0)
torch.where(x > 0, 1.0, x)
x.masked_fill(MASK, -math.inf)
torch.where(x > 0, 2.0, 3.0) * x
torch.maximum(x, torch.zeros(()))
x.minimum(x * 2)
torch.neg(x)
(x > 0.1).float()
(x == x).float()
x.float().abs().sqrt()
torch.stack((x, x), -1)
torch.stack((x, x), 2)
torch.cat((x, x), -1)
torch.cat((x, x), 1)
torch.cat((x, x), axis=2)
x.reshape(2, -1, 2)
x.view(-1, 4)
x.reshape((2, 12))
x.flatten(1, -1)
x.flatten(-2)
x.expand(-1, 3, -1)
x[:, :, :1].expand(2, 3, 5)
x.unsqueeze(1).expand(-1, 4, -1, -1)
x[:, :, None].expand_as(x[:, :, None].repeat(1, 1, 2, 1))
F.linear(x, torch.ones(5, 4), torch.arange(5.0))
x @ torch.ones(4, 2)
x @ x.mT
torch.bmm(x, x.mT)
torch.matmul(torch.ones(5, 3), x)
x @ torch.ones(4)
F.scaled_dot_product_attention(x, x, x)
F.scaled_dot_product_attention(x, x, x, scale=0.1)
F.scaled_dot_product_attention(x, x, x, is_causal=True)
F.scaled_dot_product_attention(x, x, x, attn_mask=torch.ones(3, 3))
F.scaled_dot_product_attention(x, x, x, attn_mask=torch.ones(3, 3).tril() > 0)
F.dropout(x, 0.5, False)
F.dropout(x, 0.0)
F.pad(x, (1, 0))
F.pad(x, (0, 1, 2, 0), value=-1.0)
F.pad(x, (1, 1), mode='reflect')
F.pad(x, (-1, 0))
F.pad(x, (1, 1), 'replicate')
x.to(torch.float64)
x.type(torch.float32)
x.contiguous()
x.clone()
x.detach()
""".strip().splitlines()
OF_MAPS = """
F.max_pool2d(x, 3, 2, 0, 1, True)
F.max_pool2d(x, 2, 1, 1, 2)
F.max_pool2d(x, (2, 3), (1, 2))
F.max_pool2d(x, 2.5)
F.avg_pool2d(x, 3, 2, 1, False, False)
F.avg_pool2d(x, 3, 2, 1, True, True)
F.avg_pool2d(x, 2, divisor_override=3)
F.avg_pool2d(x, 4, 3, 2, True, False)
F.adaptive_avg_pool2d(x, 4)
F.adaptive_avg_pool2d(x, (None, 2))
F.adaptive_avg_pool2d(x, (1, 6))
F.adaptive_avg_pool2d(x, 9)
F.adaptive_max_pool2d(x, 4)
F.adaptive_max_pool2d(x, 3)
F.adaptive_max_pool2d(x, (1, 2))
F.interpolate(x, scale_factor=1.5)
F.interpolate(x, scale_factor=2.0)
F.interpolate(x, scale_factor=(2, 3))
F.interpolate(x, scale_factor=0.5)
F.interpolate(x, size=9)
F.interpolate(x, size=(12, 6))
F.interpolate(x, 12, mode='bilinear')
F.interpolate(x, 12, mode='nearest-exact')
F.interpolate(x, 12, mode='bilinear', align_corners=True)
F.interpolate(x, scale_factor=2.5, recompute_scale_factor=True)
F.interpolate(x, 12, align_corners=False)
F.conv2d(x, torch.ones(4, 4, 2, 2), padding='same')
F.conv2d(x, torch.ones(4, 4, 3, 3), padding='same', dilation=2)
F.conv2d(x, torch.ones(4, 4, 2, 2), padding='valid')
F.conv2d(x, torch.ones(4, 2, 3, 1), stride=(2, 1), padding=(1, 0), groups=2)
F.conv2d(x, torch.ones(8, 1, 3, 3), torch.arange(8.0), 2, 1, 1, 4)
F.conv2d(x, torch.ones(4, 4, 2, 2), padding='same', stride=2)
F.conv2d(x, torch.ones(4, 4, 3, 3), stride=3, dilation=2, padding=4)
F.pad(x, (1, 2, 0, 1), value=3.0)
F.pad(x, (1, 1, 1, 1), mode='reflect')
F.pad(x, (1, 1, 1, 1), mode='circular')
F.pixel_shuffle(x, 2)
F.channel_shuffle(x, 2)
F.group_norm(x, 2)
F.group_norm(x, 4, torch.arange(4.0), torch.ones(4), 0.1)
F.instance_norm(x)
F.instance_norm(x, torch.zeros(4), torch.ones(4), use_input_stats=False)
F.batch_norm(x, torch.zeros(4), torch.ones(4))
F.batch_norm(x, torch.zeros(4), torch.ones(4), torch.arange(4.0), torch.ones(4), False, 0.3, 0.2)
F.dropout2d(x, 0.5, False)
x.mean((2, 3))
x.mean((-1, -2), keepdim=True)
F.normalize(x, dim=1)
F.normalize(x, 3.0, 1)
F.layer_norm(x, (6, 6))
""".strip().splitlines()


def given(operation: str, x: Tensor, exactly: bool) -> Any:
    """What the operation gives of x, or the exception that it raises."""
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        try:
            if exactly:
                with Forms(Tape(images := x.view_as(x))):
                    return eval(operation, KNOWN, {"x": images})
            return eval(operation, KNOWN, {"x": x.clone()})
        except Exception as error:
            return error


@pytest.mark.parametrize(("operation", "x"), [*((each, ROWS) for each in OF_ROWS), *((each, MAPS) for each in OF_MAPS)])
def test_a_form_computes_what_pytorch_does_with_these_arguments_or_refuses_them(operation, x):
    wanted, found = given(operation, x, False), given(operation, x, True)
    if isinstance(found, Exception):
        assert isinstance(found, Unsupported | ValueError | RuntimeError | TypeError | IndexError), found
        assert isinstance(found, Unsupported) or isinstance(wanted, Exception), found
        return
    assert isinstance(wanted, Tensor), f"PyTorch refuses it: {wanted}"
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize(("first", "last", "step"), [(0.1, 777.3, 0.0137), (-3, 3, 0.001), (-1, 1, 2 / 224), (5, -5.5, -0.3)])
def test_arange_of_numbers_that_are_not_whole_rounds_each_product_and_each_sum_in_float64(first, last, step):
    found = given(f"torch.arange({first}, {last}, {step})", ROWS, True)
    count = np.arange(len(torch.arange(first, last, step)), dtype=np.float64)
    assert np.array_equal(found.numpy(), (count * step + first).astype(np.float32))


def test_arange_of_a_half_rounds_whole_numbers_once():
    found = given("torch.arange(-2**24, 2**24, 1001, dtype=torch.bfloat16)", ROWS, True)
    assert torch.equal(found, torch.from_numpy(np.arange(-(2**24), 2**24, 1001)).to(torch.bfloat16))
