"""The keyring on the command line."""

import pytest
from bulkhead.credentials.v1 import credentials_service_pb2 as pb
from bulkhead.provisioner.v1 import provisioner_service_pb2 as provisioner_pb

from services.shared.errors import FailedPreconditionError, NotFoundError, Reason
from tests.scripted_api import ScriptedApi, bulkhead

OLD, NEW = "kek_old", "kek_new"


def keyring(left: int, unreadable: int = 0) -> pb.GetKeyringResponse:
    return pb.GetKeyringResponse(
        holder="file",
        key_encryption_keys=[
            pb.KeyEncryptionKey(
                key_encryption_key_id=NEW, current=True, data_keys=40 - left, usable=True
            ),
            pb.KeyEncryptionKey(key_encryption_key_id=OLD, data_keys=left, usable=unreadable == 0),
        ],
        data_keys_to_wrap=left,
        data_keys_unreadable=unreadable,
    )


def begun(left: int) -> pb.RotateKeyringResponse:
    return pb.RotateKeyringResponse(current_key_encryption_key_id=NEW, data_keys_to_wrap=left)


async def test_keyring_status_shows_each_key_and_how_far_a_rotation_is(api: ScriptedApi) -> None:
    api.answers["GetKeyring"] = keyring(left=12)
    outcome = await bulkhead(api.port, "keyring", "status")
    assert outcome.code == 0, outcome.err
    lines = [line.split() for line in outcome.out.splitlines()]
    assert ["left", "to", "wrap", "12"] in lines
    assert [NEW, "current", "28"] in lines
    assert [OLD, "12"] in lines
    shown = (await bulkhead(api.port, "keyring", "status", "--json")).json
    assert (shown["holder"], shown["data_keys_to_wrap"]) == ("file", 12)


async def test_keyring_status_says_what_cannot_be_read(api: ScriptedApi) -> None:
    api.answers["GetKeyring"] = keyring(left=3, unreadable=2)
    outcome = await bulkhead(api.port, "keyring", "status")
    assert [OLD, "3", "missing"] in [line.split() for line in outcome.out.splitlines()]
    assert "2 data keys cannot be unwrapped" in outcome.err


async def test_keyring_rotate_returns_at_once_and_says_where_to_look(api: ScriptedApi) -> None:
    api.answers |= {"RotateKeyring": begun(40), "GetKeyring": keyring(left=40)}
    outcome = await bulkhead(api.port, "keyring", "rotate", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["current_key_encryption_key_id"] == NEW
    assert outcome.json["data_keys_to_wrap"] == 40
    assert "bulkhead keyring status" in outcome.err


async def test_keyring_rotate_waits_until_nothing_is_left_and_tells_the_progress(
    api: ScriptedApi,
) -> None:
    left = iter((40, 1, 0))
    api.answers["RotateKeyring"] = begun(40)
    api.answers["GetKeyring"] = lambda _request: keyring(next(left))
    outcome = await bulkhead(api.port, "keyring", "rotate", "--wait")
    assert outcome.code == 0, outcome.err
    assert outcome.err.splitlines() == [
        "40 data keys left to wrap",
        "1 data key left to wrap",
        f"Once no backup needs it any more: bulkhead keyring destroy {OLD}",
    ]
    assert [NEW, "current", "40"] in [line.split() for line in outcome.out.splitlines()]


@pytest.mark.parametrize(
    ("answer", "arguments", "told"),
    [
        (keyring(left=2, unreadable=2), (), "2 data keys cannot be unwrapped"),
        (keyring(left=2), ("--wait-seconds", "0.2"), "2 data keys left to wrap after 0.2 s"),
    ],
)
async def test_keyring_rotate_that_is_not_done_is_no_success(
    api: ScriptedApi, answer: pb.GetKeyringResponse, arguments: tuple[str, ...], told: str
) -> None:
    api.answers |= {"RotateKeyring": begun(2), "GetKeyring": answer}
    outcome = await bulkhead(api.port, "keyring", "rotate", "--wait", *arguments)
    assert outcome.code == 1
    assert told in outcome.err


async def test_keyring_destroy_names_the_key_and_what_it_means(api: ScriptedApi) -> None:
    api.answers["DestroyKeyEncryptionKey"] = pb.DestroyKeyEncryptionKeyResponse()
    outcome = await bulkhead(api.port, "keyring", "destroy", OLD)
    assert (outcome.code, outcome.out) == (0, f"{OLD} is destroyed\n")
    assert "Backups from its time cannot be read any more." in outcome.err
    (request,) = api.requests("DestroyKeyEncryptionKey")
    assert request.key_encryption_key_id == OLD


@pytest.mark.parametrize(
    ("refusal", "told"),
    [
        (
            FailedPreconditionError("data keys are under it", Reason.KEY_ENCRYPTION_KEY_IN_USE),
            "refused: FAILED_PRECONDITION KEY_ENCRYPTION_KEY_IN_USE: data keys are under it",
        ),
        (NotFoundError("key-encryption key"), "refused: NOT_FOUND RESOURCE_NOT_FOUND"),
    ],
)
async def test_keyring_destroy_that_is_refused_says_why(
    api: ScriptedApi, refusal: Exception, told: str
) -> None:
    api.answers["DestroyKeyEncryptionKey"] = refusal
    outcome = await bulkhead(api.port, "keyring", "destroy", OLD)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith(told)


async def test_the_provisioners_keyring_is_asked_for_by_name(api: ScriptedApi) -> None:
    left = provisioner_pb.GetKeyringResponse.FromString(keyring(left=0).SerializeToString())
    api.answers |= {
        "RotateKeyring": provisioner_pb.RotateKeyringResponse(current_key_encryption_key_id=NEW),
        "GetKeyring": left,
        "DestroyKeyEncryptionKey": provisioner_pb.DestroyKeyEncryptionKeyResponse(),
    }
    chosen = ("--service", "provisioner")
    outcome = await bulkhead(api.port, "keyring", "rotate", "--wait", *chosen)
    assert outcome.code == 0, outcome.err
    assert f"bulkhead keyring destroy {OLD} --service provisioner" in outcome.err
    assert (await bulkhead(api.port, "keyring", "destroy", OLD, *chosen)).code == 0
    (request,) = api.requests("DestroyKeyEncryptionKey")
    assert isinstance(request, provisioner_pb.DestroyKeyEncryptionKeyRequest)
    assert (await bulkhead(api.port, "keyring", "status", "--service", "nobody")).code == 2
