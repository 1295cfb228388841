"""Whom to believe to be a database's server."""

import ssl


def trusting(authority: str) -> ssl.SSLContext:
    """Returns what believes a certificate of that authority, for the name that was asked, alone.

    Args:
        authority: its certificates, as PEM.

    Raises:
        ValueError: it is empty.
        ssl.SSLError: it holds no certificate.
    """
    # No default context: with nothing in `authority` it would believe the system's. Nor is it
    # strict: those that are made for databases lack extensions.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_verify_locations(cadata=authority)
    return context
