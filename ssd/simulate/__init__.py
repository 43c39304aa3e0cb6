"""Rounds simulated from given times and outcomes: what a mode would reach on devices that are not here (`ssd simulate`)."""
