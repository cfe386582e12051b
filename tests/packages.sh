#!/usr/bin/env bash
# Builds the Debian package, installs it, uses it as a user without rights would, and removes it.
# For root on Debian or Ubuntu: ./tests/packages.sh
set -euo pipefail
cd "$(dirname "$0")/.."

step() { printf '\n== %s\n' "$*"; }
fail() { echo "packages: $*" >&2; exit 1; }

[ "$(id -u)" = 0 ] || fail "expected root, found $(id -un)"
if dpkg -s hubrouter >/dev/null 2>&1; then fail "hubrouter is installed already: remove it first"; fi
cargo deb --version >/dev/null 2>&1 || cargo install --locked cargo-deb@3.8.0

step "build"
out=$(mktemp -d)
home=$(mktemp -d)
leave() {
  dpkg -r hubrouter >/dev/null 2>&1 || true
  rm -rf "$out" "$home"
}
trap leave EXIT
./packaging/deb.sh "$out"
package=$(ls "$out"/hubrouter_*.deb)
dpkg -I "$package"

step "install"
dpkg -i "$package"
[ "$(command -v hubrouter)" = /usr/bin/hubrouter ] || fail "another hubrouter comes first on the path"

step "use, as nobody, in an empty folder"
chmod 755 "$home"
cd "$home"
user() { setpriv --reuid=65534 --regid=65534 --clear-groups env -i PATH=/usr/bin:/bin HOME=/nonexistent "$@"; }
user hubrouter route "Who is speaking in this recording?"
best=$(user hubrouter route --json --top 1 "Translate this letter into Spanish.")
grep -q '"device":"cpu"' <<<"$best" || fail "expected an answer of the CPU, found $best"
user hubrouter doctor | grep -q /usr/share/hubrouter/weights || fail "doctor does not name the weights"

step "manual pages and completions"
for page in hubrouter hubrouter-route hubrouter-hub-build; do
  zcat "/usr/share/man/man1/$page.1.gz" | grep -q '^\.TH' || fail "no manual page $page"
done
bash -c '
  source /usr/share/bash-completion/completions/hubrouter
  complete -p hubrouter >/dev/null
  COMP_WORDS=(hubrouter rou) COMP_CWORD=1
  _hubrouter hubrouter rou hubrouter
  [ "${COMPREPLY[*]}" = route ]
' || fail "completions of bash do not complete rou to route"
head -1 /usr/share/zsh/vendor-completions/_hubrouter | grep -qx '#compdef hubrouter' || fail "completions of zsh"
grep -q '^complete -c hubrouter' /usr/share/fish/vendor_completions.d/hubrouter.fish || fail "completions of fish"

step "remove"
files=$(dpkg -L hubrouter)
dpkg -r hubrouter
left=$(while read -r file; do [ -d "$file" ] || [ ! -e "$file" ] || echo "$file"; done <<<"$files")
[ -z "$left" ] || fail "left behind: $left"
[ ! -e /usr/share/hubrouter ] || fail "left behind: /usr/share/hubrouter"

step "all passed"
