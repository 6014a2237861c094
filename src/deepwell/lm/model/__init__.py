"""The network: config, rope, attention (MLA), mixture of experts, multi-token prediction, transformer."""
