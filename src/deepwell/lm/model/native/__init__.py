"""Compiled kernels for training on a processor with bf16 instructions; everything has a form in PyTorch too."""
