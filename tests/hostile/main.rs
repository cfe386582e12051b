//! Hostile input at every boundary of the program: nothing panics, aborts, hangs or takes memory
//! without a bound, and what is accepted works. How to run it long, how to run a case again and how
//! to add to the corpus stands in tests/README.md and tests/corpus/README.md.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    unreachable_pub,
    reason = "tests"
)]
#![cfg(all(unix, feature = "cli"))]

#[path = "../common/mod.rs"]
mod common;

mod bundles;
mod case;
mod draws;
mod exchange;
mod harness;
mod lines;
mod make;
mod mutate;
mod parity;
mod requests;
mod seal;
mod stores;
mod tensors;
mod toy;

use harness::attack;

#[test]
fn stores() {
    attack(stores::Stores::<stores::Whole>::new, "stores", 300);
}

#[test]
fn manifests() {
    attack(stores::Stores::<stores::Manifests>::new, "manifests", 300);
}

#[test]
fn safetensors() {
    attack(stores::Stores::<stores::Tensors>::new, "safetensors", 300);
}

#[test]
fn bundles() {
    attack(bundles::Bundles::new, "bundles", 200);
}

#[test]
fn exchange() {
    attack(exchange::Exchange::new, "exchange", 150);
}

#[test]
fn lines() {
    attack(lines::Lines::new, "lines", 150);
}

#[test]
fn requests() {
    attack(requests::Requests::new, "requests", 40);
}

#[test]
fn options() {
    attack(|| requests::Hosts, "options", 100);
}

#[test]
fn settings() {
    attack(requests::Keys::new, "settings", 20);
}

#[test]
fn parity() {
    attack(parity::Parity::new, "parity", 40);
}
