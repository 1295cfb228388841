"""The environment of each service: what it needs, and nothing else. Secrets go by file."""

import os
from collections.abc import Mapping
from pathlib import Path

from deploy.envoy.routes import CALLBACK_PATH
from deploy.local import pki, postgres, s3, valkey
from deploy.local.files import ensure_private, new_secret
from deploy.local.layout import SERVICES, WITH_DATABASE, WITH_VALKEY, Layout
from deploy.local.pki import Paths
from deploy.local.ports import LOOPBACK
from deploy.local.probes import EDGE
from services.provisioner.drivers.postgres_install import USER_VARIABLE
from services.shared.keyformat import new_key
from services.shared.principal import KeyKind

PREFIX = "BULKHEAD_"
PROCESS = {"PATH": os.defpath, "LC_ALL": "C.UTF-8"}


def service_environment(
    service: str,
    layout: Layout,
    ports: Mapping[str, int],
    certificate: Paths,
    *,
    domain: str,
    otlp: str,
    sampling: float = 1.0,
) -> dict[str, str]:
    """Returns the whole environment of a service process; makes the files that it names."""
    named = {
        **_identity(service, ports, certificate),
        **_targets(service, ports),
        **(_postgres(service, layout, ports) if service in WITH_DATABASE else {}),
        **(_valkey(service, layout, ports) if service in WITH_VALKEY else {}),
        **_own(service, layout, ports, domain),
        **({"otlp_endpoint": otlp, "otlp_sampling": sampling} if otlp else {}),
    }
    settings = {f"{PREFIX}{name.upper()}": str(value) for name, value in named.items()}
    return {**PROCESS, "PYTHONUNBUFFERED": "1", **settings}


def override_name(name: str) -> str:
    """Returns the variable that `name` means: `BURST_FREE` is `BULKHEAD_BURST_FREE`."""
    upper = name.upper()
    return upper if upper.startswith(PREFIX) else f"{PREFIX}{upper}"


def ensure_operator_key(layout: Layout) -> Path:
    """Returns the file with the operator's key, made the first time."""
    ensure_private(layout.operator_key, lambda: new_key(KeyKind.OPERATOR))
    return layout.operator_key


def _identity(service: str, ports: Mapping[str, int], paths: Paths) -> dict[str, object]:
    return {
        "listen": f"{LOOPBACK}:{ports[service]}",
        "health_listen": f"{LOOPBACK}:{ports[f'{service}_health']}",
        "tls_cert_file": paths.certificate,
        "tls_key_file": paths.key,
        "tls_ca_file": paths.authority,
        "trust_domain": pki.TRUST_DOMAIN,
    }


def _targets(service: str, ports: Mapping[str, int]) -> dict[str, object]:
    others = (other for other in SERVICES if other != service)
    return {f"{other}_target": f"{LOOPBACK}:{ports[other]}" for other in others}


def _postgres(service: str, layout: Layout, ports: Mapping[str, int]) -> dict[str, object]:
    return {
        "postgres_host": LOOPBACK,
        "postgres_port": ports["postgres"],
        "postgres_database": service,
        "postgres_user": service,
        "postgres_password_file": postgres.password_file(layout.state, service),
    }


def _valkey(service: str, layout: Layout, ports: Mapping[str, int]) -> dict[str, object]:
    return {
        "valkey_host": LOOPBACK,
        "valkey_port": ports["valkey"],
        "valkey_user": service,
        "valkey_password_file": valkey.password_files(layout.valkey)[service],
    }


def _own(
    service: str, layout: Layout, ports: Mapping[str, int], domain: str
) -> Mapping[str, object]:
    match service:
        case "auth":
            return {
                "pepper_file": _secret(layout, "pepper"),
                "bootstrap_operator_key_file": ensure_operator_key(layout),
            }
        case "credentials":
            return {
                # The service makes it: only it knows what belongs in there.
                "keyring_file": layout.secrets / "keyring",
                # Where a browser on this machine reaches the front door.
                "redirect_url": f"http://localhost:{ports[EDGE]}{CALLBACK_PATH}",
            }
        case "provisioner":
            return {
                "database_secret_file": _secret(layout, "database"),
                # The service makes it: only it knows what belongs in there.
                "certificate_key_file": layout.secrets / "certificate-key.pem",
                "keyring_file": layout.secrets / "provisioner-keyring",
                "servers_home": layout.state,
                "backups_home": layout.state / "backups",
                "domain": domain,
                **_s3(layout, ports),
                **_operating_system_user(),
            }
        case "app_proxy":
            return {"http_listen": f"{LOOPBACK}:{ports['app_proxy_http']}", "domain": domain}
    return {}


def _s3(layout: Layout, ports: Mapping[str, int]) -> dict[str, object]:
    return s3.provisioner_settings(s3.server(layout.s3, ports))


def _operating_system_user() -> dict[str, object]:
    """The user whom Postgres servers run as, when the one who starts the stack chose one."""
    name = USER_VARIABLE.removeprefix(PREFIX).lower()
    return {name: os.environ[USER_VARIABLE]} if USER_VARIABLE in os.environ else {}


def _secret(layout: Layout, name: str) -> Path:
    file = layout.secrets / name
    ensure_private(file, new_secret)
    return file
