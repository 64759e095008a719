"""Who may reach the server: nobody without a key where keys are asked for, and no web page but its own.

A page of any site can have its visitor's browser send requests to a server on the visitor's machine, and by a name that
it resolves to that machine (DNS rebinding) even read the answers. So requests are refused whose `Host` is a name that
is not the server's, or whose `Origin` is another site; and no header allows other sites to read (CORS).
"""

import hmac
import ipaddress
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from hdraft.serve.errors import ApiError
from hdraft.serve.tenants import name_of

OPEN_ROUTES = ("/", "/health")
"""Routes that need no key: neither says anything of anyone's."""

TENANT_HEADER = "x-hdraft-tenant"
"""Subdivides a key: what requests with one value teach is drafted for that value only."""

_LONGEST_TENANT = 256


class Guard:
    """Lets requests in.

    Args:
        host: the name or address that the server listens at.
        keys: one of which every request must show; none where none is asked for.
    """

    def __init__(self, host: str, keys: Sequence[str] = ()) -> None:
        self.names = {"localhost", host.lower()}
        self.keys = [key.encode() for key in keys]

    def check(self, path: str, headers: Headers) -> str:
        """The name of the tenant that asks.

        Raises:
            ApiError: the request is not let in.
        """
        host = headers.get("host", "")
        if not self._is_ours(host):
            raise ApiError(
                403,
                "The Host header is no name of this server: use its address or localhost, or start it with --api-key.",
                code="host_not_allowed",
            )
        origin = headers.get("origin")
        if origin is not None and _site(origin) != host.lower():
            raise ApiError(403, "Web pages of other sites may not use this server.", code="origin_not_allowed")
        key = None if path in OPEN_ROUTES else self._key(headers.get("authorization", ""))
        tenant = headers.get(TENANT_HEADER, "")
        if len(tenant) > _LONGEST_TENANT:
            raise ApiError(400, f"{TENANT_HEADER} may have {_LONGEST_TENANT} characters.", code="invalid_value")
        return name_of(key, tenant)

    def _is_ours(self, host: str) -> bool:
        """Whether a page that its browser got from this `Host` can only have come from here, or cannot have a key."""
        name = host.lower()
        name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0].rstrip(".")
        if name in self.names or name.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(name)  # which nobody else can have a browser resolve
        except ValueError:
            return bool(self.keys and name)
        return True

    def _key(self, authorization: str) -> str | None:
        if not self.keys:
            return None
        scheme, _, shown = authorization.partition(" ")
        shown = shown.strip() if scheme.lower() == "bearer" else ""
        given = shown.encode("latin-1", "replace")
        found = [key for key in self.keys if hmac.compare_digest(key, given)]
        if not found:
            what = "Incorrect API key provided." if shown else "No API key provided: send 'Authorization: Bearer KEY'."
            raise ApiError(401, what, code="invalid_api_key")
        return found[0].decode()


def _site(origin: str) -> str | None:
    """The host of an origin, with its port if it is told; None where it is none, as `null`."""
    try:
        parts = urlsplit(origin.lower())
    except ValueError:
        return None
    return parts.netloc if parts.scheme in ("http", "https") else None
