"""The library: a collection of files made searchable. ``library.py`` is its face, ``docs/architecture.md`` its plan."""
