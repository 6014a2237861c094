"""What a network learns from: sources, duplicates, tokenizers, packed rows, conversations, one fixed order."""
