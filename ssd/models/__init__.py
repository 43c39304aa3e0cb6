"""Models: their shape (config), their files (registry, gguf, weights, tokenizer) and their forward pass (transformer)."""
