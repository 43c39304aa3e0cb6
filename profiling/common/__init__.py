"""The parts that profiling's scripts and pages share."""
