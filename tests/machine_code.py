"""The machine code of PyTorch's CUDA kernels, as NVIDIA's `cuobjdump` shows it: no GPU is needed to read it.

`python -m tests.machine_code sm_90 mul` prints what the kernels of an operation compute with.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch

from pipeline.system import files

CACHE = Path(__file__).parent.parent / ".cache" / "machine-code"
_PLAIN = r"(vectorized_elementwise_kernelILi4E.*|elementwise_kernelILi\d+ELi\dEZNS0_22gpu_kernel_impl_nocastI.*)"
_FOUR = "vectorized_elementwise_kernelILi4E.*"
"""Kernels of one operation on elements of one type, four at a time or not contiguous; those that convert types have other names."""


class Rule(NamedTuple):
    """What the kernels of an operation may compute with, and must: patterns of whole opcodes."""

    kernels: str
    """A pattern in the mangled name."""
    may: str
    must: tuple[str, ...]


def _binary(functor: str, dtype: str, kinds: str = "Binary|BUnary") -> str:
    return rf"{_PLAIN}({kinds})FunctorI{dtype * 3}NS0_15binary_internal10{functor}FunctorI{dtype}E"


_OF_DIVISION = r"FCHK|MUFU\.(RCP|RSQ)|FFMA2?(\.(FTZ|R[ZMP]))*|F(ADD|MUL)(\.FTZ)?"
_OF_DIVISION_IN_DOUBLE = r"MUFU\.RCP64H|DFMA(\.R[ZMP])?|DMUL(\.R[ZMP])?|DADD|FFMA|MUFU\.RCP"
RULES = {
    "mul float32": Rule(_binary("Mul", "f"), "FMUL2?", ("FMUL2?",)),
    "mul float64": Rule(_binary("Mul", "d"), "DMUL", ("DMUL",)),
    "add float32": Rule(_PLAIN + "CUDAFunctor_addIfE", "FFMA2?", ("FFMA2?",)),
    "add float64": Rule(_PLAIN + "CUDAFunctor_addIdE", "DFMA", ("DFMA",)),
    "div float32": Rule(_binary("Div", "f", "Binary"), _OF_DIVISION, ("FCHK", r"MUFU\.RCP", "FFMA", "CALL.*")),
    "div float64": Rule(_binary("Div", "d", "Binary"), _OF_DIVISION_IN_DOUBLE, (r"MUFU\.RCP64H", "DFMA", "CALL.*")),
    "reciprocal float32": Rule(_PLAIN + "reciprocal_kernel_cuda.*EUlfE_", _OF_DIVISION, (r"MUFU\.RCP", "FFMA", "CALL.*")),
    "sqrt float32": Rule(
        _PLAIN + r"\dsqrt_kernel_cuda.*EUlfE_", r"MUFU\.RSQ|FFMA(\.FTZ)?|FMUL(\.FTZ)?|FADD\.FTZ", (r"MUFU\.RSQ", "FFMA", "CALL.*")
    ),
    "sqrt float64": Rule(
        _PLAIN + r"\dsqrt_kernel_cuda.*EUldE_", r"MUFU\.RSQ64H|DFMA(\.R[ZMP])?|DMUL|DADD", (r"MUFU\.RSQ64H", "DFMA", "CALL.*")
    ),
    "round float32": Rule(_PLAIN + "round_kernel_cuda.*EUlfE_", "FRND", ("FRND",)),
    "round float64": Rule(_PLAIN + "round_kernel_cuda.*EUldE_", r"FRND\.F64", (r"FRND\.F64",)),
    "sum float64": Rule(r"reduce_kernelI.*ReduceOpIdNS0_14func_wrapper_tIdZNS0_11sum_functorIdddE", "DADD", ("DADD",)),
    "amax float32": Rule(r"reduce_kernelILi512E.*ReduceOpIfNS0_14func_wrapper_tIfNS0_13MaxNanFunctorIfE", "", (r"F(SETP|MNMX).*",)),
    "aminmax float32": Rule(r"reduce_kernelILi512E.*ReduceOpIfNS0_9MinMaxOpsIffiE", r"MUFU\.RCP|I2F.*", (r"F(SETP|MNMX).*",)),
    "maximum float32": Rule(_PLAIN + "BinaryFunctor.*maximum_kernel_cuda.*EUlffE", "", (r"F(SETP|MNMX).*",)),
    "hardshrink float32": Rule(_PLAIN + "hardshrink_kernel.*EUlfE_", "", ("FSETP.*",)),
    "conversions": Rule(
        r"unrolled_elementwise_kernelI.*direct_copy_kernel_cuda.*EUl[fd]E_.*LoadWithCast",
        r"[FH](ADD|MUL|FMA)\w*(\..*)?",
        (r"F2F\.F32\.F64", r"I2F.*S64.*"),
    ),
}
"""The operations of a step that round, or choose, and their kernels in PyTorch 2.14."""
UNLIKE = {
    "mean": Rule(r"reduce_kernelILi512E.*ReduceOpIdNS0_7MeanOpsIddddE", *RULES["sum float64"][1:]),
    "rsqrt": Rule(_FOUR + "rsqrt_kernel_cuda.*EUlfE_", *RULES["sqrt float32"][1:]),
    "addcmul": Rule(_FOUR + "addcmul_cuda_kernel.*EUlfffE_", *RULES["mul float32"][1:]),
    "lerp": Rule(_FOUR + "lerp_tensor_kernel.*EUlfffE_", *RULES["add float32"][1:]),
    "hardswish": Rule(_FOUR + "hardswish_kernel.*EUlfE_", *RULES["div float32"][1:]),
    "ceil": Rule(_FOUR + "ceil_kernel_cuda.*EUlfE_", *RULES["round float32"][1:]),
    "tanh": Rule(_FOUR + r"\dtanh_kernel_cuda.*EUlfE_", *RULES["mul float32"][1:]),
}
"""Operations that no exact form may call, each with the rule of the one that stands in its place, which it breaks."""
_ARITHMETIC = re.compile(r"[FDH](ADD|MUL|FMA|CHK|RND)\w*(\..*)?|MUFU\..*|[FI]2F.*\.R[ZMP].*|[DH]MMA.*")
"""Opcodes that round, or that a rounding is made of; of conversions those that do not round to nearest."""


class NotHere(Exception):
    """Why the machine code cannot be read."""


def tools() -> tuple[Path, Path]:
    """`cuobjdump` and PyTorch's library of kernels.

    Raises:
        NotHere: one is not installed.
    """
    library = Path(torch.__file__).parent / "lib" / "libtorch_cuda.so"
    if not library.exists():
        raise NotHere(f"torch {torch.__version__} is no build for CUDA: it has no {library.name}")
    triton = importlib.util.find_spec("triton")
    places = [Path(place) / "backends/nvidia/bin/cuobjdump" for place in (triton and triton.submodule_search_locations) or ()]
    found = next((str(place) for place in places if place.exists()), shutil.which("cuobjdump"))
    if found is None:
        raise NotHere("cuobjdump is not there, which triton and NVIDIA's CUDA toolkit have")
    return Path(found), library


def opcodes(architecture: str) -> dict[str, dict[str, Counter[str]]]:
    """For each name of RULES and UNLIKE its kernels, by mangled name, and how often each opcode stands in them. Kept in CACHE."""
    cuobjdump, library = tools()
    rules = {**RULES, **UNLIKE}
    key = f"{torch.__version__} {library.stat().st_size} {[rule.kernels for rule in rules.values()]}"
    kept = CACHE / f"{architecture}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            _run(cuobjdump, "-xelf", f"{architecture}.cubin", library, folder=folder)
            found = _read(cuobjdump, sorted(Path(folder).iterdir()), "|".join(rule.kernels for rule in rules.values()))
        read = {name: {kernel: found[kernel] for kernel in found if re.search(rule.kernels, kernel)} for name, rule in rules.items()}
        files.write_text(kept, json.dumps(read))
    return {name: {kernel: Counter(found) for kernel, found in kernels.items()} for name, kernels in json.loads(kept.read_text()).items()}


def _read(cuobjdump: Path, cubins: list[Path], wanted: str) -> dict[str, Counter[str]]:
    """The opcodes of the kernels whose names match a pattern."""
    found: dict[str, Counter[str]] = {}
    for cubin in cubins:
        names = {name.decode() for name in re.findall(rb"\.text\.(_Z[\w$]+)\0", cubin.read_bytes())}
        if kernels := sorted(name for name in names if re.search(wanted, name)):
            found |= parsed(_run(cuobjdump, "-sass", "-fun", ",".join(kernels), cubin))
    return found


def parsed(text: str) -> dict[str, Counter[str]]:
    """The opcodes of each function in what `cuobjdump -sass` prints."""
    functions: dict[str, Counter[str]] = {}
    for part in text.split("Function : ")[1:]:
        name, _, code = part.partition("\n")
        found = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ +)?([A-Z][\w.]*)([^;]*);", code, re.MULTILINE)
        # a constant comes as a half's product of 0 and -0, plus the constant: no arithmetic
        functions[name.strip()] = Counter(opcode for opcode, of in found if not (opcode.startswith("HFMA2") and "-RZ, RZ, " in of))
    return functions


def broken(rule: Rule, kernels: dict[str, Counter[str]]) -> list[str]:
    """What the kernels have that the rule does not allow, and what they lack."""
    complaints = [] if kernels else ["no kernel of that name"]
    for kernel, found in kernels.items():
        strange = sorted(each for each in found if _ARITHMETIC.fullmatch(each) and not re.fullmatch(rule.may, each))
        lacking = [must for must in rule.must if not any(re.fullmatch(must, each) for each in found)]
        complaints += [f"{kernel}: has {each}" for each in strange] + [f"{kernel}: has no {each}" for each in lacking]
    return complaints


def architectures() -> list[str]:
    """What the library holds code for, without what is for one GPU alone (sm_90a)."""
    return sorted((arch for arch in torch._C._cuda_getArchFlags().split() if re.fullmatch(r"sm_\d+", arch)), key=lambda arch: int(arch[3:]))


def _run(*command: str | Path, folder: str | None = None) -> str:
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    for each, of_operation in opcodes(sys.argv[1]).items():
        if not sys.argv[2:] or each.startswith(tuple(sys.argv[2:])):
            print(each, broken({**RULES, **UNLIKE}[each], of_operation))
            for kernel, found in of_operation.items():
                print("   ", kernel[:150], {op: n for op, n in found.items() if _ARITHMETIC.fullmatch(op) or "SETP" in op or "CALL" in op})
