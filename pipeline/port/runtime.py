"""Rules about CUDA's runtime: its settings and questions, streams and events, several processes, options of optimizers."""

from __future__ import annotations

import re

import libcst as cst
from libcst import matchers as m

from pipeline.port.device import numbers_a_gpu
from pipeline.port.guards import why
from pipeline.port.placement import level, target
from pipeline.port.rules import CLOCK, DEVICE, ON_GPU, Answer, Edit, Found, Level, rule
from pipeline.port.script import Script

_ELSEWHERE = {
    **dict.fromkeys(("synchronize", "set_device", "init", "ipc_collect", "reset_peak_memory_stats", "reset_max_memory_allocated"), "None"),
    **dict.fromkeys(("set_per_process_memory_fraction", "get_rng_state", "set_rng_state", "Stream", "current_stream"), "None"),
    **dict.fromkeys(("default_stream", "stream", "device", "get_device_properties", "cudart", "ExternalStream"), "None"),
    **dict.fromkeys(("reset_accumulated_memory_stats", "reset_max_memory_cached", "set_sync_debug_mode", "can_device_access_peer"), "None"),
    **dict.fromkeys(("range_push", "range_pop", "range_start", "range_end", "mark", "range", "start", "stop", "profile"), "None"),
    **dict.fromkeys(("get_device_capability", "mem_get_info"), "(0, 0)"),
    **dict.fromkeys(("utilization", "initial_seed", "temperature"), "0"),
    "get_device_name": '"cpu"',
    "memory_summary": '""',
    "current_device": DEVICE,
}
"""What fails in `torch.cuda` without a GPU, and what stands for its answer there. Seeds, counts and memory sums answer by themselves."""
_SPEAKS = re.compile(r"^print$|\b(log\w*|info|debug|warning|write|add_scalar|record_stream|wait_stream|wait_event|update)$")
"""Calls that may be left out with a question to CUDA in them."""


@rule(
    Answer.SAME,
    "fails without a GPU: ask for it only on one",
    ("torch.cuda.synchronize()", 'if device.type == "cuda":\n    torch.cuda.synchronize()'),
    ("print(torch.cuda.get_device_name(0))", 'if device.type == "cuda":\n    print(torch.cuda.get_device_name(0))'),
    ("gpu = torch.cuda.get_device_name(0)", 'gpu = torch.cuda.get_device_name(0) if device.type == "cuda" else "cpu"'),
    (
        "new = torch.cuda.get_device_capability(0)[0] >= 8",
        'new = (torch.cuda.get_device_capability(0)[0] if device.type == "cuda" else (0, 0)[0]) >= 8',
    ),
    (
        "size = torch.cuda.get_device_properties(0).total_memory / 2**30",
        'size = (torch.cuda.get_device_properties(0).total_memory if device.type == "cuda" else 0) / 2**30',
    ),
    ("torch.cuda.empty_cache()", "torch.cuda.empty_cache()"),
    ('torch.cuda.nvtx.range_push("a")', 'if device.type == "cuda":\n    torch.cuda.nvtx.range_push("a")'),
    ('@torch.cuda.nvtx.range("a")\ndef f():\n    pass', None),
    ("with torch.cuda.stream(s):\n    pass", 'with torch.cuda.stream(s) if device.type == "cuda" else contextlib.nullcontext():\n    pass'),
    ("if torch.cuda.is_available():\n    torch.cuda.synchronize()", "if torch.cuda.is_available():\n    torch.cuda.synchronize()"),
)
def runtime_call(call: cst.Call, script: Script) -> Found | None:
    package, _, name = script.name(call.func).rpartition(".")
    if package not in ("torch.cuda", "torch.cuda.memory", "torch.cuda.random", "torch.cuda.nvtx", "torch.cuda.profiler"):
        return None
    if name == "empty_cache":
        return Found(script.only_on_gpu(call), Level.ALONG) if why(call, script) is None else None
    how = level(call, script)
    if name not in _ELSEWHERE or how is None:
        return None
    if isinstance(script.parent(call), cst.Decorator):
        return Found((), how)
    whole: cst.CSTNode = call
    skippable = True
    for above in script.parents(call):
        if isinstance(above, cst.Attribute) or (isinstance(above, (cst.Call, cst.Subscript)) and _begins_with(above, whole)):
            whole = above
        elif not isinstance(above, cst.Expr) and isinstance(above, cst.BaseStatement | cst.BaseSmallStatement | cst.WithItem):
            break
        elif isinstance(above, cst.Call):
            skippable = skippable and bool(_SPEAKS.search(script.code(above.func)))
            whole = above if skippable and isinstance(script.parent(above), cst.Expr) else whole
    otherwise, code = _ELSEWHERE[name], script.code(call)
    part = script.code(whole)[len(code) :] if script.code(whole).startswith(code) else ""
    if part and name == "get_device_properties":
        otherwise = '"cpu"' if part == ".name" else "0"
    elif otherwise not in ("None", DEVICE):
        otherwise += part
    return Found(script.only_on_gpu(whole, otherwise, skippable), how)


def _begins_with(node: cst.Call | cst.Subscript, part: cst.CSTNode) -> bool:
    return (node.func if isinstance(node, cst.Call) else node.value) is part


@rule(
    Answer.SAME,
    "an event of CUDA's clock: time.perf_counter elsewhere",
    (
        "start = torch.cuda.Event(enable_timing=True)",
        'start = torch.cuda.Event(enable_timing=True) if device.type == "cuda" else CpuEvent()',
    ),
)
def event(call: cst.Call, script: Script) -> Found | None:
    how = level(call, script) if script.name(call.func) == "torch.cuda.Event" else None
    return how and Found(script.chosen(call, CLOCK), how)


@rule(
    Answer.SAME,
    "nccl joins GPUs only: gloo joins processes without them",
    (
        'torch.distributed.init_process_group("nccl")',
        'torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")',
    ),
    ('backend = "nccl"', 'backend = "nccl" if device.type == "cuda" else "gloo"'),
    on=cst.SimpleString,
)
def backend(node: cst.SimpleString, script: Script) -> Found | None:
    if script.string(node) != "nccl" or (how := level(node, script)) is None:
        return None
    outer = script.parent(node)
    if isinstance(outer, cst.Arg):
        call = script.parent(outer)
        if isinstance(call, cst.Call) and m.matches(call.func, m.Attribute(attr=m.Name("add_argument"))):
            how = level(node, script, Level.ALONG)
            meant = bool(outer.keyword and outer.keyword.value == "default")
        else:
            meant = isinstance(call, cst.Call) and ("init_process_group" in script.code(call.func) or bool(outer.keyword))
    else:
        meant = isinstance(outer, (cst.Assign, cst.AnnAssign, cst.Param, cst.DictElement))
    return Found(script.chosen(node, '"gloo"'), how or Level.ALONG) if meant else None


@rule(
    Answer.SAME,
    "a model on a CPU takes no device_ids: give them on a GPU only",
    (
        "model = torch.nn.parallel.DistributedDataParallel(model, device_ids=[rank])",
        'model = torch.nn.parallel.DistributedDataParallel(model, device_ids=[rank] if device.type == "cuda" else None)',
    ),
)
def device_ids(call: cst.Call, script: Script) -> Found | None:
    if not script.name(call.func).endswith("DistributedDataParallel") or (how := level(call, script)) is None:
        return None
    args = [arg for arg in call.args if arg.keyword and arg.keyword.value in ("device_ids", "output_device")]
    args = [arg for arg in args if script.code(arg.value) != "None" and " if " not in script.code(arg.value)]
    return Found(tuple(edit for arg in args for edit in script.chosen(arg.value, "None")), how) if args else None


@rule(
    Answer.SAME,
    "an option of CUDA's optimizers, which fails or does nothing on a CPU",
    (
        "torch.optim.AdamW(parameters, capturable=True)",
        'torch.optim.AdamW(parameters, capturable=device.type == "cuda")',
    ),
    ("torch.optim.SGD(parameters, lr=0.1, fused=True)", 'torch.optim.SGD(parameters, lr=0.1, fused=device.type == "cuda")'),
)
def optimizer(call: cst.Call, script: Script) -> Found | None:
    if not script.name(call.func).startswith("torch.optim."):
        return None
    args = [arg for arg in call.args if arg.keyword and arg.keyword.value in ("capturable", "fused") and script.code(arg.value) == "True"]
    how = level(call, script)
    edits = tuple(Edit(*script.span(arg.value), ON_GPU) for arg in args)
    return Found(edits, how) if args and how else None


@rule(
    Answer.SAME,
    "the number of a process taken for a GPU",
    ("model.to(rank)", "model.to(device_of(rank))"),
    ("model.to(gpu_ids[0])", "model.to(device_of(gpu_ids[0]))"),
    ("model.to(local_rank)", "model.to(device_of(local_rank))"),
)
def rank(call: cst.Call, script: Script) -> Found | None:
    if not m.matches(call, m.Call(func=m.Attribute(attr=m.Name("to")), args=[m.Arg(keyword=None), m.ZeroOrMore()])):
        return None
    value = call.args[0].value
    if not (isinstance(value, cst.Integer) or numbers_a_gpu(value, script)) or (how := level(call, script)) is None:
        return None
    return Found(script.replaced(value, target(value, script)), how)


@rule(
    Answer.SAME,
    "counts GPUs, of which there may be none: at least one process",
    (
        "torch.multiprocessing.spawn(main, nprocs=torch.cuda.device_count())",
        "torch.multiprocessing.spawn(main, nprocs=max(1, torch.cuda.device_count()))",
    ),
    ("gpus = torch.cuda.device_count()\nspawn(main, nprocs=gpus)", "gpus = max(1, torch.cuda.device_count())\nspawn(main, nprocs=gpus)"),
    ("gpu = number % torch.cuda.device_count()", "gpu = number % max(1, torch.cuda.device_count())"),
    ("print(torch.cuda.device_count())", "print(torch.cuda.device_count())"),
)
def count(call: cst.Call, script: Script) -> Found | None:
    if script.name(call.func) != "torch.cuda.device_count":
        return None
    outer = script.parent(call)
    uses: list[cst.CSTNode] = [call]
    if isinstance(outer, cst.BinaryOperation):
        uses = [call] if outer.right is call and isinstance(outer.operator, (cst.Modulo, cst.FloorDivide, cst.Divide)) else []
    elif isinstance(outer, cst.Assign):
        name = script.code(outer.targets[0].target)
        uses = [arg for arg in script.nodes if isinstance(arg, cst.Arg) and _processes(arg) and script.code(arg.value) == name]
    elif not (isinstance(outer, cst.Arg) and _processes(outer)):
        return None
    how = level(uses[0], script) if uses else None
    return how and Found(script.replaced(call, f"max(1, {script.code(call)})"), how)


def _processes(arg: cst.Arg) -> bool:
    return bool(arg.keyword and arg.keyword.value == "nprocs")
