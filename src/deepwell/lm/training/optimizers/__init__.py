"""What turns gradients into steps: AdamW with small moments, Muon, and the one object that a training loop holds."""

from deepwell.lm.training.optimizers.building import Optimizer, build

__all__ = ["Optimizer", "build"]
