#!/bin/sh
# Builds the C library and installs it with its header: ./include/install.sh PREFIX [FEATURES]
#
# FEATURES: gpu, for devices beside the CPU. HUBROUTER_PROFILE: cargo's profile, release by default.
# For Linux; `cargo cinstall` of cargo-c knows other systems.
set -eu
prefix=${1:?usage: ./include/install.sh PREFIX [FEATURES]}
features=capi${2:+,$2}
profile=${HUBROUTER_PROFILE:-release}
cd "$(dirname "$0")/.."

# As package.metadata.capi.library in Cargo.toml.
version=1.0.0
soname=libhubrouter.so.${version%%.*}
cargo rustc --locked --lib --profile "$profile" --no-default-features --features "$features" \
  --crate-type cdylib,staticlib -- -C "link-arg=-Wl,-soname,$soname"

case $profile in dev) built=debug ;; *) built=$profile ;; esac
built=${CARGO_TARGET_DIR:-target}/$built
mkdir -p "$prefix/include" "$prefix/lib/pkgconfig"
prefix=$(cd "$prefix" && pwd)
cp include/hubrouter.h "$prefix/include/"
cp "$built/libhubrouter.a" "$prefix/lib/"
# A program that has the old library open keeps it.
cp "$built/libhubrouter.so" "$prefix/lib/libhubrouter.so.$version.new"
mv "$prefix/lib/libhubrouter.so.$version.new" "$prefix/lib/libhubrouter.so.$version"
ln -sf "libhubrouter.so.$version" "$prefix/lib/$soname"
ln -sf "$soname" "$prefix/lib/libhubrouter.so"
cat >"$prefix/lib/pkgconfig/hubrouter.pc" <<PC
prefix=$prefix
libdir=\${prefix}/lib
includedir=\${prefix}/include

Name: hubrouter
Description: Ranks the models of a hub for a prompt, in process
Version: $version
Libs: -L\${libdir} -lhubrouter
Libs.private: -lgcc_s -lutil -lrt -lpthread -lm -ldl -lc
Cflags: -I\${includedir}
PC
echo "installed $soname in $prefix"
