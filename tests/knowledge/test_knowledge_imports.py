from __future__ import annotations

import ast
from pathlib import Path

import ppvilg.knowledge


def test_importing_knowledge_needs_no_paddle():
    """Paddle and paddlenlp may only be imported inside functions."""
    files = list(Path(ppvilg.knowledge.__file__).parent.glob("*.py"))
    assert files
    for file in files:
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.startswith(("paddle", "ppdiffusers", "jieba")) for name in names), file
