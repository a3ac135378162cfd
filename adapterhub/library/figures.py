"""The derived records of installed builds: made when first asked for, and kept in `cache/derived/`.

    cache/derived/<64 hex of the weights>-<12 hex of the config>.json

A record follows from the two files alone, so the folder may be deleted at any time.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Final

from adapterhub.core.digests import canonical_json, hex_of
from adapterhub.core.disk.files import read_json
from adapterhub.core.errors import NotAllowed
from adapterhub.formats.derived.record import DerivedRecord
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE, Manifest
from adapterhub.library.store.blobs import Store
from adapterhub.trust.verify import open_files

_LIMIT_BYTES: Final = 16 << 20


def derived_record(store: Store, folder: Path, manifest: Manifest) -> DerivedRecord:
    """The record of a build in `folder`; computing one takes a few seconds and numpy.

    Raises:
        DigestMismatch: a file is not what the manifest says.
        MalformedConfig, MalformedTensorFile: a file cannot be read.
    """
    weights, config = manifest.digests[WEIGHTS_FILE], manifest.digests[CONFIG_FILE]
    path = store.root / "cache" / "derived" / f"{hex_of(weights)}-{hex_of(config)[:12]}.json"
    with contextlib.suppress(OSError, ValueError):  # absent, damaged, or of an older schema: it is made again
        return DerivedRecord.from_json(read_json(path, _LIMIT_BYTES))
    from adapterhub.formats.derived.deriving import derive

    subject = open_files(folder, manifest.digests)
    with contextlib.closing(subject.held) as held:
        record = derive(subject.config, subject.weights, held.read, weights_digest=weights, config_digest=config)
    with contextlib.suppress(NotAllowed):  # a library that cannot be written keeps none
        store.write(path, canonical_json(record.to_json()), sync=False)
    return record
