"""A network.json that was received: what is no network, or takes more memory or time than one, is one line before anything is computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from pipeline.models import bounds, recording
from pipeline.models.simple_cnn import SimpleCNN
from pipeline.system.errors import UserError
from tests.recordings import EXACT, SHAPE, built, read
from tests.steps import CPU


def deep(depth: int) -> Any:
    return [deep(depth - 1)] if depth else 1


def call(place: int, *changed: Any) -> Callable[[Any], None]:
    def change(found: Any) -> None:
        for graph in ("training", "evaluation"):
            for at, new in enumerate(changed):
                if new is not None:
                    found[graph]["calls"][place][at] = new

    return change


ATTENTION = "torch.nn.functional.scaled_dot_product_attention"


def added(*calls: Any) -> Callable[[Any], None]:
    """Calls after those of the evaluation, which give nothing to the logits."""
    return lambda found: found["evaluation"]["calls"].extend(calls)


def many(found: Any) -> None:
    for graph in ("training", "evaluation"):
        last = len(found[graph]["calls"])
        found[graph]["calls"] += [["torch.nn.functional.relu", [{"value": last}], {}]] * 10_000


def buffers(count: int, numbers: int) -> Callable[[Any], None]:
    return lambda found: found["held"].update({f"b{i}": {"shape": [numbers], "kind": "unsaved"} for i in range(count)})


TAMPERED: dict[str, tuple[Callable[[Any], None], str]] = {
    "another operation": (call(1, "os.system"), "call 2 is of 'os.system', which has no exact form"),
    "one that PyTorch has": (call(1, "torch.load"), "call 2 is of 'torch.load', which has no exact form"),
    "a cycle": (call(1, None, [{"value": 2}]), "call 2 takes value 2, which does not come before it"),
    "a value of later": (call(1, None, [{"value": 99}]), "call 2 takes value 99, which does not come before it"),
    "a value before all": (call(1, None, [{"value": -1}]), "call 2 takes value -1, which does not come before it"),
    "another weight": (call(0, None, [{"held": "conv9.weight"}]), "call 1 takes 'conv9.weight', which is no weight or buffer"),
    "another kind": (call(0, None, [{"file": "/etc/passwd"}]), "call 1 has an argument that is 'file'"),
    "two kinds": (call(0, None, [{"value": 0, "held": "fc1.bias"}]), "too many values to unpack"),
    "lists in lists": (call(0, None, [deep(40)]), "nested more than 10 deep"),
    "10,000 calls": (many, "it has 10012 calls, and 5000 are the most"),
    "a memory of its own": (call(1, "torch.zeros", [{"tuple": [100_000, 100_000]}], {}), "torch.zeros gives 10000000000 numbers"),
    "images times many": (call(1, "torch.zeros", [{"tuple": [{"images": 2**40}]}], {}), "torch.zeros gives 2199023255552 numbers"),
    "a memory that nothing takes": (added(["torch.zeros", [[2**28]], {}]), "after call 13 it holds 2684"),
    "a device": (added(["torch.ones", [[2**20]], {"device": "cpu"}]), "call 13 is on 'cpu', not where the images are"),
    "a device by place": (added(["torch.Tensor.to", [{"held": "fc1.bias"}, "meta"], {}]), "call 13 names a type or a device"),
    "a type by its name": (added(["torch.Tensor.type", [{"value": 1}, "torch.ByteTensor"], {}]), "call 13 names a type or a device"),
    "images times images": (added(["torch.ones", [[{"images": 1}, {"images": 1}, {"images": 1}]], {}]), "call 13 takes the number of"),
    "whole numbers": (lambda found: found["evaluation"].update(
        calls=[*found["evaluation"]["calls"], ["torch.Tensor.long", [found["evaluation"]["gives"]], {}]], gives={"value": 13}),
        "gives torch.int64 [2, 10] for 2 images and 10 classes"),
    "a name of many parts": (lambda found: found["held"].update({".".join("a" * 600): {"shape": [1], "kind": "unsaved"}}), "in 600 parts"),
    "numbers of 8 bytes": (added(["torch.ones", [[2**27 + 1]], {"dtype": {"dtype": "int64"}}]), "torch.ones gives 268435458 numbers"),
    "rows without a number": (added(["torch.zeros", [[2**31 - 1, 0]], {}]), "torch.zeros gives 2147483647 numbers"),
    "norms of rows without a number": (
        added(["torch.zeros", [[2**25, 0]], {}], ["torch.nn.functional.layer_norm", [{"value": 13}, [0]], {}]),
        "layer_norm takes 436207616 numbers with what it copies"),
    "weights without a number": (lambda found: found["held"].update(b={"shape": [2**27, 0], "kind": "unsaved"}),
        "it holds 134217728 rows without numbers"),
    "an activation within": (
        added(["torch.zeros", [[2**25]], {}], ["torch.nn.functional.elu", [{"value": 13}], {}]), "elu takes 503316480"),
    "heads": (lambda found: found["training"].update(gives={"tuple": [found["training"]["gives"]] * 101}), "it gives 101 heads"),
    "a number that is none": (lambda found: found["held"].update(b={
        "shape": [1], "dtype": "int32", "kind": "unsaved", "initial": [["plus", [3e9]]]}), "a conversion to torch.int32 of numbers"),
    "parts without a number": (added(["torch.zeros", [[2**27, 0]], {}], ["torch.unbind", [{"value": 13}], {}]), "unbind has 1342177"),
    "parts of two": (added(["torch.zeros", [[2**20]], {}], ["torch.functional.split", [{"value": 13}, 2], {}]), "split has 524288 parts"),
    "a memory within": (added(["torch.zeros", [[1, 2**15, 1]], {}], [ATTENTION, [{"value": 13}] * 3, {}]),
        "attention takes 2147483648 numbers within"),
    "a state": (added(["torch.Tensor.add_", [{"held": "fc1.bias"}, 1.0], {}]), "it changes 'fc1.bias' while it evaluates"),
    "a rule without numbers": (lambda found: found["held"]["fc1.bias"].update(initial=[["uniform", []]]), "missing 2 required"),
    "a rule of no number": (lambda found: found["held"]["fc1.bias"].update(initial=[["trunc_normal", [0, 0, -1, 1]]]), "division by zero"),
    "other arguments": (call(1, None, [{"value": 1}, 3, 4, 5, 6, 7, 8, 9]), "relu"),
    "a shape": (lambda found: found["held"]["fc1.bias"].update(shape=[7]), "'fc1.bias' is another, or there in one of them alone"),
    "a weight more": (lambda found: found["held"].update({"more": {"shape": [7]}}), "'more' is another, or there in one of them alone"),
    "a weight less": (lambda found: found["held"].pop("fc1.bias"), "'fc1.bias' is another, or there in one of them alone"),
    "the same as none": (lambda found: found["held"]["fc1.bias"].update(same="fc9"), "'fc1.bias' is the same as 'fc9'"),
    "a buffer of its own": (buffers(1, 2**30), "what no file of weights holds takes 1073741824 numbers, and 67108864"),
    "many of them": (buffers(100, 2**20), "what no file of weights holds takes 104857600 numbers, and 67108864 are the most"),
    "one that is drawn": (lambda found: found["held"].update(b={"shape": [2**22], "kind": "unsaved", "initial": [["normal", [0, 1]]]}),
        "what no file of weights holds takes 134217728 numbers, and 67108864 are the most"),
    "drawn again and again": (lambda found: found["held"]["fc1.bias"].update(initial=[["normal", [0, 1]]] * 3),
        "'fc1.bias' is drawn 3 times, and 2 are the most"),
    "a whole number that is drawn": (lambda found: found["held"].update(b={"shape": [2], "dtype": "int64", "kind": "unsaved",
        "initial": [["uniform", [0, 1e30]]]}), "'b' is drawn, and is int64"),
    "a margin": (added(["torch.nn.functional.conv2d", [{"value": 0}, {"held": "conv1.weight"}, None, 1, 5500, 2750], {}]),
        "conv2d takes 730230144 numbers with their margins, and 268435456 are the most"),
    "a margin of its own size": (added(["torch.nn.functional.conv2d", [{"value": 0}, {"held": "conv1.weight"}, None, 1, "same", 2750], {}]),
        "conv2d takes 730230144 numbers with their margins"),
    "an operator that does nothing": (added(["torch.Tensor.__rsub__", [{"value": 0}, 1.0], {"inplace": True}]),
        "call 13 is of an operator that does not take these arguments"),
    "a kernel of many places for each channel": (added(["torch.nn.functional.pad", [{"value": 0}, {"tuple": [40, 40, 40, 40]}], {}],
        ["torch.ones", [3, 1, 71, 71], {}], ["torch.nn.functional.conv2d", [{"value": 13}, {"value": 14}, None, 1, 0, 1, 3], {}]),
        "conv2d has 5041 parts, and 5000 are the most"),
    "a pool": (added(["torch.nn.functional.avg_pool2d", [{"value": 0}, 71, 1, 20], {}]), "avg_pool2d has 5041 parts, and 5000 are"),
    "a pool of many": (added(["torch.nn.functional.adaptive_avg_pool2d", [{"value": 0}, 71], {}]), "avg_pool2d has 5041 parts"),
    "a number in words": (call(0, None, [{"number": "0.5"}]), "call 1 has an argument that is 'number'"),
    "a batch's statistics": (added(
        ["torch.nn.functional.batch_norm", [{"value": 0}, *[{"held": "fc3.bias"}] * 2, None, None, True], {}]),
        "torch.nn.functional.batch_norm keeps what it has seen while it evaluates"),
    "statistics of what was seen": (added(["torch.nn.functional.instance_norm", [{"value": 0}, *[{"held": "fc3.bias"}] * 2], {}]),
        "torch.nn.functional.instance_norm keeps what it has seen while it evaluates"),
    "an axis that one image alone has not": (added(["torch.Tensor.squeeze", [{"value": 0}, 0], {}]), "call 13 gives [2, 3, 32, 32] of 2"),
    "many axes": (added(["torch.Tensor.view", [{"value": 0}, {"tuple": [-1, *[1] * 16]}], {}]), "Tensor.view gives 17 axes, and 16"),
    "windows of a mean": (added(["torch.Tensor.repeat", [{"value": 0}, 1, 1, 30, 30], {}],
        ["torch.nn.functional.avg_pool2d", [{"value": 13}, {"tuple": [128, 1]}, 1], {}]),
        "avg_pool2d takes 1237904640 numbers with what it copies, and 268435456 are the most"),
    "windows of a convolution": (added(["torch.Tensor.repeat", [{"value": 0}, 1, 1, 32, 32], {}],
        ["torch.nn.functional.conv2d", [{"value": 13}, {"held": "conv1.weight"}, None, 1, 0, 2], {}]),
        "conv2d takes 309676800 numbers"),
    "parts joined again and again": (
        added(["torch.zeros", [4900], {}], ["torch.unbind", [{"value": 13}], {}], *[["torch.stack", [{"value": 14}], {}]] * 4),
        "its operations have 24508 parts, and 20000",
    ),
    "parts again and again": (added(*[["torch.unbind", [{"held": "fc1.weight"}], {}]] * 100), "its operations have 20056 parts, and 20000"),
    "the number of images as a bound": (added(["torch.clamp", [{"value": 0}, 0, {"images": 1}], {}]), "call 13 takes the number of images"),
    "a multiple of it in a sum": (added(["torch.add", [{"value": 0}, {"images": 2}], {}]), "call 13 takes the number of images otherwise"),
    "a constant of it": (added(["torch.full", [{"tuple": [5]}, {"images": 2}], {}]), "call 13 takes the number of images otherwise"),
    "another number of images": (added(
        ["torch.flatten", [{"value": 0}, 1], {}], ["torch.Tensor.expand", [{"held": "fc1.bias"}, {"images": 1}, -1], {}],
        ["torch.Tensor.t", [{"value": 14}], {}], ["torch.matmul", [{"value": 14}, {"value": 15}], {}]),
        "call 16 gives [2, 2] of 2 images and [3, 3]"),
    "a rule": (lambda found: found["held"]["fc1.bias"].update(initial=[["exec", [1]]]), "'exec'"),
    "values for another shape": (lambda found: found["held"]["fc1.bias"].update(initial=[["values", [1]]]), "invalid for input of size 1"),
    "fewer classes": (lambda found: found["evaluation"].update(gives={"value": 1}), "gives [2, 6, 28, 28] for 2 images and 10 classes"),
    "no logits": (lambda found: found["evaluation"].update(gives=7), "'int' object has no attribute 'shape'"),
    "a format": (lambda found: found.update(format=2), "format"),
    "a field": (lambda found: found.update(more=1), "more"),
}  # fmt: skip


@pytest.mark.fault(78)
@pytest.mark.parametrize("what", TAMPERED)
def test_a_network_that_was_tampered_with_is_one_line(what):
    change, said = TAMPERED[what]
    network = built(SimpleCNN)
    found = json.loads(recording.record(network, SHAPE, EXACT, CPU))
    change(found)
    with pytest.raises(UserError) as raised:
        read(json.dumps(found).encode(), network)
    assert said in str(raised.value)
    assert str(raised.value).startswith("network.json: ")
    assert "\n" not in str(raised.value)


def test_the_memory_that_a_value_is_a_part_of_counts_once_and_in_training_as_long_as_its_way_back():
    def parts(count: int, training: bool) -> None:
        seen = bounds.counting(torch.empty(2, 3, device="meta"), [("torch.zeros", [])] * 3 * count, training)
        for place in range(1, count + 1):
            whole = torch.empty(2**26, device="meta")
            seen(3 * place - 2, whole[:1], [])
            seen(3 * place - 1, whole[1:2], [])
            seen(3 * place, whole[:1].expand(9), [3 * place - 2, 3 * place - 1] if training else [])

    parts(3, training=False)
    with pytest.raises(ValueError, match=r"after call 10 it holds 26843[0-9]+ numbers for two images, and 268435456 are the most"):
        parts(4, training=False)
    parts(63, training=True)
    with pytest.raises(ValueError, match=r"after call 190 it holds 42949[0-9]+ numbers for two images, and 4294967296 are the most"):
        parts(64, training=True)


def test_what_is_expanded_counts_to_the_end_and_what_a_way_back_takes_as_often_as_it_is_taken():
    ones = [call for i in range(0, 36, 3) for call in (
        ["torch.ones", [[2**25]], {}], ["torch.Tensor.expand", [{"value": 13 + i}, 1, 2**25], {}],
        ["torch.Tensor.select", [{"value": 14 + i}, 1, 0], {}])]  # fmt: skip
    wide = [["torch.zeros", [[2, 2**24]], {}], ["torch.zeros", [[1, 2**24]], {}]]
    products = [["torch.nn.functional.linear", [{"value": 13}, {"value": 14}], {}]] * 100
    for graph, calls, said in (
        ("evaluation", ones, "after call 34 it holds 2684[0-9]+ numbers"),
        ("training", [*wide, *products], "after call 99 it holds 43[0-9]+ numbers"),
    ):  # fmt: skip
        network = built(SimpleCNN)
        found = json.loads(recording.record(network, SHAPE, EXACT, CPU))
        found[graph]["calls"] += calls
        with pytest.raises(UserError, match=said):
            read(json.dumps(found).encode(), network)


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        (lambda: F.max_pool2d(torch.empty(2, 48, 1, 1024), (5000, 1), 1, (2500, 0)), "max_pool2d takes 984098400 numbers with"),
        (lambda: F.conv2d(torch.empty(2, 4096, 4096, 1), torch.empty(1, 4096, 1, 1)), "conv2d takes 603979776 numbers with what it copies"),
        (lambda: F.conv2d(torch.empty(2, 1, 1280, 1280), torch.empty(1, 1, 15, 15), None, 1, "valid", 2), "conv2d takes 1410753600"),
        (lambda: F.avg_pool2d(torch.empty(2, 1500, 100, 1), (50, 100), 1, (25, 50)), "avg_pool2d takes 3181500000 numbers with what it"),
        (lambda: F.adaptive_avg_pool2d(torch.empty(2, 16, 1, 3072), (5000, 1)), "adaptive_avg_pool2d takes 983040000 numbers with what"),
        (lambda: F.scaled_dot_product_attention(*[torch.empty(2, 1, 32768, 8)] * 3, None, 0.1, True), "takes 4294967296 numbers within"),
        (lambda: torch.einsum("ab,cd,ac,bd->", *[torch.empty(160, 160)] * 4), "einsum takes 655360000 numbers within"),
        (lambda: torch.einsum("ab,cd,ac,bd->", [torch.empty(160, 160)] * 4), "einsum takes 655360000 numbers within"),
        (lambda: torch.empty(2, 999, 1, 1, 64) @ torch.empty(2, 1, 999, 64, 1), "matmul takes 510976512 numbers with what it copies"),
    ],
)  # fmt: skip
def test_what_an_operation_takes_within_is_counted(operation, said):
    with torch.device("meta"), bounds.Bounded(training=False), pytest.raises(ValueError, match=said):
        operation()
