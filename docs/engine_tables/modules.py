"""The modules that a class of models makes, from the `__init__` of it and of all that it makes.

Every branch is taken: the tree has all modules that some config brings about. What cannot be followed is left out.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from source import Module, Source, literal

ANY: Final = "*"
"""A number in a path."""
_DEEPEST: Final = 40


@dataclass(eq=False)
class Tree:
    """A module: the kind of layer it is, if it is one, and the modules inside by name. `*` stands for each number.

    `classes` are the classes that it may have. `arguments` are the literals that its class was made with.
    """

    kind: str = ""
    children: dict[str, Tree] = field(default_factory=dict)
    classes: list[Class] = field(default_factory=list)
    arguments: dict[str, object] = field(default_factory=dict)
    kinds: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        if self.kind:
            self.kinds.add(self.kind)

    def add(self, name: str, child: Tree) -> None:
        """Put a module inside, beside another of its name."""
        if name in self.children:
            child = joined([self.children[name], child])
        self.children[name] = child

    def walk(self, path: str = "") -> Iterator[tuple[str, Tree]]:
        """Every module with its path; itself has the path given."""
        yield path, self
        for name, child in self.children.items():
            yield from child.walk(f"{path}.{name}" if path else name)


def joined(trees: list[Tree]) -> Tree:
    """One tree with what each of several has."""
    if len(trees) == 1:
        return trees[0]
    made = Tree()
    for tree in trees:
        made.kinds |= tree.kinds
        made.kind = made.kind or tree.kind
        made.arguments |= tree.arguments
        made.classes += [each for each in tree.classes if each not in made.classes]
        for name, child in tree.children.items():
            made.add(name, child)
    return made


@dataclass(frozen=True)
class Class:
    """A class by the module that defines it."""

    module: Module
    node: ast.ClassDef

    @property
    def name(self) -> str:
        """Its name."""
        return self.node.name


@dataclass(frozen=True)
class Function:
    """A function or lambda; `owner` is the object whose method it is."""

    module: Module
    node: ast.FunctionDef | ast.Lambda
    outer: Scope | None = None


Value = Tree | Class | Function
_Values = dict[str, list[Value]]


@dataclass(frozen=True, eq=False)
class Scope:
    """Where an expression stands: the names there, and the module that is being made."""

    module: Module
    names: _Values
    made: Tree | None = None
    order: tuple[Class, ...] = ()
    """The classes of `made`, the nearest first."""
    at: int = 0
    """Which of them has the function."""
    depth: int = 0


Leaf = Callable[[Class], str]
"""The kind of a layer by its class; empty if it is a module of several."""
Maker = Callable[["Builder", ast.Call, str, Scope], list[Value] | None]
"""What a call of a function of the engine makes; None if nothing is known of it."""


class Builder:
    """Makes the trees of classes in a source."""

    def __init__(self, source: Source, leaf: Leaf, maker: Maker) -> None:
        """`leaf` tells layers, `maker` what functions return that look classes up."""
        self.source, self.leaf, self.maker = source, leaf, maker
        self._known: dict[tuple[Class, tuple[tuple[str, tuple[Class, ...]], ...]], Tree] = {}
        self._orders: dict[Class, tuple[Class, ...]] = {}
        self._running: list[tuple[ast.AST, Tree | None]] = []

    # ------------------------------------------------------------ classes
    def order(self, one: Class) -> tuple[Class, ...]:
        """Return the class and those that it inherits from, the nearest first, without repetition."""
        if one not in self._orders:
            self._orders[one] = (one,)  # an import in a circle ends here
            found = [one]
            for base in one.node.bases:
                for each in self._classes(base, one.module):
                    found += [other for other in self.order(each) if other not in found]
            self._orders[one] = tuple(found)
        return self._orders[one]

    def _classes(self, node: ast.expr, module: Module) -> list[Class]:
        if isinstance(node, ast.Subscript):
            node = node.value
        if isinstance(node, ast.Call):  # a function that makes a class of another
            return [each for argument in node.args[:1] for each in self._classes(argument, module)]
        if isinstance(node, ast.Name):
            return self.named(node.id, module)
        return []

    def named(self, name: str, module: Module) -> list[Class]:
        """Return the classes of a name; several where a file defines it by cases."""
        found: list[Class] = []
        for where, definition in module.find(name):
            if isinstance(definition, ast.ClassDef):
                found.append(Class(where, definition))
            elif isinstance(definition, ast.expr):
                found += self._classes(definition, where)
        return found[-1:] if len(found) > 1 and all(isinstance(f, Class) for f in found[:1]) else found

    def attribute(self, one: Class, name: str) -> tuple[Module, ast.expr] | None:
        """Return the value that the body of a class or of one that it inherits from gives a name."""
        for each in self.order(one):
            for statement in each.node.body:
                targets: list[ast.expr] = []
                if isinstance(statement, ast.Assign):
                    targets = statement.targets
                elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
                    targets = [statement.target]
                if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                    value = statement.value  # type: ignore[union-attr] # one of the two kinds above
                    assert value is not None
                    return each.module, value
        return None

    def method(self, order: tuple[Class, ...], name: str, start: int = 0) -> tuple[int, ast.FunctionDef] | None:
        """Return the method of a name, and the place of its class in the order."""
        for place in range(start, len(order)):
            for statement in order[place].node.body:
                if isinstance(statement, ast.FunctionDef) and statement.name == name:
                    return place, statement
        return None

    # ------------------------------------------------------------ trees
    def build(self, one: Class, given: Mapping[str, list[Value]] | None = None, depth: int = 0) -> Tree:
        """Return the tree of a class whose `__init__` is given these classes."""
        kind = self.leaf(one)
        classes = {
            name: tuple(v for v in values if isinstance(v, Class)) for name, values in sorted((given or {}).items())
        }
        key = (one, tuple((name, values) for name, values in classes.items() if values))
        if key in self._known:
            return self._known[key]
        made = Tree(kind, classes=[one])
        self._known[key] = made
        if not kind and depth < _DEEPEST:
            order = self.order(one)
            found = self.method(order, "__init__")
            if found is not None:
                scope = Scope(order[found[0]].module, dict(given or {}), made, order, found[0], depth)
                self.run(found[1], scope, dict(given or {}))
        return made

    def run(
        self, function: ast.FunctionDef | ast.Lambda, scope: Scope, given: Mapping[str, list[Value]]
    ) -> list[Value]:
        """Return the value of a function; it may put modules into `scope.made`."""
        if (function, scope.made) in self._running:
            return []
        self._running.append((function, scope.made))
        try:
            return self._result(function, scope, given)
        finally:
            self._running.pop()

    def _result(
        self, function: ast.FunctionDef | ast.Lambda, scope: Scope, given: Mapping[str, list[Value]]
    ) -> list[Value]:
        names: _Values = {}
        arguments = function.args
        plain = [*arguments.posonlyargs, *arguments.args]
        for argument, default in zip(reversed(plain), reversed(arguments.defaults), strict=False):
            names[argument.arg] = self.values(default, scope)
        for argument, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
            if value is not None:
                names[argument.arg] = self.values(value, scope)
        names.update({name: values for name, values in given.items() if values})
        inner = Scope(scope.module, names, scope.made, scope.order, scope.at, scope.depth + 1)
        if isinstance(function, ast.Lambda):
            return self.values(function.body, inner)
        returned: list[Value] = []
        self._run(function.body, inner, returned)
        return returned

    def _run(self, body: list[ast.stmt], scope: Scope, returned: list[Value]) -> None:
        for statement in body:
            self._statement(statement, scope, returned)
            if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
                continue
            for inner in ("body", "orelse", "finalbody"):
                self._run(getattr(statement, inner, []), scope, returned)
            for handler in getattr(statement, "handlers", []):
                self._run(handler.body, scope, returned)

    def _statement(self, statement: ast.stmt, scope: Scope, returned: list[Value]) -> None:
        if isinstance(statement, ast.Assign):
            for target in statement.targets:
                self._assign(target, statement.value, scope)
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            self._assign(statement.target, statement.value, scope)
        elif isinstance(statement, ast.Expr):
            self._expression(statement.value, scope)
        elif isinstance(statement, ast.Return) and statement.value is not None:
            returned += self.values(statement.value, scope)
        elif isinstance(statement, ast.FunctionDef):
            scope.names.setdefault(statement.name, []).append(Function(scope.module, statement, scope))
        elif isinstance(statement, ast.ImportFrom):
            other = self.source.module(scope.module.origin_of(statement))
            for each in statement.names if other is not None else ():
                assert other is not None
                scope.names[each.asname or each.name] = list(self.named(each.name, other))

    def _assign(self, target: ast.expr, value: ast.expr, scope: Scope) -> None:
        if isinstance(target, ast.Tuple):
            if isinstance(value, ast.Tuple) and len(value.elts) == len(target.elts):
                for each, one in zip(target.elts, value.elts, strict=True):
                    self._assign(each, one, scope)
            elif target.elts:  # where a function returns several things, the modules come last
                self._assign(target.elts[-1], value, scope)
            return
        values = self.values(value, scope)
        if isinstance(target, ast.Name):
            scope.names.setdefault(target.id, []).extend(v for v in values if v not in scope.names[target.id])
        elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
            self._put(target.attr, values, scope)
        elif isinstance(target, ast.Subscript) and isinstance(target.value, ast.Attribute):
            self._put(target.value.attr, [_numbered(values)], scope)

    def _put(self, name: str, values: list[Value], scope: Scope) -> None:
        for value in values:
            if isinstance(value, Tree) and scope.made is not None and (value.kind or value.children or value.classes):
                scope.made.add(name, value)
            else:
                scope.names.setdefault(f"self.{name}", []).append(value)

    def _expression(self, node: ast.expr, scope: Scope) -> None:
        if not isinstance(node, ast.Call):
            return
        function = node.func
        if isinstance(function, ast.Attribute) and function.attr in ("append", "add_module") and node.args:
            values = self.values(node.args[-1], scope)
            name = literal(node.args[0])
            holder = function.value
            if function.attr == "add_module" and isinstance(name, str) and isinstance(holder, ast.Name):
                self._put(name, values, scope)
            elif isinstance(holder, ast.Name):
                scope.names.setdefault(holder.id, []).append(_numbered(values))
            elif isinstance(holder, ast.Attribute) and isinstance(holder.value, ast.Name):
                self._put(holder.attr, [_numbered(values)], scope)
            return
        holder = function.value if isinstance(function, ast.Attribute) else None
        is_own = isinstance(holder, ast.Name) and holder.id == "self"
        if is_own or (isinstance(holder, ast.Call) and getattr(holder.func, "id", "") == "super"):
            self.values(node, scope)

    # ------------------------------------------------------------ expressions
    def values(self, node: ast.expr, scope: Scope) -> list[Value]:  # noqa: PLR0911 - one way for each kind
        """Return the possible values of an expression, as far as it is a module, a class or a function."""
        if isinstance(node, ast.IfExp):
            return [*self.values(node.body, scope), *self.values(node.orelse, scope)]
        if isinstance(node, ast.BoolOp):
            return [value for each in node.values for value in self.values(each, scope)]
        if isinstance(node, (ast.List, ast.Tuple)):
            found = [value for each in node.elts for value in self.values(each, scope)]
            return [_numbered(found)] if any(isinstance(value, Tree) for value in found) else found
        if isinstance(node, (ast.ListComp, ast.GeneratorExp)):
            return [_numbered(self.values(node.elt, scope))]
        if isinstance(node, ast.Dict):
            return [value for each in node.values for value in self.values(each, scope)]
        if isinstance(node, ast.Subscript):
            return self.values(node.value, scope)
        if isinstance(node, ast.Starred):
            return self.values(node.value, scope)
        if isinstance(node, ast.Lambda):
            return [Function(scope.module, node, scope)]
        if isinstance(node, ast.Name):
            return self._name(node.id, scope)
        if isinstance(node, ast.Attribute):
            return self._attribute(node, scope)
        if isinstance(node, ast.Call):
            return self._call(node, scope)
        return []

    def _name(self, name: str, scope: Scope) -> list[Value]:
        if name in scope.names:
            return list(scope.names[name])
        found: list[Value] = list(self.named(name, scope.module))
        if not found:
            for where, definition in scope.module.find(name):
                if isinstance(definition, ast.FunctionDef):
                    found.append(Function(where, definition))
                elif isinstance(definition, ast.Dict):
                    found += self.values(definition, Scope(where, {}))
        return found

    def _attribute(self, node: ast.Attribute, scope: Scope) -> list[Value]:
        if isinstance(node.value, ast.Name) and node.value.id == "self":
            if scope.made is not None and node.attr in scope.made.children:
                return [scope.made.children[node.attr]]
            if f"self.{node.attr}" in scope.names:
                return list(scope.names[f"self.{node.attr}"])
            if scope.order and (found := self.attribute(scope.order[0], node.attr)) is not None:
                return self.values(found[1], Scope(found[0], {}))
            return []
        return [
            value.children[node.attr]
            for value in self.values(node.value, scope)
            if isinstance(value, Tree) and node.attr in value.children
        ]

    def _given(self, node: ast.Call, scope: Scope) -> dict[str, list[Value]]:
        return {each.arg: self.values(each.value, scope) for each in node.keywords if each.arg}

    def _call(self, node: ast.Call, scope: Scope) -> list[Value]:
        if scope.depth > _DEEPEST:
            return []
        function = node.func
        name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
        made = self.maker(self, node, name, scope)
        if made is not None:
            return made
        if isinstance(function, ast.Attribute) and (known := self._of_holder(function, node, scope)) is not None:
            return known
        if name == "partial" and node.args:
            return self.values(node.args[0], scope)
        found: list[Value] = []
        for value in self.values(function, scope):
            if isinstance(value, Class):
                tree = self.build(value, self._named_arguments(value, node, scope), scope.depth + 1)
                found.append(self._with_literals(tree, node))
            elif isinstance(value, Function):
                found += self._function(value, node, scope)
        return found

    def _of_holder(self, function: ast.Attribute, node: ast.Call, scope: Scope) -> list[Value] | None:
        """Return the result of a method's call; None for an unknown method."""
        name, holder = function.attr, function.value
        if isinstance(holder, ast.Call) and getattr(holder.func, "id", "") == "super":
            return self._method(name, node, scope, scope.at + 1)
        if isinstance(holder, ast.Name) and holder.id == "self" and scope.order:
            return self._method(name, node, scope, 0) if self.method(scope.order, name) is not None else None
        if name in ("tie_weights", "to", "eval", "requires_grad_", "cuda"):
            return self.values(holder, scope)
        return self._of_torch(node, name, scope) if isinstance(holder, ast.Name) and holder.id == "nn" else None

    def _with_literals(self, tree: Tree, node: ast.Call) -> Tree:
        literals = {each.arg: literal(each.value) for each in node.keywords if each.arg}
        known = {name: value for name, value in literals.items() if value is not None}
        if not tree.kind or not known:
            return tree
        return Tree(tree.kind, tree.children, tree.classes, known)

    def _named_arguments(self, one: Class, node: ast.Call, scope: Scope) -> dict[str, list[Value]]:
        given = self._given(node, scope)
        found = self.method(self.order(one), "__init__")
        if found is not None:
            names = [argument.arg for argument in found[1].args.args[1:]]
            for name, argument in zip(names, node.args, strict=False):
                given.setdefault(name, self.values(argument, scope))
        return given

    def _method(self, name: str, node: ast.Call, scope: Scope, start: int) -> list[Value]:
        found = self.method(scope.order, name, start)
        if found is None:
            return []
        place, function = found
        given = self._given(node, scope)
        for argument, value in zip(function.args.args[1:], node.args, strict=False):
            given.setdefault(argument.arg, self.values(value, scope))
        inner = Scope(scope.order[place].module, {}, scope.made, scope.order, place, scope.depth + 1)
        return self.run(function, inner, given)

    def _function(self, value: Function, node: ast.Call, scope: Scope) -> list[Value]:
        given = self._given(node, scope)
        for argument, each in zip(value.node.args.args, node.args, strict=False):
            given.setdefault(argument.arg, self.values(each, scope))
        outer = value.outer
        names = dict(outer.names) if outer is not None else {}
        made = outer.made if outer is not None else None
        order, at = (outer.order, outer.at) if outer is not None else ((), 0)
        inner = Scope(value.module, names, made, order, at, scope.depth + 1)
        return self.run(value.node, inner, {**names, **given})

    def _of_torch(self, node: ast.Call, name: str, scope: Scope) -> list[Value]:
        if name == "ModuleList":
            found = [value for each in node.args[:1] for value in self.values(each, scope)]
            inside = [value for value in found if isinstance(value, Tree)]
            return [joined(inside)] if inside else []
        if name == "Sequential":
            found = [value for each in node.args for value in self.values(each, scope)]
            return [_numbered(found)]
        if name == "ModuleDict":
            made = Tree()
            for each in node.args[:1]:
                if isinstance(each, ast.Dict):
                    for key, value in zip(each.keys, each.values, strict=True):
                        for tree in self.values(value, scope):
                            if isinstance(tree, Tree) and isinstance(literal(key), str):
                                made.add(str(literal(key)), tree)
            return [made]
        return []


def _numbered(values: list[Value]) -> Tree:
    """Return a list of modules."""
    made = Tree()
    for value in values:
        if isinstance(value, Tree):
            inside = value.children.get(ANY) if set(value.children) == {ANY} and not value.kind else None
            made.add(ANY, inside or value)
    return made
