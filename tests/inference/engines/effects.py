"""Run by an interpreter with vLLM: what its engine does with each of several adapters on one base, as JSON.

    python effects.py BASE PROMPT ADAPTER...

`base` and each adapter map to the log-probabilities of the token behind the prompt, one a token of the vocabulary; an
adapter that vLLM refuses maps to the text of its error. `modules` are the names of the layers that vLLM adapts. Where
this machine lacks the kernel for the experts, `base` is null, and an adapter maps to the updates that its layers hold:
B @ A of all experts, [experts, out, in], by layer.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any


def updates(worker: Any) -> dict[str, Any]:
    """B @ A of the adapter in the first slot, by layer; zero where it has none."""
    import torch

    found = {}
    for name, layer in worker.model_runner.lora_manager._adapter_manager.modules.items():
        if hasattr(layer, "w13_lora_a_stacked"):
            for part in ("w13", "w2"):
                stacks = zip(
                    getattr(layer, f"{part}_lora_b_stacked"), getattr(layer, f"{part}_lora_a_stacked"), strict=True
                )
                found[f"{name}.{part}"] = torch.cat([b[0] @ a[0] for b, a in stacks], 1).tolist()
        elif name.rpartition(".")[2] == "o_proj":
            found[name] = (layer.lora_b_stacked[0][0, 0] @ layer.lora_a_stacked[0][0, 0]).tolist()
    return found


def main() -> None:
    """Load the base, ask it with each adapter, print."""
    base, prompt, *adapters = sys.argv[1:]
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    config = json.loads((Path(base) / "config.json").read_text())
    vocabulary = config.get("text_config", config)["vocab_size"]
    options: dict[str, Any] = {"limit_mm_per_prompt": {"image": 0, "video": 0}} if "text_config" in config else {}
    engine = LLM(
        base, enforce_eager=True, dtype="float32", max_model_len=64, max_num_seqs=1, skip_tokenizer_init=True,
        enable_lora=True, max_loras=1, max_cpu_loras=1, max_lora_rank=8, max_logprobs=vocabulary,
        enable_prefix_caching=False, **options,
    )  # fmt: skip
    asked = SamplingParams(max_tokens=1, temperature=0.0, logprobs=vocabulary, detokenize=False)
    ids = {"prompt_token_ids": json.loads(prompt)}

    def told(request: LoRARequest | None) -> list[float]:
        answer = engine.generate([ids], asked, lora_request=request, use_tqdm=False)[0].outputs[0].logprobs[0]
        return [answer[token].logprob for token in range(vocabulary)]

    found: dict[str, Any] = {}
    try:
        found["base"] = told(None)
    except AttributeError as error:  # of a library for GPUs, which is not here
        sys.stderr.write(f"{error}\n")
        found["base"] = None
    found["modules"] = engine.collective_rpc(
        lambda worker: sorted(worker.model_runner.lora_manager._adapter_manager.modules)
    )[0]
    for number, path in enumerate(adapters, 1):
        try:
            request = LoRARequest(path, number, path)
            engine.llm_engine.add_lora(request)
            found[path] = told(request) if found["base"] else engine.collective_rpc(updates)[0]
        except Exception as error:  # noqa: BLE001 - whatever it says is what the test compares
            found[path] = f"{type(error).__name__}: {error}"
    sys.stdout.write(f"\nEFFECTS {json.dumps(found)}\n")


if __name__ == "__main__":
    main()
