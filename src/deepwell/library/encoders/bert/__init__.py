"""BERT encoders of our own (all-MiniLM-L6-v2, bge-small-en-v1.5, multilingual-e5-small): one checkpoint, two executors.

``layers_numpy`` starts in a tenth of a second and needs no torch: single queries of a cold process. ``layers_torch`` is
for bulk. Both read the same mapped file and are tested against each other and against transformers' ``BertModel``.
"""

from deepwell.library.encoders.bert.encoder import BertEncoder, load

__all__ = ["BertEncoder", "load"]
