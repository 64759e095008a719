"""The page at `/`: one file, whose own style and script are all that a browser may run of it."""

import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

PAGE = Path(__file__).with_name("page.html")


def security_policy(html: str) -> str:
    """A Content-Security-Policy that allows the inline styles and scripts of a page by their hashes, and no other.

    >>> security_policy("<script>go()</script>").split("; ")[1]
    "script-src 'sha256-5KYv+PUboo5h+0+YAtGRPbwv5d/QxzHslP4YGnUaxRw='"
    """
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hashes('script', html)}",
            f"style-src {_hashes('style', html)}",
            "img-src 'self' data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )


def _hashes(element: str, html: str) -> str:
    found = re.findall(rf"<{element}(?:\s[^>]*)?>(.*?)</{element}\s*>", html, re.DOTALL | re.IGNORECASE)
    hashes = [b64encode(sha256(text.encode()).digest()).decode() for text in found]
    return " ".join(f"'sha256-{each}'" for each in hashes) or "'none'"
