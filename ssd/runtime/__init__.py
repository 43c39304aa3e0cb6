"""How programs run: executor (eager or paced), worker (the draft's thread), trace (timings, timeline, NVTX)."""
