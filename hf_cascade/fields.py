"""The flags a stage takes, read from the source of their dataclasses: planning checks them without importing torch."""

import ast
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path

# run -> where its dataclasses can be imported from; what its script's parser is made of
DATACLASSES = {
    "prune": ("hf_cascade.prune.config.PruneConfig", "hf_cascade.prune.config.PruneArguments"),
    "pretrain": (
        "hf_cascade.distill.config.CascadeSFTConfig",
        "hf_cascade.distill.config.PretrainingArguments",
        "hf_cascade.data.config.TextArguments",
        "trl.ModelConfig",
        "trl.DatasetMixtureConfig",
    ),
    "distill": (
        "hf_cascade.distill.config.CascadeDistillationConfig",
        "hf_cascade.data.config.TextArguments",
        "hf_cascade.context.ContextArguments",
        "trl.ModelConfig",
        "trl.DatasetMixtureConfig",
    ),
    "sft": (
        "hf_cascade.distill.config.CascadeDistillationConfig",
        "hf_cascade.distill.sft_arguments.SFTArguments",
        "trl.ModelConfig",
        "trl.DatasetMixtureConfig",
    ),
    "pwrm": (
        "hf_cascade.distill.config.CascadeSFTConfig",
        "hf_cascade.rewards.config.PairwiseArguments",
        "trl.ModelConfig",
        "trl.DatasetMixtureConfig",
    ),
    "difficulty": ("hf_cascade.grpo.difficulty_arguments.DifficultyArguments",),
    "grpo": (
        "hf_cascade.grpo.config.CascadeGRPOConfig",
        "hf_cascade.grpo.arguments.GRPOArguments",
        "trl.ModelConfig",
        "trl.DatasetMixtureConfig",
    ),
    "odpo": (
        "hf_cascade.odpo.config.CascadeODPOConfig",
        "hf_cascade.odpo.arguments.ODPOArguments",
        "trl.ModelConfig",
        "trl.DatasetMixtureConfig",
    ),
    "evaluate": ("hf_cascade.evaluate.config.EvaluateArguments",),
}
# ... of commands that are no stage of a recipe
COMMANDS = {
    "fp8": ("hf_cascade.publish.fp8_command.Fp8Arguments",),
    "publish": ("hf_cascade.publish.config.PublishArguments",),
}
NEEDED = "needed"  # default of a flag that has none
PLAIN = ("None", "int", "float", "bool", "str", "list", "dict")


@dataclass(frozen=True)
class Field:
    """
    One flag.

    Attributes:
        name (`str`): its name.
        annotation (`str`): its type as written.
        choices (`tuple`, *optional*): the values it may have.
        help (`str`): its line of help, as in the field's metadata.
        default (`str`): its default as YAML writes it; `""` for `None` or an empty one, [`NEEDED`] if it has none.
        owner (`str`): the class that sets it, with its module.
    """

    name: str
    annotation: str
    choices: tuple | None = None
    help: str = ""
    default: str = ""
    owner: str = ""

    def complaint(self, value) -> str | None:
        """What is wrong with a YAML value for this flag, or `None`."""
        kinds = _kinds(self.annotation)
        if value is None:
            return None if "None" in kinds else f"has no value; allowed is {self.annotation}"
        hint = " (YAML reads a bare yes, no, on or off as true or false: quote it)" if isinstance(value, bool) else ""
        if self.choices and value not in self.choices:
            return f"{value!r} is not one of {', '.join(map(str, self.choices))}{hint}"
        if not _fits(value, kinds):
            return f"{value!r} is {type(value).__name__}; allowed is {self.annotation}{hint if 'str' in kinds else ''}"
        if isinstance(value, list) and "list[str]" in self.annotation and not all(isinstance(v, str) for v in value):
            return f"{value!r}: every entry must be text; quote numbers and bare yes, no, on or off"
        return None


def _kinds(annotation: str) -> set[str]:
    """Names of the plain types a value may have; a class of the library (an enum) is given as text."""
    kinds = set()
    for part in _alternatives(ast.parse(annotation, mode="eval").body):
        if isinstance(part, ast.Subscript) and ast.unparse(part.value) == "Literal":
            kinds |= {type(node.value).__name__ for node in ast.walk(part.slice) if isinstance(node, ast.Constant)}
        else:
            name = ast.unparse(part.value if isinstance(part, ast.Subscript) else part)
            kinds.add(name if name in PLAIN else "str")
    return kinds


def _alternatives(node: ast.expr) -> list[ast.expr]:
    """`A | B | C` taken apart."""
    return [*_alternatives(node.left), *_alternatives(node.right)] if isinstance(node, ast.BinOp) else [node]


def _fits(value, kinds: set[str]) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return bool(kinds & {"int", "float"})
    if isinstance(value, str):
        return "str" in kinds or ("float" in kinds and _is_number(value))
    return type(value).__name__ in kinds


def _is_number(text: str) -> bool:
    """YAML 1.1 reads `1e-5` as text; the scripts' parsers read it as the number that was meant."""
    try:
        float(text)
    except ValueError:
        return False
    return True


@cache
def flags(run: str) -> dict[str, Field]:
    """All flags of a stage's script or command, by name."""
    found: dict[str, Field] = {}
    for path in (DATACLASSES | COMMANDS)[run]:
        module, _, name = path.rpartition(".")
        found |= class_fields(module, name)
    return found


def class_fields(module: str, name: str) -> dict[str, Field]:
    """
    Fields of a dataclass and of its bases, found by reading source; nothing is imported.

    Args:
        module (`str`): a module that defines the class or imports it (a package's `__init__` will do).
        name (`str`): the class.

    Raises:
        LookupError: the source does not lead to the class.
    """
    file, node, home = _find_class(module, name, seen=set())
    found: dict[str, Field] = {}
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id != "object":
            found |= class_fields(home, base.id)
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            annotation = ast.unparse(statement.annotation)
            if not annotation.startswith("ClassVar"):
                name = statement.target.id
                choices = _choices(statement.value, file) or _enum_values(annotation, home)
                text, default = _metadata(statement.value, "help"), _default(statement.value, home)
                help = ast.literal_eval(text) if text is not None else ""
                found[name] = Field(name, annotation, choices, help, default, f"{home}.{node.name}")
    return found


def _metadata(value: ast.expr | None, wanted: str) -> ast.expr | None:
    """What a field's metadata has under a key."""
    for node in ast.walk(value) if value is not None else ():
        if isinstance(node, ast.Dict):
            for key, part in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == wanted:
                    return part
    return None


def _choices(value: ast.expr | None, file: Path) -> tuple | None:
    """`choices` in a field's metadata: a list written out, or `list(NAME)` of a constant of the same file."""
    part = _metadata(value, "choices")
    if isinstance(part, ast.Call) and ast.unparse(part.func) == "list":
        part = _constant(ast.unparse(part.args[0]), file)
    return tuple(ast.literal_eval(part)) if isinstance(part, ast.List | ast.Tuple) else None


def _default(value: ast.expr | None, module: str) -> str:
    """A field's default as YAML writes it; what is worked out is given as the source has it."""
    if isinstance(value, ast.Call):  # field(default=..., metadata=...)
        given = {keyword.arg: keyword.value for keyword in value.keywords}
        factory = given.get("default_factory")
        if isinstance(factory, ast.Lambda):
            value = factory.body
        elif factory is not None:  # list, dict
            return ""
        else:
            value = given.get("default")
    if value is None:
        return NEEDED
    value = _followed(value, module)
    try:
        literal = ast.literal_eval(value)
    except ValueError:  # worked out; a bare name that leads nowhere says nothing
        return "" if isinstance(value, ast.Name) else ast.unparse(value)
    if literal is None or literal == []:
        return ""
    if isinstance(literal, list | tuple):
        return " ".join(map(str, literal))
    return str(literal).lower() if isinstance(literal, bool) else str(literal)


def _followed(node: ast.expr, module: str) -> ast.expr:
    """The constant that `NAME`, `module.NAME` or `list(NAME)` stands for, where imports lead to it; else the node."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "list" and len(node.args) == 1:
        return _followed(node.args[0], module)
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
        module, name = _imported(node.value.id, module), node.attr
    elif isinstance(node, ast.Name):
        name = node.id
    else:
        return node
    file = _source(module) if module else None
    found = _constant(name, file) if file else None
    if found is None and file:
        home, _, name = (_imported(name, module) or "").rpartition(".")
        found = _constant(name, _source(home)) if home else None
    return node if found is None else found


def _imported(name: str, module: str) -> str | None:
    """What a name of a module was imported from, with dots."""
    file = _source(module)
    for node in _parse(file).body:
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return f"{_absolute(node, module, file)}.{alias.name}"
    return None


def _constant(name: str, file: Path) -> ast.expr | None:
    """What a module assigns to a name at its top level."""
    assigned = (line for line in _parse(file).body if isinstance(line, ast.Assign))
    return next((line.value for line in assigned if ast.unparse(line.targets[0]) == name), None)


def _enum_values(annotation: str, module: str) -> tuple | None:
    """What `SomeEnum | str` allows: a stage would refuse anything else, but only once its turn comes."""
    names = [part.id for part in _alternatives(ast.parse(annotation, mode="eval").body) if isinstance(part, ast.Name)]
    if len(names) != 2 or names[1] != "str" or names[0] in PLAIN:
        return None
    _, node, _ = _find_class(module, names[0], seen=set())
    if not any("Enum" in ast.unparse(base) for base in node.bases):
        return None
    return tuple(ast.literal_eval(line.value) for line in node.body if isinstance(line, ast.Assign))


def _find_class(module: str, name: str, seen: set) -> tuple[Path, ast.ClassDef, str]:
    """The file and definition of a class, following imports; `module` of the definition comes third."""
    if (module, name) in seen:
        raise LookupError(f"{module}.{name}: its imports go round in a circle")
    seen.add((module, name))
    file = _source(module)
    tree = _parse(file)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return file, node, module
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _find_class(_absolute(node, module, file), alias.name, seen)
    raise LookupError(f"{file} neither defines nor imports {name}")


@cache
def _parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def _absolute(node: ast.ImportFrom, module: str, file: Path) -> str:
    """The module an import statement names, relative dots resolved."""
    if not node.level:
        return node.module or ""
    parts = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    parts = parts[: len(parts) - (node.level - 1)]
    return ".".join([*parts, node.module] if node.module else parts)


def _source(module: str) -> Path:
    """A module's file, found without importing its package."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None or not spec.origin:
        raise LookupError(f"{top} is not installed")
    place = Path(spec.origin).parent.joinpath(*rest) if rest else Path(spec.origin)
    for file in (place, place.with_suffix(".py"), place / "__init__.py"):
        if file.is_file():
            return file
    raise LookupError(f"{module} has no source file at {place}")
