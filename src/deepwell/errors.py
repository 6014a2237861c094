"""Errors that a user can cause.

Each says what was wrong, where (file, page, line, value) and what to do. The command line prints ``str(error)`` and
exits with ``error.exit_code``; it never shows a traceback for one of these.

Exit codes of the command line: 0 done, 1 failed, 2 bad usage, 3 partly done (some files failed). Each class also has a
``code`` of its own, a short word that ``--json`` prints, so that scripts can tell failures apart.
"""


class DeepwellError(Exception):
    """What went wrong, and what to do about it.

    Args:
        message: What was wrong and where, as one sentence without a final full stop.
        hint: What the user can do, usually a command to run. Empty when there is nothing to be done.
    """

    exit_code = 1
    code = "failed"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (reading happens in workers); the default drops keyword arguments.
        return _rebuild, (type(self), self.message, self.hint)


def _rebuild(cls: type[DeepwellError], message: str, hint: str) -> DeepwellError:
    return cls(message, hint=hint)


class UsageError(DeepwellError):
    """An argument that makes no sense: a negative limit, an unknown kind, two options that exclude each other."""

    exit_code = 2
    code = "bad-usage"


class PromptTooLongError(UsageError):
    """A prompt that leaves no room for an answer. The message has the counts."""

    code = "prompt-too-long"


class UnreadableFileError(DeepwellError):
    """A file that cannot be read or understood: encrypted, truncated, too large, not what its name says."""

    code = "unreadable-file"


class UnknownKindError(UnreadableFileError):
    """A file that is not of a kind that any reader knows. Indexing passes it over, without counting it as failed."""

    code = "unknown-kind"


class MissingModelError(DeepwellError):
    """A model that is not on this machine. The hint names the command that fetches it."""

    code = "missing-model"


class MissingExtraError(DeepwellError):
    """A Python package of an optional extra is not installed. The hint names the ``pip install`` that adds it."""

    code = "missing-extra"


class ModelSourceError(DeepwellError):
    """A model could not be fetched, or what arrived is not what was promised (size, hash, missing file)."""

    code = "model-source"


class LibraryBusyError(DeepwellError):
    """Another process is writing to the library. The message names it."""

    code = "library-busy"


class LibraryDamagedError(DeepwellError):
    """The library's folder is not a library, is from a newer version, or part of it is missing."""

    code = "library-damaged"


class ChatError(DeepwellError):
    """A language model did not answer: unreachable, refused the key, timed out, or replied with nonsense."""

    code = "chat"


class ModelConfigError(DeepwellError):
    """A description of a network that contradicts itself or names something unknown. The message names the fields."""

    code = "model-config"


class ModelFileError(DeepwellError):
    """A file of weights that is missing, damaged, of the wrong kind or does not fit. Names the file and the tensor."""

    code = "model-file"


class ModelFormatError(DeepwellError):
    """A format of files cannot express this network. The message says which part, the hint what can be done."""

    code = "model-format"


class KeyFileError(DeepwellError):
    """A file of API keys that cannot be read, is damaged, or could be changed by others. The message names it."""

    code = "key-file"


class ServerError(DeepwellError):
    """The server cannot start: its address is in use, is not this machine's, or is not allowed."""

    code = "server"


class RecipeError(UsageError):
    """A training recipe with a wrong key or value. Names file, line and key, and the nearest right one."""

    code = "recipe"


class DataError(DeepwellError):
    """Training data that is missing, empty or damaged. The message names the file and the line or row."""

    code = "data"


class TrainingError(DeepwellError):
    """Training cannot go on: losses that stay non-finite, a run that does not fit its recipe. Says how far it came."""

    code = "training"
