"""A small training, compiled or not, in several processes: FILE gets losses and compiled graphs.

The compiler's last part, which takes minutes on a CPU, is left out: what is compiled is traced and
split as ever, forward and backward, and then run operation by operation.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks.gpu.exactness import run as small_run
from maskdm.runtime import compile as compiling
from maskdm.runtime.command import run
from maskdm.runtime.execution import Execution
from maskdm.runtime.files import write_json
from maskdm.runtime.launch import on_all_processes


def main(
    file: Annotated[Path, typer.Argument(help="the file that is written")],
    compiles: Annotated[bool, typer.Option(help="whether the network is compiled")] = False,
) -> None:
    """Note the losses and the graphs."""
    compiling.compile_shapes = partial(compiling.compile_shapes, backend="aot_eager")
    execution = replace(Execution.from_environment(), compiles=compiles, strict=True)
    losses = small_run(execution)["history.losses"].tolist()
    if execution.processes.is_main:
        graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"] if compiles else 0
        write_json(file, {"losses": losses, "graphs": graphs})


if __name__ == "__main__":
    run(on_all_processes(main))
