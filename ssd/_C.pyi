# The extension. Loading it registers torch.ops.ssd (see ssd/ops.py). Its classes are in csrc/runtime.
import numpy as np
import numpy.typing as npt

def cpu_isa() -> str:
    """The instruction set of the CPU ops on this machine: "portable", "avx2", "avxvnni", "avx512vnni" or "avx512bf16"."""

def has_conditional_nodes() -> bool:
    """Whether this extension was built for CUDA and the driver supports conditional nodes (CUDA 12.4)."""

def launches_overlap() -> bool:
    """Whether a kernel on the current CUDA device may start while the kernel ahead of it still runs.

    It may on Hopper, unless SSD_PDL=0. Exists only in an extension built for CUDA. Raises RuntimeError with CUDA's message."""

class GreenContext:
    """A partition of at least this many of a GPU's multiprocessors. Work on its streams runs only on them. Neither the
    partition nor a stream of it ever ends.

    Exists only in an extension built for CUDA; needs a driver of CUDA 12.5. Raises RuntimeError with CUDA's message."""

    def __init__(self, device: int, multiprocessors: int) -> None: ...
    def stream(self, priority: int) -> int:
        """A new stream's handle, as an integer."""

    @property
    def multiprocessors(self) -> int:
        """The size of the partition. The driver rounds the requested number up to one that the chip supports."""

class Conditional:
    """An IF node in the CUDA graph that `stream` is being captured into. Everything enqueued on the stream `body` until `end`
    becomes the node's body. On replay the body runs if any of the `count` uint8 flags is set. Streams and pointers are
    integers. part: the partition that both streams belong to.

    Exists only in an extension built for CUDA. Raises RuntimeError with CUDA's message."""

    def __init__(self, stream: int, flags: int, count: int, body: int, part: GreenContext | None = None) -> None: ...
    def end(self) -> None: ...

class Program:
    """The CPU ops of one of a round's programs: recorded once, then run again (csrc/cpu/program.h)."""

    def __init__(self) -> None: ...
    def begin(self) -> None:
        """The CPU ops that this thread calls become steps, and do not run. Raises RuntimeError if it records already."""

    def end(self) -> None: ...
    def begin_when(self, flags: int, bytes: int) -> None:
        """The steps until `end_when` run only if one of `bytes` bytes at the address `flags` is not zero."""

    def end_when(self) -> None: ...
    def mark(self) -> int:
        """Add a step that notes the time, in seconds on time.perf_counter's clock. Returns its number."""

    @property
    def times(self) -> list[float]:
        """The times of the last run, by the numbers of the marks; 0 where a mark was not reached."""

    def run(self) -> None:
        """Run all steps on this thread, without the interpreter's lock. Raises what a step raises; later steps do not run."""

    def __len__(self) -> int: ...

class PageAllocator:
    """The free pages of a K/V cache, and for every other page the number of sequences that hold it.

    Pages are 1 .. num_pages - 1; page 0 is the null page.
    """

    def __init__(self, num_pages: int) -> None: ...
    def allocate(self, count: int) -> npt.NDArray[np.int32]:
        """Take `count` pages, [count] int32: pages 1, 2, ... from a fresh allocator, later the last freed page first.

        Raises RuntimeError and takes none if fewer are free.
        """

    def hold(self, pages: npt.NDArray[np.int32]) -> None:
        """Add a holder to each page, [count] int32.

        Raises ValueError and changes nothing if a page is free or not of this allocator.
        """

    def free(self, pages: npt.NDArray[np.int32]) -> None:
        """Take a holder from each page; a page without holders is free.

        Raises ValueError and changes nothing if a page is free already or not of this allocator.
        """

    def holders(self, page: int) -> int: ...
    @property
    def available(self) -> int: ...
    @property
    def capacity(self) -> int: ...
