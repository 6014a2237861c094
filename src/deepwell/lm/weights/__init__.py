"""Files to network and back: checkpoints, GGUF, conversions, tokenizers and chat templates."""
