"""The server: a language model of this machine behind the HTTP API of OpenAI and DeepSeek.

``app.create_app`` makes the application, ``deepwell serve`` runs it. It needs the extra ``server``.
"""
