#!/usr/bin/env bash
# Writes man pages and shell completions of the programs: scripts/release/pages.sh SHARE
#
# SHARE is laid out as /usr/share, so shells and `man` find the pages in an environment's `share`.
set -euo pipefail
programs=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../target/release" && pwd)
share=$1
mkdir -p "$share"/{man/man1,bash-completion/completions,zsh/site-functions,fish/vendor_completions.d}
for program in relabel train evaluate; do
    "$programs/$program" docs --man "$share/man/man1"
    "$programs/$program" completions bash >"$share/bash-completion/completions/$program"
    "$programs/$program" completions zsh >"$share/zsh/site-functions/_$program"
    "$programs/$program" completions fish >"$share/fish/vendor_completions.d/$program.fish"
done
