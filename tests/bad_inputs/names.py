"""File names that a server may list, and references that a user may type: what becomes of each."""

from __future__ import annotations

LISTING = {
    **dict.fromkeys(
        [
            "../evil.txt", "a/../../evil.txt", "/etc/cron.d/x", "..\\..\\evil.txt", "C:\\Windows\\x", "C:x",
            "\\\\host\\share\\x", "//host/share/x", "a\0b", "", ".", "..", "a//b", "a/./b",
        ],
        "refuse",
    ),
    **dict.fromkeys(
        [
            "a\nb", "\u202etxt.exe", "con", "aux.txt", "x. ", "x" * 300, "/".join(["d"] * 200),
            ".git/hooks/post-checkout", "-rf", "~root/x", "cafe\u0301.txt", "images/plot 1.png", ".gitattributes",
        ],
        "skip_file",
    ),
    "adapter_model.safetensors": "accept",
    "README.md": "accept",
}  # fmt: skip

REFERENCES = {
    **dict.fromkeys(
        [
            "", "@", "a@", "@1.0", "a/b/c/d", "../x", "a/../b", "-x", "--help", "a b", "a\tb", "a\0b", "x" * 300,
            "name@1.0/../../x", "name@>=2,<1", "name@latest@1", "name'; drop table adapters;--", "%2e%2e/x",
            "\u0430cme/poem", "acme/\u2026", "acme/poem@\ud800", "ACME/..", "acme/.hidden", "http://169.254.169.254/x",
        ],
        "refuse",
    ),
    "acme/poem": "accept",
    "acme/poem@1.0.0": "accept",
    "acme/poem@sha256:" + "a" * 64: "accept",
}  # fmt: skip
