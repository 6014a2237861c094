"""What turns gradients into steps: AdamW with small moments, Muon, schedules of rates and batch sizes."""
