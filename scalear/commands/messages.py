"""What went wrong, in words of the user: errors without what jsonargparse and DataLoader workers wrap around them."""

import re


def message_of(error: BaseException) -> str:
    """What an error says to somebody who typed a command."""
    text = _meant(str(error)) or type(error).__name__
    if text.startswith("Caught ") and "\n" in text:  # of a DataLoader's worker, with its traceback
        name = text.split()[1]
        return text.rsplit(f"{name}: ", 1)[-1].strip()
    return re.sub(r'^Parser key "([\w.]+)":\s+', r"\1: ", _missing(text))


def _missing(text: str) -> str:
    """Missing arguments by the names that are typed: without their command, and the config for what it holds."""
    missing = re.match(r"the following arguments are required: (.+)", text)
    if not missing:
        return text
    names = [name.split(".", 1)[-1] for name in missing[1].split(", ")]
    typed = dict.fromkeys("config (-c)" if name in ("model", "data") else name for name in names)
    return f"these arguments are missing: {', '.join(typed)}"


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
