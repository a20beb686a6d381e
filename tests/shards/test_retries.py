"""Which errors are worth another try; the errors are those that the file systems raised against real servers."""

import errno
import re
import time
from types import SimpleNamespace

import pytest
from aiohttp import ClientConnectionError, ClientPayloadError
from aiohttp.http_exceptions import ContentLengthError
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError

from softshard.shards import StorageError
from softshard.shards.retries import failure, http_status, is_final, patiently


def from_s3(made, code, status):
    """What s3fs makes of an answer of S3."""
    answer = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    made.__cause__ = ClientError(answer, "GetObject")
    return made


class HttpError(Exception):
    """gcsfs's."""

    code = 401


class ResourceNotFoundError(Exception):
    """Azure's, whose classes all know the status."""

    status_code = 404


class ClientAuthenticationError(Exception):
    """Azure's of a key that is none: nothing was asked."""

    status_code = None


def cut_short():
    error = ClientPayloadError("Response payload is not completed")
    error.__cause__ = ContentLengthError("Not enough data")  # aiohttp's, whose code 400 is no server's
    return error


TABLE = [
    (from_s3(PermissionError("no"), "SignatureDoesNotMatch", 403), True, 403),
    (from_s3(OSError(errno.EINVAL, "no"), "InvalidRequest", 400), True, 400),
    (from_s3(TimeoutError("no"), "RequestTimeout", 400), False, 400),
    (from_s3(OSError(errno.EBUSY, "no"), "SlowDown", 503), False, 503),
    (from_s3(OSError(errno.EREMOTEIO, "no"), "InternalError", 500), False, 500),
    (NoCredentialsError(), True, None),
    (EndpointConnectionError(endpoint_url="http://u:p@h"), False, None),
    (cut_short(), False, None),
    (ClientConnectionError(), False, None),
    (ConnectionResetError(errno.ECONNRESET, "reset"), False, None),
    (ValueError("Invalid bucket name"), True, None),
    (HttpError(), True, 401),
    (
        OSError("Forbidden: https://storage.googleapis.com/b/k"),
        True,
        None,
    ),  # gcsfs's of 403, which it does not name
    (type("AzureSigningError", (ClientAuthenticationError,), {})(), True, None),
]


@pytest.mark.parametrize(("error", "final", "status"), TABLE, ids=lambda value: type(value).__name__)
def test_a_no_is_told_from_silence(error, final, status):
    assert (is_final(error), http_status(error)) == (final, status)


def failing(errors):
    left = list(errors)

    def call():
        if left:
            raise left.pop(0)
        return b"data"

    return call


def test_silence_is_waited_for():
    waits = []
    assert patiently(failing([ConnectionResetError()] * 7), "s3://b/k", sleep=waits.append) == b"data"
    longest = [0.25, 0.5, 1, 2, 4, 5, 5]
    assert all(most / 2 <= wait <= most for wait, most in zip(waits, longest, strict=True))
    assert len(set(waits)) == 7  # no two clients come back in step


def test_the_patience_of_a_call_is_its_own():
    waits = []
    with pytest.raises(StorageError, match="tried 1 times in 0 s"):
        patiently(failing([ConnectionResetError()] * 9), "s3://b/k", patience_s=0, sleep=waits.append)
    assert waits == []


def test_one_call_that_takes_all_patience_is_no_silence():
    def call():
        time.sleep(0.02)  # as where the process was stopped meanwhile, and its connection broke
        return answer()

    answer = failing([ConnectionResetError()])
    assert patiently(call, "s3://b/k", patience_s=0.01, sleep=lambda _: None) == b"data"


def test_all_of_the_time_is_told(monkeypatch):
    clock = iter([0, 7, 14])  # seconds: begun, the first call failed, the second
    monkeypatch.setattr("softshard.shards.retries.time", SimpleNamespace(monotonic=lambda: next(clock)))
    with pytest.raises(StorageError, match="tried 2 times in 14 s"):
        patiently(failing([ConnectionResetError()] * 9), "s3://b/k", patience_s=7, sleep=lambda _: None)


@pytest.mark.parametrize(("error", "final", "status"), [row for row in TABLE if row[1]])
def test_a_no_is_asked_once(error, final, status):
    with pytest.raises(StorageError, match=r"^s3://b/k: cannot be read: "):
        patiently(failing([error]), "s3://b/k")


def test_a_container_that_is_not_there_is_no_file():
    with pytest.raises(FileNotFoundError, match=r"^az://c/k: cannot be written: ResourceNotFoundError 404$"):
        patiently(failing([ResourceNotFoundError()]), "az://c/k", "written")


def test_a_status_of_404_alone_is_no_missing_file():
    error = type(
        "HttpError", (HttpError,), {"code": 404}
    )()  # of a proxy, or of an address that is no store's
    with pytest.raises(StorageError, match=r"^gs://b/k: cannot be read: HttpError 404$"):
        patiently(failing([error]), "gs://b/k")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("gcs://b/k", r"credentials \(for gs: GOOGLE_APPLICATION_CREDENTIALS, or run: gcloud .*login\)$"),
        ("abfs://c/k", r"credentials \(for az: AZURE_STORAGE_ACCOUNT_NAME and .*_CONNECTION_STRING\)$"),
        ("simplecache::s3://b/k", r"credentials \(for s3: AWS_ENDPOINT_URL, "),
        ("r2://b/k", r"credentials \(for s3: AWS_ENDPOINT_URL, "),
        ("oss://b/k", r"credentials \(for oss: OSS_ENDPOINT, FSSPEC_OSS_KEY, FSSPEC_OSS_SECRET\)$"),
        ("oci://b@n/k", r"credentials \(for oci: OCIFS_IAM_TYPE=api_key and ~/\.oci/config, or the file "),
        ("https://h/k", "credentials$"),
    ],
)
def test_who_is_not_let_in_is_told_where_credentials_come_from(url, told):
    assert re.search(told, failure(url, PermissionError("no")))


def test_patience_ends(monkeypatch):
    monkeypatch.setattr("softshard.shards.retries.PATIENCE_S", 0.0)
    told = r"^s3://b/k: .*TimeoutError.* at the address of AWS_ENDPOINT_URL, .*the server is away\. What is finished"
    with pytest.raises(StorageError, match=told):
        patiently(failing([TimeoutError()]), "s3://b/k")


def test_a_message_holds_the_server_s_word_and_no_url():
    assert failure("s3://b/k", TABLE[3][0]) == "s3://b/k: cannot be read: OSError SlowDown"
    assert failure("s3://b/k", TABLE[6][0]) == "s3://b/k: cannot be read: EndpointConnectionError"
    assert failure("s3://b/k", TABLE[0][0]).endswith("AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)")
