"""Each bucket's credentials tried at another's bucket, and at everything else (P-07)."""

import secrets
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from services.provisioner.drivers.bucket_protocol import BucketAccess, BucketDriver
from services.shared.ids import new_deployment_id
from tests.s3 import Storage, refusal, s3_client

pytestmark = pytest.mark.promise("P-07")

CONTENT = b"only its own deployment reads this"
REFUSED = {"AccessDenied", "403"}


@pytest.fixture(scope="module")
async def driver(s3: Storage) -> AsyncIterator[BucketDriver]:
    async with s3.driver() as driver:
        yield driver


@pytest.fixture(scope="module")
async def mine(driver: BucketDriver) -> AsyncIterator[BucketAccess]:
    async for access in bucket(driver):
        yield access


@pytest.fixture(scope="module")
async def theirs(driver: BucketDriver) -> AsyncIterator[BucketAccess]:
    async for access in bucket(driver):
        yield access


async def bucket(driver: BucketDriver) -> AsyncIterator[BucketAccess]:
    deployment = new_deployment_id()
    await driver.ensure(deployment)
    access = driver.access(deployment)
    async with s3_client(access) as own:
        await own.put_object(Bucket=access.bucket, Key="key", Body=CONTENT)
    yield access
    await driver.destroy(deployment)


@pytest.fixture(scope="module")
async def me(mine: BucketAccess) -> AsyncIterator[Any]:
    """A client with my credentials."""
    async with s3_client(mine) as client:
        yield client


@pytest.fixture(scope="module")
async def them(theirs: BucketAccess) -> AsyncIterator[Any]:
    """A client with the other's credentials."""
    async with s3_client(theirs) as client:
        yield client


Attack = Callable[[Any, str, str], Any]
# Each is given my client, my bucket and theirs.
ATTACKS: dict[str, Attack] = {
    "list": lambda me, _, b: me.list_objects_v2(Bucket=b),
    "list_versions": lambda me, _, b: me.list_object_versions(Bucket=b),
    "list_uploads": lambda me, _, b: me.list_multipart_uploads(Bucket=b),
    "look": lambda me, _, b: me.head_bucket(Bucket=b),
    "look_at_object": lambda me, _, b: me.head_object(Bucket=b, Key="key"),
    "get": lambda me, _, b: me.get_object(Bucket=b, Key="key"),
    "tags": lambda me, _, b: me.get_object_tagging(Bucket=b, Key="key"),
    "put": lambda me, _, b: me.put_object(Bucket=b, Key="key", Body=b"mine"),
    "delete": lambda me, _, b: me.delete_object(Bucket=b, Key="key"),
    "delete_many": lambda me, _, b: me.delete_objects(
        Bucket=b, Delete={"Objects": [{"Key": "key"}]}
    ),
    "upload": lambda me, _, b: me.create_multipart_upload(Bucket=b, Key="key"),
    "copy_from": lambda me, a, b: me.copy_object(Bucket=a, Key="c", CopySource=f"{b}/key"),
    "copy_to": lambda me, a, b: me.copy_object(Bucket=b, Key="c", CopySource=f"{a}/key"),
    "versioning": lambda me, _, b: me.put_bucket_versioning(
        Bucket=b, VersioningConfiguration={"Status": "Enabled"}
    ),
    "policy": lambda me, _, b: me.get_bucket_policy(Bucket=b),
    "remove": lambda me, _, b: me.delete_bucket(Bucket=b),
    "open_own": lambda me, a, _: me.put_bucket_acl(Bucket=a, ACL="public-read-write"),
    "share_own": lambda me, a, _: me.put_bucket_policy(Bucket=a, Policy=open_to_all(a)),
    "remove_own": lambda me, a, _: me.delete_bucket(Bucket=a),
    "make": lambda me, _a, _b: me.create_bucket(Bucket=f"mine-{secrets.token_hex(4)}"),
}


def open_to_all(bucket: str) -> str:
    statement = '{"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": "%s"}'
    return '{"Version": "2012-10-17", "Statement": [%s]}' % (statement % f"arn:aws:s3:::{bucket}/*")


@pytest.mark.parametrize("name", ATTACKS)
async def test_credentials_of_one_bucket_are_refused(
    me: Any, them: Any, mine: BucketAccess, theirs: BucketAccess, name: str
) -> None:
    assert await refusal(ATTACKS[name](me, mine.bucket, theirs.bucket)) in REFUSED
    await untouched(them, theirs)


async def untouched(own: Any, access: BucketAccess) -> None:
    listed = await own.list_objects_v2(Bucket=access.bucket)
    assert [each["Key"] for each in listed["Contents"]] == ["key"]
    answer = await own.get_object(Bucket=access.bucket, Key="key")
    assert await answer["Body"].read() == CONTENT


async def test_each_opens_its_own(
    me: Any, them: Any, mine: BucketAccess, theirs: BucketAccess
) -> None:
    assert mine.secret_key != theirs.secret_key
    await untouched(me, mine)
    await untouched(them, theirs)


async def test_who_lists_buckets_sees_its_own_alone(
    me: Any, mine: BucketAccess, theirs: BucketAccess
) -> None:
    listed = await me.list_buckets()
    assert [each["Name"] for each in listed["Buckets"]] == [mine.bucket]


async def test_no_part_is_copied_from_another_bucket(
    me: Any, mine: BucketAccess, theirs: BucketAccess
) -> None:
    begun = await me.create_multipart_upload(Bucket=mine.bucket, Key="stolen")
    call = {"Bucket": mine.bucket, "Key": "stolen", "UploadId": begun["UploadId"]}
    copying = me.upload_part_copy(**call, PartNumber=1, CopySource=f"{theirs.bucket}/key")
    assert await refusal(copying) in REFUSED
    await me.abort_multipart_upload(**call)


async def test_an_upload_into_another_bucket_goes_on_by_its_own_credentials_alone(
    me: Any, them: Any, theirs: BucketAccess
) -> None:
    begun = await them.create_multipart_upload(Bucket=theirs.bucket, Key="theirs")
    call = {"Bucket": theirs.bucket, "Key": "theirs", "UploadId": begun["UploadId"]}
    assert await refusal(me.upload_part(**call, PartNumber=1, Body=b"x")) in REFUSED
    assert await refusal(me.list_parts(**call)) in REFUSED
    assert await refusal(me.abort_multipart_upload(**call)) in REFUSED
    await them.abort_multipart_upload(**call)


@pytest.mark.parametrize("path", ["../{b}/key", "..%2F{b}%2Fkey", "./../{b}/key", "%2e%2e/{b}/key"])
async def test_no_path_leads_out_of_a_bucket(
    me: Any, mine: BucketAccess, theirs: BucketAccess, path: str
) -> None:
    url = await me.generate_presigned_url("get_object", {"Bucket": mine.bucket, "Key": "key"})
    asked = url.replace("/key?", f"/{path.format(b=theirs.bucket)}?")
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.send(http.build_request("GET", httpx.URL(asked)))
    assert answer.status_code in {400, 403, 404}
    assert CONTENT not in answer.content


@pytest.mark.parametrize("prefix", ["../", "../{b}/", "../../etc/iam/", "/../{b}/"])
async def test_no_list_leads_out_of_a_bucket(
    me: Any, mine: BucketAccess, theirs: BucketAccess, prefix: str
) -> None:
    asked = prefix.format(b=theirs.bucket)
    listing = me.list_objects_v2(Bucket=mine.bucket, Prefix=asked)
    assert "Contents" not in await listing


@pytest.mark.parametrize("method", ["get_object", "put_object"])
async def test_what_one_signed_does_not_open_the_other(
    me: Any, them: Any, theirs: BucketAccess, method: str
) -> None:
    url = await me.generate_presigned_url(method, {"Bucket": theirs.bucket, "Key": "key"})
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.request(method.removesuffix("_object"), url)
    assert answer.status_code == httpx.codes.FORBIDDEN
    await untouched(them, theirs)


async def test_what_was_signed_for_one_bucket_does_not_open_the_other(
    them: Any, mine: BucketAccess, theirs: BucketAccess
) -> None:
    url = await them.generate_presigned_url("get_object", {"Bucket": theirs.bucket, "Key": "key"})
    async with httpx.AsyncClient(trust_env=False) as http:
        assert (await http.get(url)).content == CONTENT
        moved = await http.get(url.replace(f"/{theirs.bucket}/", f"/{mine.bucket}/"))
    assert moved.status_code == httpx.codes.FORBIDDEN


@pytest.mark.parametrize("path", ["", "/{b}", "/{b}/key", "/{b}?versions", "/{b}?policy"])
async def test_nobody_is_refused(them: Any, theirs: BucketAccess, path: str) -> None:
    async with httpx.AsyncClient(base_url=theirs.endpoint, trust_env=False) as http:
        for method in ("GET", "PUT", "POST", "DELETE"):
            answer = await http.request(method, path.format(b=theirs.bucket))
            assert answer.status_code in {400, 403, 405}, method
    await untouched(them, theirs)


async def test_a_wrong_secret_is_refused(mine: BucketAccess, theirs: BucketAccess) -> None:
    async with s3_client(replace(theirs, secret_key=mine.secret_key)) as wrong:
        refused = await refusal(wrong.get_object(Bucket=theirs.bucket, Key="key"))
    assert refused == "SignatureDoesNotMatch"


async def test_an_unknown_key_is_refused(theirs: BucketAccess) -> None:
    async with s3_client(replace(theirs, access_key="nobody")) as unknown:
        refused = await refusal(unknown.get_object(Bucket=theirs.bucket, Key="key"))
    assert refused == "InvalidAccessKeyId"


async def test_a_bucket_does_not_open_the_administrator(s3: Storage, mine: BucketAccess) -> None:
    administrator = await s3.administrator()
    async with s3_client(replace(administrator, secret_key=mine.secret_key)) as wrong:
        assert await refusal(wrong.list_buckets()) == "SignatureDoesNotMatch"


@pytest.mark.parametrize("action", ["CreateAccessKey", "ListUsers", "CreateUser", "AssumeRole"])
async def test_no_identity_makes_further_ones(mine: BucketAccess, action: str) -> None:
    body = f"Action={action}&Version=2010-05-08&UserName={mine.access_key}"
    form = {"content-type": "application/x-www-form-urlencoded"}
    request = AWSRequest("POST", f"{mine.endpoint}/", data=body, headers=form)
    credentials = Credentials(mine.access_key, mine.secret_key)
    SigV4Auth(credentials, "iam", mine.region).add_auth(request)
    async with httpx.AsyncClient(trust_env=False) as http:
        answer = await http.post(request.url, content=body, headers=dict(request.headers.items()))
    assert answer.is_client_error
    assert "AccessKeyId>" not in answer.text


async def test_the_parts_behind_the_gateway_serve_no_stranger(s3: Storage) -> None:
    filer = httpx.URL((await s3.server()).filer)
    async with httpx.AsyncClient(verify=False, trust_env=False) as http:  # noqa: S501 a stranger
        with pytest.raises((httpx.TransportError, ssl.SSLError)):
            await http.get(filer.join("/etc/iam/identities/"))
        plain = await http.get(filer.copy_with(scheme="http"))
    assert plain.status_code == httpx.codes.BAD_REQUEST


async def test_no_secret_is_shown_by_accident(mine: BucketAccess) -> None:
    assert mine.secret_key not in repr(mine)
