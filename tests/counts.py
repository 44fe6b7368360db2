"""Counts that tell how easy the code is to read, against their limits: `make counts` prints them.

Words are counted in the docstrings and comments of service/, lines are those that are not blank.
"""

import ast
import io
import re
import statistics
import sys
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True)
class Count:
    """A number and its limit."""

    what: str
    value: float
    limit: float

    @property
    def within(self) -> bool:
        return self.value <= self.limit


def modules(folder: str) -> list[Path]:
    """Return the Python files of a folder."""
    return sorted((REPOSITORY / folder).rglob("*.py"))


def lines(path: Path) -> int:
    """Return how many lines are not blank."""
    return sum(bool(line.strip()) for line in path.read_text(encoding="utf-8").splitlines())


def prose(path: Path) -> str:
    """Return all docstrings and comments of a file."""
    source = path.read_text(encoding="utf-8")
    comments = [token.string for token in _tokens(source) if token.type == tokenize.COMMENT]
    texts = [
        node.value.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    return "\n".join([*comments, *texts])


def _tokens(source: str) -> Iterator[tokenize.TokenInfo]:
    return tokenize.generate_tokens(io.StringIO(source).readline)


def words(pattern: str) -> int:
    """Return how often words occur in the prose of service/."""
    found = re.compile(rf"\b({pattern})\b", re.IGNORECASE)
    return sum(len(found.findall(prose(path))) for path in modules("service"))


def counts() -> list[Count]:
    """Return all counts."""
    service = [lines(path) for path in modules("service")]
    functions = [
        node.end_lineno - node.lineno + 1
        for path in modules("service")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    ]
    return [
        Count("'what', 'whoever', 'whatever' in the prose of service/", words("what|whoever|whatever"), 60),
        Count("'where' in the prose of service/", words("where"), 60),
        Count("lines of README.md", len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()), 130),
        Count("lines of the longest module of service/", max(service), 400),
        Count("lines of a module of service/, median", statistics.median(service), 120),
        Count("lines of the longest function of service/", max(functions), 70),
        Count("lines of tests/ for each line of service/", sum(map(lines, modules("tests"))) / sum(service), 2.65),
    ]


def main() -> int:
    """Print the counts; return 1 if one is over its limit."""
    found = counts()
    for one in found:
        print(f"{one.value:8.4g}  at most {one.limit:6.4g}  {one.what}{'' if one.within else '   <- too many'}")  # noqa: T201  # its output
    return 0 if all(one.within for one in found) else 1


if __name__ == "__main__":
    sys.exit(main())
