"""Loads the extension, after a check that it fits the running torch. Loading it registers torch.ops.ssd."""

from ssd._check import check_torch

check_torch()

from ssd._C import PageAllocator, Program, cpu_isa, has_conditional_nodes  # noqa: E402

__all__ = ["PageAllocator", "Program", "cpu_isa", "has_conditional_nodes"]
