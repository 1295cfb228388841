"""A deployment in full on the command line: its parts, its life, its secrets, its copies."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from bulkhead.provisioner.v1 import provisioner_service_pb2 as pb
from google.protobuf.duration_pb2 import Duration

from services.shared.errors import FailedPreconditionError, PermissionDeniedError, Reason
from tests.scripted_api import ScriptedApi, bulkhead, time

DEPLOYMENT = "dep_" + "1" * 26
BACKUP = "bak_" + "2" * 26
PASSWORD = "jxm416akgxkgf4aps87z8hpk1c"


def operation(kind: str, state: str = "SUCCEEDED", **more: Any) -> pb.Operation:
    return pb.Operation(
        operation_id="op_1",
        deployment_id=DEPLOYMENT,
        kind=pb.OperationKind.Value(f"OPERATION_KIND_{kind}"),
        state=pb.OperationState.Value(f"OPERATION_STATE_{state}"),
        end_time=time(),
        **more,
    )


def resource(kind: str, state: str, **more: Any) -> pb.Resource:
    return pb.Resource(
        kind=pb.ResourceKind.Value(f"RESOURCE_KIND_{kind}"),
        state=pb.ResourceState.Value(f"RESOURCE_STATE_{state}"),
        since_time=time(),
        **more,
    )


def deployment() -> pb.Deployment:
    return pb.Deployment(
        deployment_id=DEPLOYMENT,
        name="shop",
        host="shop-1.localhost",
        state=pb.DEPLOYMENT_STATE_READY,
        database=True,
        bucket=True,
        storage_bytes=2 << 30,
        idle_timeout=Duration(seconds=600),
        create_time=time(),
        resources=[
            resource(
                "DATABASE", "SLEEPING", used_bytes=3 << 29, measure_time=time(), over_quota=True
            ),
            resource("BUCKET", "LOST", reason="nobody of us removed it, " + "and it is gone " * 9),
        ],
        last_operation=operation(
            "ROTATE", "FAILED", step="issuing", retries=4, message="disk full"
        ),
    )


def done(kind: str) -> list[pb.WaitOperationResponse]:
    running = operation(kind, "RUNNING", step="working")
    return [pb.WaitOperationResponse(operation=one) for one in (running, operation(kind))]


async def test_get_shows_each_part_with_its_reason_and_the_last_error(api: ScriptedApi) -> None:
    api.answers["GetDeployment"] = pb.GetDeploymentResponse(deployment=deployment())
    outcome = await bulkhead(api.port, "deployment", "get", DEPLOYMENT)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "may hold    2 GiB" in lines
    assert "sleeps      after 10m without use" in lines
    (database,) = (line for line in lines if line.startswith("database "))
    assert database.split()[:4] == ["database", "sleeping", "2026-11-22", "12:00Z"]
    words = " ".join(outcome.out.split())
    assert "over its quota" in words
    assert "nobody of us" in words
    assert "op_1, making new passwords (tried 5 times): disk full" in lines


async def test_create_declares_every_resource(api: ScriptedApi) -> None:
    api.answers["CreateDeployment"] = pb.CreateDeploymentResponse(deployment=deployment())
    outcome = await bulkhead(
        *(api.port, "deployment", "create", "shop", "--database", "--bucket", "--bootstrap-admin"),
        *("--storage", "2GiB", "--idle-timeout", "never", "--no-wait"),
    )
    assert outcome.code == 0, outcome.err
    (asked,) = api.requests("CreateDeployment")
    assert (asked.bucket, asked.bootstrap_admin, asked.storage_bytes) == (True, True, 2 << 30)
    assert asked.HasField("idle_timeout")
    assert asked.idle_timeout == Duration()


async def test_update_sends_what_was_named_alone(api: ScriptedApi) -> None:
    api.answers["UpdateDeployment"] = pb.UpdateDeploymentResponse(deployment=deployment())
    update = ("deployment", "update", DEPLOYMENT)
    assert (await bulkhead(api.port, *update, "--storage", "1.5GiB", "--json")).code == 0
    assert (await bulkhead(api.port, *update, "--idle-timeout", "1h30m", "--json")).code == 0
    storage, idle = api.requests("UpdateDeployment")
    assert (storage.storage_bytes, storage.HasField("idle_timeout")) == (3 << 29, False)
    assert (idle.HasField("storage_bytes"), idle.idle_timeout.seconds) == (False, 5_400)
    assert (await bulkhead(api.port, *update)).code == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--storage", "2 gigs"), "write 512MiB or 2GiB"),
        (("--storage", "0B"), "out of reach"),
        (("--storage", "5"), "say one, as 500MiB"),
        (("--idle-timeout", "soon"), "write 90s, 10m, 2h or never"),
    ],
    ids=["size", "nothing", "no unit", "time"],
)
async def test_what_is_no_size_or_time_is_wrong_use(
    api: ScriptedApi, arguments: tuple[str, ...], words: str
) -> None:
    outcome = await bulkhead(api.port, "deployment", "update", DEPLOYMENT, *arguments, "--json")
    assert (outcome.code, api.asked) == (2, [])
    assert words in outcome.json["error"]["message"]


async def test_rotate_waits_for_longer_than_the_overlap(api: ScriptedApi) -> None:
    api.answers["RotateDatabaseCredentials"] = pb.RotateDatabaseCredentialsResponse(
        operation=operation("ROTATE", "RUNNING")
    )
    api.answers["WaitOperation"] = done("ROTATE")
    outcome = await bulkhead(api.port, "deployment", "rotate", DEPLOYMENT, "--overlap", "1h")
    assert outcome.code == 0, outcome.err
    assert "work for another 1h then" in outcome.err
    assert "… working" in outcome.err
    (asked,) = api.requests("RotateDatabaseCredentials")
    assert (asked.overlap.seconds, bool(asked.request_id)) == (3_600, True)


@pytest.mark.parametrize(
    ("command", "method", "answer", "said"),
    [
        ("suspend", "SuspendDeployment", pb.SuspendDeploymentResponse, "is suspended"),
        ("resume", "ResumeDeployment", pb.ResumeDeploymentResponse, "is back"),
    ],
    ids=["suspend", "resume"],
)
async def test_suspension_is_waited_for(
    api: ScriptedApi, command: str, method: str, answer: Any, said: str
) -> None:
    api.answers[method] = answer(operation=operation("SUSPEND", "RUNNING"))
    api.answers["WaitOperation"] = done("SUSPEND")
    outcome = await bulkhead(api.port, "deployment", command, DEPLOYMENT)
    assert (outcome.code, outcome.out) == (0, f"{DEPLOYMENT} {said}\n"), outcome.err


async def test_a_branch_is_waited_for_and_shown(api: ScriptedApi) -> None:
    api.answers["CreateBranch"] = pb.CreateBranchResponse(
        deployment=deployment(), operation=operation("CREATE", "RUNNING")
    )
    api.answers["WaitOperation"] = done("CREATE")
    copied = deployment()
    copied.source_deployment_id = "dep_source"
    api.answers["GetDeployment"] = pb.GetDeploymentResponse(deployment=copied)
    outcome = await bulkhead(api.port, "deployment", "branch", DEPLOYMENT, "next", "--mcp")
    assert "copy of     dep_source" in outcome.out, outcome.err
    (asked,) = api.requests("CreateBranch")
    assert (asked.deployment_id, asked.name, asked.mcp) == (DEPLOYMENT, "next", True)


async def test_a_backup_is_made_shown_as_it_is_then_listed_and_restored(api: ScriptedApi) -> None:
    running = pb.Backup(
        backup_id=BACKUP,
        deployment_id=DEPLOYMENT,
        target=pb.BACKUP_TARGET_BUCKET,
        state=pb.BACKUP_STATE_RUNNING,
        create_time=time(),
        location="key",
    )
    ready = pb.Backup()
    ready.CopyFrom(running)
    ready.state, ready.size_bytes = pb.BACKUP_STATE_READY, 7_340_032
    api.answers["CreateBackup"] = pb.CreateBackupResponse(
        backup=running, operation=operation("BACK_UP", "RUNNING")
    )
    api.answers["WaitOperation"] = done("BACK_UP")
    api.answers["ListBackups"] = pb.ListBackupsResponse(backups=[ready])
    outcome = await bulkhead(api.port, "backup", "create", DEPLOYMENT, "--to", "bucket")
    assert "size        7 MiB" in outcome.out, outcome.err
    assert "in          bucket: key" in outcome.out
    (asked,) = api.requests("CreateBackup")
    assert asked.target == pb.BACKUP_TARGET_BUCKET
    outcome = await bulkhead(api.port, "backup", "list", DEPLOYMENT)
    assert outcome.out.splitlines()[1].split()[:3] == [BACKUP, "ready", "bucket"]
    api.answers["RestoreBackup"] = pb.RestoreBackupResponse(deployment=deployment())
    outcome = await bulkhead(api.port, "backup", "restore", BACKUP, "monday", "--no-wait")
    assert outcome.code == 0, outcome.err
    outcome = await bulkhead(api.port, "backup", "restore", DEPLOYMENT, "monday")
    assert outcome.code == 2


async def test_a_secret_is_read_and_never_shown(api: ScriptedApi, tmp_path: Path) -> None:
    api.answers["PutSecret"] = pb.PutSecretResponse(
        secret=pb.Secret(name="KEY", update_time=time())
    )
    api.answers["ListSecrets"] = pb.ListSecretsResponse()
    put = ("secret", "put", DEPLOYMENT, "KEY")
    outcome = await bulkhead(api.port, *put, "--value-file", "-", given=f" {PASSWORD}\n\n")
    assert outcome.code == 0, outcome.err
    assert PASSWORD not in outcome.out + outcome.err
    assert "replaced" not in outcome.out
    api.answers["ListSecrets"] = pb.ListSecretsResponse(secrets=[pb.Secret(name="KEY")])
    outcome = await bulkhead(api.port, *put, "--generate", "--length", "64")
    assert (outcome.code, "replaced" in outcome.out) == (0, True), outcome.err
    given, generated = api.requests("PutSecret")
    assert given.value == f" {PASSWORD}\n"
    assert generated.generate_length == 64
    for wrong in ((), ("--generate", "--value-file", "-"), ("--value-file", "-", "--length", "64")):
        assert (await bulkhead(api.port, *put, *wrong, given="x")).code == 2
    assert len(api.requests("PutSecret")) == 2


ODD = "a b\n'; touch harmed; echo '$(touch harmed)`touch harmed`"


def environment() -> pb.GetEnvironmentResponse:
    url = f"postgresql://writer_a:{PASSWORD}@127.0.0.1:26000/app"
    values = {"BULKHEAD_DATABASE_URL": url, "BULKHEAD_HOST": "shop-1.localhost", "ODD": ODD}
    return pb.GetEnvironmentResponse(
        variables=[pb.EnvironmentVariable(name=name, value=value) for name, value in values.items()]
    )


def odd_after(lines: str, folder: Path) -> str:
    """Returns what $ODD is for a shell that ran the lines in an empty folder."""
    shell = subprocess.run(
        ["/bin/sh", "-c", f'{lines}\nprintf %s "$ODD"'],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    assert list(folder.iterdir()) == []
    return shell.stdout


async def test_the_environment_is_masked_or_whole_for_a_shell(
    api: ScriptedApi, tmp_path: Path
) -> None:
    api.answers["GetEnvironment"] = environment()
    masked = await bulkhead(api.port, "deployment", "environment")
    assert masked.code == 0, masked.err
    assert "postgresql://writer_a:…@127.0.0.1:26000/app" in masked.out
    assert "shop-1.localhost" in masked.out
    assert PASSWORD not in masked.out
    assert "harmed; " not in masked.out
    whole = await bulkhead(api.port, "deployment", "environment", "--export")
    assert odd_after(whole.out, tmp_path) == ODD


async def test_a_name_that_a_shell_would_run_is_never_exported(api: ScriptedApi) -> None:
    api.answers["GetEnvironment"] = pb.GetEnvironmentResponse(
        variables=[pb.EnvironmentVariable(name="A;touch harmed;B", value="x")]
    )
    outcome = await bulkhead(api.port, "deployment", "environment", "--export")
    assert (outcome.code, outcome.out) == (1, "")


async def test_a_key_that_opens_no_environment_is_told_which_does(api: ScriptedApi) -> None:
    api.answers["GetEnvironment"] = PermissionDeniedError("no", Reason.SCOPE_MISSING)
    outcome = await bulkhead(api.port, "deployment", "environment")
    assert outcome.code == 1
    assert "bulkhead key issue --deployment dep_… --scope environment:read" in outcome.err


async def test_the_first_administrators_password_is_shown_after_a_yes(api: ScriptedApi) -> None:
    api.answers["RevealBootstrapAdmin"] = pb.RevealBootstrapAdminResponse(
        user="admin", password=PASSWORD
    )
    ask = ("deployment", "admin-password", DEPLOYMENT)
    refused = await bulkhead(api.port, *ask, given="n\n")
    assert (refused.code, api.asked) == (1, [])
    outcome = await bulkhead(api.port, *ask, "--yes")
    assert PASSWORD in outcome.out
    assert "not shown again" in outcome.err
    api.answers["RevealBootstrapAdmin"] = FailedPreconditionError("before", Reason.SHOWN_BEFORE)
    outcome = await bulkhead(api.port, *ask, "--yes")
    assert "sets another one in the program itself" in outcome.err


async def test_a_suspended_deployment_says_how_to_end_that(api: ScriptedApi) -> None:
    api.answers["WakeDatabase"] = FailedPreconditionError(
        "the deployment is suspended", Reason.DEPLOYMENT_SUSPENDED
    )
    outcome = await bulkhead(api.port, "deployment", "wake", DEPLOYMENT)
    assert outcome.code == 1
    assert "bulkhead deployment resume dep_…" in outcome.err
