//! The text of a chat request that is routed, and what the request demands of a model.

mod ask;
mod filler;
mod harness;
mod json;
mod messages;
mod model;
mod needs;
mod record;
mod select;
mod shape;

pub use model::ChatModel;
pub use record::{
    ChatNeeds, ChatRecord, ChatShape, ChatTaken, LeftOut, LeftOutCount, ResponseFormat, TakenFrom,
};

use crate::error::Result;
use json::Json;

/// Longest request that is read, in bytes.
#[cfg(feature = "cli")]
pub(crate) const LONGEST_REQUEST: usize = json::MOST_BYTES;

/// The text to route of a chat request, and the record of it. `named`: the API; without it the
/// request's shape decides.
pub(super) fn read(json: &[u8], named: Option<ChatShape>) -> Result<(String, ChatRecord)> {
    let root = Json::read(json)?;
    let shape = match named {
        Some(shape) => shape,
        None => shape::shape(&root)?,
    };
    let messages = messages::messages(&root, shape)?;
    let needs = needs::needs(&root, &messages)?;
    let (text, taken) = select::select(&messages)?;
    let record = ChatRecord {
        shape,
        needs,
        taken,
    };
    Ok((text, record))
}
