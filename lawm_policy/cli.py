"""The `lawm` command: finds the verb, parses its arguments, calls one stage.

Exit status: what the stage returns (0), 2 for a mistake at the keyboard (one line on standard
error), 1 for a fault (a traceback), 130 when interrupted. A verb is a function `run(args)` whose
argument's annotation is a dataclass; other packages add verbs by the entry point group
`lawm_policy.verbs`. A stage with a field `overrides` takes `--set a.b=c` and `--a.b c`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import shutil
import sys
import textwrap
import traceback
import typing
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any

from lawm_policy import __version__
from lawm_policy.types import NO_ROOM, UserError

Run = Callable[[Any], int | None]

# verb -> (module with `run`, what it does)
VERBS = {
    "quickstart": ("quickstart", "the whole story on the built-in tabletop, in minutes, without a GPU"),
    "doctor": ("doctor", "what works on this machine, what does not, how to mend it"),
    "collect": ("collect", "demonstrations by scripted experts, or unlabelled videos"),
    "import": ("importing", "videos or demonstrations into an episode store"),
    "inspect": ("inspection", "what a store holds, what is damaged, a contact sheet"),
    "pretrain": ("pretrain", "latent actions, world model and policy from unlabelled videos"),
    "finetune": ("finetune", "a controller and policy from labelled demonstrations"),
    "eval": ("evaluate", "success rates over an explicit grid of episodes"),
    "compare": ("compare", "two evaluations, episode by episode, with paired statistics"),
    "report": ("report", "one self-contained page about runs and evaluations"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    verb = argv[0] if argv else "--help"
    where = f"lawm {verb}" if not verb.startswith("-") else "lawm"
    try:
        if verb in ("-h", "--help", "help"):
            print(_help())
            return 0
        if verb == "--version":
            print(f"lawm-policy {__version__}")
            return 0
        args = parse(_arguments_of(verb), argv[1:], prog=where)
        if args is None:  # its help was shown
            return 0
        status = _find(verb)(args)
        sys.stdout.flush()
        return 0 if status is None else int(status)
    except UserError as error:
        return _fail(where, str(error))
    except KeyboardInterrupt:
        return _fail(where, "interrupted", status=130)
    except BrokenPipeError:  # `lawm inspect ... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if error.errno not in NO_ROOM:
            traceback.print_exc()
            return 1
        place = f" for {error.filename}" if error.filename else ""
        return _fail(where, f"expected room on the disk{place}, found none: free some and run again")
    except Exception:  # a mistake of ours: told whole, and not with a user's status 2
        traceback.print_exc()
        return 1


def parse(args_class: type[Any], argv: Sequence[str], prog: str) -> Any:
    """`argv` as `args_class`, or None when help was asked for and shown. Mistakes are UserErrors."""
    import tyro

    names = [f.name for f in dataclasses.fields(args_class)]
    description = args_class.__doc__ or ""
    rest: list[str] = list(argv)
    overrides: tuple[tuple[str, str], ...] = ()
    if "overrides" in names:
        rest, overrides = _take_overrides(argv)
        description += "\n\nAny key of the configuration: --set a.b=value or --a.b value."
    _check_options(args_class, rest)
    err = io.StringIO()
    try:
        asked = {"-h", "--help"} & set(rest)
        if asked:  # of the whole verb: arguments that are there already would be left out
            rest = ["--help"]
        with contextlib.redirect_stderr(err), contextlib.nullcontext() if asked else _wide():
            args = tyro.cli(
                args_class,
                args=rest,
                default=args_class.to_show() if "show" in names and "--show" in rest else None,
                prog=prog,
                description=_paragraphs(description),
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            return None
        raise UserError(_one_line(err.getvalue(), prog)) from None
    return dataclasses.replace(args, overrides=overrides) if overrides else args


def _paragraphs(text: str) -> str:
    """Filled to the terminal's width, which the parser does not do; it keeps line breaks before an indent."""
    width = shutil.get_terminal_size().columns
    return "\n\n".join(
        textwrap.fill(paragraph, width, subsequent_indent="  ", break_on_hyphens=False)
        for part in re.split(r"\n\s*\n", text)
        if (paragraph := " ".join(part.split()))
    )


@contextlib.contextmanager
def _wide() -> Iterator[None]:
    """The parser frames its errors to the terminal's width; they are unframed more safely without breaks."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "1000"
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


def _help() -> str:
    verbs = {verb: text for verb, (_, text) in VERBS.items()} | {
        point.name: f"from {point.value.partition('.')[0].partition(':')[0]}" for point in _foreign()
    }
    width = max(map(len, verbs))
    lines = [
        "usage: lawm VERB ...      lawm VERB --help      lawm --version",
        "",
        "From unlabelled videos to a robot policy.",
        "",
        *(f"  {verb:<{width}}  {text}" for verb, text in verbs.items()),
        "",
        "Exit status: 0 success, 1 a fault, 2 a mistake in the request (one line says which).",
    ]
    return "\n".join(lines)


def _foreign() -> list[Any]:
    return [p for p in entry_points(group="lawm_policy.verbs") if p.name not in VERBS]


def _find(verb: str) -> Run:
    if verb in VERBS:
        return import_module(f"lawm_policy.stages.{VERBS[verb][0]}").run
    foreign = {point.name: point for point in _foreign()}
    if verb in foreign:
        return foreign[verb].load()
    from lawm_policy.config import nearest

    raise UserError(f"expected a verb, found {verb!r}: {nearest(verb, [*VERBS, *foreign])}")


def _arguments_of(verb: str) -> type[Any]:
    from lawm_policy.stages.arguments import ARGUMENTS

    if verb in ARGUMENTS:
        return ARGUMENTS[verb]
    run = _find(verb)
    hints = typing.get_type_hints(run)
    name = run.__code__.co_varnames[0]
    return hints[name]


def _take_overrides(argv: Sequence[str]) -> tuple[list[str], tuple[tuple[str, str], ...]]:
    """Splits `--set a.b=c ...`, `--a.b c` and `--a.b=c` from the rest."""
    rest: list[str] = []
    found: list[tuple[str, str]] = []
    tokens = list(argv)
    while tokens:
        token = tokens.pop(0)
        key, equals, text = token.partition("=")
        if token == "--set":
            if not tokens or "=" not in tokens[0]:
                what = repr(tokens[0]) if tokens else "nothing"
                raise UserError(f"expected key=value after --set, found {what}: write --set a.b=value")
            while tokens and not tokens[0].startswith("--") and "=" in tokens[0]:
                key, _, text = tokens.pop(0).partition("=")
                found.append((key, text))
        elif re.fullmatch(r"--[A-Za-z_][\w-]*(\.[\w-]+)+", key):
            if not equals:
                if not tokens or tokens[0].startswith("--"):
                    raise UserError(f"expected a value after {token}, found none: write {token} value")
                text = tokens.pop(0)
            found.append((key[2:], text))
        else:
            rest.append(token)
    return rest, tuple(found)


def _check_options(args_class: type[Any], argv: Sequence[str]) -> None:
    """Names the nearest option to an unknown one, before the parser sees it."""
    from lawm_policy.config import nearest

    names = [f.name.replace("_", "-") for f in dataclasses.fields(args_class) if f.name != "overrides"]
    known = {"--help", *(f"--{n}" for n in names), *(f"--no-{n}" for n in names)}
    for token in argv:
        option = token.partition("=")[0].replace("_", "-")
        if option.startswith("--") and len(option) > 2 and option not in known:
            shown = [f"--{n}" for n in names]
            raise UserError(
                f"expected a known option, found {token.partition('=')[0]}: {nearest(option, shown)}"
            )


# What the parser says, without its frame -> what we say. A message not listed is shown as it is.
_BAD_VALUES = (
    (r"no type matching INT could be .*? from \[(.*?)\].*", "expected a whole number for {0}, found {1}"),
    (r"no type matching FLOAT could be .*? from \[(.*?)\].*", "expected a number for {0}, found {1}"),
    (r"no type matching (.*?) could be instantiated from \[(.*?)\].*", "expected {1} for {0}, found {2}"),
    (r"invalid literal for int\(\) with base 10: ('.*?') .*", "expected a whole number for {0}, found {1}"),
    (r"could not convert string to float: ('.*?') .*", "expected a number for {0}, found {1}"),
    (r"(.*?) Argument helptext.*", "expected a valid {0}, found {1}"),
)
_BAD_CHOICE = r"Invalid choice invalid choice (.*?) for argument '(.*?)'. Expected one of \((.*?),?\).*"
_PARSER_MESSAGES = (
    *((r"Value error Error parsing ([^\s:]+).*?: " + pattern, form) for pattern, form in _BAD_VALUES),
    (r"Missing argument Missing value for argument '(.*?)'.*", "expected a value after {0}, found none"),
    (
        r"Unrecognized options Unrecognized options: (.*?)(?: Perhaps .*)?",
        "expected no more arguments, found {0}",
    ),
    (r"Value error (.*)", "{0}"),
)


def _one_line(box: str, prog: str) -> str:
    """The parser's framed message as one line."""
    from lawm_policy.config import nearest

    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    plain = re.sub(r"[\u2500-\u257f]|-{5,}", " ", plain)  # the frame, also as plain terminals show it
    named = re.findall(r"^ {6}(\S.*?) *$", plain, re.MULTILINE)  # options stand at this depth
    missing = [name for name in named if not name.startswith(prog)]
    text = " ".join(plain.split())
    text = re.sub(r"For full helptext.*$", "", text).strip()
    if text.startswith("Required options") and missing:
        text = f"expected {' and '.join(missing)}, found nothing for {'it' if len(missing) == 1 else 'them'}"
    if match := re.fullmatch(_BAD_CHOICE, text):
        found, name, known = match[1].strip("'"), match[2], re.findall(r"'(.+?)'", match[3])
        return f"expected a known {name}, found {found!r}: {nearest(found, known)}"
    for pattern, form in _PARSER_MESSAGES:
        if match := re.fullmatch(pattern, text):
            text = form.format(*match.groups())
            break
    return f"{text}: see {prog} --help"


def _fail(where: str, message: str, status: int = 2) -> int:
    print(f"{where}: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
