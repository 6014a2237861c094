"""Import LanceDB in 0.7 s instead of 2.

Of the 2 s that ``import lancedb`` takes, 1.1 are spent building several hundred pydantic classes of
``lance_namespace_urllib3_client``: the request and response bodies of a *remote* namespace service. A library in a
folder never uses one. So while LanceDB is imported, that one package is answered by modules whose every name is a
``_Later``: an object that stands for the class and imports the real package the moment anybody calls it, subclasses it,
asks for an attribute or tests an instance against it. Afterwards ``sys.modules`` holds no trace of the stand-ins, and a
program that shares the process and does talk to a namespace service gets the real classes, a second later than usual.

If the package is already imported, or anything goes wrong, LanceDB is imported in the ordinary way.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import types
import typing
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any

_CLIENT = "lance_namespace_urllib3_client"
_lock = threading.Lock()


class _Later:
    """Stands for a class that is imported when it is first needed."""

    def __init__(self, module: str, name: str) -> None:
        self.__dict__.update(_module=module, _name=name)

    def _real(self) -> Any:
        return getattr(importlib.import_module(self._module), self._name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._real()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._real(), name)

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self._real())

    def __mro_entries__(self, bases: tuple[object, ...]) -> tuple[type, ...]:
        return (self._real(),)

    def __or__(self, other: Any) -> Any:
        return typing.Union[self, other]  # noqa: UP007  (operands of an annotation, not types yet)

    def __ror__(self, other: Any) -> Any:
        return typing.Union[other, self]  # noqa: UP007


class _LaterModule(types.ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Later(self.__name__, name)


class _Finder(MetaPathFinder, Loader):
    """Answers imports of the client package, and of nothing else."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002
        target: types.ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        if fullname == _CLIENT or fullname.startswith(_CLIENT + "."):
            return ModuleSpec(fullname, self, is_package=True)
        return None

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        return _LaterModule(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        pass


def _forget(prefix: str) -> None:
    for name in [name for name in sys.modules if name == prefix or name.startswith(prefix + ".")]:
        del sys.modules[name]


def _import_without_client() -> types.ModuleType:
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        return importlib.import_module("lancedb")
    finally:
        sys.meta_path.remove(finder)
        _forget(_CLIENT)


def load() -> types.ModuleType:
    """The ``lancedb`` module, quiet: its deprecation notices go to people who cannot act on them."""
    os.environ.setdefault("LANCE_LOG", "error")
    with _lock:
        if "lancedb" in sys.modules or _CLIENT in sys.modules or "lance_namespace" in sys.modules:
            return importlib.import_module("lancedb")
        try:
            return _import_without_client()
        except Exception:
            # Another version of LanceDB uses the client in a way that the stand-ins do not cover.
            for package in ("lancedb", "lance_namespace"):
                _forget(package)
            return importlib.import_module("lancedb")
