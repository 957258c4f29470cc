"""A step that is run again and again, as one CUDA graph."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pipeline.system.errors import UserError, shown

GRAPH = "PIPELINE_CUDA_GRAPH"
"""The environment variable that, set to 0, has steps launched kernel by kernel."""


def as_cuda_graph(step: Callable[[], None], device: torch.device, state: Sequence[Tensor]) -> Callable[[], None]:
    """`step`, to be called again and again: on CUDA as one captured graph, which launches all its kernels at once.

    `step` must read and write the same tensors at each call and never look at their values; `state` are all that it changes, which are
    as they were when this returns. On CUDA the step runs three times to warm up, as PyTorch's notes on CUDA graphs ask (what a cache
    keeps is made then, outside the graph's memory), then it is captured, which computes nothing, and the graph is proved. Elsewhere, and
    where GRAPH is 0, `step` is returned as it is.

    Raises:
        UserError: the graph gives other bits than the step; or GRAPH is neither 0 nor 1.
    """
    if (wanted := os.environ.get(GRAPH, "1")) not in ("0", "1"):
        raise UserError(f"{GRAPH} in the environment is {shown(wanted)}; allowed: 0 (no CUDA graph) or 1")
    if device.type != "cuda" or wanted == "0":
        return step
    with torch.cuda.device(device):
        beginning = [part.clone() for part in state]
        stream = torch.cuda.Stream(device)
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            for _ in range(3):
                step()
                _restore(state, beginning)
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            step()
        prove(step, graph.replay, state, device)
    return graph.replay


def prove(step: Callable[[], None], replay: Callable[[], None], state: Sequence[Tensor], device: torch.device) -> None:
    """Run `step` twice and `replay` twice from one state: what a graph has kept as a number, it gives again at the second replay.

    Leaves `state` as it was. A step that is not its own equal from one time to the next, as a native one may be, proves nothing.

    Raises:
        UserError: the replays leave other bits.
    """
    beginning = [part.clone() for part in state]

    def twice(run: Callable[[], None]) -> list[Tensor]:
        run()
        run()
        left = [part.flatten().view(torch.uint8).clone() for part in state]  # as bytes, for a NaN is its own equal
        _restore(state, beginning)
        return left

    def differ(a: list[Tensor], b: list[Tensor]) -> bool:
        return not all(map(torch.equal, a, b))

    eager = twice(step)
    if differ(eager, twice(replay)) and not differ(eager, twice(step)):
        raise UserError(
            f"device '{device}': two steps of the captured CUDA graph leave other bits than the same steps launched kernel by kernel; "
            f"set {GRAPH}=0 in the environment to train without a graph, and report this"
        )


def _restore(state: Sequence[Tensor], beginning: Sequence[Tensor]) -> None:
    for part, old in zip(state, beginning, strict=True):
        part.copy_(old)
