"""What went wrong, in words of the user: errors without what jsonargparse and DataLoader workers wrap around them."""

import difflib
import re
import sys

from scalear.commands.typed.mistakes import IN_PROCESS


def message_of(error: BaseException) -> str:
    """What an error says to somebody who typed a command."""
    text = str(error)
    if failed := IN_PROCESS.search(text):
        return failed[2].strip()
    keys, meant = _meant(text)
    if meant.startswith("Caught ") and "\n" in meant:  # of a DataLoader's worker, with its traceback
        name = meant.split()[1]
        return meant.rsplit(f"{name}: ", 1)[-1].strip()
    for pattern, say in ((_REQUIRED, _missing), (_NO_CLASS, _unknown), (_ANOTHER_KIND, _of_another_kind)):
        if found := pattern.search(meant):
            return say(found, ".".join([*keys, *_KEY.findall(meant[: found.start()])]))
    return _KEY.sub(r"\1: ", meant) or type(error).__name__


_KEY = re.compile(r'Parser key "([\w.]+)":\s*')
_REQUIRED = re.compile(r"the following arguments are required: (\w+(?:(?:\.|, )\w+)*)")
_NO_CLASS = re.compile(
    r"Expected a dot import path string: ([\w.]+?)\.?(?!\S)|"
    r"(?:No m|m)odule (?:named )?'([\w.]+)'(?: has no attribute '\w+')?\. Got value: (\2\.[\w.]+)"
)


def _missing(found: re.Match, key: str) -> str:
    """Missing arguments by the names that are typed: without their command, and the config for what it holds."""
    names = [f"{key}.{name}" if key else name.split(".", 1)[-1] for name in found[1].split(", ")]
    typed = dict.fromkeys("config (-c)" if name in ("model", "data") else name for name in names)
    return f"these arguments are missing: {', '.join(typed)}"


def _unknown(found: re.Match, key: str) -> str:
    """Of a setting that names a class which there is not: what may be written."""
    module, _, name = (found[1] or found[3]).rpartition(".")
    if module and not module.startswith("scalear"):
        return f"{key}: there is no class {module}.{name}: is its module where Python looks, as with PYTHONPATH=.?"
    # Short names are found among what is imported.
    modules = [imported for path, imported in sys.modules.items() if path.startswith("scalear.")]
    known = {each for imported in modules for each, value in vars(imported).items() if isinstance(value, type)}
    if name in known and not module:
        return f"{key} cannot be a {name}: name a class of the kind that belongs there"
    near = difflib.get_close_matches(name, known, n=1)
    instead = f"did you mean {near[0]}?" if near else "name one of scalear's, or another one with its module"
    return f"{key}: there is no class {found[1] or found[3]}: {instead}"


def _of_another_kind(found: re.Match, key: str) -> str:
    return f"{key} must be {found[1]}, got {found[2]}"


_ANOTHER_KIND = re.compile(r"Expected an? (.*?)\.? Got value: (.*)", re.DOTALL)


def _meant(text: str) -> tuple[list[str], str]:
    """Of the alternatives that jsonargparse tried for a part, each with its error, the error of the one meant.

    Returns:
        The names of the part and of what it is in, as far as the error does not say them, and the error.
    """
    keys: list[str] = []
    while listed := re.search(r"^( *)Errors:\n((?:\1 .*\n?|\n)+)", text, re.MULTILINE):
        keys += _KEY.findall(text[: listed.start()])
        indent, errors = listed.groups()
        alternatives = [error.strip() for error in re.split(rf"^{indent}  - ", errors, flags=re.MULTILINE) if error]
        given, text = text[listed.end() :], min(alternatives, key=_strangeness)
        if _KIND.fullmatch(text):  # as are the others: a number, say, or null
            *kinds, last = (kind for each in alternatives for kind in _kinds(_KIND.fullmatch(each)))
            text = f"Expected a {', '.join(kinds)} or {last}. Got value: {re.search('Given value: (.*)', given)[1]}"
    return keys, _KIND.sub(lambda found: f"Expected a {' or '.join(_kinds(found))}", text)


def _strangeness(error: str) -> tuple[bool, ...]:
    """Of an alternative: how little it looks like the one that was meant."""
    return "Errors:" not in error, bool(_KIND.fullmatch(error)), any(words in error for words in _OF_OTHERS)


def _kinds(expected: re.Match) -> list[str]:
    """What may be written for a type."""
    if expected[1] is None:
        return re.findall(r"[^\s',]+", expected[2])
    name = expected[1].rpartition(".")[2]
    return {"NoneType": ["null"], "bool": ["true", "false"], "Iterable": ["list"]}.get(name, [name])


_KIND = re.compile(r"Expected a (?:<class '([\w.]+)'>|typing\.Literal\[(.*?)\])")
# How alternatives fail that are not meant.
_OF_OTHERS = ("is not accepted", "unexpected keyword argument", "Not a valid subclass", "Expected a <class 'NoneType'>")
