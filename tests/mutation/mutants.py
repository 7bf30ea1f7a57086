"""Makes the mutants of a module: its syntax tree with one expression or statement changed."""

import ast
import copy
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

SWAPPED_OPERATORS = {
    ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt, ast.GtE), ast.Gt: (ast.GtE, ast.Lt), ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,), ast.And: (ast.Or,), ast.Or: (ast.And,),
    ast.Add: (ast.Sub,), ast.Sub: (ast.Add,), ast.Mult: (ast.Div,), ast.Div: (ast.Mult,), ast.FloorDiv: (ast.Mult,),
    ast.Mod: (ast.Mult,), ast.Pow: (ast.Mult,), ast.BitAnd: (ast.BitOr,), ast.BitOr: (ast.BitAnd,),
}  # fmt: skip

SWAPPED_NAMES = dict(
    pair
    for a, b in (("max", "min"), ("any", "all"), ("maximum", "minimum"), ("argmax", "argmin"), ("zeros", "ones"),
                 ("mean", "median"))
    for pair in ((a, b), (b, a))
)  # fmt: skip

DROPPED_CALLS = {"abs", "sqrt", "copy", "astype", "nan_to_num", "sorted", "rounded", "widened", "sign"}
"""Functions and methods whose result may be confused with what they were called on."""


@dataclass(frozen=True)
class Mutant:
    """A module with one change.

    Attributes:
        module: Path of the module's file from the root of the repository.
        function: Name of the function that is changed, such as "Reference.budget", or of a constant of the module.
        line: Line of the change.
        change: The code before and after it.
        original: The syntax tree of the module.
        old: The node of `original` that is changed.
        new: What takes its place.
    """

    module: str
    function: str
    line: int
    change: str
    original: ast.Module
    old: ast.AST
    new: ast.AST

    @property
    def name(self) -> str:
        """What stays the same when lines move."""
        return f"{self.module}: {self.function}: {self.change}"

    @property
    def is_constant(self) -> bool:
        """Whether a constant of the module is changed, and not a function."""
        return self.function.isupper()

    @property
    def tree(self) -> ast.Module:
        """The syntax tree of the changed module."""
        mutated = _replace(self.original, self.old, self.new)
        assert isinstance(mutated, ast.Module)
        return ast.fix_missing_locations(mutated)


def mutants_of(module: str, source: str) -> list[Mutant]:
    """Return every mutant of a module's source."""
    tree, found, seen = ast.parse(source), [], Counter()
    for function, node in places_of(tree).items():
        for old, new in _changes_in(node):
            before, after = (_shorten(ast.unparse(part)) for part in (old, new))
            seen[function, before, after] += 1
            again = f" (place {n})" if (n := seen[function, before, after]) > 1 else ""
            line = getattr(old, "lineno", node.lineno)
            found.append(Mutant(module, function, line, f"{before} -> {after}{again}", tree, old, new))
    return found


def places_of(tree: ast.Module) -> dict[str, ast.FunctionDef | ast.Assign]:
    """Return the functions, methods and constants of a module by name. A nested function is a part of the outer one."""
    places = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            places[node.name] = node
        elif isinstance(node, ast.ClassDef):
            places |= {f"{node.name}.{part.name}": part for part in node.body if isinstance(part, ast.FunctionDef)}
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id.isupper():
            places[node.targets[0].id] = node
    return places


def _changes_in(place: ast.FunctionDef | ast.Assign) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Yield each node of a function or constant that is changed, with its replacement."""
    if isinstance(place, ast.Assign):
        numbers = [node for node in ast.walk(place.value) if isinstance(node, ast.Constant)]
        for node in numbers:
            if isinstance(node.value, int | float) and not isinstance(node.value, bool):
                yield node, ast.Constant(node.value * 2)
                yield node, ast.Constant(node.value / 2 if isinstance(node.value, float) else node.value // 2)
        return
    body = place.body[1:] if ast.get_docstring(place) else place.body
    for node in itertools.chain.from_iterable(map(_walk, body)):
        for new in _instead_of(node):
            yield node, new


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes below one, without annotations, docstrings, assertions and the defaults of nested functions."""
    yield node
    if isinstance(node, ast.FunctionDef | ast.Lambda):
        below = node.body if isinstance(node, ast.FunctionDef) else [node.body]
    elif isinstance(node, ast.AnnAssign):
        below = [node.value] if node.value else []
    elif isinstance(node, ast.Assert | ast.Import | ast.ImportFrom) or _is_text(node):
        below = []
    else:
        below = ast.iter_child_nodes(node)
    for child in below:
        yield from _walk(child)


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _instead_of(node: ast.AST) -> Iterator[ast.AST]:
    match node:
        case ast.Compare(ops=[operator]):
            yield from (_with(node, ops=[other()]) for other in SWAPPED_OPERATORS[type(operator)])
        case ast.BoolOp(op=operator, values=values):
            yield from (_with(node, op=other()) for other in SWAPPED_OPERATORS[type(operator)])
            for value in values:
                rest = [other for other in values if other is not value]
                yield rest[0] if len(rest) == 1 else _with(node, values=rest)
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in SWAPPED_OPERATORS:
            yield from (_with(node, op=other()) for other in SWAPPED_OPERATORS[type(operator)])
            yield left
            if isinstance(operator, ast.Add | ast.BitAnd | ast.BitOr):
                yield right
        case ast.AugAssign(op=operator) if type(operator) in SWAPPED_OPERATORS:
            yield from (_with(node, op=other()) for other in SWAPPED_OPERATORS[type(operator)])
            yield ast.Pass()
        case ast.UnaryOp(op=ast.Not() | ast.Invert() | ast.USub(), operand=operand):
            yield operand
        case ast.If() | ast.While():
            yield _with(node, test=ast.Constant(True))
            yield _with(node, test=ast.Constant(False))
        case ast.IfExp(body=body, orelse=orelse):
            yield body
            yield orelse
        case ast.comprehension(ifs=[_, *_]):
            yield _with(node, ifs=[])
        case ast.Constant(value=bool(value)):
            yield ast.Constant(not value)
        case ast.Constant(value=int(value)):
            yield ast.Constant(1 - value if value in (0, 1) else value + 1)
        case ast.Constant(value=float(value)):
            yield ast.Constant(2 * value or 1.0)
        case ast.Call(func=function, args=arguments, keywords=keywords):
            yield from (_with(node, keywords=[other for other in keywords if other is not one])
                        for one in keywords if one.arg)  # fmt: skip
            name = getattr(function, "attr", getattr(function, "id", ""))
            if name in SWAPPED_NAMES:
                other = SWAPPED_NAMES[name]
                changed = {"attr": other} if isinstance(function, ast.Attribute) else {"id": other}
                yield _with(node, func=_with(function, **changed))
            if name in DROPPED_CALLS:
                of_module = not isinstance(function, ast.Attribute) or getattr(function.value, "id", "") == "np"
                yield arguments[0] if of_module else function.value
        case ast.Slice(lower=lower, upper=upper) if lower or upper:
            yield ast.Slice()
        case ast.Raise() | ast.Continue() | ast.Break() | ast.Expr(value=ast.Call()):
            yield ast.Pass()
        case ast.Assign(targets=[ast.Subscript() | ast.Attribute()]):
            yield ast.Pass()


def _with(node: ast.AST, **fields: object) -> ast.AST:
    """Return a shallow copy of a node with other fields."""
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _replace(node: object, old: ast.AST, new: ast.AST) -> object:
    """Return a copy of a tree with one of its nodes replaced."""
    if node is old:
        return ast.copy_location(new, old) if hasattr(old, "lineno") else new
    if isinstance(node, list):
        return [_replace(part, old, new) for part in node]
    if isinstance(node, ast.AST):
        return _with(node, **{name: _replace(value, old, new) for name, value in ast.iter_fields(node)})
    return node


def _shorten(code: str) -> str:
    """Return code as one line; of a statement with a body only the line that is changed."""
    lines = code.splitlines()
    return " ".join(line.strip() for line in lines) if len(lines) < 2 or not lines[0].endswith(":") else lines[0]
