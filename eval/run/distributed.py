"""One or several processes on one or several machines, as `accelerate launch` starts them."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

# A rank that has finished its share waits for the slowest one; the usual limits of 10 to 30 minutes are for steps of
# training.
_PATIENCE = timedelta(days=7)


class ProcessGroup:
    """The processes of this run and what they exchange. With one process everything is local.

    Args:
        cpu: let the processes talk over gloo and answer on the CPU, also where there are GPUs.

    Attributes:
        rank: number of this process, 0 for the one that writes results.
        size: number of processes.
        device: the device accelerate assigned to this process, or None with a single process.
    """

    def __init__(self, *, cpu: bool = False) -> None:
        self.rank, self.size, self.device = 0, 1, None
        started = int(os.environ.get("WORLD_SIZE", "1"))
        if started > 1:
            import torch  # a run that a server answers does without
            from accelerate import PartialState

            # Without being told, accelerate takes processes without a GPU for so many single ones.
            state = PartialState(cpu=cpu or not torch.accelerator.is_available(), timeout=_PATIENCE)
            if state.num_processes != started:
                raise ValueError(
                    f"{started} processes were started but accelerate joins {state.num_processes}; they would "
                    "overwrite each other's records. Start them with 'accelerate launch' or 'torchrun'"
                )
            self.rank, self.size, self.device = state.process_index, state.num_processes, str(state.device)

    @property
    def is_main(self) -> bool:
        """Whether this process merges and reports."""
        return self.rank == 0

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in the order of their ranks, on every process."""
        if self.size == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])

    def from_main(self, value: Any) -> Any:
        """The main process's value, on every process."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        values = [value]
        broadcast_object_list(values)
        return values[0]

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the block in the main process before the others, for work that fills a shared cache.

        An error in the main process is raised in all, so that nobody waits for a process that is gone.
        """
        error: Exception | None = None
        if self.is_main:
            try:
                yield
            except Exception as caught:
                error = caught
        message = self.from_main(None if error is None else f"{error}")
        if error is not None:
            raise error
        if message is not None:
            raise ValueError(f"the main process failed: {message}")
        if not self.is_main:
            yield

    def close(self) -> None:
        """Leave the group; a process that ends without doing so makes torch warn."""
        if self.size > 1:
            from accelerate import PartialState

            PartialState().destroy_process_group()
