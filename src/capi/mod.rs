//! The C interface, `include/hubrouter.h`: handles, statuses and texts in place of the library's
//! types.
//!
//! Names are those of the header, which cbindgen writes from this module (`include/header.sh`);
//! `tests/header.rs` compares the two. The contract for pointers is at the top of the header, and
//! each SAFETY note here refers to it: a pointer is NULL or points to a live object of its type, a
//! text is readable for its length, and a handle is not freed while a call uses it.
//!
//! References in the signatures are such pointers: `Option<&T>` is one that may be NULL,
//! `Option<&mut MaybeUninit<T>>` is a place that may be NULL and holds nothing yet, and
//! `Option<Box<T>>` is an owned handle that may be NULL.
//!
//! There is no callback for log lines. The library writes them through the crate `log`, which has
//! one logger in a process and does not say which router a line is about. A logger set here would
//! be global, and it would take the place of the host's own where the host is Rust, too.

#![expect(
    unsafe_code,
    reason = "the caller's pointers, and symbols without mangling"
)]
#![allow(non_camel_case_types, reason = "names as in C")]

// The order of the header. The empty lines keep rustfmt from sorting it.
mod status;

mod error;

mod strings;

mod router;

mod policy;

mod decision;

mod chat;

mod functions;

pub use chat::*;
pub use decision::*;
pub use error::*;
pub use functions::*;
pub use policy::*;
pub use router::*;
pub use status::*;
pub use strings::*;
