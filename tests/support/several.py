"""Drawing and measuring in the same processes, one stage after the other: one start for three."""

import torch.distributed as dist

from maskdm.runtime.command import run
from maskdm.runtime.launch import on_all_processes
from stages import fid, reference, sample


def main() -> None:
    """Run the stages sample, reference and fid; none begins before all processes are there."""
    for stage in (sample, reference, fid):
        stage.main()
        if dist.is_initialized():
            dist.barrier()


if __name__ == "__main__":
    run(on_all_processes(main))
