"""Settings every test shares: properties are tried on the same examples on every machine, and never against a clock."""

from hypothesis import settings

settings.register_profile("ssd", deadline=None, derandomize=True, database=None, max_examples=20, print_blob=True)
settings.load_profile("ssd")
