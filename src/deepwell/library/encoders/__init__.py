"""Passages to vectors: encoders of words and of pictures, opened by name.

    encoder = open_text("all-minilm-l6-v2")
    vectors = encoder.encode(["a passage", "another"])            # [2, 384], unit length
    query = encoder.encode(["what is asked"], query=True)[0]

A name is looked up in the catalogue of models (``deepwell models list``); a path is a checkpoint's folder as model hubs
publish it; ``openai:MODEL@BASE_URL`` is a server that speaks OpenAI's ``/v1/embeddings``.

Families of encoders are entry points of the group ``deepwell.encoders``: the family's name = ``module:load``, where
``load(folder: Path, info: ModelInfo | None, *, dim: int | None = None)`` returns the encoder. Ours use the same door.
"""

from deepwell.library.encoders.opening import open_image, open_text

__all__ = ["open_image", "open_text"]
