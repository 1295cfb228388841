"""The guard of a database in a cluster: a pod beside it that keeps the cap and the quota.

It does what `guard` does for a local server, by the same SQL (P-02, P-03), and like that one
belongs to the server, not to the provisioner. What it cannot do from another pod is to kill a
process that does not heed its end: such a session stays until Postgres itself ends it.
"""

from typing import Any

from services.provisioner.drivers.cnpg_api import DEPLOYMENT, Object
from services.provisioner.drivers.cnpg_objects import (
    AUTHORITY_SECRET,
    HOST,
    PORT,
    Shape,
    made,
)
from services.provisioner.drivers.guard import (
    GRACE_MILLISECONDS,
    LOOK_SECONDS,
    OPTIONS,
    PAUSE_MILLISECONDS,
)
from services.provisioner.drivers.local_database import DATABASE, GUARD, MAINTENANCE
from services.shared.ids import DeploymentId

OF_GUARD = {"app.kubernetes.io/component": GUARD}
_AUTHORITY = "/etc/bulkhead/ca"
# As in the images of CloudNativePG.
_POSTGRES_USER = 26
# Each of the two sessions has a loop of its own, and begins anew when it ends.
_LOOP = """\
keep() {
    while :; do
        printf '%s\\n' "$2" | psql -X -q -d "$1" >/dev/null 2>&1
        sleep 1
    done
}
trap 'exit 0' TERM INT
keep "$1" "$2" &
keep "$3" "$4" &
wait
"""


def guard(shape: Shape, deployment: DeploymentId, *, awake: bool) -> Object:
    """Returns what keeps one guard running beside the database, or none while it sleeps."""
    pod = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _POSTGRES_USER,
            "runAsGroup": _POSTGRES_USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(shape)],
    }
    if shape.encrypted:
        pod["volumes"] = [
            {
                "name": "ca",
                "secret": {
                    "secretName": AUTHORITY_SECRET,
                    "items": [{"key": "ca.crt", "path": "ca.crt"}],
                },
            }
        ]
    content = {
        "spec": {
            "replicas": int(awake),
            # Never two: the newest ends the sessions of the others.
            "strategy": {"type": "Recreate"},
            "selector": {"matchLabels": OF_GUARD},
            "template": {"metadata": {"labels": OF_GUARD}, "spec": pod},
        }
    }
    return made(shape, deployment, DEPLOYMENT, GUARD, content)


def _container(shape: Shape) -> Object:
    cap = shape.statement_timeout_ms + GRACE_MILLISECONDS
    pause = f"{PAUSE_MILLISECONDS} ms"
    watch = f"CALL bulkhead.watch('{cap} ms', '{pause}');"
    look = f"SELECT bulkhead.begin_watch();\nSELECT bulkhead.look('{pause}') \\watch {LOOK_SECONDS}"
    least, most = {"cpu": "5m", "memory": "16Mi"}, {"cpu": "100m", "memory": "64Mi"}
    mounts = [{"name": "ca", "mountPath": _AUTHORITY, "readOnly": True}] if shape.encrypted else []
    return {
        "name": GUARD,
        "image": shape.image,
        "command": ["/bin/sh", "-c", _LOOP, GUARD, DATABASE, look, MAINTENANCE, watch],
        "env": _variables(shape),
        "resources": {"requests": least, "limits": most},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts,
    }


def _variables(shape: Shape) -> list[Any]:
    plain = {
        "PGHOST": HOST,
        "PGPORT": str(PORT),
        "PGUSER": GUARD,
        "PGPASSFILE": "/dev/null",
        "PGOPTIONS": OPTIONS,
        "PGAPPNAME": GUARD,
        "PGCONNECT_TIMEOUT": "5",
        "PGREQUIREAUTH": "scram-sha-256",
        "PGGSSENCMODE": "disable",
        "PGSSLMODE": "verify-full" if shape.encrypted else "disable",
        "PGSSLROOTCERT": f"{_AUTHORITY}/ca.crt" if shape.encrypted else "",
    }
    password = {"secretKeyRef": {"name": GUARD, "key": "password"}}
    return [
        *({"name": name, "value": value} for name, value in plain.items()),
        {"name": "PGPASSWORD", "valueFrom": password},
    ]
