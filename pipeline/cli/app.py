"""The command line: ``headroom sample``, ``inspect``, ``convert``, ``plan``, ``run`` and the other commands."""

from __future__ import annotations

import os
import shlex
import sys
from typing import Any, Final

import click

from pipeline.cli.cluster import ClusterChoice, cluster
from pipeline.cli.doctor import doctor
from pipeline.cli.plot import plot
from pipeline.cli.predict import export, predict
from pipeline.cli.results import add, compare, forecast, moments, remove, report
from pipeline.cli.run import accumulate, plan, run, run_folder, submit
from pipeline.cli.spectra import convert, init, inspect, sample
from pipeline.cli.status import status
from pipeline.cli.sweep import sweep
from pipeline.cli.words import hint_option, is_quiet
from pipeline.config import list_variables
from pipeline.errors import ResourceError

#: The commands, in the order of the work.
_COMMANDS: Final = (
    doctor,
    sample,
    inspect,
    init,
    convert,
    plan,
    run,
    sweep,
    submit,
    accumulate,
    status,
    cluster,
    add,
    remove,
    report,
    plot,
    compare,
    forecast,
    moments,
    export,
    predict,
)
#: What to do after a command, and how. Words in braces are what the command was given, ``{out}`` is its run folder.
#: `submit` and `status` say it themselves.
_NEXT: Final = {
    "doctor": ("to try everything on simulated spectra", "headroom sample spectra"),
    "sample": ("to measure the headroom of these spectra", "HEADROOM_DEMO={directory} headroom run demo"),
    "inspect": ("to write a configuration for such spectra", "headroom init SPECTRA --test SPECTRA > my.yaml"),
    "init": ("to see what the run costs", "headroom plan CONFIG"),
    "convert": ("to write a configuration for it", "headroom init {store} --test TEST_STORE > my.yaml"),
    "plan": ("to run it", "headroom run {config} --out {out}"),
    "run": ("to use the models elsewhere", "headroom export {out} MODEL"),
    "sweep": ("to use the models elsewhere", "headroom export RUN MODEL"),
    "accumulate": ("when all parts are done", "headroom run {config} --out {out} --no-dask"),
    "cluster list": ("to see the job script of a profile", "headroom cluster show slurm"),
    "cluster show": ("to see whether a run fits", "headroom plan CONFIG --cluster {profile}"),
    "cluster array": ("to queue eight parts", "sbatch --array=1-8 job_array.sh CONFIG RUN 8"),
    "add": ("to use the models elsewhere", "headroom export {folder} MODEL"),
    "remove": ("to put the shard back", "headroom add {folder} {shard}"),
    "report": ("to hold the run against another one", "headroom compare {folder} RUN_B"),
    "plot": ("to write all figures and the report again", "headroom report {folder}"),
    "compare": ("to draw the report of a run again", "headroom report RUN"),
    "forecast": ("when there are more spectra", "headroom add {folder} SHARDS_OR_STORES"),
    "moments": ("to read every byte of them", "headroom moments {folder} --verify"),
    "export": ("to predict labels with it", "headroom predict {model} SPECTRA --out predictions.parquet"),
    "predict": ("to read the predictions in Python", "pandas.read_{format}({out!r})"),
}


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

    Commands are listed in the order of the work. Every command has --help with an example, --json for scripts, and
    --quiet. Most commands end with a line that says what to do next.

    \b
    Example, from nothing to a report:
      headroom sample spectra
      HEADROOM_DEMO=spectra headroom run demo --out runs/first

    \b
    To let the shell complete commands and options (bash; zsh and fish likewise):
      eval "$(_HEADROOM_COMPLETE=bash_source headroom)"
    """


def next_step(name: str, given: dict[str, Any]) -> str | None:
    """Return the line that says what to do after a command; None where there is nothing to say."""
    if name not in _NEXT:
        return None
    when, how = _NEXT[name]
    words = {key: shlex.quote(str(value)) for key, value in given.items()}
    if name == "inspect" and given.get("config") is not None:
        when, how = "to see what a run of these spectra costs", "headroom plan {config}"
    elif given.get("dry_run"):  # of a sweep; `submit` says it itself
        when, how = "to run them", "the same command without --dry-run"
    elif name != "inspect" and "config" in given:
        config = given["config"]
        if config is None:  # a plan on paper
            words["config"] = words["out"] = "CONFIG"
            how = "headroom run CONFIG"
        else:
            words["out"] = shlex.quote(str(run_folder(config, given.get("out"))))
        if name == "plan":  # the run is to have the workers that were planned for
            keys = ("name", "workers", "minimum", "maximum", "port")
            how += ClusterChoice(*(given.get(key) for key in keys)).words().replace("{", "{{").replace("}", "}}")
    elif name == "convert":
        words["store"] = shlex.quote(str(given["paths"][-1]))
    elif name == "predict":
        words |= {"out": str(given["out"]), "format": "csv" if str(given["out"]).endswith(".csv") else "parquet"}
    return f"next, {when}:  {_name_variables(how, given)}{how.format(**words)}"


def _name_variables(how: str, given: dict[str, Any]) -> str:
    """Return the variables that a command with the same configuration needs. They may be set for this one alone."""
    config = given.get("config") if "{config}" in how else None
    names = [name for name in list_variables(config) if name in os.environ] if config is not None else []
    return "".join(f"{name}={shlex.quote(os.environ[name])} " for name in names)


def _complete(command: click.Command, name: str) -> None:
    """Give a command, or those of a group, the option ``--quiet`` if it has none, and its closing line."""
    if isinstance(command, click.Group):
        for key, own in command.commands.items():
            _complete(own, f"{name} {key}")
        return
    if not any("--quiet" in parameter.opts for parameter in command.params):
        hint_option(command)
    own_invoke = command.invoke

    def invoke(context: click.Context) -> Any:
        result = own_invoke(context)
        if not (is_quiet(context) or context.params.get("as_json")):
            line = next_step(name, context.params)
            if line is not None:
                click.echo(line, err=True)  # results stand alone on the output
        return result

    command.invoke = invoke  # type: ignore[method-assign, assignment]


for _command in _COMMANDS:
    assert _command.name is not None
    _complete(_command, _command.name)
    cli.add_command(_command)
