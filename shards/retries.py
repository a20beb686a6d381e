"""What to do when a server does not give what it was asked for: wait, or stop with a message that says why.

File systems of fsspec raise what their libraries raise: OSError, errors of aiohttp, of botocore, of Google, of Azure.
This file alone knows how to tell a server that is away from one that says no.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from .errors import RefusedError, StorageError

T = TypeVar("T")

PATIENCE_S = 30.0  # a server that restarts is back by then; file systems try a few times on their own before
_FIRST_WAIT_S = 0.25
_LONGEST_WAIT_S = 5.0
_SLOW_DOWN = frozenset({408, 409, 425, 429})
_REFUSED = frozenset({401, 403})
_LET_IN = "expected to be let in; check the address and the credentials"
_CREDENTIALS = {
    "s3": "AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS, or run: gcloud auth application-default login",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_CONNECTION_STRING",
    # ossfs takes its keys from options alone, which fsspec reads from the environment.
    "oss": "OSS_ENDPOINT, FSSPEC_OSS_KEY, FSSPEC_OSS_SECRET",
    "oci": "OCIFS_IAM_TYPE=api_key and ~/.oci/config, or the file that OCIFS_CONFIG_LOCATION names",
}
_ALIASES = {"s3a": "s3", "r2": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}


def patiently(
    call: Callable[[], T],
    where: str,
    done: str = "read",
    *,
    patience_s: float | None = None,
    sleep: Callable[[float], object] | None = None,
) -> T:
    """Call until an answer comes, or for 30 seconds. Waits double, and vary: clients of one server do not come back
    together.

    Args:
        call: asks a server; may be called again.
        where: for messages, without passwords.
        done: what cannot be done with it then: `read`, `written`.
        patience_s: instead of the 30 seconds.
        sleep: waits so many seconds between two calls, in the stead of `time.sleep`.

    Raises:
        FileNotFoundError: the server says that there is no such file.
        StorageError: it says no for another reason, or says nothing for that long.
    """
    patience_s = PATIENCE_S if patience_s is None else patience_s
    start = patient_from = time.monotonic()
    wait_s = _FIRST_WAIT_S
    num_calls = 0
    while True:
        num_calls += 1
        try:
            return call()
        except StorageError:
            raise
        except Exception as error:
            if _is_missing(error):
                raise FileNotFoundError(failure(where, error, done)) from None
            if is_final(error):
                kind = RefusedError if _is_refused(error) else StorageError
                raise kind(failure(where, error, done)) from None
            now = time.monotonic()
            if now - patient_from >= patience_s > 0 and num_calls == 1:
                # One call took all of it, as where the process was stopped meanwhile.
                patient_from = now
            elif now - patient_from >= patience_s:
                tried = f"{num_calls} times in {now - start:.0f} s"
                raise StorageError(
                    f"{failure(where, error, done)}; tried {tried}{_address_of(where)}, the server is away. What is "
                    "finished is kept: run the same command again to continue"
                ) from None
        (sleep or time.sleep)(min(wait_s, patience_s) * random.uniform(0.5, 1.0))
        wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def failure(where: str, error: Exception, done: str = "read") -> str:
    """`where: cannot be <done>: <error> <code>`; the error's own text may hold the whole URL, keys included."""
    code = _s3_answer(error).get("Error", {}).get("Code")  # its own word, such as SignatureDoesNotMatch
    detail = code or http_status(error) or getattr(error, "errno", None) or ""
    text = f"{where}: cannot be {done}: {type(error).__name__} {detail}".rstrip()
    return f"{text}; {_LET_IN}{credentials_of(where)}" if _is_refused(error) else text


def credentials_of(url: str) -> str:
    """Where a store's credentials come from, in brackets; nothing for one that is not known."""
    protocol = _protocol(url)
    return f" (for {protocol}: {_CREDENTIALS[protocol]})" if protocol in _CREDENTIALS else ""


def _address_of(url: str) -> str:
    """Where a store's address comes from that is not in its URLs, to be checked by who gave a wrong one."""
    return " at the address of AWS_ENDPOINT_URL, else Amazon's" if _protocol(url) == "s3" else ""


def _protocol(url: str) -> str:
    protocol = url.partition("://")[0].rpartition("::")[2].lower()  # of simplecache::s3://, the store's
    return _ALIASES.get(protocol, protocol)


def http_status(error: BaseException) -> int | None:
    """The status of the answer that an error is about; None where there was no whole answer."""
    if answer := _s3_answer(error):
        return answer.get("ResponseMetadata", {}).get("HTTPStatusCode")
    for name in ("status", "code", "status_code"):  # aiohttp's, gcsfs's, Azure's
        if isinstance(status := getattr(error, name, None), int):
            return status
    return None


def is_final(error: BaseException) -> bool:
    """Whether asking again cannot help: the server, or the library, understood and says no."""
    if isinstance(error, TimeoutError):  # S3 gives it status 400
        return False
    if isinstance(error, (ValueError, TypeError, ImportError, NotImplementedError)) or _is_refused(error):
        return True
    status = http_status(error)
    return status is not None and 400 <= status < 500 and status not in _SLOW_DOWN


def _is_missing(error: BaseException) -> bool:
    if isinstance(error, FileNotFoundError):
        return not _never_asked(error)
    # Azure's, of a container. A status of 404 alone may be anybody's: a proxy's, a wrong endpoint's.
    return any(kind.__name__ == "ResourceNotFoundError" for kind in type(error).__mro__)


def _never_asked(error: FileNotFoundError) -> bool:
    """Whether a file counts as missing because its server did not answer, as with fsspec's HTTP."""
    cause = error.__cause__
    if cause is None or isinstance(cause, FileNotFoundError) or http_status(cause) is not None:
        return False
    return isinstance(cause, OSError) or type(cause).__module__.startswith("aiohttp")


def _is_refused(error: BaseException) -> bool:
    if isinstance(error, PermissionError) or http_status(error) in _REFUSED:
        return True
    # gcsfs's only sign of status 403 is the first word of its text.
    if type(error) is OSError and str(error).startswith("Forbidden: "):
        return True
    # botocore's NoCredentialsError, google.auth's DefaultCredentialsError; Azure's, also of a key that is none; Oracle's.
    kinds = [kind.__name__ for kind in type(error).__mro__]
    return "Credentials" in kinds[0] or not {"ClientAuthenticationError", "ConfigFileNotFound"}.isdisjoint(
        kinds
    )


def _s3_answer(error: BaseException) -> dict:
    """What botocore read of a server's no; s3fs raises an OSError from botocore's error."""
    for one in (error, error.__cause__):
        if isinstance(answer := getattr(one, "response", None), dict):
            return answer
    return {}
