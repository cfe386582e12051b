#!/usr/bin/env bash
# hubrouter in front of real peers: ./tests/gateways/run.sh [STAGE ..], all stages without one.
#
# A stage is a file tests/gateways/STAGE.sh. It installs what it needs, starts servers on free ports
# of 127.0.0.1, tests, prints figures, and stops what it started. --help names the stages.
set -euo pipefail
cd "$(dirname "$0")"

stages=()
for file in *.sh; do
  case $file in run.sh | common.sh) ;; *) stages+=("${file%.sh}") ;; esac
done

if [ "${1:-}" = --help ] || [ "${1:-}" = -h ]; then
  sed -n '2,5s/^# \{0,1\}//p' run.sh
  echo "Stages:"
  for stage in "${stages[@]}"; do
    printf '  %-12s %s\n' "$stage" "$(sed -n '2s/^# *//p' "$stage.sh")"
  done
  exit
fi

[ $# = 0 ] || stages=("$@")
for stage in "${stages[@]}"; do
  [ -f "$stage.sh" ] || { echo "no stage $stage: see --help" >&2; exit 2; }
done
for stage in "${stages[@]}"; do
  printf '\n==== %s\n' "$stage"
  bash "$stage.sh"
done
printf '\n==== passed: %s\n' "${stages[*]}"
