"""What mkdocs.yml adds to docs/: pages that lie elsewhere in the repository, and files that links lead to."""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
ELSEWHERE = {
    "README.md": "index.md",
    "benchmarks/RESULTS.md": "results.md",
    "tests/README.md": "tests.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Pages outside docs/ -> their names in the site."""
_PAGES = {page: path for path, page in ELSEWHERE.items()}
_LINK = re.compile(r"(?<=\]\()(?![a-z]+:|#)([^)\s#]+)")
_FENCED = re.compile(r"^(```.*?^```[^\n]*\n)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The site's files, with the pages that lie elsewhere and the source files that pages link to."""
    for path, page in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text(encoding="utf-8")))
    for file in files.documentation_pages():
        for target in _LINK.findall(file.content_string):
            path = _in_repository(file.src_uri, target)
            uri = _in_site(path)
            if uri.startswith("code/") and (ROOT / path).is_file() and uri not in files.src_uris:
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with links to where the site has what they lead to."""
    parts = _FENCED.split(markdown)
    parts[::2] = [_LINK.sub(lambda found: _moved(page.file.src_uri, found[0]), part) for part in parts[::2]]
    return "".join(parts)


def _moved(page: str, target: str) -> str:
    return posixpath.relpath(_in_site(_in_repository(page, target)), posixpath.dirname(page) or ".")


def _in_repository(page: str, target: str) -> str:
    """The path in the repository of what a page of the site links to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(_PAGES.get(page, f"docs/{page}")), target))


def _in_site(path: str) -> str:
    """Where the site has a file of the repository: outside docs/ as it is, under code/."""
    return ELSEWHERE.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else f"code/{path}")
