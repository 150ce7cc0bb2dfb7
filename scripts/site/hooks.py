"""MkDocs hooks: formulae as MathML, pictures in the page's colours, and the link to the repository."""

from __future__ import annotations

import html
import re
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
# Pages of the repository's front, which the site shows as well.
FRONT = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}

_FORMULA = re.compile(
    r'<(?P<tag>span|div) class="arithmatex">\\[(\[](?P<tex>.*?)\\[)\]]</(?P=tag)>', flags=re.DOTALL
)
# MathML leaves no space between a factor and a function's name, nor between that and an argument without
# brackets.
_FUNCTION = re.compile(
    r"(?P<factor></(?:mi|msub|mn)>)?(?P<name><mi>(?:log|exp)</mi>)(?P<bracket><mo[ >]|<mrow><mo )?"
)
_THIN_SPACE = '<mspace width="0.167em" />'
_SVG_IMAGE = re.compile(r'<img [^>]*?src="(?:\.\./)*(?P<path>images/[\w-]+\.svg)"[^>]*>')


def on_config(config: Any, **_: Any) -> Any:
    """Link to the repository that this checkout was cloned from, if it is on a web server."""
    config.repo_url = config.repo_url or web_address(origin())
    return config


def origin() -> str:
    """Return what git calls the origin of this checkout; nothing for an archive, or where there is no git."""
    command = ["git", "-C", str(ROOT), "remote", "get-url", "origin"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""


def web_address(address: str) -> str | None:
    """Return the address in a browser of a repository that git clones from ``address``.

    It has neither the user nor the password of ``address``, which may be a token, nor the port of SSH.

    >>> web_address("git@github.com:owner/name.git"), web_address("/srv/name.git")
    ('https://github.com/owner/name', None)
    >>> web_address("https://oauth2:TOKEN@example.org/owner/name.git")
    'https://example.org/owner/name'
    """
    short = re.fullmatch(r"[\w.-]+@([\w.-]+):(?!/)(.+)", address)  # what scp takes
    try:
        parts = urlsplit(f"ssh://{short[1]}/{short[2]}" if short else address)
        port = parts.port if parts.scheme == "https" else None
    except ValueError:  # not an address
        return None
    path = parts.path.strip("/").removesuffix(".git")
    if parts.scheme not in ("https", "ssh") or not parts.hostname or not path:
        return None
    return f"https://{parts.hostname}{f':{port}' if port else ''}/{path}"


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the front's pages, with their links as seen from ``docs/``."""
    for source, target in FRONT.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=text.replace("](docs/", "](")))
    return files


def on_page_content(page_html: str, page: Any, **_: Any) -> str:
    """Turn the formulae that Markdown marked into MathML, and images of ``docs/images`` into inline SVG."""
    return _SVG_IMAGE.sub(_inline, _FORMULA.sub(_mathml, page_html))


def _mathml(match: re.Match[str]) -> str:
    display = "block" if match["tag"] == "div" else "inline"
    return _FUNCTION.sub(_spaced, convert(html.unescape(match["tex"]), display=display))


def _spaced(function: re.Match[str]) -> str:
    before = function["factor"] + _THIN_SPACE if function["factor"] else ""
    return before + function["name"] + (function["bracket"] or _THIN_SPACE)


def _inline(match: re.Match[str]) -> str:
    return (ROOT / "docs" / match["path"]).read_text(encoding="utf-8")
