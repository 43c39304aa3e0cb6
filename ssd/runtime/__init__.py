"""How programs run: executors (eager, captured), models with a pace, the draft's thread, and timings."""
