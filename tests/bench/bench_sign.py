"""Signing and checking a 100 MB adapter, whole processes with start-up, beside `model_signing` where it is installed.

    python -m tests.bench.bench_sign [--megabytes 100] [--runs 5] [--peer PATH/TO/model_signing]

Four of ours: `adapt key sign`, the check that an install makes of a signature before it fetches, `adapt verify` (which also
scans every number), and the signature with the hashes of all files alone, which is what the peer's `verify` does.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from adapterhub.core.specs import parse_name
from adapterhub.library.intake.description import Description
from adapterhub.library.library import Library
from adapterhub.trust.signing.keys import KeyFolder
from adapterhub.trust.signing.trust import Terms, TrustFile
from tests.bench.bench_verify import CODES, make_adapter, medians
from tests.bench.harness import given, measured

CHECK = """
import sys
from pathlib import Path
from adapterhub.core.digests import digest_of_file
from adapterhub.formats.manifest import Manifest
from adapterhub.trust.signing.appraisal import provenance_of
from adapterhub.trust.signing.appraisal import examine
from adapterhub.trust.signing.trust import TrustFile
root, folder, hashed = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "hashed"
manifest = Manifest.parse((folder / "adapterhub.json").read_bytes())
judgement = examine(manifest, None, provenance_of(folder), TrustFile(root).read(), now=0)
assert judgement.standing == "trusted"
if hashed:
    assert all(digest_of_file(folder / e.path)[0] == e.sha256 for e in manifest.files)
assert not {"torch", "numpy"} & set(sys.modules)
"""


def main() -> None:
    """Measure and print."""
    options = given(__doc__, megabytes=100.0, runs=5, peer=shutil.which("model_signing") or "")
    with tempfile.TemporaryDirectory() as work:
        root = Path(work, "home")
        weights = make_adapter(Path(work, "adapter"), options.megabytes / 1000)
        library = Library(root)
        about = Description(name=parse_name("large"), version="1.0.0")
        folder = library.add(weights.parent, about).build.folder
        public = KeyFolder(root).new("ann", None)
        TrustFile(root).trust("ann", public, Terms())
        keys = root / "keys"
        adapt = [sys.executable, "-c", "from adapterhub.cli import main; main()"]
        check = [sys.executable, "-c", CHECK, str(root), str(folder)]
        commands = {
            "adapt key sign": [*adapt, "key", "sign", "large", "--root", str(root)],
            "adapt verify (all checks)": [*adapt, "verify", "large", "--root", str(root)],
            "signature and hashes": [*check, "hashed"],
            "signature alone": [*check, "alone"],
        }
        if options.peer:
            beside = Path(work, "peer.sig")
            pair = ["--private_key", str(keys / "ann.pem"), "--signature", str(beside)]
            commands["model_signing sign"] = [options.peer, "sign", "key", str(folder), *pair]
            pair = ["--public_key", str(keys / "ann.pub"), "--signature", str(folder / "model.sig")]
            commands["model_signing verify (ours)"] = [options.peer, "verify", "key", str(folder), *pair]
        print(f"{weights.stat().st_size / 1e6:.0f} MB, medians of {options.runs} runs; at most 0.5 s was wanted")
        for name, command in commands.items():
            times = []
            for turn in range(options.runs + 1):
                if name == "adapt key sign":
                    (folder / "model.sig").unlink(missing_ok=True)  # or it would find itself signed already
                done = measured(command, codes=CODES)
                if turn:  # the first turn fills the page cache
                    times.append(done)
            wall, cpu = medians(times)
            print(f"  {name:<28} {wall:.2f} s wall, {cpu:.2f} s CPU")


if __name__ == "__main__":
    main()
