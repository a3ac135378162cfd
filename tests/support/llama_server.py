"""A small `llama-server` on llama.cpp itself (package `llama-cpp-py-sync`): greedy answers to tokens, for one adapter."""

from __future__ import annotations

import sys
from pathlib import Path

_PROGRAM = """#!{python}
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
import numpy as np
from llama_cpp_py_sync import Llama
from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib

given = {{word: value for word, value in zip(sys.argv, sys.argv[1:]) if word.startswith("--")}}
lib, ffi = get_lib(), get_ffi()
llama = Llama(given["--model"], n_ctx=256, n_batch=256, n_threads=1, verbose=False, type_k=0, type_v=0)
adapter = lib.llama_adapter_lora_init(llama._model, given["--lora"].encode())
assert adapter != ffi.NULL, "llama.cpp refuses the adapter"
assert lib.llama_set_adapters_lora(llama._ctx, ffi.new("struct llama_adapter_lora *[]", [adapter]), 1, ffi.new("float[]", [1.0])) == 0
size = lib.llama_vocab_n_tokens(llama._vocab)

def following(tokens):
    lib.llama_memory_clear(lib.llama_get_memory(llama._ctx), True)
    batch = lib.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = token, i, 1, i == len(tokens) - 1
        batch.seq_id[i][0] = 0
    assert lib.llama_decode(llama._ctx, batch) == 0
    logits = np.frombuffer(ffi.buffer(lib.llama_get_logits_ith(llama._ctx, -1), size * 4), np.float32)
    lib.llama_batch_free(batch)
    return int(logits.argmax())

class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_): pass
    def do_GET(self): self.say({{"status": "ok"}})
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert asked["temperature"] == 0 and asked["return_tokens"]
        tokens = []
        while len(tokens) < asked["n_predict"] and tokens[-1:] != [{end}]:
            tokens.append(following([*asked["prompt"], *tokens]))
        self.say({{"content": " ".join(map(str, tokens)), "tokens": tokens}})
    def say(self, value):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())

HTTPServer(("127.0.0.1", int(given["--port"])), Handler).serve_forever()
"""


def make_llama_server(path: Path, end: int = -1) -> Path:
    """Write the program to `path`; `end` is the end token, -1 for none."""
    path.write_text(_PROGRAM.format(python=sys.executable, end=end))
    path.chmod(0o755)
    return path
