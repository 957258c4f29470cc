"""What is computed a part after the other, and where tensors lie in memory, changes no bit."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from pipeline.exact import blocks, layout, optimizers
from tests import goldens_recipes
from tests.goldens import CASES, Pipeline, first_difference, golden
from tests.steps import CPU, ints


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "size", lambda: 5)


def drawn(*shape: int) -> torch.Tensor:
    return (ints("x", 19, *shape) / 2**19).float()


IN_MEMORY = {
    "as usual": lambda: drawn(3, 4, 5, 6),
    "the batch innermost": lambda: drawn(5, 4, 6, 3).permute(3, 1, 0, 2),
    "a part": lambda: drawn(3, 4, 5, 12)[..., ::2],
    "spread": lambda: drawn(3, 4, 1, 1).expand(3, 4, 5, 6),
    "one number": lambda: drawn(1),
    "none": lambda: drawn(0, 4),
}
"""Name -> a tensor that lies so."""


@pytest.mark.parametrize("lies", IN_MEMORY)
def test_a_function_of_each_element_gives_the_same_a_part_after_the_other(lies, small_blocks):
    x = IN_MEMORY[lies]()
    asked = []

    def function(part: torch.Tensor) -> torch.Tensor:
        asked.append(part.numel())
        return part.double() * part.double() + 0.1

    assert torch.equal(blocks.elementwise(function, x), (x.double() * x.double() + 0.1).float())
    assert (max(asked) <= 5) == (lies in ("as usual", "the batch innermost", "one number", "none"))


@pytest.mark.parametrize("lies", [name for name in IN_MEMORY if name != "one number"])
def test_a_function_of_rows_gives_the_same_a_row_after_the_other(lies, monkeypatch):
    x = IN_MEMORY[lies]()
    y = x + 1
    monkeypatch.setattr(blocks, "size", lambda: 2 * max(1, x.numel()) // 3)  # two of three rows
    asked = []

    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        asked.append(len(x))
        return x.double() * y.amax(1, keepdim=True)

    assert torch.equal(blocks.by_rows(function, x, y), (x.double() * y.amax(1, keepdim=True)).float())
    assert asked == ([2, 1] if len(x) else [0])


@pytest.mark.parametrize("case", ["exact-3-functions", "exact-3-batch-64"])
def test_the_goldens_are_met_in_small_parts(case, small_blocks):
    assert first_difference(CASES[case](Pipeline()), golden(case)) is None


def test_recipes_meet_their_goldens_in_small_parts(monkeypatch):
    monkeypatch.setattr(blocks, "size", lambda: 1000)
    assert goldens_recipes.recipes(goldens_recipes.Pipeline(CPU)) == goldens_recipes.GOLDEN.read_text().splitlines()


@pytest.mark.parametrize("decay", [0.0, 0.1, "each its own"])
@pytest.mark.parametrize("kind", [optimizers.SGD, optimizers.Adam, optimizers.AdamW])
def test_an_update_in_small_parts_is_that_of_the_whole(kind, decay, monkeypatch):
    def weights() -> list[torch.Tensor]:
        weight = drawn(7, 4).requires_grad_()
        options = {"weight_decay": drawn(7, 4).abs() if decay == "each its own" else decay, "lr": 0.1}
        of = kind([weight], **options | ({"momentum": 0.9} if kind is optimizers.SGD else {}))
        for number in range(3):
            weight.grad = drawn(7, 4).flip(0) * (number + 1)
            of.step()
        return [weight.detach(), *of.state[weight].values()]

    whole = weights()
    monkeypatch.setattr(blocks, "size", lambda: 5)
    assert all(torch.equal(a, b) for a, b in zip(weights(), whole, strict=True))


@pytest.mark.parametrize("around", [(1, 2), (1, 0, 0, 3), (0, 0, 2, 1, 1, 1), ()])
@pytest.mark.parametrize("lies", ["as usual", "the batch innermost", "a part"])
def test_padding_is_pytorchs_and_leaves_the_axes_as_they_lie_in_memory(lies, around):
    x = IN_MEMORY[lies]()
    y = layout.pad(x, around, 0.5)
    assert torch.equal(y, F.pad(x, around, value=0.5))
    assert layout.order(y) == layout.order(x)


@pytest.mark.parametrize("around", [(1,), (1, 1) * 5])
def test_padding_of_what_is_not_there_is_refused_in_pytorchs_words(around):
    with pytest.raises(RuntimeError, match=r"[Pp]adding length"):
        layout.pad(drawn(3, 4, 5, 6), around)


@pytest.mark.parametrize("lies", ["as usual", "the batch innermost", "a part"])
def test_joining_is_pytorchs_and_leaves_the_axes_as_they_lie_in_memory(lies):
    x = IN_MEMORY[lies]()
    for dim in (0, 1, -1):
        y = layout.cat([x, x + 1], dim)
        assert torch.equal(y, torch.cat([x, x + 1], dim))
        assert layout.order(y) == layout.order(x)
    assert torch.equal(layout.cat([x, x.contiguous() + 1], 1), torch.cat([x, x + 1], 1))


@pytest.mark.parametrize(("tensors", "dim"), [([], 0), ([drawn(2, 3)], 2), ([drawn(2, 3), drawn(3, 3)], 1), ([drawn(2, 3), drawn(2)], 0)])
def test_what_cannot_be_joined_is_refused_in_pytorchs_words(tensors, dim):
    with pytest.raises((RuntimeError, IndexError, ValueError)) as wanted:
        torch.cat(tensors, dim)
    with pytest.raises(type(wanted.value)) as said:
        layout.cat(tensors, dim)
    assert str(said.value) == str(wanted.value)
