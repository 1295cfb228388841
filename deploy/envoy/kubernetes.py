"""The front door's settings on a cluster, from what all services are told there."""

import json
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

from deploy.envoy.settings import Address, EdgeSettings, Identity

PREFIX = "BULKHEAD_"
LISTEN = Address("0.0.0.0", 8080)  # noqa: S104 a pod is reached from other machines
ADMIN = Address("127.0.0.1", 9901)
_SERVICES = ("app_proxy", "auth", "credentials", "provisioner", "ratelimit")
# Shorter than the pause of its pod before SIGTERM: Envoy ends what is open then, but until then
# every connection was asked to be made anew, and new ones go to other pods.
CONNECTION_LIFE = timedelta(seconds=50)


class MeshFileError(Exception):
    """A file of variables cannot be used; says which and why."""


def mesh_variables(files: list[Path]) -> dict[str, str]:
    """Returns the variables in files of `NAME=value` lines; a later file goes before an earlier.

    Raises:
        MeshFileError: one cannot be read, or a line is none of that.
    """
    variables: dict[str, str] = {}
    for file in files:
        variables |= _read(file)
    return variables


def edge_settings(variables: Mapping[str, str]) -> EdgeSettings:
    """Returns the front door's settings.

    Raises:
        MeshFileError: a variable is missing or means nothing.
    """
    try:
        return _edge_settings({name.removeprefix(PREFIX): variables[name] for name in variables})
    except KeyError as error:
        raise MeshFileError(f"{PREFIX}{error.args[0]} is missing") from error
    except ValueError as error:
        raise MeshFileError(f"a variable cannot be understood: {error}") from error


def _edge_settings(mesh: Mapping[str, str]) -> EdgeSettings:
    services = {service: _address(mesh[f"{service.upper()}_TARGET"]) for service in _SERVICES}
    otlp = mesh.get("OTLP_ENDPOINT", "")
    return EdgeSettings(
        listen=LISTEN,
        admin=ADMIN,
        health=_address(mesh["HEALTH_LISTEN"]),
        metrics=_address(mesh["METRICS_LISTEN"]),
        identity=Identity(
            certificate=Path(mesh["TLS_CERT_FILE"]),
            key=Path(mesh["TLS_KEY_FILE"]),
            authority=Path(mesh["TLS_CA_FILE"]),
            trust_domain=mesh["TRUST_DOMAIN"],
        ),
        services=services,
        app_proxy_http=Address(services["app_proxy"].host, _address(mesh["HTTP_LISTEN"]).port),
        domain=mesh["DOMAIN"],
        api_hosts=tuple(json.loads(mesh["API_HOSTS"])),
        otlp=_address(otlp) if otlp else None,
        sampling=float(mesh.get("OTLP_SAMPLING", "1")),
        gateways=int(mesh.get("GATEWAYS", "0")),
        connection_life=CONNECTION_LIFE,
    )


def _address(target: str) -> Address:
    """Returns `dns:///host:port`, or `host:port`, as an address."""
    host, _, port = target.removeprefix("dns:///").rpartition(":")
    return Address(host, int(port))


def _read(file: Path) -> dict[str, str]:
    try:
        lines = [line.strip() for line in file.read_text().splitlines()]
    except OSError as error:
        raise MeshFileError(f"{file}: {error.strerror}") from error
    said = [line for line in lines if line and not line.startswith("#")]
    if wrong := [line for line in said if "=" not in line]:
        raise MeshFileError(f"{file}: {wrong[0]!r} sets nothing")
    pairs = (line.partition("=") for line in said)
    return {name.strip(): value for name, _, value in pairs}
