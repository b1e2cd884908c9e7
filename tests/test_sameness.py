"""The same answer under every instruction set (docs/engines.md, "The same answer everywhere")."""

import json
import math
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import assert_same_record

HERE = Path(__file__).parent
# XLA uses no instruction beyond these, nor any that the machine lacks; None is all it has.
INSTRUCTIONS = ("SSE4_2", "AVX", "AVX2", None)
FLAG = "--xla_cpu_max_isa="


def _computed(folder: Path, instructions: str | None) -> dict[str, Any]:
    others = [f for f in os.environ.get("XLA_FLAGS", "").split() if not f.startswith(FLAG)]
    flags = others + ([FLAG + instructions] if instructions else [])
    environment = {**os.environ, "XLA_FLAGS": " ".join(flags), "JAX_PLATFORMS": "cpu"}
    environment["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # of other instructions
    run = subprocess.run(
        [sys.executable, HERE / "sameness_cases.py", folder],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="instruction sets of x86")
def test_instruction_sets_give_one_answer(tmp_path):
    found = {}
    for instructions in INSTRUCTIONS:
        folder = tmp_path / str(instructions)
        folder.mkdir()
        found[instructions] = _computed(folder, instructions)
    own = found.pop(None)
    tested = [name for name, record in own.items() if math.isfinite(record["p_value"])]
    assert len(tested) > 50
    assert any(name.startswith("reference") for name in tested) and "command line" in tested
    differ = False
    for instructions, records in found.items():
        assert records.keys() == own.keys()
        for name, record in records.items():
            assert_same_record(record, own[name], f"{name}, {instructions}")
            differ |= record["truncation"] != own[name]["truncation"]
    # The comparison compares something: other instructions do round otherwise.
    assert differ
