"""LanceDB without its remote client: quicker, and the client is there when somebody wants it."""

from __future__ import annotations

import subprocess
import sys


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_the_client_is_not_imported() -> None:
    code = """
import sys
from deepwell.library.store import _lancedb
module = _lancedb.load()
assert module is sys.modules["lancedb"] and callable(module.connect)
print([name for name in sys.modules if "urllib3_client" in name], len(sys.meta_path))
"""
    before = run("import sys; print(len(sys.meta_path))")
    assert run(code) == f"[] {before}"


def test_the_client_works_when_it_is_used() -> None:
    code = """
from deepwell.library.store import _lancedb
_lancedb.load()
import lance_namespace
response = lance_namespace.ListTablesResponse(tables=["a"])
assert isinstance(response, lance_namespace.ListTablesResponse)
class Mine(lance_namespace.ListTablesResponse): pass
print(type(response).__module__.split(".")[0], response.tables, Mine(tables=[]).tables)
"""
    assert run(code) == "lance_namespace_urllib3_client ['a'] []"


def test_an_import_that_fails_falls_back() -> None:
    code = """
from deepwell.library.store import _lancedb
def broken(): raise ImportError("another version")
_lancedb._import_without_client = broken
print(_lancedb.load().__name__)
"""
    assert run(code) == "lancedb"
