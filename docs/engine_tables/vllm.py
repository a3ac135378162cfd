"""What each class of models of vLLM does with LoRA, by the source of one release."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any, Final

from modules import ANY, Builder, Class, Scope, Tree, Value, joined
from source import Module, Source, literal

MODELS: Final = "vllm.model_executor.models"
LINEAR: Final = "vllm.model_executor.layers.linear"
EMBEDDING: Final = "vllm.model_executor.layers.vocab_parallel_embedding"
RUNNERS: Final = ("MoERunner", "FusedMoE")
_EXACT: Final = {"ColumnParallelLinear": "column", "RowParallelLinear": "row", "QKVParallelLinear": "qkv"}
_INHERITED: Final = {"ReplicatedLinear": "replicated", "MergedColumnParallelLinear": "merged"}
_CAUSAL: Final = ("ForCausalLM", "ForConditionalGeneration")
_RULES: Final = ("regex", "substr", "prefix", "suffix")
_EXPERTS: Final = ("gate_proj", "down_proj", "up_proj")
_INNER: Final = "inner"
"""The kind of a module that is another class of models, which the base's config names."""


class Reader:
    """Reads one release."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.registry = self._registry()
        self.builder = Builder(source, self._leaf, self._made)
        self._depth: list[str] = []

    # ------------------------------------------------------------ registry
    def _registry(self) -> dict[str, tuple[str, str]]:
        """Return module and class by the name in `architectures`."""
        module = self.source.required(f"{MODELS}.registry")
        found: dict[str, tuple[str, str]] = {}
        for name, definitions in module.names.items():
            if name.startswith("_") and name.endswith("_MODELS") and isinstance(definitions[-1], ast.Dict):
                if "SPECULATIVE" in name or "BACKEND" in name or name == "_VLLM_MODELS" or "PREVIOUSLY" in name:
                    continue
                for key, value in zip(definitions[-1].keys, definitions[-1].values, strict=True):
                    pair = literal(value)
                    if isinstance(pair, tuple) and isinstance(literal(key), str) and all(map(_is_text, pair)):
                        found.setdefault(str(literal(key)), (str(pair[0]), str(pair[1])))
        return found

    def classes_of(self, architecture: str) -> list[Class]:
        """Return the class of an architecture, one for each kind of machine where they differ."""
        where, name = self.registry[architecture]
        module = self.source.module(where if where.startswith("vllm.") else f"{MODELS}.{where}")
        return self.builder.named(name, module) if module is not None else []

    # ------------------------------------------------------------ layers
    def _leaf(self, one: Class) -> str:
        if one.name in RUNNERS:
            return "experts"
        if one.module.name == LINEAR and one.name in _EXACT:
            return _EXACT[one.name]
        for each in self.builder.order(one):
            if each.module.name == LINEAR:
                if each.name in _INHERITED:
                    return _INHERITED[each.name]
                if each.name == "LinearBase":
                    return "other"
            if each.module.name == EMBEDDING and each.name == "VocabParallelEmbedding":
                return "embedding"
            if each.name in RUNNERS:
                return "experts"
        return "missing" if one.name in ("PPMissingLayer", "StageMissingLayer") else ""

    def _made(self, builder: Builder, node: ast.Call, name: str, scope: Scope) -> list[Value] | None:
        if name in ("PPMissingLayer", "StageMissingLayer", "get_rope", "getattr"):
            return []
        if name in ("FusedMoEFactory", "FusedMoE", "SharedFusedMoE"):
            given = {each.arg: literal(each.value) for each in node.keywords if each.arg}
            return [Tree("experts", arguments={k: v for k, v in given.items() if v is not None})]
        if name == "make_layers":
            functions = [v for each in [*node.args[1:2]] for v in builder.values(each, scope)]
            functions += [v for k in node.keywords if k.arg == "layer_fn" for v in builder.values(k.value, scope)]
            made = [v for each in functions for v in self._layer(builder, each, node, scope)]
            return [Tree(children={ANY: joined(made)})] if made else []
        if name in ("init_vllm_registered_model", "init_text_model"):
            listed = next((literal(k.value) for k in node.keywords if k.arg == "architectures"), None)
            inner = [a for a in listed if a in self.registry] if isinstance(listed, list) else []
            trees: list[Value] = [builder.build(c, depth=scope.depth) for a in inner for c in self.classes_of(a)]
            return trees or [Tree(_INNER)]
        return None

    def _layer(self, builder: Builder, value: Value, node: ast.Call, scope: Scope) -> Iterator[Tree]:
        found: list[Value] = []
        if isinstance(value, Class):
            found = [builder.build(value, depth=scope.depth + 1)]
        elif isinstance(value, Tree):
            found = [value]
        else:
            found = builder._function(value, ast.Call(node.func, [], []), scope)  # noqa: SLF001 - the same program
        for each in found:
            if isinstance(each, Tree):
                yield each

    # ------------------------------------------------------------ values in bodies of classes
    def value(self, one: Class, name: str) -> Any:
        """Return a literal that a class gives a name; None if it has none."""
        found = self.builder.attribute(one, name)
        return self._evaluated(*found) if found is not None else None

    def _evaluated(self, module: Module, node: ast.expr) -> Any:
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            for other in self.builder.named(node.value.id, module):
                return self.value(other, node.attr)
            return None
        if isinstance(node, ast.Name):
            for where, definition in module.find(node.id):
                if isinstance(definition, ast.expr):
                    return self._evaluated(where, definition)
            return None
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitOr):
            left, right = self._evaluated(module, node.left), self._evaluated(module, node.right)
            return _united(left or {}, right or {}) if isinstance(left or right, dict) else None
        if isinstance(node, ast.Call):
            return self._mapper(module, node)
        if isinstance(node, ast.Dict):
            made: dict[Any, Any] = {}
            for key, value in zip(node.keys, node.values, strict=True):
                if key is None:
                    made.update(self._evaluated(module, value) or {})
                else:
                    made[_key(key)] = self._evaluated(module, value)
            return made
        return literal(node)

    def _mapper(self, module: Module, node: ast.Call) -> Any:
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name == "WeightsMapper":
            return {
                k.arg.removeprefix("orig_to_new_"): self._evaluated(module, k.value) or {}
                for k in node.keywords
                if k.arg
            }
        if name == "replace" and node.args:
            value = self._evaluated(module, node.args[0])
            changes = {str(k.arg).removeprefix("orig_to_new_"): self._evaluated(module, k.value) for k in node.keywords}
            return {**(value or {}), **changes}
        for where, definition in module.find(name):
            if isinstance(definition, ast.FunctionDef):
                returned = [s.value for s in ast.walk(definition) if isinstance(s, ast.Return) and s.value is not None]
                values = [self._evaluated(where, each) for each in returned]
                values = [value for value in values if isinstance(value, dict)]
                if values:
                    return values[-1]
                if node.args:  # a function that changes a mapper
                    return self._evaluated(module, node.args[0])
        return None

    def _prefixes(self, one: Class) -> dict[str, list[str]]:
        """Return the value of `get_mm_mapping`."""
        found = self.builder.method(self.builder.order(one), "get_mm_mapping")
        for call in ast.walk(found[1]) if found else ():
            if isinstance(call, ast.Call) and call.keywords:
                values = {k.arg: literal(k.value) for k in call.keywords if k.arg}
                if "language_model" in values:
                    return {
                        str(k): [v] if isinstance(v, str) else list(v)
                        for k, v in values.items()
                        if isinstance(v, (str, list))
                    }
        return {}

    # ------------------------------------------------------------ facts
    def facts(self, architecture: str) -> dict[str, Any] | None:
        """Return the table's entry of an architecture; None if its class is not in the source."""
        where, name = self.registry[architecture]
        if where == "transformers":
            return {"backend": True} if "ForCausalLM" in name and "MultiModal" not in name else {"unread": True}
        classes = self.classes_of(architecture)
        if not classes:
            return None
        one = classes[-1]
        order = self.builder.order(one)
        if not any(each.name == "SupportsLoRA" for each in order) and self.value(one, "supports_lora") is not True:
            return {"lora": False}
        tree = self.builder.build(one)
        prefixes = self._prefixes(one)
        language = (prefixes.get("language_model") or [""])[0].rstrip(".")
        three = bool(self.value(one, "is_3d_moe_weight"))
        groups = self._groups(one, tree, language, three=three)
        bound, known = (
            groups["bound"],
            {name for group in groups.values() for names in group.values() for name in names},
        )
        more = known - {name for names in bound.values() for name in names}
        made: dict[str, Any] = {
            "bound": _listed(bound),
            "towers": _listed(
                _under(groups["others"], [*prefixes.get("tower_model", ()), *prefixes.get("connector", ())])
            ),
            "tower_lora": bool(self.value(one, "supports_tower_connector_lora")),
            "known": sorted(more),
            "rename": self._rules(one),
            "language": language,
            "inner": [path for path, each in tree.walk() if _INNER in each.kinds],
            "three": three,
            "skip": self.value(one, "lora_skip_prefixes"),
        }
        return {name: value for name, value in made.items() if value or name == "bound"}

    def _groups(self, one: Class, tree: Tree, language: str, *, three: bool) -> dict[str, dict[str, set[str]]]:
        """Return the adapter's names of all layers by their parents: bound, of other parts, and without LoRA."""
        packed = self._packed(one, tree)
        classes = [each for _, part in tree.walk() for each in part.classes]
        embeddings = {name for each in classes for name in self.value(each, "embedding_modules") or {}}
        groups: dict[str, dict[str, set[str]]] = {"bound": {}, "others": {}, "unwrapped": {}}
        for path, each in tree.walk():
            parent, _, leaf = path.rpartition(".")
            if (
                not path
                or not each.kinds - {_INNER, "missing"}
                or ("embedding" in each.kinds and leaf not in embeddings)
            ):
                continue
            names = packed.get(leaf) or [leaf]
            if "experts" in each.kinds:
                names = ["experts"] if three else [f"experts.{ANY}.{name}" for name in self._experts(each)]
                if leaf == "experts":
                    groups["unwrapped"].setdefault(parent, set()).add("experts")
            is_wrapped = any(_is_wrapped(kind, leaf, packed) for kind in each.kinds)
            group = "unwrapped" if not is_wrapped else "bound" if path.startswith(language) else "others"
            groups[group].setdefault(parent, set()).update(names)
        return groups

    def _rules(self, one: Class) -> list[list[str]]:
        """How a wrapper renames the tensors of an adapter."""
        mapper = self._in_init(one) or self.value(one, "hf_to_vllm_mapper") or {}
        return [
            [kind, *pair]
            for kind in _RULES
            for pair in (mapper.get(kind) or {}).items()
            if all(isinstance(text, str) for text in pair) and _matters(kind, str(pair[0]))
        ]

    def _experts(self, tree: Tree) -> list[str]:
        names = tree.arguments.get("ckpt_names")
        return [str(name) for name in names if name] if isinstance(names, tuple) else list(_EXPERTS)

    def _packed(self, one: Class, tree: Tree) -> dict[str, list[str]]:
        own = self.value(one, "packed_modules_mapping")
        if own:
            return {name: listed for name, listed in own.items() if isinstance(listed, list)}
        made: dict[str, list[str]] = {}
        for child in tree.children.values():
            for each in child.classes:
                listed = self.value(each, "packed_modules_mapping") or {}
                made.update({name: names for name, names in listed.items() if isinstance(names, list)})
        return made

    def _in_init(self, one: Class) -> dict[str, Any] | None:
        """Return a mapper that `__init__` sets; only literal parts of it are known."""
        found = self.builder.method(self.builder.order(one), "__init__")
        if found is None:
            return None
        module = self.builder.order(one)[found[0]].module
        made: dict[str, dict[str, Any]] | None = None
        for statement in ast.walk(found[1]):
            if isinstance(statement, ast.Assign) and any(
                isinstance(t, ast.Attribute) and t.attr == "hf_to_vllm_mapper" and getattr(t.value, "id", "") == "self"
                for t in statement.targets
            ):
                value = self._evaluated(module, statement.value)
                if isinstance(value, dict):
                    before = self.value(one, "hf_to_vllm_mapper") or {}
                    made = _united(before, value)
        return made

    # ------------------------------------------------------------ limits
    def limits(self) -> dict[str, Any]:
        """Return the facts about all classes of the release."""
        helper = self._class("vllm.lora.peft_helper", "PEFTHelper")
        fields = [s.target.id for s in helper.body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)]
        needed = [
            s.target.id
            for s in helper.body
            if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name) and s.value is None
        ]
        texts = [
            str(node.value) for node in ast.walk(helper) if isinstance(node, ast.Constant) and _is_text(node.value)
        ]
        starts: list[str] = []
        for node in ast.walk(helper):
            if isinstance(node, ast.FunctionDef) and node.name == "_init_is_supported":
                starts = [v for t in ast.walk(node) if isinstance(t, ast.Tuple) for v in literal(t) or ()]  # type: ignore[attr-defined]
        ranks = self._ranks()
        manager = self._class("vllm.lora.model_manager", "LoRAModelManager")
        methods = {node.name for node in manager.body if isinstance(node, ast.FunctionDef)}
        heads = next(
            (literal(n) for n in ast.walk(helper) if isinstance(n, ast.List) and "score" in (literal(n) or ())), []
        )  # type: ignore[operator]
        return {
            "ranks": ranks,
            "settings": sorted(f for f in fields if not f.startswith("vllm_")),
            "needed": sorted(needed),
            "starts": sorted(starts),
            "heads": sorted(heads) if isinstance(heads, list) else [],
            "text_names": "_get_text_lora_names" in methods,
            "shape_checks": "_validate_moe_lora_format" in methods,
            "vocabulary": self._vocabulary(),
            "whole": any("modules_to_save" in text for text in texts),
        }

    def _class(self, module: str, name: str) -> ast.ClassDef:
        for _, definition in self.source.required(module).find(name):
            if isinstance(definition, ast.ClassDef):
                return definition
        raise LookupError(f"{module} has no class {name}")

    def _ranks(self) -> list[int]:
        for _, definition in self.source.required("vllm.config.lora").find("MaxLoRARanks"):
            if isinstance(definition, ast.Subscript):
                value = literal(definition.slice)
                if isinstance(value, tuple):
                    return [int(each) for each in value]
        raise LookupError("vllm.config.lora has no list of ranks")

    def _vocabulary(self) -> int:
        node = self._class("vllm.lora.layers.logits_processor", "LogitsProcessorWithLoRA")
        numbers = [n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, int)]
        return max(number for number in numbers if not isinstance(number, bool))

    def table(self) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Return the limits, and the facts by architecture."""
        facts = {name: self.facts(name) for name in sorted(self.registry)}
        return self.limits(), {name: value for name, value in facts.items() if value is not None}


def _listed(found: Mapping[str, set[str]]) -> dict[str, str]:
    return {parent: " ".join(sorted(names)) for parent, names in sorted(found.items())}


def _under(found: Mapping[str, set[str]], fronts: list[str]) -> dict[str, set[str]]:
    return {path: names for path, names in found.items() if any(f"{path}.".startswith(front) for front in fronts)}


def _matters(kind: str, source: str) -> bool:
    """Whether the rule can change the name of a tensor of a pair, which ends as one of PEFT's."""
    ends = ("lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B")
    return kind != "suffix" or any(end.endswith(source) for end in ends)


def _united(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Two mappings as one, and the mappings that they hold as well."""
    made = dict(one)
    for key, value in other.items():
        before = made.get(key)
        made[key] = {**before, **value} if isinstance(before, dict) and isinstance(value, dict) else value
    return made


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _key(node: ast.expr) -> Any:
    """Return the key of a dict; of a compiled pattern its text."""
    if isinstance(node, ast.Call) and node.args:
        return literal(node.args[0])
    return literal(node)


def _is_wrapped(kind: str, leaf: str, packed: Mapping[str, list[str]]) -> bool:
    """Whether vLLM has a layer with LoRA for the kind; it asks how many layers of the file the module stacks."""
    count = len(packed.get(leaf, ()))
    if kind == "qkv":
        return count in (1, 3)
    if kind == "merged":
        return count > 0
    return kind in ("column", "row", "replicated", "embedding", "experts")
