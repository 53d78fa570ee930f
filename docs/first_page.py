"""Puts README.md at the front of the site, with its links as they are seen from docs/."""

from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"


def front(text: str) -> str:
    """Give the README's text with links that begin in docs/."""
    return text.replace("](docs/", "](")


def on_files(files: Any, config: Any) -> Any:
    """MkDocs calls this with all files of the site."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "index.md", content=front(README.read_text())))
    return files
