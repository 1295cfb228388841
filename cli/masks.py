"""Secrets as they are shown to people who know them already."""

from urllib.parse import urlsplit

# The end of a token tells which it is; of a short one it would tell too much.
_LEAST_LENGTH, _TAIL = 20, 4


def masked_secret(secret: str) -> str:
    """Returns the end of a secret, or of a short one nothing."""
    return f"…{secret[-_TAIL:]}" if len(secret) >= _LEAST_LENGTH else "…"


def masked_url(url: str) -> str:
    """Returns the URL without its password."""
    parts = urlsplit(url)
    if parts.password is None:
        return masked_secret(url)
    where = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=f"{parts.username}:…@{where}").geturl()
