"""The senses: pixels and samples to words, on this machine, each model loaded when it is first needed.

    senses = LocalSenses(threads=1)
    senses.labels(image)         # EfficientNet-Lite0, from the model folder
    senses.ocr(image)            # PaddleOCR's networks, inside the rapidocr wheel
    senses.transcribe(path)      # Whisper, from the model folder
    senses.sounds(path)          # YAMNet, from the model folder

Nothing heavy is imported before a sense is used, so that reading a text file never waits for PyTorch.
"""

from deepwell.library.senses.local import LocalSenses

__all__ = ["LocalSenses"]
