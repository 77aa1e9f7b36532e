"""A real S3 server on loopback, with a bucket."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

BUCKET = "mine"
KEYS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class ObjectStore:
    """The bucket, seen by another client than ours."""

    def __init__(self) -> None:
        import boto3

        self._server = _serve(0)
        self._port = self._server.get_host_and_port()[1]
        self._endpoint = endpoint = f"http://127.0.0.1:{self._port}"
        secret = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing"}
        self._client: Any = boto3.client("s3", region_name="us-east-1", endpoint_url=endpoint, **secret)
        self._client.create_bucket(Bucket=BUCKET)

    def uri(self, path: str = "", bucket: str = BUCKET) -> str:
        """A folder of it, or of another bucket."""
        place = f"s3://{bucket}/{path}".rstrip("/")
        return f"{place}?endpoint_override={self._endpoint}&region=us-east-1"

    def files(self, prefix: str) -> dict[str, bytes]:
        """Content by name below a prefix, without the markers of folders."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
        keys = [item["Key"] for page in pages for item in page.get("Contents", [])]
        return {
            key.removeprefix(f"{prefix}/"): self._client.get_object(Bucket=BUCKET, Key=key)["Body"].read()
            for key in keys
            if not key.endswith("/")
        }

    def put(self, key: str, content: bytes) -> None:
        """Write a file."""
        self._client.put_object(Bucket=BUCKET, Key=key, Body=content)

    @contextmanager
    def away(self) -> Iterator[None]:
        """Nobody answers; what is stored stays."""
        self.stop()
        try:
            yield
        finally:
            self._server = _serve(self._port)

    def stop(self) -> None:
        """End the server."""
        self._server.stop()
        self._server._server.server_close()

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Nobody may write."""
        rule = {"Effect": "Deny", "Principal": "*", "Action": "s3:PutObject", "Resource": f"arn:aws:s3:::{BUCKET}/*"}
        self._client.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps({"Statement": [rule]}))
        try:
            yield
        finally:
            self._client.delete_bucket_policy(Bucket=BUCKET)


def _serve(port: int) -> Any:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    return server


@contextmanager
def object_store() -> Iterator[ObjectStore]:
    """A server for the length of the block, whose keys this process and those that it starts hold."""
    before: Mapping[str, str | None] = {name: os.environ.get(name) for name in KEYS}
    os.environ.update(KEYS)
    store = ObjectStore()
    try:
        yield store
    finally:
        store.stop()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
