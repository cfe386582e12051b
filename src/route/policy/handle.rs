//! The handle of a compiled policy.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::error::Result;
use crate::generation::GenerationId;
use crate::route::policy::compile::CompiledPolicy;
use crate::route::policy::{Excluded, Policy};
use crate::serve::Serving;
use crate::store::Store;

/// A policy that a router has compiled against its hub: [`crate::Router::compile`] makes it.
///
/// `Send + Sync`: share one in an `Arc`. A request that finds another generation served than the
/// one that the handle was compiled for compiles it again first.
pub struct PolicyHandle {
    policy: Policy,
    compiled: ArcSwap<CompiledPolicy>,
}

impl PolicyHandle {
    pub(crate) fn new(policy: Policy, compiled: CompiledPolicy) -> Self {
        Self {
            policy,
            compiled: ArcSwap::from_pointee(compiled),
        }
    }

    /// The policy for `serving`, compiled again if it was for another one.
    pub(crate) fn against(
        &self,
        serving: &Arc<Serving>,
        store: &Store,
    ) -> Result<Arc<CompiledPolicy>> {
        let compiled = self.compiled.load_full();
        if Arc::ptr_eq(&compiled.base, serving) {
            return Ok(compiled);
        }
        let compiled = Arc::new(CompiledPolicy::new(&self.policy, serving, store)?);
        self.compiled.store(Arc::clone(&compiled));
        Ok(compiled)
    }

    /// The policy if it is compiled for `serving`.
    pub(crate) fn ready(&self, serving: &Arc<Serving>) -> Option<Arc<CompiledPolicy>> {
        let compiled = self.compiled.load_full();
        Arc::ptr_eq(&compiled.base, serving).then_some(compiled)
    }

    /// The policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The generation that it was last compiled for.
    pub fn generation(&self) -> GenerationId {
        self.compiled.load().base.id.clone()
    }

    /// Models that may answer a request, its needs aside; 0 if none may.
    pub fn eligible(&self) -> usize {
        self.compiled.load().models()
    }

    /// The fallback that lets them answer, in its text form, if no model meets the constraint.
    pub fn fallback(&self) -> Option<Arc<str>> {
        self.compiled.load().fallback()
    }

    /// What the policy excludes, whatever the request is.
    pub fn excluded(&self) -> Vec<Excluded> {
        self.compiled.load().excluded().to_vec()
    }
}

impl fmt::Debug for PolicyHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PolicyHandle")
            .field("policy", &self.policy)
            .field("generation", &self.generation())
            .field("eligible", &self.eligible())
            .finish_non_exhaustive()
    }
}
