"""Creates the buckets named on the command line in the S3-compatible store, unless they are there.

The store is AWS_ENDPOINT_URL with the usual AWS_* credentials. Exit code 1 and one line if it refuses.
"""

from __future__ import annotations

import sys

import boto3
from botocore.exceptions import BotoCoreError, ClientError


def create_buckets(names: list[str]) -> None:
    """Each bucket exists afterwards. Raises ClientError or BotoCoreError."""
    store = boto3.client("s3")
    there = {bucket["Name"] for bucket in store.list_buckets()["Buckets"]}
    for name in names:
        if name not in there:
            store.create_bucket(Bucket=name)
        sys.stderr.write(f"bucket {name}: {'was there' if name in there else 'created'}\n")


if __name__ == "__main__":
    try:
        create_buckets(sys.argv[1:])
    except (BotoCoreError, ClientError) as error:
        sys.exit(f"The object store refused: {error}")
