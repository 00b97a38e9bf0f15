"""The examples of the README do what they say."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

README = Path(__file__).parent.parent / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks() -> list[tuple[int, str]]:
    """Return the README's Python code, each block with the number of its first line."""
    text = README.read_text()
    return [(text.count("\n", 0, match.start(1)) + 1, match[1]) for match in BLOCK.finditer(text)]


def compiled(line: int, source: str) -> CodeType:
    """Compile a block, which may await and use ``async with`` at its top level, as `python -m asyncio` does."""
    tree = ast.increment_lineno(ast.parse(source, README.name), line - 1)
    return compile(tree, README.name, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


def test_the_readme_begins_with_an_example() -> None:
    line, source = blocks()[0]
    assert line < 40
    assert "FileStore" in source


@pytest.mark.parametrize(("line", "source"), blocks(), ids=lambda value: str(value) if isinstance(value, int) else "")
async def test_each_example_runs_as_it_stands(
    line: int, source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    result = eval(compiled(line, source), names)
    if inspect.iscoroutine(result):
        await result
