#!/bin/sh
# Writes docs/api.md, the public interface: ./docs/api.sh
#
# Needs: rustup toolchain install nightly; cargo install --locked cargo-public-api@0.52.0
set -eu
cd "$(dirname "$0")/.."

# The interface with the given features, derived and blanket implementations left out, the standard
# library's paths shortened.
list() {
    cargo +nightly public-api -sss --target-dir target/api "$@" |
        sed -E 's/core::fmt::Result/fmt::Result/g; s/(alloc|core|std)::([a-z_]+::)+([A-Z])/\3/g; s/hubrouter:://g'
}

library=$(mktemp)
command=$(mktemp)
trap 'rm -f "$library" "$command"' EXIT
list --no-default-features --features gpu,tower >"$library"
list --features tower >"$command"
{
    cat <<'TEXT'
# The public interface

`docs/api.sh` writes this page from the compiler's own description of the crate, so that a change of
the interface shows in review. What each item does is in its documentation
(`cargo doc --no-deps --open`); [library.md](library.md) shows how the items are used. Paths begin
inside `hubrouter`.

## The library

With `--no-default-features --features gpu,tower`; without `gpu` it is the same, without `tower`
there is no `layer`, and without `tokio` no `AsyncRouter`.

```text
TEXT
    cat "$library"
    cat <<'TEXT'
```

## What `cli` adds

The command's library: the benchmark (the feature `cmrbench`) and the diagnostics of `doctor`.

```text
TEXT
    grep -vxFf "$library" "$command"
    echo '```'
} >docs/api.md.new
mv docs/api.md.new docs/api.md
