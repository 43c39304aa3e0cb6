# The extension. Loading it registers torch.ops.ssd (see ssd/ops.py). Its classes are in csrc/runtime.
import numpy as np
import numpy.typing as npt

def cpu_isa() -> str:
    """The instruction set of the CPU ops on this machine: "portable", "avx2" or "avx512bf16"."""

def has_conditional_nodes() -> bool:
    """Whether this extension was built for CUDA and the driver supports conditional nodes (CUDA 12.4)."""

def launches_overlap() -> bool:
    """Whether a kernel on the current CUDA device may start while the kernel ahead of it still runs: on Hopper, unless
    SSD_PDL=0.

    Only where the extension was built for CUDA. Raises RuntimeError with what CUDA says."""

class GreenContext:
    """A partition of at least this many of a GPU's multiprocessors. Work on its streams runs only on them. It owns its streams.

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

class PageAllocator:
    """The free pages of a K/V cache, and how many sequences hold each of the others.

    Pages are 1 .. num_pages - 1; page 0 is the null page.
    """

    def __init__(self, num_pages: int) -> None: ...
    def allocate(self, count: int) -> npt.NDArray[np.int32]:
        """Take `count` pages, [count] int32: pages 1, 2, ... from a fresh allocator, later the last freed page first.

        Raises RuntimeError and takes none if fewer are free.
        """

    def hold(self, pages: npt.NDArray[np.int32]) -> None:
        """Add a holder to each page, [count] int32.

        Raises ValueError and changes nothing if one is free or not of this allocator.
        """

    def free(self, pages: npt.NDArray[np.int32]) -> None:
        """Take a holder from each page; a page without holders is free.

        Raises ValueError and changes nothing if one is free already or not of this allocator.
        """

    def holders(self, page: int) -> int: ...
    @property
    def available(self) -> int: ...
    @property
    def capacity(self) -> int: ...
