"""Rounding to FP8 in C, as fast as memory is read; ``library`` finds it, ``fp8_tiles`` has the same in PyTorch."""
