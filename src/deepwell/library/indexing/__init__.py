"""Files into a library: ``Indexer`` looks, reads in worker processes, commits, and fills vectors in behind."""

from deepwell.library.indexing.indexer import Indexer, Options
from deepwell.library.indexing.pool import Limits
from deepwell.library.indexing.progress import Progress, ProgressCallback
from deepwell.library.indexing.vectors import Encoders, LabelVectors
from deepwell.library.indexing.worker import Setup

__all__ = ["Encoders", "Indexer", "LabelVectors", "Limits", "Options", "Progress", "ProgressCallback", "Setup"]
