"""What the `cnpg` driver makes of a deployment in a cluster: a namespace, and a Cluster in it."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from services.provisioner.domain import deployment_id
from services.provisioner.drivers import local_database
from services.provisioner.drivers.cnpg_api import (
    CLUSTER,
    NAMESPACE,
    SECRET,
    Kind,
    Object,
)
from services.provisioner.drivers.desk import MOST_AT_ONCE
from services.shared.ids import DeploymentId

PORT = 5432
NAME = "database"
HOST = f"{NAME}-rw"
SUPERUSER_SECRET = f"{NAME}-superuser"
AUTHORITY_SECRET = f"{NAME}-ca"
COPIER_SECRET = "copier"  # noqa: S105 a name
# Of a Secret: the certificates of an authority, as CloudNativePG's own have it.
AUTHORITY_KEY = "ca.crt"
# Who may copy a database over the replication protocol: each for one copy, and as long as it lasts.
COPIERS = "copiers"
PART_OF = "bulkhead-deployment"
_DOMAIN = "bulkhead.internal"
DEPLOYMENT_LABEL = f"{_DOMAIN}/deployment"
INSTALLATION_LABEL = f"{_DOMAIN}/installation"
# On a Cluster: what its server was told (see `Prepared`), and that a copy is nobody else's.
PREPARED = f"{_DOMAIN}/prepared"
DISOWNED = f"{_DOMAIN}/disowned"
# On a Cluster that sleeps for everybody but the copies for whom it was started: one each.
COPYING = f"copying.{_DOMAIN}/"
# On a namespace: of which deployment its database is to be a copy, and which volumes it had.
SOURCE = f"{_DOMAIN}/source"
VOLUMES = f"{_DOMAIN}/volumes"
HIBERNATION = "cnpg.io/hibernation"
OF_CLUSTER = {"cnpg.io/cluster": NAME}
_PREFIX = "bulkhead-"
_GIBIBYTE = 1 << 30
# CloudNativePG makes a database and its owner in any case; this one nobody comes into.
_UNUSED = "bootstrap"


@dataclass(frozen=True, slots=True)
class Shape:
    """How Clusters are made here."""

    # Which provisioner's they are: it alone looks after them.
    installation: str
    image: str
    # None: the cluster's usual one.
    storage_class: str | None
    instances: int
    cpu: str
    memory: str
    # The namespace of the mesh, and of CloudNativePG.
    mesh: str
    operator: str
    # Where the pods of databases find the cluster's API.
    api_cidr: str
    # Whoever comes as superuser, guard or copier has to do so by TLS.
    encrypted: bool
    statement_timeout_ms: int


def namespace_name(deployment: DeploymentId) -> str:
    """Returns the name of the deployment's namespace."""
    if deployment_id(deployment) is None:
        raise ValueError("not the id of a deployment")
    return _PREFIX + deployment.replace("_", "-")


def labels(shape: Shape, deployment: DeploymentId) -> dict[str, str]:
    """Returns what tells whose an object is."""
    return {**of_installation(shape), DEPLOYMENT_LABEL: deployment}


def of_installation(shape: Shape) -> dict[str, str]:
    """Returns what tells that a namespace is this provisioner's."""
    return {"app.kubernetes.io/part-of": PART_OF, INSTALLATION_LABEL: shape.installation}


def made(
    shape: Shape, deployment: DeploymentId, kind: Kind, name: str, content: Mapping[str, Any]
) -> Object:
    """Returns an object in the deployment's namespace."""
    return {
        "apiVersion": kind.api_version,
        "kind": kind.name,
        "metadata": {
            "name": name,
            "namespace": namespace_name(deployment),
            "labels": labels(shape, deployment),
        },
        **content,
    }


def namespace(shape: Shape, deployment: DeploymentId) -> Object:
    """Returns the deployment's namespace, in which nothing runs that could harm its node."""
    wanted = made(shape, deployment, NAMESPACE, namespace_name(deployment), {})
    meta = wanted["metadata"]
    del meta["namespace"]
    level = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
    return {**wanted, "metadata": {**meta, "labels": {**meta["labels"], **level}}}


def secret(
    shape: Shape,
    deployment: DeploymentId,
    name: str,
    user: str,
    password: str,
    authority: str = "",
) -> Object:
    """Returns a Secret that says who comes in by which password, and whom to tell it."""
    pairs = {"username": user, "password": password}
    if authority:
        pairs[AUTHORITY_KEY] = authority
    content = {
        "type": "kubernetes.io/basic-auth",
        "data": {key: base64.b64encode(value.encode()).decode() for key, value in pairs.items()},
    }
    return made(shape, deployment, SECRET, name, content)


def cluster(
    shape: Shape,
    deployment: DeploymentId,
    size_bytes: int,
    origin: Mapping[str, Any],
    *,
    open_to_tenants: bool,
) -> Object:
    """Returns the deployment's Cluster.

    Args:
        shape: how Clusters are made here.
        deployment: whose it is.
        size_bytes: of each instance's volume.
        origin: `empty()`, or `copied_from()`; it stays what it was at the beginning.
        open_to_tenants: a tenant's login is let in, if it has a password.
    """
    resources = {"cpu": shape.cpu, "memory": shape.memory}
    storage: dict[str, Any] = {"size": quantity(size_bytes), "resizeInUseVolumes": True}
    if shape.storage_class:
        storage["storageClass"] = shape.storage_class
    spec = {
        "instances": shape.instances,
        "imageName": shape.image,
        "storage": storage,
        "enableSuperuserAccess": True,
        "superuserSecret": {"name": SUPERUSER_SECRET},
        "postgresql": {
            "parameters": _parameters(shape),
            "pg_hba": access(shape, open_to_tenants=open_to_tenants),
        },
        "resources": {"requests": resources, "limits": resources},
        # Whoever is connected when it is put to sleep is not waited for.
        "smartShutdownTimeout": 1,
        "stopDelay": 60,
        # One instance is down when its node is drained; a budget would only hold up the drain.
        "enablePDB": shape.instances > 1,
        **origin,
    }
    return made(shape, deployment, CLUSTER, NAME, {"spec": spec})


def empty() -> dict[str, Any]:
    """Returns the origin of a database that begins with nothing."""
    initdb = {"database": _UNUSED, "owner": _UNUSED, "encoding": "UTF8"}
    locale = {"localeCollate": "C", "localeCType": "C.UTF-8"}
    return {"bootstrap": {"initdb": {**initdb, **locale}}}


def copied_from(host: str, port: int, user: str, *, encrypted: bool) -> dict[str, Any]:
    """Returns the origin of a database that begins as a copy of the one at `host`.

    The database and the owner are named, for CloudNativePG would else give `app` to a role of its
    own making.
    """
    mode = "verify-full" if encrypted else "disable"
    parameters = {"host": host, "port": str(port), "user": user, "sslmode": mode}
    external = {
        "name": "source",
        "connectionParameters": {**parameters, "dbname": local_database.MAINTENANCE},
        "password": {"name": COPIER_SECRET, "key": "password"},
    }
    if encrypted:
        external["sslRootCert"] = {"name": COPIER_SECRET, "key": AUTHORITY_KEY}
    copy = {"source": "source", "database": _UNUSED, "owner": _UNUSED}
    return {"bootstrap": {"pg_basebackup": copy}, "externalClusters": [external]}


def origin_of(found: Object) -> dict[str, Any]:
    """Returns the origin that a Cluster has."""
    spec = found["spec"]
    return {key: spec[key] for key in ("bootstrap", "externalClusters") if key in spec}


def access(shape: Shape, *, open_to_tenants: bool) -> list[str]:
    """Returns the rules of pg_hba.conf: the first that fits decides.

    CloudNativePG puts its own before them, and after them one by which any password lets in.
    """
    own = "hostssl" if shape.encrypted else "host"
    users = f"{local_database.SUPERUSER},{local_database.GUARD}"
    rules = [f"{own} {local_database.MAINTENANCE} {local_database.SUPERUSER} all scram-sha-256"]
    if open_to_tenants:
        databases = f"{local_database.DATABASE},{local_database.MAINTENANCE}"
        logins = ",".join(local_database.LOGINS)
        rules = [
            f"host {local_database.DATABASE} {logins} all scram-sha-256",
            f"{own} {databases} {users} all scram-sha-256",
            f"{own} replication +{COPIERS} all scram-sha-256",
        ]
    return [*rules, "host all all all reject", "host replication all all reject"]


def size(quota_bytes: int) -> int:
    """Returns how large a volume is whose database may hold so much, in bytes: whole gibibytes.

    Beside the database there are its WAL, temporary files, and what passes the quota between two
    looks.
    """
    wanted = quota_bytes + quota_bytes // 4 + 2 * _GIBIBYTE
    return -(-wanted // _GIBIBYTE) * _GIBIBYTE


def size_of(found: Object) -> int:
    """Returns how large the volumes of a Cluster of ours are, in bytes."""
    return int(found["spec"]["storage"]["size"].removesuffix("Gi")) * _GIBIBYTE


def quantity(size_bytes: int) -> str:
    """Returns so many bytes, a multiple of a gibibyte, as Kubernetes writes them."""
    return f"{size_bytes // _GIBIBYTE}Gi"


def condition(found: Object, kind: str) -> bool:
    """Whether a condition of a Cluster is met."""
    conditions: Sequence[Mapping[str, str]] = found.get("status", {}).get("conditions") or ()
    return any(one["type"] == kind and one["status"] == "True" for one in conditions)


def annotations(found: Object) -> Mapping[str, str]:
    """Returns what is written on an object."""
    return found["metadata"].get("annotations") or {}


def is_ready(found: Object | None) -> bool:
    """Whether a Cluster's primary takes connections, as far as CloudNativePG knows."""
    return (
        found is not None
        and not found["metadata"].get("deletionTimestamp")
        and annotations(found).get(HIBERNATION) != "on"
        and condition(found, "Ready")
        and found.get("status", {}).get("readyInstances", 0) > 0
    )


def is_copied(found: Object) -> bool:
    """Whether a Cluster runs for the sake of copies alone."""
    return any(name.startswith(COPYING) for name in annotations(found))


def is_foreign_copy(found: Object) -> bool:
    """Whether a Cluster is a copy that may still be opened by what opens its source."""
    return "pg_basebackup" in found["spec"]["bootstrap"] and DISOWNED not in annotations(found)


def _parameters(shape: Shape) -> dict[str, str]:
    return {
        # As `local` counts them, a few more for CloudNativePG itself.
        "max_connections": str(36 + 4 + 3 + 2 * MOST_AT_ONCE + 5),
        "authentication_timeout": "5s",
        "shared_buffers": "64MB",
        "temp_file_limit": "256MB",
        "max_slot_wal_keep_size": "1GB",
        "max_wal_size": "512MB",
        "jit": "off",
        "password_encryption": "scram-sha-256",
        "log_min_error_statement": "panic",
        "log_statement": "none",
        "statement_timeout": str(shape.statement_timeout_ms),
    }
