# Written by setup.py at build time: what this installation was built with.
TORCH_VERSION: str
CUDA: bool
CUDA_ARCHS: tuple[str, ...]
WHY_NO_CUDA: str | None
