//! A router that has computed before its first request comes.

use crate::error::{ErrorKind, Result, caught};
use crate::route::{Request, Router};

/// A word of one token, in most vocabularies.
const WORD: &str = "a ";

impl Router {
    /// Computes prompts of every size class, from a word to the encoder's limit, so that the first
    /// requests find their workspaces made, the weights' pages in memory and, on a GPU, the kernels
    /// compiled. It does not wait in the queue, and counts nowhere.
    ///
    /// It takes some ten times as long as the longest prompt. A generation that is installed later
    /// starts cold again.
    ///
    /// Errors: as [`Router::route`]; that every model is retired is none.
    pub fn warm_up(&self) -> Result<()> {
        let longest = self.max_tokens();
        let lengths = std::iter::successors(Some(1), |words| Some(words * 2));
        let lengths = lengths.take_while(|words| *words < longest);
        for words in lengths.chain([longest]) {
            let request = Request::new(WORD.repeat(words)).top(1);
            let routed = caught("warming up", || self.route_all(&[request], None))?;
            for answer in routed.answers {
                match answer {
                    Err(error) if error.kind() != ErrorKind::NoCandidate => return Err(error),
                    _ => (),
                }
            }
        }
        Ok(())
    }
}
