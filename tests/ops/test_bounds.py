"""Kernels read nothing past the end of their arguments: q ends where a protected page begins."""

import subprocess
import sys

import pytest

from ops.backend import only_on_the_cpu

pytestmark = only_on_the_cpu("there all tensors are guarded, or compute-sanitizer looks on")

VERIFY_AT_THE_END_OF_MEMORY = """
import ctypes, mmap, sys
import torch
from ssd import ops

libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
K, V, half = 4, 1024, int(sys.argv[1])
count = 2 * K * V
size = count * 4
base = libc.mmap(None, size + mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
assert size % mmap.PAGESIZE == 0 and libc.mprotect(base + size, mmap.PAGESIZE, 0) == 0
q_logits = torch.frombuffer((ctypes.c_float * count).from_address(base), dtype=torch.float32).zero_().view(1, 2, 1, K, V)

def whole(*shape):
    return torch.zeros(*shape, dtype=torch.int32)

p_logits, ones = torch.zeros(1, K + 1, V), torch.ones(K + 1)
p_stats = ops.row_stats(p_logits[0], ones, whole(K + 1), ones, torch.zeros(K + 1)).view(1, K + 1, ops.STATS)
q_stats = p_stats[:, :1].expand(1, 2 * K, ops.STATS).reshape(1, 2, 1, K, ops.STATS).contiguous()
outcome = whole(1, 2, 2)
ops.verify(
    p_logits=p_logits, p_stats=p_stats, q_logits=q_logits, q_stats=q_stats, q_address=whole(1), draft_id_of=None,
    spec_tokens=whole(1, K) + 5, spec_len=whole(1) + K, parent=None, parity=whole(1) + half,
    seed=torch.zeros(1, dtype=torch.int64), eos=whole(0), ignore_eos=torch.zeros(1, dtype=torch.uint8), max_length=whole(1) + 100,
    tokens=whole(1, 64), length=whole(1) + 3, last_token=whole(1), done=torch.zeros(1, dtype=torch.uint8), outcome=outcome,
    hit=torch.zeros(1, dtype=torch.uint8), path=whole(1, K + 1), bad=whole(1), report=whole(1, 11),
)
assert int(outcome[0, half, 0]) == K, "all must be accepted, so that the bonus token is drawn after the last row of q"
"""


@pytest.mark.skipif(sys.platform != "linux", reason="guards a page with mmap and mprotect")
@pytest.mark.parametrize("half", [0, 1])
def test_a_bonus_token_reads_no_row_of_q(half: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", VERIFY_AT_THE_END_OF_MEMORY, str(half)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
