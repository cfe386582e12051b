//! The files of the library that are checked take their threads from loom.
fn main() {
    println!("cargo::rustc-cfg=loom");
}
