"""Exact forms that are made of others: attention. They are written in PyTorch's own functions, which find their forms in turn."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.exact.errors import refusal


def scaled_dot_product_attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0, is_causal: bool = False,
    scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """softmax(query key^T scale + mask) value, with dropout of the softmax."""
    if is_causal or enable_gqa:
        raise refusal("attention with is_causal or enable_gqa", "a mask")
    weights = torch.matmul(query, key.transpose(-2, -1)) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if attn_mask is not None:
        weights = weights.masked_fill(~attn_mask, -math.inf) if attn_mask.dtype == torch.bool else weights + attn_mask
    weights = torch.softmax(weights, -1)
    if dropout_p > 0:
        weights = F.dropout(weights, dropout_p, True)
    return torch.matmul(weights, value)


def multi_head_attention_forward(
    query: Tensor, key: Tensor, value: Tensor, embed_dim_to_check: int, num_heads: int, in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None, bias_k: Tensor | None, bias_v: Tensor | None, add_zero_attn: bool, dropout_p: float,
    out_proj_weight: Tensor, out_proj_bias: Tensor | None, training: bool = True, key_padding_mask: Tensor | None = None,
    need_weights: bool = True, attn_mask: Tensor | None = None, use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None, k_proj_weight: Tensor | None = None, v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None, static_v: Tensor | None = None, average_attn_weights: bool = True, is_causal: bool = False,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Attention of query, key and value [L, N, E] with projections, as torch.nn.MultiheadAttention calls it; no weights are returned."""
    separate = use_separate_proj_weight or bias_k is not None or bias_v is not None or add_zero_attn or key_padding_mask is not None
    separate = separate or any(each is not None for each in (q_proj_weight, k_proj_weight, v_proj_weight, static_k, static_v))
    if separate or need_weights or in_proj_weight is None or is_causal or query.dim() != 3:
        raise refusal(
            "multi_head_attention with separate projections, padding, keys or biases of their own, or weights that are returned",
            "need_weights=False",
        )
    length, images, width = query.shape
    thirds = list(zip(in_proj_weight.chunk(3), (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3), strict=True))
    heads = [
        F.linear(x, weight, bias).view(x.shape[0], images * num_heads, width // num_heads).transpose(0, 1)
        for x, (weight, bias) in zip((query, key, value), thirds, strict=True)
    ]  # [N heads, L, E / heads] each
    q, k, v = heads
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = ~attn_mask  # here it says what is left out, in scaled_dot_product_attention what is kept
    attended = scaled_dot_product_attention(q, k, v, attn_mask, dropout_p if training else 0.0)
    y = attended.transpose(0, 1).reshape(length, images, width)
    return F.linear(y, out_proj_weight, out_proj_bias), None


def einsum(equation: str, *operands: Tensor) -> Tensor:
    """Batched products of matrices: two operands whose last two axes are multiplied, with equal letters before them."""
    left, _, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(operands) != 2 or not right or any(len(t) < 2 or len({*t}) < len(t) for t in (*terms, right)):
        raise refusal(f"einsum '{equation}'", "a product of two batches of matrices")
    a, b = operands
    x, y = terms
    if x[:-2] != y[:-2] or right[:-2] != x[:-2] or "." in left:
        raise refusal(f"einsum '{equation}'", "a product of two batches of matrices")
    i, k, m, n = *x[-2:], *y[-2:]
    if right[-2:] == i + n and k == m:
        return torch.matmul(a, b)
    if right[-2:] == i + m and k == n:
        return torch.matmul(a, b.transpose(-2, -1))
    raise refusal(f"einsum '{equation}'", "a product of two batches of matrices")
