"""GGUF, the one-file format of llama.cpp: every common quantisation read, written so that stock llama.cpp loads it."""
