"""Which requests run, and what an engine's rounds work on."""
