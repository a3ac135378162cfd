"""The completion script of each shell, and the answer to each completion request.

Every shell sends the command line up to the cursor (`ADAPT_LINE`) and gets lines of `kind<TAB>value<TAB>help`. This
module splits the words itself, because bash breaks `legal-qa@base-7b` at the `@` and `--base=x` at the `=` and replaces
only the part after the break. It sends that part (`ADAPT_WORD`) and gets values without the text before it.
"""

from __future__ import annotations

import os
import sys
from typing import ClassVar, Final

import click
from click.shell_completion import CompletionItem, ShellComplete, split_arg_string

from adapterhub.core.errors import UsageProblem

VARIABLE: Final = "_ADAPT_COMPLETE"

_BASH: Final = """\
%(complete_func)s() {
    local kind value help
    COMPREPLY=()
    while IFS=$'\\t' read -r kind value help; do
        case "$kind" in
            dir) compopt -o dirnames 2>/dev/null ;;
            file) compopt -o default 2>/dev/null ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(
        env %(complete_var)s=bash_complete ADAPT_LINE="${COMP_LINE:0:COMP_POINT}" ADAPT_WORD="$2" "$1" 2>/dev/null
    )
}

complete -F %(complete_func)s %(prog_name)s
"""
_ZSH: Final = """\
#compdef %(prog_name)s

%(complete_func)s() {
    local line kind value help
    local -a plain described
    (( ! $+commands[%(prog_name)s] )) && return 1
    line="${(j: :)words[1,CURRENT-1]} $PREFIX"
    while IFS=$'\\t' read -r kind value help; do
        case "$kind" in
            dir) _path_files -/ ;;
            file) _path_files -f ;;
            plain) if [[ -n "$help" ]]; then described+=("${value//:/\\\\:}:$help"); else plain+=("$value"); fi ;;
        esac
    done < <(env %(complete_var)s=zsh_complete ADAPT_LINE="$line" %(prog_name)s 2>/dev/null)
    (( $#described )) && _describe -V unsorted described -U
    (( $#plain )) && compadd -U -V unsorted -a plain
    return 0
}

if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
    %(complete_func)s "$@"
else
    compdef %(complete_func)s %(prog_name)s
fi
"""
_FISH: Final = """\
function %(complete_func)s
    set -l typed (commandline -cp | string collect)
    for line in (env %(complete_var)s=fish_complete ADAPT_LINE="$typed" %(prog_name)s 2>/dev/null)
        set -l part (string split \\t -- $line)
        switch $part[1]
            case dir
                __fish_complete_directories $part[2]
            case file
                __fish_complete_path $part[2]
            case plain
                if test -n "$part[3]"
                    printf '%%s\\t%%s\\n' $part[2] $part[3]
                else
                    echo -- $part[2]
                end
        end
    end
end

complete --no-files --command %(prog_name)s --arguments "(%(complete_func)s)"
"""


class _Shell(ShellComplete):
    """The parts that all shells share."""

    def get_completion_args(self) -> tuple[list[str], str]:
        """Return the complete words after the command, and the word being typed."""
        line = os.environ.get("ADAPT_LINE", "")
        words = split_arg_string(line)
        typed = "" if not words or line[-1:].isspace() else words.pop()
        return words[1:], typed

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem]:
        """Completions without the part that the shell keeps."""
        found = super().get_completions(args, incomplete)
        # A completion of `--base=b` is a value of the option; one of `--ba` is the option itself.
        before = "".join(incomplete.partition("=")[:2]) if incomplete.startswith("--") and "=" in incomplete else ""
        cut = len(incomplete) - len(self.replaced(incomplete))
        for item in found:
            if item.type == "plain":
                item.value = f"{before}{item.value}"[cut:]
        return found

    def replaced(self, incomplete: str) -> str:
        """Return the end of the word that the shell replaces."""
        return incomplete

    def format_completion(self, item: CompletionItem) -> str:
        """One line, with everything removed that would break it."""
        return "\t".join((item.type, *(" ".join(str(text or "").split()) for text in (item.value, item.help))))


class Bash(_Shell):
    """GNU bash, 3.2 and later."""

    name: ClassVar[str] = "bash"
    source_template: ClassVar[str] = _BASH

    def replaced(self, incomplete: str) -> str:
        """Return the word that bash sent, if our word ends with it."""
        word = os.environ.get("ADAPT_WORD", incomplete)
        return word if incomplete.endswith(word) else incomplete


class Zsh(_Shell):
    """The Z shell."""

    name: ClassVar[str] = "zsh"
    source_template: ClassVar[str] = _ZSH


class Fish(_Shell):
    """The friendly interactive shell."""

    name: ClassVar[str] = "fish"
    source_template: ClassVar[str] = _FISH


SHELLS: Final = {shell.name: shell for shell in (Bash, Zsh, Fish)}


def script(cli: click.Command, shell: str) -> str:
    """Return the script that sets up completion in a shell."""
    return SHELLS[shell](cli, {}, "adapt", VARIABLE).source()


def answer(cli: click.Command, instruction: str) -> int:
    """Answer `bash_complete` or `bash_source`; returns the exit code. Never raises, whatever the line."""
    name, _, what = instruction.partition("_")
    if name not in SHELLS:
        return UsageProblem.exit_code
    try:
        text = script(cli, name) if what == "source" else SHELLS[name](cli, {}, "adapt", VARIABLE).complete()
        sys.stdout.write(f"{text}\n" if text else "")
        sys.stdout.flush()
    except Exception:  # no command takes this line; a traceback would spoil the prompt
        if os.environ.get("ADAPTERHUB_DEBUG"):
            raise
    return 0
