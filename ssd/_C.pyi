# The extension: loading it registers torch.ops.ssd (see ssd/ops.py); its classes are csrc/runtime's.
import numpy as np
import numpy.typing as npt

def cpu_isa() -> str:
    """The instruction set the CPU ops run with on this machine: "portable", "avx2" or "avx512bf16"."""

class PageAllocator:
    """Which pages of a K/V cache are free. Hands out pages 1 .. num_pages - 1; page 0 is the null page."""

    def __init__(self, num_pages: int) -> None: ...
    def allocate(self, count: int) -> npt.NDArray[np.int32]:
        """`count` pages, [count] int32: in a fresh allocator from page 1 up, later the last freed first.

        Raises RuntimeError where fewer are free, and takes none.
        """

    def free(self, pages: npt.NDArray[np.int32]) -> None:
        """Gives pages back. Raises ValueError, and frees none, if one is free already or not of this allocator."""

    @property
    def available(self) -> int: ...
    @property
    def capacity(self) -> int: ...
