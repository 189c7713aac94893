import pytest

from scalear.yaml_files import parse_yaml, read_yaml


@pytest.mark.parametrize("text, number", [("1e-6", 1e-6), ("1E5", 1e5), ("-2e3", -2000.0), (".5", 0.5)])
def test_numbers_are_numbers(text, number):
    assert parse_yaml(f"{{a: {text}, b: [{text}], c: '{text}'}}") == {"a": number, "b": [number], "c": text}


def test_what_cannot_be_read_is_named(tmp_path):
    path = tmp_path / "settings.yaml"
    with pytest.raises(ValueError, match="cannot read .*settings.yaml"):
        read_yaml(path)
    for content in (b"a: [1,", b"a: \xff"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot read .*settings.yaml"):
            read_yaml(path)
    path.write_bytes("name: \u00e9t\u00e9".encode())
    assert read_yaml(path) == {"name": "\u00e9t\u00e9"}
