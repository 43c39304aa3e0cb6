"""Models: what they are (config), where they come from (registry, gguf, weights, tokenizer) and how they run (transformer)."""
