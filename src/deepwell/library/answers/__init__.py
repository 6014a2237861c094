"""Questions answered from a library: gather, judge, write, check, cite. ``asking.py`` tells the whole way.

>>> answer = ask("When was the bridge opened?", library.search_query)          # doctest: +SKIP
>>> answer.text, answer.citations[0].quote                                     # doctest: +SKIP
('It was opened to traffic on 19 March 1932. [1]', 'It was opened to traffic on 19 March 1932.')
"""

from deepwell.library.answers.asking import NOT_FOUND, Limits, ask, ask_stream
from deepwell.library.answers.extractive import Extractive
from deepwell.library.answers.naming import models_by_name
from deepwell.library.answers.openai_compatible import OpenAICompatible

__all__ = ["NOT_FOUND", "Extractive", "Limits", "OpenAICompatible", "ask", "ask_stream", "models_by_name"]
