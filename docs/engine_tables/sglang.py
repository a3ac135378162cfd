"""What SGLang does with LoRA, by the source of one release: the classes of models, and the modules that it adapts."""

from __future__ import annotations

import ast
from typing import Any, Final

from source import Source, literal

MODELS: Final = "sglang.srt.models"
_UTILS: Final = "sglang.srt.lora.utils"


class Reader:
    """Reads one release."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def table(self) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Return the limits, and the facts by architecture."""
        classes: dict[str, dict[str, Any]] = {}
        for module in self.source.modules(MODELS):
            for entry in module.names.get("EntryClass", ())[-1:]:
                names = entry.elts if isinstance(entry, (ast.List, ast.Tuple)) else [entry]
                for name in names:
                    if isinstance(name, ast.Name):
                        classes[name.id] = self._facts(module.names.get(name.id, []))
        return {"targets": sorted(self._targets()), "names": self._names()}, dict(sorted(classes.items()))

    def _facts(self, definitions: list[Any]) -> dict[str, Any]:
        for definition in definitions:
            for statement in definition.body if isinstance(definition, ast.ClassDef) else ():
                if (
                    isinstance(statement, ast.Assign)
                    and getattr(statement.targets[0], "id", "") == "supported_lora_modules"
                ):
                    listed = literal(statement.value)
                    if isinstance(listed, list):
                        return {"supported": listed}
        return {}

    def _targets(self) -> set[str]:
        module = self.source.required(_UTILS)
        found: set[str] = set()
        for name in ("_KNOWN_LORA_TARGET_MODULES", "DSA_INDEXER_LORA_NAMES"):
            for _, definition in module.find(name):
                texts = [node.value for node in ast.walk(definition) if isinstance(node, ast.Constant)]
                found |= {text for text in texts if isinstance(text, str)}
        return found

    def _names(self) -> dict[str, str]:
        for _, definition in self.source.required(_UTILS).find("get_normalized_target_modules"):
            for node in ast.walk(definition):
                value = literal(node) if isinstance(node, ast.Dict) else None
                if isinstance(value, dict) and "q_proj" in value:
                    return value
        raise LookupError(f"{_UTILS} has no table of names")
