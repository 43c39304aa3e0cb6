"""The sources of speculations: a draft model, or earlier tokens of the same sequence."""
