//! A router for hosts on tokio. No call computes on a worker of the runtime, or waits there.
#![expect(clippy::disallowed_types, reason = "deadlines and times of a request")]

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinError};
use tokio::time::timeout_at;

use crate::error::{Error, Result, caught, error};
use crate::route::front::{all, until};
use crate::route::queue::{Denied, Entering};
use crate::route::{Decision, PolicyHandle, Request, Router};

/// A [`Router`] whose calls are futures.
///
/// Cheap to clone. An answer that is in the cache is given at once. Other calls wait in the
/// router's queue without a thread, and compute on a blocking thread of the runtime; as many
/// compute at once as the router has slots for: one with a pool of threads, else one for each core.
/// A deadline ends the waiting at its moment, computed or not.
///
/// A future that is dropped leaves the queue. If its prompt is being computed, that is finished for
/// the cache alone.
///
/// ```
/// use std::sync::Arc;
/// use hubrouter::{AsyncRouter, Options, Request, Router};
///
/// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
/// let options = Options::default().device("cpu").threads(1);
/// let router = AsyncRouter::new(Arc::new(Router::open("weights/cmrbench", options)?));
/// let decision = router.route(Request::new("Which bird is singing?").top(1)).await?;
/// println!("{}", decision.ranked[0].model);
/// # Ok::<(), hubrouter::Error>(())
/// # })?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct AsyncRouter {
    router: Arc<Router>,
}

/// Takes a task off the blocking threads if it has not begun and nobody waits for it any more.
struct AbortWhenDropped(AbortHandle);

impl Drop for AbortWhenDropped {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl AsyncRouter {
    /// The futures of `router`, which can be called from threads all the same.
    pub fn new(router: Arc<Router>) -> Self {
        Self { router }
    }

    /// The router behind it.
    pub fn router(&self) -> &Arc<Router> {
        &self.router
    }

    /// As [`Router::route`].
    ///
    /// Errors: as there; of kind [`crate::ErrorKind::Unsupported`] outside of a tokio runtime.
    pub async fn route(&self, request: Request) -> Result<Decision> {
        one(self.all_caught(vec![request], None).await)
    }

    /// As [`Router::route_within`].
    ///
    /// Errors: as [`AsyncRouter::route`], and as there.
    pub async fn route_within(
        &self,
        request: Request,
        policy: &Arc<PolicyHandle>,
    ) -> Result<Decision> {
        let policy = Some(Arc::clone(policy));
        one(self.all_caught(vec![request], policy).await)
    }

    /// As [`Router::route_batch`].
    pub async fn route_batch(&self, requests: Vec<Request>) -> Vec<Result<Decision>> {
        self.all_caught(requests, None).await
    }

    /// As [`Router::route_batch_within`].
    pub async fn route_batch_within(
        &self,
        requests: Vec<Request>,
        policy: &Arc<PolicyHandle>,
    ) -> Vec<Result<Decision>> {
        self.all_caught(requests, Some(Arc::clone(policy))).await
    }

    /// A panic, such as that of a runtime without timers, becomes an error.
    async fn all_caught(
        &self,
        requests: Vec<Request>,
        policy: Option<Arc<PolicyHandle>>,
    ) -> Vec<Result<Decision>> {
        let requests: Arc<[Request]> = requests.into();
        let mut answers = pin!(self.answers(Arc::clone(&requests), policy));
        std::future::poll_fn(move |context| {
            let polled = caught("the asynchronous router", || {
                Ok(answers.as_mut().poll(context))
            });
            polled.unwrap_or_else(|error| Poll::Ready(all(&requests, &error)))
        })
        .await
    }

    async fn answers(
        &self,
        requests: Arc<[Request]>,
        policy: Option<Arc<PolicyHandle>>,
    ) -> Vec<Result<Decision>> {
        let began = Instant::now();
        if let Some(known) = self.router.at_hand(&requests, policy.as_deref(), began) {
            return known.into_iter().map(Ok).collect();
        }
        let Ok(runtime) = Handle::try_current() else {
            let error = error!(
                Unsupported,
                "expected a call inside of a tokio runtime, found none; call the Router itself"
            );
            return all(&requests, &error);
        };
        let until = until(requests.iter(), began).map(tokio::time::Instant::from_std);
        let entering = Entering::new(&self.router.front.queue);
        let entered = match until {
            None => entering.await,
            Some(until) => timeout_at(until, entering)
                .await
                .unwrap_or(Err(Denied::Late)),
        };
        let slot = match entered {
            Ok(slot) => slot,
            Err(Denied::Full(error)) => return all(&requests, &error),
            Err(Denied::Late) => return self.late(&runtime, requests, policy, began).await,
        };
        let (router, given, within) = (
            Arc::clone(&self.router),
            Arc::clone(&requests),
            policy.clone(),
        );
        let mut task = runtime.spawn_blocking(move || {
            let answers = caught("the router", || {
                router.route_managed(&given, within.as_deref(), began, Some(slot))
            });
            answers.unwrap_or_else(|error| all(&given, &error))
        });
        let _abort = AbortWhenDropped(task.abort_handle());
        let joined = match until {
            None => task.await,
            Some(until) => match timeout_at(until, &mut task).await {
                Ok(joined) => joined,
                Err(_) => return self.late(&runtime, requests, policy, began).await,
            },
        };
        joined.unwrap_or_else(|error| all(&requests, &shut_down(&error)))
    }

    /// The fallbacks of `requests`, all of which are late.
    async fn late(
        &self,
        runtime: &Handle,
        requests: Arc<[Request]>,
        policy: Option<Arc<PolicyHandle>>,
        began: Instant,
    ) -> Vec<Result<Decision>> {
        let serving = self.router.serving.load_full();
        let compiled = policy
            .as_ref()
            .is_none_or(|policy| policy.ready(&serving).is_some());
        let (router, given) = (Arc::clone(&self.router), Arc::clone(&requests));
        let answer = move || -> Vec<Result<Decision>> {
            let late = |request| {
                let answered = router.late(request, policy.as_deref(), began)?;
                Ok(answered.decision)
            };
            given.iter().map(late).collect()
        };
        if compiled {
            return answer();
        }
        // Another generation is served: the policy is compiled again first.
        let answers = runtime.spawn_blocking(answer).await;
        answers.unwrap_or_else(|error| all(&requests, &shut_down(&error)))
    }
}

fn one(answers: Vec<Result<Decision>>) -> Result<Decision> {
    match answers.into_iter().next() {
        Some(answer) => answer,
        None => unreachable!("one request has one answer"),
    }
}

fn shut_down(error: &JoinError) -> Error {
    error!(Unsupported, "the tokio runtime is shutting down: {error}")
}
