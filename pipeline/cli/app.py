"""The command line: ``headroom sample``, ``inspect``, ``convert``, ``plan``, ``run`` and the other commands."""

from __future__ import annotations

import sys

import click

from pipeline.cli.cluster import cluster
from pipeline.cli.doctor import doctor
from pipeline.cli.predict import export, predict
from pipeline.cli.results import add, compare, forecast, moments, remove, report
from pipeline.cli.run import accumulate, plan, run, submit
from pipeline.cli.spectra import convert, inspect, sample
from pipeline.cli.status import status
from pipeline.errors import ResourceError


class _Workflow(click.Group):
    """A group that lists its commands in the order in which they were added, not by the alphabet."""

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the names of the commands, in the order in which a user needs them."""
        return list(self.commands)

    def invoke(self, context: click.Context) -> object:
        """Run the command that is named; a reader that leaves early (``| head``) ends it without a word."""
        try:
            return super().invoke(context)
        except BrokenPipeError as error:
            if error.filename:  # of a standard stream
                sys.exit(ResourceError.exit_code)
            raise ResourceError("a connection was lost (broken pipe); run the same command again") from error


@click.group(cls=_Workflow, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="headroom", prog_name="headroom")
def cli() -> None:
    """Measure how much a mixture of experts would gain over one global ridge model.

    Commands are listed in the order of the work. Every command has --help with an example.

    \b
    Example, from nothing to a report:
      headroom sample spectra/
      HEADROOM_DEMO=spectra headroom run demo --out runs/demo
    """


for _command in (
    doctor,
    sample,
    inspect,
    convert,
    plan,
    run,
    submit,
    accumulate,
    status,
    cluster,
    add,
    remove,
    report,
    compare,
    forecast,
    moments,
    export,
    predict,
):
    cli.add_command(_command)
