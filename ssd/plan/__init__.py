"""Predictions before a decode: memory that fits, and the speed of each mode and setting (`ssd plan`)."""
