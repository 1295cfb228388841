"""A double of what works behind a cluster's API: CloudNativePG, and Kubernetes's own controllers.

For each Cluster it runs a real Postgres of this machine, with the Cluster's parameters and rules,
by which the superuser, guards and tenants come in as they would there. What it does not have:
networks, so that policies are kept and not enforced; more than one instance of a Cluster; and TLS
in Postgres itself, whose binaries lack it: that is before it, and `hostssl` in its rules is `host`.
"""

import asyncio
import base64
import os
import secrets
import shutil
import signal
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from services.provisioner.domain import DatabaseAddress
from services.provisioner.drivers import postgres_process
from services.provisioner.drivers.folder_lock import locked
from services.provisioner.drivers.local import remove_home
from services.provisioner.drivers.postgres_process import HOST, Blueprint, binaries, free_port
from services.provisioner.drivers.postgres_template import run_single_user
from services.provisioner.drivers.server_command import give
from tests.kubernetes_double import ApiDouble
from tests.kubernetes_double_store import Key, Object
from tests.kubernetes_double_tls import Front, new_authority

_POLL_SECONDS = 0.02
_RESYNC_SECONDS = 0.25
_FIRST = "local all all peer\n"
_LAST = "host all all all scram-sha-256\n"
# What CloudNativePG makes in every new Cluster, beside what it is asked for; not the databases that
# nothing here uses, which each Cluster would copy.
_SCRIPT = """\
CREATE ROLE streaming_replica LOGIN REPLICATION;

CREATE ROLE bootstrap LOGIN;

UPDATE pg_database SET datistemplate = false WHERE datname = 'template0';

DROP DATABASE template0;
"""
_SETTINGS = {"fsync": "off", "wal_level": "replica", "max_wal_senders": "6"}


class OperatorDouble:
    """Makes what the objects in the API ask for, in a folder of its own."""

    def __init__(self, api: ApiDouble, home: Path, finalizing_seconds: float) -> None:
        self._api = api
        self._store = api.store
        self._home = home
        # How long an object stays after what it stood for is gone.
        self._finalizing = finalizing_seconds
        self._ports: dict[str, int] = {}
        self._fronts: dict[str, Front] = {}
        self._authority = new_authority(home, HOST)
        # Which version of each was last looked at, and until when that does.
        self._seen: dict[Key, tuple[str, float]] = {}
        self._guards: dict[str, asyncio.subprocess.Process] = {}
        self._rules: dict[str, str] = {}
        self._tasks: dict[Key, asyncio.Task[None]] = {}
        # Of each server, the superuser's password that it was told.
        self._passwords: dict[str, str] = {}
        # Rules that were in force when a copy was first started.
        self.first_rules: dict[str, str] = {}
        self._blueprint = Blueprint(
            superuser="postgres",
            password=secrets.token_urlsafe(),
            access=_LAST,
            scripts=(("postgres", _SCRIPT),),
        )

    def address(self, namespace: str) -> DatabaseAddress:
        """Returns where the Cluster of a namespace is, in place of its Service's name."""
        return DatabaseAddress(HOST, self._ports.setdefault(namespace, free_port()))

    def directory(self, namespace: str) -> Path:
        """Returns what stands for the Cluster's volume."""
        return self._home / namespace

    def encrypted(self, namespace: str) -> int:
        """Returns how many came by TLS since the Cluster was started."""
        return self._fronts[namespace].encrypted

    def guards(self, namespace: str) -> bool:
        """Whether a guard runs in a namespace."""
        return namespace in self._guards

    async def run(self) -> None:
        """Reconciles for ever; one task for each object at a time."""
        while True:
            for key in list(self._store.objects):
                if key.plural in ("namespaces", "clusters", "deployments"):
                    self._begin(key)
            await asyncio.sleep(_POLL_SECONDS)

    async def close(self) -> None:
        """Ends every process."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for namespace in list(self._guards):
            await self._end_guard(namespace)
        for namespace in self._ports:
            await self._close(namespace)
            await postgres_process.destroy(self.directory(namespace))

    def _begin(self, key: Key) -> None:
        task = self._tasks.get(key)
        if task is not None and not task.done():
            return
        if task is not None:
            # What goes wrong in the double is a test's failure.
            task.result()
        version = self._store.objects[key]["metadata"]["resourceVersion"]
        seen, again = self._seen.get(key, ("", 0.0))
        if version == seen and time.monotonic() < again:
            return
        self._seen[key] = version, time.monotonic() + _RESYNC_SECONDS
        kinds = {
            "namespaces": self._namespace,
            "clusters": self._cluster,
            "deployments": self._deployment,
        }
        self._tasks[key] = asyncio.ensure_future(kinds[key.plural](key))

    async def _namespace(self, key: Key) -> None:
        found = self._store.objects.get(key)
        if found is None or not found["metadata"].get("deletionTimestamp"):
            return
        for one in [one for one in self._store.objects if one.namespace == key.name]:
            if one.plural in ("clusters", "deployments"):
                meta = self._store.objects[one]["metadata"]
                meta.setdefault("deletionTimestamp", found["metadata"]["deletionTimestamp"])
            elif one.plural not in ("pods", "persistentvolumeclaims"):
                self._store.drop(one)
        if not any(one.namespace == key.name for one in self._store.objects):
            await asyncio.sleep(self._finalizing)
            self._store.drop(key)
        await self._api.changed()

    async def _cluster(self, key: Key) -> None:
        found = self._store.objects.get(key)
        if found is None:
            return
        if found["metadata"].get("deletionTimestamp"):
            await self._remove(key)
        elif found["metadata"].get("annotations", {}).get("cnpg.io/hibernation") == "on":
            await self._hibernate(key)
        else:
            await self._serve(key, found)

    async def _serve(self, key: Key, found: Object) -> None:
        directory = self.directory(key.namespace)
        if "PersistentVolumeClaim" not in self._kinds(key.namespace):
            if not await self._bootstrapped(key, found, directory):
                return
            self._make_volume(key)
        asked = [rule.replace("hostssl", "host") for rule in found["spec"]["postgresql"]["pg_hba"]]
        rules = "\n".join([_FIRST, *asked, _LAST])
        server = postgres_process.running(directory)
        if server is None:
            await self._start(key, found, directory, rules)
        elif self._rules.get(key.namespace) != rules:
            self._write_rules(key.namespace, rules)
            os.kill(server.pid, signal.SIGHUP)
        self._say(key, {"Ready": True, "cnpg.io/hibernation": False}, 1)
        await self._api.changed()

    async def _start(self, key: Key, found: Object, directory: Path, rules: str) -> None:
        self._write_rules(key.namespace, rules)
        self.first_rules.setdefault(key.namespace, rules)
        await self._set_password(key.namespace, found, directory)
        settings = {**found["spec"]["postgresql"]["parameters"], **_SETTINGS}
        authority = {"kind": "Secret", "data": {"ca.crt": self._authority.encoded}}
        self._store.put(Key("secrets", key.namespace, "database-ca"), authority)
        server = await postgres_process.start(directory, free_port(), settings)
        address = self.address(key.namespace)
        front = Front(self._authority.context, address.host, address.port, server.port)
        self._fronts[key.namespace] = front
        await front.open()
        pod = {"metadata": {"name": "database-1", "labels": {"cnpg.io/cluster": key.name}}}
        self._store.put(Key("pods", key.namespace, "database-1"), pod)

    async def _set_password(self, namespace: str, found: Object, directory: Path) -> None:
        """What CloudNativePG does over a socket; for a copy it comes after the first start."""
        secret = self._secret(namespace, found["spec"]["superuserSecret"]["name"])
        late = "pg_basebackup" in found["spec"]["bootstrap"] and namespace not in self._passwords
        if not late and self._passwords.get(namespace) != secret:
            script = f"ALTER ROLE postgres PASSWORD '{secret}';"
            async with locked(directory) as lock:
                await asyncio.to_thread(run_single_user, directory, "postgres", script, lock)
        self._passwords[namespace] = "" if late else secret

    async def _bootstrapped(self, key: Key, found: Object, directory: Path) -> bool:
        begin = found["spec"]["bootstrap"]
        if "initdb" in begin:
            template = await postgres_process.ensure_template(self._home, self._blueprint)
            await postgres_process.clone(template, directory)
            return True
        external = found["spec"]["externalClusters"][0]
        if not self._believes(key.namespace, external):
            return False
        password = self._secret(key.namespace, external["password"]["name"])
        copied = await self._copied(external["connectionParameters"], password, directory)
        return copied and key in self._store.objects

    def _believes(self, namespace: str, external: Mapping[str, Any]) -> bool:
        """Whether the source's certificate is what it is to be; this `pg_basebackup` has no TLS."""
        source, root = external["connectionParameters"], external["sslRootCert"]
        trusted = self._secret(namespace, root["name"], root["key"])
        presented = self._authority.pem.decode()
        return (source["sslmode"], trusted) == ("verify-full", presented)

    async def _copied(self, source: Mapping[str, str], password: str, directory: Path) -> bool:
        """Whether `pg_basebackup` has copied it; as a job does, it begins anew when it fails."""
        half = directory.with_name(f".{directory.name}.copy")
        shutil.rmtree(half, ignore_errors=True)
        port = self.address(source["host"].split(".")[1]).port
        process = await asyncio.create_subprocess_exec(
            *(str(binaries() / "pg_basebackup"), "-D", str(half), "-h", HOST, "-p", str(port)),
            *("-U", source["user"], "--checkpoint=fast", "--wal-method=stream", "--no-sync"),
            env={"PATH": os.defpath, "PGPASSWORD": password},
            stderr=asyncio.subprocess.DEVNULL,
        )
        if await process.wait() != 0:
            await asyncio.sleep(0.1)
            return False
        for path in (half, *half.rglob("*")):
            give(path)
        half.rename(directory)
        return True

    async def _hibernate(self, key: Key) -> None:
        if postgres_process.running(self.directory(key.namespace)) is not None:
            self._say(key, {"Ready": False, "cnpg.io/hibernation": False}, 0)
            await self._close(key.namespace)
            await postgres_process.stop(self.directory(key.namespace))
        self._store.drop(Key("pods", key.namespace, "database-1"))
        self._say(key, {"Ready": False, "cnpg.io/hibernation": True}, 0)
        await self._api.changed()

    async def _remove(self, key: Key) -> None:
        """Ends the server, then what it had, and lets the object go a while after that."""
        await self._close(key.namespace)
        await postgres_process.destroy(self.directory(key.namespace))
        self._passwords.pop(key.namespace, None)
        for plural, name in (("pods", "database-1"), ("persistentvolumeclaims", "database-1")):
            self._store.drop(Key(plural, key.namespace, name))
        self._store.drop(Key("persistentvolumes", "", f"pv-{key.namespace}"))
        await self._api.changed()
        await asyncio.sleep(self._finalizing)
        self._store.drop(key)
        await self._api.changed()

    async def _deployment(self, key: Key) -> None:
        found = self._store.objects.get(key)
        if found is None:
            return
        going = found["metadata"].get("deletionTimestamp")
        if going or not found["spec"]["replicas"]:
            await self._end_guard(key.namespace)
            if going:
                self._store.drop(key)
            return
        running = self._guards.get(key.namespace)
        if running is None or running.returncode is not None:
            self._guards[key.namespace] = await self._start_guard(key.namespace, found)

    async def _start_guard(self, namespace: str, found: Object) -> asyncio.subprocess.Process:
        container = found["spec"]["template"]["spec"]["containers"][0]
        variables = {"PATH": f"{binaries()}:{os.defpath}"}
        for one in container["env"]:
            asked = one.get("valueFrom", {}).get("secretKeyRef")
            variables[one["name"]] = (
                self._secret(namespace, asked["name"], asked["key"]) if asked else one["value"]
            )
        # Where the Service's name would lead.
        address = self.address(namespace)
        variables |= {"PGHOST": address.host, "PGPORT": str(address.port)}
        # Nor does this `psql` have TLS.
        variables |= {"PGSSLMODE": "disable", "PGSSLROOTCERT": ""}
        return await asyncio.create_subprocess_exec(
            *container["command"], env=variables, start_new_session=True
        )

    async def _end_guard(self, namespace: str) -> None:
        process = self._guards.pop(namespace, None)
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()

    async def _close(self, namespace: str) -> None:
        front = self._fronts.pop(namespace, None)
        if front is not None:
            await front.close()

    def _write_rules(self, namespace: str, rules: str) -> None:
        file = self.directory(namespace) / "pg_hba.conf"
        file.write_text(rules)
        give(file)
        self._rules[namespace] = rules

    def _make_volume(self, key: Key) -> None:
        volume = f"pv-{key.namespace}"
        self._store.put(Key("persistentvolumes", "", volume), {"kind": "PersistentVolume"})
        claim = {
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "database-1", "labels": {"cnpg.io/cluster": key.name}},
            "spec": {"volumeName": volume},
        }
        self._store.put(Key("persistentvolumeclaims", key.namespace, "database-1"), claim)

    def _kinds(self, namespace: str) -> set[str]:
        return {
            found.get("kind", "")
            for key, found in self._store.objects.items()
            if key.namespace == namespace
        }

    def _secret(self, namespace: str, name: str, part: str = "password") -> str:
        found = self._store.get(Key("secrets", namespace, name))
        return base64.b64decode(found["data"][part]).decode()

    def _say(self, key: Key, conditions: Mapping[str, bool], ready: int) -> None:
        found = self._store.objects.get(key)
        if found is None:
            return
        told = [{"type": name, "status": str(met)} for name, met in conditions.items()]
        status = {"conditions": told, "readyInstances": ready}
        self._store.put(key, {**found, "status": status})


@asynccontextmanager
async def operating(
    api: ApiDouble, home: Path, finalizing_seconds: float = 0.1
) -> AsyncIterator[OperatorDouble]:
    """Yields the double at work; at the end no process of it is left, and nothing in `home`."""
    double = OperatorDouble(api, home, finalizing_seconds)
    work = asyncio.ensure_future(double.run())
    try:
        yield double
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        await double.close()
        await remove_home(home)
