"""The running of programs: executors (eager, captured), paced models, the draft's thread, placement, memory and timings."""
