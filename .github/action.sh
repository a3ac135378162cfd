#!/usr/bin/env bash
# What action.yml runs: every check, also after one that failed; the exit code is that of the first that did.
set -uo pipefail
cd "$PROJECT" || exit 2
[ -n "${ADAPTERHUB_TOKEN:-}" ] || unset ADAPTERHUB_TOKEN
reports=${RUNNER_TEMP:-$(mktemp -d)}/adapterhub
mkdir -p "$reports"
failed=0
summary=${GITHUB_STEP_SUMMARY:-/dev/null}
printf '| check | result |\n| --- | --- |\n' >> "$summary"

check() { # COMMAND...: run it in a group of the log, its output into the file $into if that is set, and note how it ends
  local code=0
  echo "::group::$*"
  if [ -n "${into:-}" ]; then "$@" > "$into" || code=$?; else "$@" || code=$?; fi
  echo "::endgroup::"
  if [ $code = 0 ]; then
    printf '| `%s` | ok |\n' "$*" >> "$summary"
  else
    echo "::error title=$1 $2::\`$*\` ended with exit code $code; \`adapt explain $code\` says what that means"
    printf '| `%s` | exit code %s |\n' "$*" "$code" >> "$summary"
    [ $failed != 0 ] || failed=$code
  fi
}
words() { read -ra words <<< "$1"; } # options are words, never shell

if [ -n "$BASE_RECORD" ] && [ -f "$BASE_RECORD" ]; then check adapt base add "$BASE_RECORD"; fi
words "$SYNC_OPTIONS"
check adapt sync --frozen "${words[@]}"
check adapt verify --all
words "$AUDIT_OPTIONS"
into=$reports/audit.sarif check adapt audit --sarif "${words[@]}"
echo "sarif=$reports/audit.sarif" >> "$GITHUB_OUTPUT"
if [ "$TEST" = true ]; then
  words "$TEST_OPTIONS"
  check adapt test --all --junit "$reports/tests.xml" "${words[@]}"
  echo "junit=$reports/tests.xml" >> "$GITHUB_OUTPUT"
fi
while read -ra words <&3; do
  if [ $failed = 0 ] && [ ${#words[@]} -gt 0 ]; then check adapt push "${words[@]}"; fi
done 3<<< "$PUSH"
exit $failed
