"""Which Prometheus server is to tell of other machines, and which of them: an address and a selector of labels.

What it takes to be let in is no part of it, and is never written down: it comes from the environment, or out of the address.
"""

from __future__ import annotations

import base64
import os
import re
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field

from cellmeter.errors import BadUsage

TOKEN, LOGIN = "CELLMETER_PROMETHEUS_TOKEN", "CELLMETER_PROMETHEUS_LOGIN"
MOST_CHARACTERS = 2000
_VALUE = r'(?:"(?:[^"\\\n]|\\.)*"|\'(?:[^\'\\\n]|\\.)*\'|`[^`]*`)'
_MATCHER = rf"[A-Za-z_]\w*\s*(?:=~|!~|!=|=)\s*{_VALUE}"
_SELECTOR = re.compile(rf"\{{\s*({_MATCHER}(?:\s*,\s*{_MATCHER})*)\s*,?\s*\}}", re.ASCII)


@dataclass(frozen=True)
class Source:
    """A server and what to ask it for. ``login``: user and password, if they are known; neither shown nor written."""

    url: str
    match: str
    login: str | None = field(default=None, repr=False, compare=False)

    def selector(self, *matchers: str) -> str:
        """The selector with more matchers."""
        return "{" + ",".join([*matchers, self.match[1:-1].strip().rstrip(",")]) + "}"

    def headers(self, environ: Mapping[str, str] = os.environ) -> dict[str, str]:
        """What lets us in: the login out of the address, else what the environment says."""
        login = self.login or environ.get(LOGIN)
        if login is not None:
            return {"Authorization": "Basic " + base64.b64encode(login.encode()).decode()}
        token = environ.get(TOKEN, "").strip()
        if token and not token.isascii():
            raise BadUsage(f"{TOKEN} has characters that no token has")
        return {"Authorization": f"Bearer {token}"} if token else {}


def source_of(url: str, match: str | None) -> Source:
    """The source that an address and a selector name. Raises BadUsage, and never says what may be secret."""
    if match is None:
        raise BadUsage("--prometheus: say which machines by --match, as in --match '{instance=\"node7:9400\"}'")
    login, address = _address(url.strip())
    return Source(address, _selector(match.strip()), login)


def _address(url: str) -> tuple[str | None, str]:
    example = "write an address as in http://prometheus:9090"
    try:
        parts = urllib.parse.urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise BadUsage(f"--prometheus: this is no address; {example}") from None
    if parts.scheme not in ("http", "https") or not host or any(c.isspace() or ord(c) < 32 for c in url):
        raise BadUsage(f"--prometheus: this is no address of a server; {example}")
    if parts.query or parts.fragment or len(url) > MOST_CHARACTERS:
        raise BadUsage(f"--prometheus: the address goes no further than its path; {example}")
    name = f"[{host}]" if ":" in host else host
    path = parts.path.rstrip("/").removesuffix("/api/v1")
    login = None
    if parts.username is not None:
        login = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
    return login, f"{parts.scheme}://{name}{f':{port}' if port is not None else ''}{path}"


def _selector(match: str) -> str:
    if not _SELECTOR.fullmatch(match) or len(match) > MOST_CHARACTERS:
        example = '{instance="node7:9400"} or {Hostname=~"node7|node8"}'
        raise BadUsage(f"--match {match:.80}: write labels in braces and no name of a metric, as in {example}")
    return match


def without_login(text: str) -> str:
    """A text without what stands before the @ of the addresses in it."""
    return re.sub(r"(?<=://)[^/\s@\"']+@", "", text)
