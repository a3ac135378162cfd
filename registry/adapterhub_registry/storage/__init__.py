"""Bytes: blobs and xorbs, on disk and in S3."""
