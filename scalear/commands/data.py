"""`scalear data`: pack, index, verify and describe datasets of tar shards."""

from scalear.commands.typed.parser import CommandParser, add_arguments_file, summary
from scalear.data import sources  # noqa: F401  (lets users write `--source ImageFolder`)
from scalear.data.existing import index
from scalear.data.pack import pack
from scalear.data.verify import stats, verify

_FUNCTIONS = {function.__name__: function for function in (pack, index, verify, stats)}


def data_parser() -> CommandParser:
    """`scalear data {pack,index,verify,stats}`: the functions' signatures and docstrings as options and help."""
    parser = CommandParser(prog="scalear data", description="Make, check and describe datasets of tar shards.")
    commands = parser.add_subcommands()
    for name, function in _FUNCTIONS.items():
        command = CommandParser(description=summary(function))
        add_arguments_file(command)
        command.add_function_arguments(function, as_positional=function is not pack)
        commands.add_subcommand(name, command, help=function.__doc__.splitlines()[0])
    return parser


def run(args: list[str]) -> None:
    """Carry out `scalear data ...`.

    Args:
        args: The command line, from the command's name on.
    """
    parser = data_parser()
    config = parser.parse_args(args[1:])
    chosen = parser.instantiate_classes(config)[config.subcommand]
    chosen.pop("config", None)
    _FUNCTIONS[config.subcommand](**chosen)
