"""Makes the recording of the README: `python -m docs.recording`, from the root of the repository, in about a minute.

It runs the commands below for real, on SmolLM2-135M-Instruct and the adapters of `adapt demo`, and writes what they
print as an SVG that shows a line after the other, digests cut to their first digits. No part of the picture comes from
another host, and a viewer without animations sees all lines at once.
"""

from __future__ import annotations

import html
import os
import re
import shlex
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Final

from safetensors.numpy import load_file, save_file

import adapterhub
from tests.support.real_base import smollm2_base

PICTURE: Final = Path(__file__).resolve().parent / "pictures" / "recording.svg"
SHIPPED: Final = Path(adapterhub.__file__).parent / "cli" / "start" / "demo_run" / "adapters"
PROMPT: Final = "Where is your old boat, boss?"
STEPS: Final = (
    "adapt base add ./smollm2-135m --as smollm2-135m",
    "adapt add ./out/json --name json --base smollm2-135m --task extraction",
    "adapt add ./out/pirate --name pirate --base smollm2-135m --task style",
    "adapt install formal@smollm2-135m --from ./downloads",
    "adapt merge json pirate --weights 0.3,0.7 -o pirate-orders",
    f"adapt run -q pirate-orders@smollm2-135m {shlex.quote(PROMPT)}",
    "adapt push pirate-orders --to ./shared",
)
COLUMNS: Final = 96
WIDTH, HEIGHT, MARGIN = 8.4, 20, 18
_DIGEST: Final = re.compile(r"(sha256:[0-9a-f]{12})[0-9a-f]{52}")
READ_S: Final = {"command": 0.7, "output": 0.25}
STYLE: Final = """
text { font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; fill: #d6deeb;
  white-space: pre; animation: show 1ms both; }
@keyframes show { from { opacity: 0 } }
@media (prefers-reduced-motion: reduce) { text { animation: none } }
.command { fill: #ffffff; font-weight: 600 } .error { fill: #ff8a80 } .hint { fill: #80cbc4 }
"""


def prepare(folder: Path) -> None:
    """Make the base and two trained adapters, and a published adapter for a fine-tune of the base, in `downloads`."""
    (folder / "smollm2-135m").symlink_to(smollm2_base())
    (folder / "out").symlink_to(SHIPPED)
    tuned = folder / ".tuned"
    tuned.mkdir()
    for file in smollm2_base().iterdir():
        (tuned / file.name).symlink_to(file)
    weights = tuned / "model.safetensors"
    tensors = load_file(weights)
    weights.unlink()
    save_file({name: tensor * 1.01 for name, tensor in tensors.items()}, weights)
    author = adapterhub.Library(folder / ".author")
    author.add_base(tuned, "tuned")
    author.add(SHIPPED / "pirate", name="formal", version="1.0.0", base="tuned")
    author.push("formal", to=folder / "downloads")


def record(folder: Path) -> list[tuple[str, str]]:
    """Every line with its class, wrapped at the width of the picture.

    Raises:
        CalledProcessError: a command ends otherwise than it should; only the `install` is refused.
    """
    environ = os.environ | {"ADAPTERHUB_HOME": str(folder / "home"), "COLUMNS": str(COLUMNS), "NO_COLOR": "1"}
    environ["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
    lines: list[tuple[str, str]] = []
    for step in STEPS:
        command = [sys.executable, "-c", "from adapterhub.cli import main; main()", *shlex.split(step)[1:]]
        done = subprocess.run(  # noqa: S603 - our own commands
            command, cwd=folder, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        if (done.returncode != 0) is not step.startswith("adapt install"):
            raise subprocess.CalledProcessError(done.returncode, step, done.stdout)
        lines.append((f"$ {step}", "command"))
        for line in done.stdout.splitlines():
            kind = next((word for word in ("error", "hint") if line.startswith(f"{word}:")), "output")
            short = _DIGEST.sub(r"\1…", line)
            lines += [(part, kind) for part in textwrap.wrap(short, COLUMNS, subsequent_indent="    ")]
        lines.append(("", "output"))
    return lines[:-1]


def drawn(lines: list[tuple[str, str]]) -> str:
    """Return the SVG of the lines."""
    width, height = COLUMNS * WIDTH + 2 * MARGIN, len(lines) * HEIGHT + 2 * MARGIN
    rows, time_s = [], 0.0
    for number, (line, kind) in enumerate(lines):
        if line:
            place = f'x="{MARGIN}" y="{MARGIN + number * HEIGHT + 14}" textLength="{len(line) * WIDTH:.1f}"'
            delay = f'style="animation-delay:{time_s:.2f}s"'
            rows.append(f'<text class="{kind}" {place} {delay}>{html.escape(line)}</text>')
        time_s += READ_S.get(kind, READ_S["output"])
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" role="img">',
            "<title>A terminal: add adapters, refuse one, merge, ask and publish</title>",
            f"<style>{STYLE}</style>",
            f'<rect width="{width:.0f}" height="{height}" rx="8" fill="#011627"/>',
            *rows,
            "</svg>\n",
        ]
    )


def main() -> None:
    """Run the commands and write the picture."""
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name))
        PICTURE.parent.mkdir(exist_ok=True)
        PICTURE.write_text(drawn(record(Path(name))), encoding="utf-8")


if __name__ == "__main__":
    main()
