"""Turns the command line into one call of ``attncompiler.commands``; answers ``--help`` without importing torch.

Exit status: 0 success; 1 the variant is wrong (it does not compile, or ``check`` found an error); 2 the command could
not start (bad option, missing file, no such variant).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

from attncompiler.commands.bench import bench
from attncompiler.commands.build import build
from attncompiler.commands.check import check
from attncompiler.commands.explain import explain
from attncompiler.commands.list import list_
from attncompiler.commands.new import new
from attncompiler.commands.tune import tune
from attncompiler.errors import AttnCompilerError
from attncompiler.variant_file import UsageError


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="attncompiler")
def app() -> None:
    """Write an attention variant as mathematics; get a fast, readable, verified kernel.

    \b
    attncompiler new my_attention         write a commented starter file
    attncompiler check my_attention.py    compare its kernel with its definition
    attncompiler bench my_attention.py    compare its speed with PyTorch
    attncompiler tune my_attention.py     find the fastest schedule for this machine
    """


for command in (new, build, check, explain, bench, tune, list_):
    app.add_command(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its status; mistakes of the user print without a traceback."""
    try:
        status = app.main(args=arguments, prog_name="attncompiler", standalone_mode=False)
    except AttnCompilerError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2 if isinstance(error, UsageError) else 1)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.Abort:
        click.echo("interrupted", err=True)
        sys.exit(130)
    except OSError as error:
        click.echo(f"error: {error.filename or 'file system'}: {error.strerror or error}", err=True)
        sys.exit(2)
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
