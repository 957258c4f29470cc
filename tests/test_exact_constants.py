"""What a network makes of numbers alone: PyTorch's own wherever nothing rounds, the same on any threads and device, or refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline import numerics
from pipeline.exact.errors import Unsupported
from pipeline.exact.masks import Draws
from pipeline.exact.registry import Forms
from pipeline.exact.tape import Tape
from pipeline.system.errors import UserError
from pipeline.workers import ALONE
from tests.steps import CPU

TRUTHS = torch.tensor([True, False, True, True])
BYTES = torch.tensor([3, 200, 0, 7], dtype=torch.uint8)
LARGE = torch.tensor([2**24 + 1, -(2**24) - 3, 2**53 + 1, 2**62 + 1])


def exact(make: Callable[[], Tensor]) -> Tensor:
    """What it is with exact numerics."""
    with torch.inference_mode(), Forms(Tape(torch.zeros(2, 3))):
        return make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.arange(2**25, 2**25 + 4),
        lambda: torch.arange(5, 0, -2),
        lambda: torch.arange(end=2**40 + 2, start=2**40),
        lambda: torch.where(TRUTHS, 2**24 + 1, 0),
        lambda: torch.where(TRUTHS, True, False),
        lambda: torch.where(TRUTHS, LARGE, LARGE - 1),
        lambda: LARGE**1,
        lambda: TRUTHS**2,
        lambda: TRUTHS.square(),
        lambda: BYTES**3,
        lambda: LARGE.clamp(0, 2**53),
        lambda: LARGE.flip(0) - 2**24,
        lambda: (LARGE > 2**24) & TRUTHS,
        lambda: BYTES.float().long(),
    ],
)
def test_constants_of_whole_numbers_and_truths_are_pytorchs(make):
    given, theirs = exact(make), make()
    assert given.dtype == theirs.dtype
    assert torch.equal(given, theirs)


def several(index: object) -> Tensor:
    x = torch.zeros(8)
    x[index] = torch.arange(3.0)
    return x


def grid() -> Tensor:
    """Numbers that are one in memory."""
    return torch.meshgrid(torch.arange(3.0), torch.arange(4.0), indexing="ij")[0]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: BYTES**3.0, "an operation that gives torch.float32 of constants"),
        (lambda: several(torch.tensor([1, 5, 1])), "assignment of several numbers to one place"),
        (lambda: several([1, 5, -7]), "assignment of several numbers to one place"),
        (lambda: several(((1, 5, 1),)), "assignment of several numbers to one place"),
        (lambda: grid().add_(torch.arange(4.0)), "add_ on what was expanded"),
        (lambda: grid().mul_(2.0), "mul_ on what was expanded"),
        (lambda: grid().clamp_(1.0), "copy_ on what was expanded"),
        (lambda: torch.logical_or(TRUTHS[1:], TRUTHS[:-1], out=TRUTHS[1:]), "logical_or with out"),
        (lambda: torch.tensor([1e30]).long(), "a conversion to torch.int64 of numbers that are none"),
        (lambda: torch.tensor([float("nan")]).int(), "a conversion to torch.int32 of numbers that are none"),
        (lambda: torch.tensor([3e9]).to(torch.int32), "a conversion to torch.int32 of numbers that are none"),
        (lambda: torch.tensor([-1.0]).type(torch.uint8), "a conversion to torch.uint8 of numbers that are none"),
        (lambda: torch.tensor([256.0]).type_as(BYTES), "a conversion to torch.uint8 of numbers that are none"),
        (lambda: torch.zeros(1, dtype=torch.int32).copy_(torch.tensor([2.0**31])), "a conversion to torch.int32 of numbers that are none"),
        (lambda: torch.tensor(torch.tensor([1e30]), dtype=torch.int64), "a conversion to torch.int64 of numbers that are none"),
        (lambda: torch.softmax(torch.ones(2, 3), 1, torch.float16), "softmax with dim=1, dtype=torch.float16"),
        (lambda: torch.ones(2, 3).log_softmax(1, torch.bfloat16), "log_softmax with dim=1, dtype=torch.bfloat16"),
    ],
)
def test_what_depends_on_threads_or_the_device_or_would_be_of_another_type_is_refused(make, said):
    with pytest.raises(Unsupported) as refused:
        exact(make)
    assert str(refused.value).startswith(f"numerics 'exact' has no form of {said}")


def test_numbers_that_fit_are_converted_and_several_are_put_where_each_has_a_place():
    assert exact(lambda: torch.tensor([-(2.0**31), 2147483520.0]).int()).tolist() == [-(2**31), 2147483520]
    assert exact(lambda: torch.tensor([255.9, -0.9]).to(torch.uint8)).tolist() == [255, 0]
    assert exact(lambda: several(torch.tensor([6, 1, 4]))).tolist() == [0, 1, 0, 0, 2, 0, 0, 0]
    assert exact(lambda: several(torch.tensor([False] * 5 + [True] * 3))).tolist() == [0, 0, 0, 0, 0, 0, 1, 2]


def in_its_own_memory(x: Tensor) -> Tensor:
    x[1:] += x[:-1]
    return x


def assigned_to_itself(x: Tensor) -> Tensor:
    x[1:] = x[:-1]
    return x


def by_its_own_memory(x: Tensor) -> Tensor:
    x[1:].mul_(x[:-1])
    return x


@pytest.mark.parametrize(
    ("change", "gives"),
    [(in_its_own_memory, [1, 3, 5, 7]), (assigned_to_itself, [1, 1, 2, 3]), (by_its_own_memory, [1, 2, 6, 12])],
    ids=lambda each: getattr(each, "__name__", ""),
)
def test_what_is_written_into_memory_that_is_read_is_made_of_what_was_there_before(change, gives):
    """PyTorch reads some of it before and some after, by its threads."""
    rows = exact(lambda: change(torch.arange(1.0, 5.0).view(4, 1) * torch.ones(1, 1000)))
    assert rows[:, 0].tolist() == gives
    assert bool((rows == rows[:, :1]).all())


def test_what_an_operation_in_place_makes_of_whole_numbers_is_of_their_type_as_pytorch_says():
    with pytest.raises(RuntimeError, match="can't be cast"):
        exact(lambda: torch.arange(4).div_(3))


def test_what_is_drawn_is_drawn_by_rule_whatever_its_type():
    """A truth is no number that a tape knows; PyTorch's own generator has no part in it."""
    drawn = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with torch.inference_mode(), Forms(Tape(torch.zeros(2, 3), draws=Draws(0, torch.zeros(1, dtype=torch.int64), 0))):
            drawn.append(torch.zeros(64, dtype=torch.bool).bernoulli_(0.5))
    assert torch.equal(*drawn)


def test_what_was_changed_in_place_before_it_is_drawn_is_refused_and_what_nobody_filled_is_zeros():
    images = torch.zeros(2, 3)
    with torch.inference_mode(), Forms(Tape(images, draws=Draws(0, torch.zeros(1, dtype=torch.int64), 0))):
        mask = torch.empty(images.shape[0], 1)
        mask.zero_()
        with pytest.raises(Unsupported, match="bernoulli_ with a tensor or a generator, or of an activation"):
            mask.bernoulli_(0.5)
        assert [torch.empty(8, dtype=dtype).tolist() for dtype in (torch.bool, torch.int64)] == [[0] * 8] * 2


class Putting(nn.Module):
    """Numbers that are put to parts of a weight's product."""

    def __init__(self, put: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.w, self.put = nn.Parameter(torch.tensor([1.0, 2.0, 3.0, 4.0])), put

    def forward(self, x: Tensor) -> Tensor:
        w = self.w * 1.0
        self.put(w)
        return x.flatten(1)[:, :4] * w


def by_an_index_that_changes(w: Tensor) -> None:
    index = torch.tensor([0, 1])
    w[index] = 0.0
    index.add_(2)


def twice(w: Tensor) -> None:
    w[torch.tensor([0, 0])] = torch.tensor([5.0, 6.0])


@pytest.mark.parametrize(
    ("put", "said"),
    [(by_an_index_that_changes, "an operation in place on a constant that was computed with"),
     (twice, "assignment of several numbers to one place")],
    ids=lambda each: getattr(each, "__name__", ""),
)  # fmt: skip
def test_the_index_of_an_assignment_names_each_place_once_and_is_not_changed_before_the_way_back(put, said):
    images, labels = torch.full((2, 1, 2, 2), 100, dtype=torch.uint8), torch.tensor([1, 2])
    with pytest.raises(UserError, match=said):
        numerics.select("exact", CPU).loss_and_gradients(Putting(put), images, labels, ALONE, 2)


def test_zeros_are_put_in_the_place_of_what_is_infinite_too():
    images = torch.zeros(2, 3)
    with torch.inference_mode(), Forms(Tape(images)):
        given = [(1.0 / images).zero_(), F.relu(1.0 / images).zero_()]
    assert [each.tolist() for each in given] == [[[0.0] * 3] * 2] * 2
