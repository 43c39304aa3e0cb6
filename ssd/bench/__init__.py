"""Measuring (`ssd bench`): variants of an engine take turns on the same prompts, and each turn is kept as soon as it ends."""
