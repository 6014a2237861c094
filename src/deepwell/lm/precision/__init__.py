"""Numbers with few bits: block-scaled FP8."""
