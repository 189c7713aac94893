"""What went wrong, in words of the user: errors without what jsonargparse and DataLoader workers wrap around them."""

import difflib
import re
import sys


def message_of(error: BaseException) -> str:
    """What an error says to somebody who typed a command."""
    text = str(error)
    meant = _meant(text) or type(error).__name__
    if meant.startswith("Caught ") and "\n" in meant:  # of a DataLoader's worker, with its traceback
        name = meant.split()[1]
        return meant.rsplit(f"{name}: ", 1)[-1].strip()
    for pattern, say in ((_REQUIRED, _missing), (_NO_CLASS, _unknown)):
        if found := pattern.search(meant):
            return say(found, ".".join(re.findall(r'Parser key "([\w.]+)"', text[: text.index(found[0])])))
    return re.sub(r'^Parser key "([\w.]+)":\s+', r"\1: ", meant)


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


def _meant(text: str) -> str:
    """Of the alternatives that jsonargparse tried for a part, each with its error, the error of the one meant."""
    key = ""
    while listed := re.search(r"^( *)Errors:\n((?:\1 .*\n?|\n)+)", text, re.MULTILINE):
        key = (re.findall(r'Parser key "([\w.]+)":', text[: listed.start()]) or [key])[-1]
        indent, errors = listed.groups()
        alternatives = [error.strip() for error in re.split(rf"^{indent}  - ", errors, flags=re.MULTILINE) if error]
        own = [error for error in alternatives if "Errors:" in error or not any(words in error for words in _OF_OTHERS)]
        text = (own or alternatives)[0]
    return f"{key}: {text}" if text.startswith("Expected a ") else text


# How alternatives fail that are not meant.
_OF_OTHERS = ("is not accepted", "unexpected keyword argument", "Expected a <class 'NoneType'>")
