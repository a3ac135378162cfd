"""Opens the stores of a registry: in its folder, or in a bucket."""

from __future__ import annotations

from adapterhub.core.extras import extra_named
from adapterhub_registry.settings import S3Place, Settings
from adapterhub_registry.storage.blobs import BlobStore, DiskBlobs
from adapterhub_registry.storage.xet import DiskXorbs, XorbStore


def stores_of(settings: Settings) -> tuple[BlobStore, XorbStore]:
    """Open where the bytes of a registry lie; create missing folders.

    Raises:
        MissingExtra: the extra `scale` is not installed.
    """
    if settings.s3 is None:
        return DiskBlobs(settings.root), DiskXorbs(settings.root / "xorbs")
    with extra_named("keeping blobs in S3"):
        from adapterhub_registry.storage import s3
    bucket = s3.Bucket(settings.s3)
    return s3.S3Blobs(bucket), s3.S3Xorbs(bucket)


def bucket_at(place: S3Place) -> BlobStore:
    """Open the blobs in a bucket.

    Raises:
        MissingExtra: the extra `scale` is not installed.
    """
    with extra_named("keeping blobs in S3"):
        from adapterhub_registry.storage import s3
    return s3.S3Blobs(s3.Bucket(place))
