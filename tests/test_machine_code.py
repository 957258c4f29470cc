"""PyTorch's CUDA kernels, read as machine code: each operation of a step rounds as IEEE 754 says, once. Needs no GPU."""

from __future__ import annotations

import os
import re
from collections import Counter

import pytest

from tests import machine_code
from tests.conftest import ROOT
from tests.machine_code import RULES, UNLIKE, Rule, broken

ALL = "PIPELINE_TEST_MACHINE_CODE"
"""The environment variable that, set to 1, has every architecture read, each for a minute or more. What was read is a release's, which a
test holds to the one that is pinned."""


def code(architecture: str) -> dict[str, dict[str, Counter[str]]]:
    """What the wheel holds for an architecture; skips where that cannot be read."""
    if os.environ.get(ALL) != "1":
        pytest.skip(f"{ALL} is not 1: it takes a minute or more (make test-machine-code)")
    try:
        machine_code.tools()
        held = machine_code.architectures()
    except machine_code.NotHere as reason:
        pytest.skip(str(reason))
    if architecture not in held:
        pytest.skip(f"this PyTorch holds no code for {architecture}, but for {', '.join(held)}")
    return machine_code.opcodes(architecture)


ARCHITECTURES = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_kernels_of_a_step_round_once_as_ieee_754_says(architecture):
    read = code(architecture)
    assert {name: broken(rule, read[name]) for name, rule in RULES.items()} == {name: [] for name in RULES}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_kernels_that_no_form_may_call_break_the_rule_of_what_stands_in_their_place(architecture):
    read = code(architecture)
    assert [name for name, rule in UNLIKE.items() if read[name] and not broken(rule, read[name])] == []
    assert [name for name in UNLIKE if not read[name]] == []


def test_every_architecture_of_the_wheel_is_read():
    try:
        machine_code.tools()
    except machine_code.NotHere as reason:
        pytest.skip(str(reason))
    assert machine_code.architectures() == ARCHITECTURES


def test_the_page_says_what_was_read_of_the_release_that_is_pinned():
    pinned = re.search(r"^torch==([\d.]+)", (ROOT / "requirements/torch.txt").read_text(), re.MULTILINE)
    assert f" in torch {pinned[1]} for CUDA" in (ROOT / "docs/gpu.md").read_text().replace("\n", " ")


PRINTED = """
	code for sm_90
		Function : _ZN2at6native29vectorized_elementwise_kernelILi4E
	.headerflags	@"EF_CUDA_SM90"
        /*0000*/                   MOV R1, c[0x0][0x28] ;                      /* 0x00000a0000017a02 */
                                                                               /* 0x003fde0000000f00 */
        /*0010*/              @!P0 FMUL R0, R2, R3 ;                           /* 0x0000000302007220 */
        /*0020*/          @P1 FSETP.NAN.AND P0, PT, R0, R0, PT ;               /* 0x000000000000720b */
        /*0030*/                   HFMA2.MMA R5, -RZ, RZ, 0, 0 ;                /* 0x00000000ff057435 */
        /*0040*/                   EXIT ;                                      /* 0x000000000000794d */
"""


def test_opcodes_are_read_with_and_without_a_predicate():
    assert machine_code.parsed(PRINTED) == {
        "_ZN2at6native29vectorized_elementwise_kernelILi4E": Counter({"MOV": 1, "FMUL": 1, "FSETP.NAN.AND": 1, "EXIT": 1})
    }


@pytest.mark.parametrize(
    ("name", "opcodes", "said"),
    [
        ("mul float32", "FMUL FFMA", ["has FFMA"]),
        ("mul float32", "FMUL.FTZ", ["has FMUL.FTZ", "has no FMUL2?"]),
        ("mul float64", "DMUL FMUL", ["has FMUL"]),
        ("add float32", "FFMA FMUL", ["has FMUL"]),
        ("add float64", "DFMA.RZ", ["has DFMA.RZ", "has no DFMA"]),
        ("div float32", "MUFU.RCP FMUL", ["has no FCHK", "has no FFMA", "has no CALL.*"]),
        ("sqrt float32", "MUFU.RSQ FMUL", ["has no FFMA", "has no CALL.*"]),
        ("round float32", "FRND.TRUNC", ["has FRND.TRUNC", "has no FRND"]),
        ("sum float64", "DADD DFMA", ["has DFMA"]),
        ("sum float64", "DADD FADD", ["has FADD"]),
        ("amax float32", "FSETP.GT.AND FADD", ["has FADD"]),
        ("conversions", "F2F.F32.F64 I2F.S64 F2F.F32.F64.RZ", ["has F2F.F32.F64.RZ"]),
        ("mul float32", "FMUL", []),
        ("div float32", "MUFU.RCP FCHK FFMA CALL.REL.NOINC FFMA.RZ", []),
    ],
)
def test_a_kernel_that_rounds_otherwise_is_named_with_what_it_has_or_lacks(name, opcodes, said):
    assert broken(RULES[name], {"kernel": Counter(opcodes.split())}) == [f"kernel: {each}" for each in said]


def test_a_rule_without_a_kernel_is_broken():
    assert broken(Rule("nothing", "", ()), {}) == ["no kernel of that name"]
