"""A public name of kdcache as Markdown: signature by `inspect`, text from its Google docstring.

A name, a field or a member without a docstring is an error.
"""

import ast
import dataclasses
import inspect
import json
import re
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import numpy as np

import kdcache

_PUBLIC = {getattr(kdcache, name): name for name in kdcache.__all__ if name[0] != "_"}
_SECTION = re.compile(r"^(Args|Attributes|Example|Raises|Returns|Yields):\n", re.M)
_ENTRY = re.compile(r"^(\S.*?): (.*(?:\n(?: .*|$))*)", re.M)
_EXAMPLE = re.compile(r"^    >>> .*(?:\n    .*)*", re.M)
_LEFT_OUT = {"__init__", "__repr__", "__str__", "__post_init__"}
_WIDTH = 88


def entry(name: str) -> str:
    """Describe a public name: heading, signature, text, fields, properties, methods."""
    found = _of_kdcache(name)
    if not inspect.isclass(found):
        return _heading(3, f"kdcache.{name}") + _signature(name, found) + _text(name, found)
    text = _heading(3, f"kdcache.{name}") + _class(name, found) + _text(name, found)
    if not dataclasses.is_dataclass(found) and _is_documented(vars(found).get("__init__")):
        text += _sections_of(inspect.getdoc(found.__init__) or "")
    described, shown = attributes(found), members(found)
    if described:
        text += "**Attributes**\n\n" + _list(described.items())
    if properties := {k: v for k, v in shown.items() if isinstance(v, property)}:
        text += "**Properties**\n\n" + "".join(_property(name, *p) for p in properties.items())
        text += "\n"
    for key, value in shown.items():
        if key in properties or key in described:
            continue
        function = getattr(value, "__func__", value)
        if not isinstance(function, FunctionType):
            raise SystemExit(f"kdcache.{name}.{key} has no docstring")
        decorator = "@classmethod\n" * isinstance(value, classmethod)
        text += _heading(4, f"{name}.{key}") + _signature(key, function, decorator)
        text += _text(f"{name}.{key}", function)
    return text


def anchor(heading: str) -> str:
    """Return the fragment of a heading, which is the same on the repository's page."""
    return re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")


def attributes(cls: type) -> dict[str, str]:
    """Texts of fields and attributes, below each or in the docstring of the class."""
    texts = dict(_entries(_sections(inspect.getdoc(cls) or "").get("Attributes", "")))
    return below(cls) | texts


def below(cls: type) -> dict[str, str]:
    """Docstring below each field of a class."""
    [tree] = ast.parse(inspect.getsource(cls)).body
    assert isinstance(tree, ast.ClassDef)
    return {
        field.target.id: ast.literal_eval(text.value)
        for field, text in zip(tree.body, tree.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
    }


def members(cls: type) -> dict[str, Any]:
    """Public members that a class adds to its bases', and its methods of Python's protocols."""
    above = {key for base in cls.__mro__[1:] for key in vars(base)}
    fields = {f.name for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
    return {
        key: value
        for key, value in vars(cls).items()
        if (key[0] != "_" and key not in above | fields)
        or (key[:2] == "__" and key not in _LEFT_OUT and _is_documented(value))
    }


def _is_documented(value: Any) -> bool:
    return isinstance(value, FunctionType) and bool(value.__doc__)


def _of_kdcache(name: str) -> Any:
    return getattr(kdcache, name)


def _heading(level: int, text: str) -> str:
    return f"\n{'#' * level} `{text}`\n\n"


def _text(name: str, found: Any) -> str:
    if not (text := inspect.getdoc(found)):
        raise SystemExit(f"kdcache.{name} has no docstring")
    return _sections_of(text)


def _sections_of(docstring: str) -> str:
    """Paragraphs, examples and sections of a docstring, without its attributes."""
    text = ""
    for title, content in _sections(docstring).items():
        if title in ("", "Example"):
            text += f"{_paragraphs(content)}\n\n"
        elif title == "Args":
            text += "**Arguments**\n\n" + _list(_entries(content))
        elif title == "Raises":
            text += f"**Raises**\n\n{''.join(_raised(*e) for e in _entries(content))}\n"
        elif title != "Attributes":
            text += f"**{title}**\n\n{_paragraphs(content)}\n\n"
    return text


def _sections(docstring: str) -> dict[str, str]:
    """Split a docstring: what precedes its sections under "", then each by its title."""
    first, *rest = _SECTION.split(docstring)
    contents = [text if t == "Example" else textwrap.dedent(text) for t, text in _pairs(rest)]
    return {"": first.strip()} | dict(zip(rest[::2], contents, strict=True))


def _pairs(rest: list[str]) -> Iterator[tuple[str, str]]:
    yield from zip(rest[::2], rest[1::2], strict=True)


def _entries(section: str) -> list[tuple[str, str]]:
    """Entries "name: text" of a section."""
    return _ENTRY.findall(section)


def _list(entries: Any) -> str:
    return "".join(f"* `{name}`: {_inline(text)}\n" for name, text in entries) + "\n"


def _raised(errors: str, when: str) -> str:
    return f"* {', '.join(_inline(f'`{e}`') for e in errors.split(', '))}: {_inline(when)}\n"


def _property(name: str, key: str, value: property) -> str:
    if not (docstring := inspect.getdoc(value)):
        raise SystemExit(f"kdcache.{name}.{key} has no docstring")
    sections, kind = _sections(docstring), inspect.get_annotations(value.fget or _heading)
    text = _inline(sections[""])
    for errors, when in _entries(sections.get("Raises", "")):
        text += f" Raises {_inline(f'`{errors}`')}: {_inline(when)}"
    return f"* `{key}` (`{_hint(kind['return'])}`): {text}\n"


def _paragraphs(text: str) -> str:
    """Paragraphs as they are, examples in blocks."""
    parts, at = [], 0
    for example in _EXAMPLE.finditer(text):
        before = text[at : example.start()].strip()
        parts += [_escaped(before)] * bool(before)
        parts.append(f"```pycon\n{textwrap.dedent(example[0]).rstrip()}\n```")
        at = example.end()
    return "\n\n".join([*parts, *[_escaped(text[at:].strip())] * bool(text[at:].strip())])


def _inline(text: str) -> str:
    return _escaped(re.sub(r"\s+", " ", text).strip())


def _escaped(text: str) -> str:
    """Escape HTML outside of code, and link the public classes."""
    parts = text.split("`")
    names = {name for found, name in _PUBLIC.items() if inspect.isclass(found)}
    for i, part in enumerate(parts):
        if i % 2 == 0:
            parts[i] = part.replace("<", "&lt;")
        else:
            code = f"`{part}`"
            parts[i] = f"[{code}](#{anchor(f'kdcache.{part}')})" if part in names else code
    return "".join(parts)


def _class(name: str, cls: Any) -> str:
    """Block with the bases, and the fields of a dataclass or the arguments of the constructor."""
    bases = ", ".join(_hint(base) for base in cls.__bases__ if base is not object)
    head = f"class {name}{f'({bases})' if bases else ''}:"
    if dataclasses.is_dataclass(cls):
        options = "frozen=True" + ", eq=False" * (not cls.__dataclass_params__.eq)
        options += ", kw_only=True" * all(f.kw_only for f in dataclasses.fields(cls))
        head, lines = f"@dataclass({options})\n{head}", list(_fields(cls))
    elif _is_documented(vars(cls).get("__init__")):
        lines = _definition("__init__", cls.__init__).split("\n")
    else:
        return _block(f"{head} ...")
    return _block("\n".join([head, *(f"    {line}" for line in lines)]))


def _fields(cls: Any) -> Iterator[str]:
    """Fields of a dataclass with type and default."""
    hints, texts = inspect.get_annotations(cls), attributes(cls)
    for field in dataclasses.fields(cls):
        if field.name not in texts:
            raise SystemExit(f"{cls.__name__}.{field.name} has no docstring")
        default = ""
        if field.default is not dataclasses.MISSING:
            default = f" = {_value(field.default)}"
        elif field.default_factory is not dataclasses.MISSING:
            default = f" = {_value(field.default_factory())}"
        yield f"{field.name}: {_hint(hints[field.name])}{default}"


def _signature(name: str, function: Callable[..., Any], decorator: str = "") -> str:
    return _block(decorator + _definition(name, function))


def _block(code: str) -> str:
    return f"```python\n{code}\n```\n\n"


def _definition(name: str, function: Callable[..., Any]) -> str:
    """Definition of a function on one line, or with a line for each parameter."""
    hints, shown = inspect.get_annotations(function), list[str]()
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in shown:
            shown.append("*")
        text = parameter.name
        text += f": {_hint(hints[text])}" if text in hints else ""
        text += "" if parameter.default is parameter.empty else f" = {_value(parameter.default)}"
        shown.append(text)
    end = f") -> {_hint(hints['return'])}: ..."
    if len(line := f"def {name}({', '.join(shown)}{end}") <= _WIDTH:
        return line
    return f"def {name}(\n" + "".join(f"    {text},\n" for text in shown) + end


def _value(value: Any) -> str:
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    if value == slice(None):
        return "slice(None)"
    if callable(value):
        return str(value.__name__)
    if isinstance(value, dict) or dataclasses.is_dataclass(value):
        return f"{type(value).__name__}()"
    return repr(value)


def _hint(hint: Any) -> str:
    """Type of a value as a caller writes it: public names, and aliases of ours spelt out."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    match origin:
        case typing.Annotated:
            text = _hint(arguments[0])
        case typing.Literal:
            text = f"Literal[{', '.join(map(_value, arguments))}]"
        case types.UnionType | typing.Union:
            text = " | ".join(map(_hint, arguments))
        case np.ndarray:
            text = f"NDArray[{', '.join(map(_hint, typing.get_args(arguments[1])))}]"
        case None:
            text = _name(hint)
        case _:
            text = f"{_hint(origin)}[{', '.join(map(_hint, arguments))}]"
    return text


def _name(hint: Any) -> str:
    """Name of a type without arguments, or the list of types that a Callable takes."""
    if isinstance(hint, list):
        return f"[{', '.join(map(_hint, hint))}]"
    if isinstance(hint, str | typing.ForwardRef):
        return hint if isinstance(hint, str) else hint.__forward_arg__
    if hint in (None, types.NoneType, ...):
        return "..." if hint is ... else "None"
    name = _PUBLIC.get(hint) or getattr(hint, "__name__", None) or str(hint).rpartition(".")[2]
    library = {"numpy": "np.", "torch": "torch."}.get(getattr(hint, "__module__", ""), "")
    return str(name) if name == "Tensor" else f"{library}{name}"
