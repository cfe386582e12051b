#![doc = include_str!("../README.md")]
//!
//! # Architecture
//!
//! One crate; each module uses only what stands in an earlier group:
//!
//! ```text
//! error < files < weights < device < {text, options, ops} < {model, hub} < encoder
//!       < generation < decision < router < learn < cmrbench < diagnostics < cli
//! ```
//!
//! | module | job |
//! |---|---|
//! | `error` | one error type: a kind to branch on, a text to read |
//! | `files` | digests and the one writer: temporary name, fsync, rename, fsync of the folder |
//! | `weights` | mapped safetensors, checked for name, shape and dtype |
//! | `device` | `Device { Gpu, Cpu }`, tensors, passes, plans; `device/gpu` alone knows wgpu |
//! | `text` | prompts to tokens to one packed batch without padding |
//! | `ops` | one op a file: host side of `shaders/<op>.wgsl`, CPU twin, tests |
//! | `model` | BERT-family encoders and the head as flat lists of op calls |
//! | `hub` | registry, lifecycle, cards, the scoring index, what is served of a memory |
//! | `encoder` | bundles on disk, their import, an encoder on a device |
//! | `generation` | routers on disk: manifest, store, serving |
//! | `decision` | requests and answers |
//! | `router` | open, route, install, roll back |
//! | [`learn`] | settings, candidates, replay, the engine on a device, the learner |
//! | [`cmrbench`] | the benchmark: data, metrics, methods, a grid of runs, the report |
//! | [`diagnostics`] | devices, self-test of every op, kernels by themselves |
//! | `cli` | the command |
//!
//! A route: text is tokenized and packed; ids, positions and offsets go up in one upload; the
//! encoder's ops, the projection, the scores of the whole hub, the log-sum-exp of each domain and
//! the exact top-k run in one submit; k ids and scores and a score for each domain come back. A
//! memory adds the means of the encoder's layers, a second product and a score for each domain in the same
//! submit (`hub/recall.rs`).
//!
//! An update: examples and replayed rows become micro-batches in an order that depends on the seed;
//! each goes forward with LoRA apart and its activations kept (147 kB a token for MiniLM, at most
//! 1,024 tokens at once), back through the same list of ops mirrored, and adds to one flat buffer of
//! gradients; anchors, or EWC in their place, add theirs, AdamW makes the step. While the encoder is frozen pooled vectors are
//! computed once, and so are a teacher's scores. An update that trains nothing looks at each prompt once;
//! the memory takes sums (`generation/memory`), and is solved for what is served. The child is measured as it would be served, then written and renamed.
//!
//! # Invariants
//!
//! `tests/structure.rs` reads the sources and checks the first eight.
//!
//! 1. `wgpu` and `naga` are named under `src/device/gpu` only. No public item names a tensor, a
//!    device handle or a future.
//! 2. `ops` names no model; `model` names no binding, workgroup or WGSL. `use crate::` follows the
//!    order above.
//! 3. Every `shaders/<op>.wgsl` has its `src/ops/<op>.rs` and the reverse; all validate with naga
//!    and have the header that `shaders/README.md` asks for.
//! 4. `unsafe` is in `weights.rs` (the mapping) and `device/cpu/gemm.rs` (the step into code
//!    compiled for a SIMD level, a prefetch), each block with its SAFETY note.
//! 5. Threads are those of the pool in `device/cpu`; the command has one more, which waits for
//!    signals (`cli/signals.rs`). The host owns queues and time-outs.
//! 6. Clocks are read for `Timing`, for measurements, for a learner's budget and its states, for a wait for a lock's end, and by the command. Nothing that is written,
//!    a benchmark's seconds apart, depends on one, so the same input makes the same generation, bit for bit.
//! 7. The environment is read, and something printed, by `cli` only. No socket is opened but by
//!    `cli/chat.rs`, to the language model that `cmrbench --llm-endpoint` names.
//! 8. Files are made by `files.rs` (`generation/lock.rs` adds the store's locks, the store takes away what is of no use);
//!    none is changed after its rename. A benchmark's log of a language model's answers grows.
//! 9. The bits of an answer do not depend on the number of threads, on the company in the batch or
//!    on the order of prompts, on one device. Hence the order of every sum depends on its own
//!    length alone (`tests/properties.rs`).
//!
//! # Departures from the architecture notes this crate began with
//!
//! * The atomic writer is `files.rs` and not `generation/write.rs`: encoder bundles and the output
//!   of `route` need it too, and come before generations.
//! * `residual` is part of `layer_norm` (`forward_branch`): a layer then has eight dispatches, and
//!   nothing needs the sum alone.
//! * `log_sum_exp` and `peak` are ops of their own: the first makes domain scores and the softmax's
//!   normaliser on the device, the second is what benches compare with.
//! * The CPU's kernels run at a SIMD level of their own choosing (AVX-512, AVX2, portable), with f16
//!   panels where the checkpoint is f16: the reason stands in `device/cpu/gemm.rs`.
//! * The pool's threads stay awake while a call computes (`device/cpu/mod.rs`): to wake one for each
//!   of a hundred short steps cost a tenth of a short prompt's time.

#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
pub mod cmrbench;
mod decision;
mod device;
pub mod diagnostics;
mod encoder;
mod error;
mod files;
mod generation;
mod hub;
pub mod learn;
mod model;
mod ops;
mod options;
mod router;
mod text;
mod weights;

pub use decision::{Decision, DomainScore, Ranked, Request, Revisions, Timing};
pub use device::DeviceChoice;
pub use encoder::{Encoder, ImportOptions, Imported, Trace, import_encoder};
pub use error::{Error, ErrorKind, Result};
pub use generation::{
    Difference, EncoderPin, GenerationId, GenerationReport, Learned, Manifest, NewModel, Progress,
    Pruned, Store,
};
pub use hub::{Hub, Model, ModelCard, ModelId, Parts, Strengths, read_models};
pub use learn::Learner;
pub use options::Options;
pub use router::Router;
