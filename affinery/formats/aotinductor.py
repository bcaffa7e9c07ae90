"""aotinductor: the graph of torch-export as machine code of this machine's processor.

model.pt2    torch._inductor.aoti_load_package(…)(latent, timestep, label, task)
model.json   as torch-export's, with what it was compiled for

It is compared in a process of its own: what is loaded is a shared library, and a fault of its ends a process.
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from affinery import tensor_files
from affinery.errors import ConfigInvalid, ExportBroken
from affinery.formats.contract import Format, Shipment, distance
from affinery.formats.probe import probe
from affinery.formats.program import INPUTS, asked, described, exported
from affinery.formats.torch_export import DESCRIPTION, SIZES

PACKAGE = "model.pt2"
NAME = "aotinductor"
RUN = f"""
import sys
sys.modules["affinery"] = None
import torch
from safetensors.torch import load_file, save_file
package, given, answers = sys.argv[1:]
run, given = torch._inductor.aoti_load_package(package), load_file(given)
with torch.no_grad():
    found = {{size: run(*(given[f"{{name}} {{size}}"] for name in {INPUTS})) for size in {SIZES}}}
save_file({{str(size): answer.contiguous() for size, answer in found.items()}}, answers)
"""


class AOTInductor(Format):
    """The graph, compiled."""

    def write(self, shipment: Shipment, folder: Path) -> tuple[str, ...]:
        model = shipment.model
        if model.device.type != "cpu":
            raise ConfigInvalid(
                "--format", f"{NAME} compiles for processors, and the model is on {model.device}."
            )
        need_compiler()
        compiled(exported(model), folder / PACKAGE)
        target = compiled_for()
        body = json.dumps(described(shipment) | {"compiled_for": target}, indent=1, ensure_ascii=False)
        tensor_files.write_whole(folder / DESCRIPTION, body.encode())
        return (f"it runs on {target['machine']} with {target['capability']} and torch {target['torch']}.",)

    def compare(self, shipment: Shipment, folder: Path) -> float:
        model = shipment.model
        wanted = {size: probe(model, [None, *model.slots], size, seed=size) for size in SIZES}
        with TemporaryDirectory() as scratch:
            given, answers = Path(scratch) / "given", Path(scratch) / "answers"
            inputs = {
                f"{name} {size}": tensor.contiguous()
                for size, one in wanted.items()
                for name, tensor in zip(INPUTS, asked(model, one), strict=True)
            }
            save_file(inputs, given)
            command = [sys.executable, "-I", "-c", RUN, str(folder / PACKAGE), str(given), str(answers)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise ExportBroken(
                    NAME, (done.stderr.strip().splitlines() or [f"signal {-done.returncode}"])[-1]
                )
            found = load_file(answers)
        return max(distance(one.answer(model), found[str(size)]) for size, one in wanted.items())


def need_compiler() -> None:
    """Raises ConfigInvalid where there is none."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        how = "Install g++, name another in CXX, or take torch-export, which needs none."
        raise ConfigInvalid("--format", f"{NAME} compiles, and no C++ compiler is here. {how}") from error


def compiled(program: torch.export.ExportedProgram, package: Path) -> None:
    """Compiles a program into a package; nothing is left elsewhere. Raises ExportBroken."""
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.exc import CppCompileError
    from torch._inductor.utils import fresh_cache

    try:
        with fresh_cache(), torch.no_grad():
            once = {"aot_inductor.precompile_headers": False}  # they pay where several graphs are compiled
            aoti_compile_and_package(program, package_path=str(package), inductor_configs=once)
    except CppCompileError as error:
        lines = error.output.splitlines()
        raise ExportBroken(NAME, next((line for line in lines if "error" in line), lines[-1])) from error


def compiled_for() -> dict[str, Any]:
    """What a machine must have to run what is compiled here."""
    capability = torch.backends.cpu.get_cpu_capability()
    return {
        "device": "cpu",
        "machine": platform.machine(),
        "capability": capability,
        "torch": torch.__version__,
    }


FORMAT = AOTInductor()
