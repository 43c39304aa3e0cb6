# The extension: loading it registers torch.ops.ssd (see ssd/ops.py); its classes are csrc/runtime's.
import numpy as np
import numpy.typing as npt

def cpu_isa() -> str:
    """The instruction set the CPU ops run with on this machine: "portable", "avx2" or "avx512bf16"."""

def has_conditional_nodes() -> bool:
    """Whether this extension was built for CUDA, and the driver knows conditional nodes (CUDA 12.4)."""

def launches_overlap() -> bool:
    """Whether a kernel on the current CUDA device may start while the kernel ahead of it still runs: on Hopper, unless SSD_PDL=0.

    Only where the extension was built for CUDA. Raises RuntimeError with what CUDA says."""

class GreenContext:
    """At least so many of a GPU's multiprocessors: what is enqueued on its streams runs on no others. Streams end with it.

    Only where the extension was built for CUDA; needs a driver of CUDA 12.5. Raises RuntimeError with what CUDA says."""

    def __init__(self, device: int, multiprocessors: int) -> None: ...
    def stream(self, priority: int) -> int:
        """A new stream, as a number."""

    @property
    def multiprocessors(self) -> int:
        """How many there are: the driver rounds up to what its chip can set apart."""

class Conditional:
    """An IF node of the CUDA graph that `stream` is being captured into. Until `end`, what is enqueued on `body` is its body, which runs
    if any of `count` uint8 flags is set when the graph comes to it. Streams and pointers are given as numbers; part: of which both
    streams are.

    Only where the extension was built for CUDA. Raises RuntimeError with what CUDA says."""

    def __init__(self, stream: int, flags: int, count: int, body: int, part: GreenContext | None = None) -> None: ...
    def end(self) -> None: ...

class PageAllocator:
    """Which pages of a K/V cache are free, and how many sequences hold each of the others. Pages are 1 .. num_pages - 1; page 0 is the
    null page."""

    def __init__(self, num_pages: int) -> None: ...
    def allocate(self, count: int) -> npt.NDArray[np.int32]:
        """`count` pages, [count] int32: in a fresh allocator from page 1 up, later the last freed first.

        Raises RuntimeError where fewer are free, and takes none.
        """

    def hold(self, pages: npt.NDArray[np.int32]) -> None:
        """Adds a holder to each page, [count] int32. Raises ValueError, and changes nothing, if one is free or not of this allocator."""

    def free(self, pages: npt.NDArray[np.int32]) -> None:
        """Takes a holder from each page; a page without holders is free. Raises ValueError, and changes nothing, if one is free already
        or not of this allocator."""

    def holders(self, page: int) -> int: ...
    @property
    def available(self) -> int: ...
    @property
    def capacity(self) -> int: ...
