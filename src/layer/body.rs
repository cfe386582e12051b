//! The body that a request goes on with.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

/// The body of a request behind the layer: as it came, read or not, or with another model.
pub struct RoutedBody<B: Body> {
    /// What was read and not yet given on.
    read: VecDeque<Bytes>,
    rest: BodyRest<B>,
}

/// What follows the bytes that were read.
enum BodyRest<B: Body> {
    Open(B),
    /// In a box, so that the body may be moved.
    Failed(Option<Box<B::Error>>),
    Trailers(Option<HeaderMap>),
}

impl<B: Body<Data = Bytes> + Unpin> RoutedBody<B> {
    /// The body as it came.
    pub(super) fn untouched(body: B) -> Self {
        Self {
            read: VecDeque::new(),
            rest: BodyRest::Open(body),
        }
    }

    /// Reads `body` to its end. If that is beyond `limit` bytes, or if reading fails, there are no
    /// bytes, and the body gives on what was read, then the rest or the error.
    pub(super) async fn read(body: B, limit: usize) -> (Self, Option<Bytes>) {
        let mut read = Self::untouched(body);
        let declared = usize::try_from(read.size_hint().lower());
        if declared.map_or(true, |declared| declared > limit) {
            return (read, None);
        }
        let mut bytes = 0;
        while let BodyRest::Open(body) = &mut read.rest {
            let frame = std::future::poll_fn(|context| Pin::new(&mut *body).poll_frame(context));
            match frame.await {
                None => read.rest = BodyRest::Trailers(None),
                Some(Err(error)) => read.rest = BodyRest::Failed(Some(Box::new(error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        bytes += data.len();
                        read.read.push_back(data);
                        if bytes > limit {
                            return (read, None);
                        }
                    }
                    Err(frame) => {
                        read.rest = BodyRest::Trailers(frame.into_trailers().ok());
                    }
                },
            }
        }
        let whole = matches!(read.rest, BodyRest::Trailers(_)).then(|| read.joined());
        (read, whole)
    }

    /// All that was read, in one piece.
    fn joined(&mut self) -> Bytes {
        if self.read.len() != 1 {
            let length = self.read.iter().map(Bytes::len).sum();
            let mut joined = BytesMut::with_capacity(length);
            joined.extend(self.read.drain(..).flatten());
            self.read.push_back(joined.freeze());
        }
        self.read.front().cloned().unwrap_or_default()
    }

    /// Gives on `bytes` in place of what was read.
    pub(super) fn replace(&mut self, bytes: Bytes) {
        self.read.clear();
        self.read.push_back(bytes);
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for RoutedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, B::Error>>> {
        if let Some(data) = self.read.pop_front() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        match &mut self.rest {
            BodyRest::Open(body) => Pin::new(body).poll_frame(context),
            BodyRest::Failed(error) => Poll::Ready(error.take().map(|error| Err(*error))),
            BodyRest::Trailers(trailers) => Poll::Ready(
                trailers
                    .take()
                    .map(|trailers| Ok(Frame::trailers(trailers))),
            ),
        }
    }

    fn is_end_stream(&self) -> bool {
        let over = match &self.rest {
            BodyRest::Open(body) => body.is_end_stream(),
            BodyRest::Failed(error) => error.is_none(),
            BodyRest::Trailers(trailers) => trailers.is_none(),
        };
        self.read.is_empty() && over
    }

    fn size_hint(&self) -> SizeHint {
        let read: usize = self.read.iter().map(Bytes::len).sum();
        let read = read as u64;
        match &self.rest {
            BodyRest::Open(body) => {
                let rest = body.size_hint();
                let mut hint = SizeHint::new();
                if let Some(upper) = rest.upper() {
                    hint.set_upper(upper.saturating_add(read));
                }
                hint.set_lower(rest.lower().saturating_add(read));
                hint
            }
            BodyRest::Failed(_) => SizeHint::default(),
            BodyRest::Trailers(_) => SizeHint::with_exact(read),
        }
    }
}

impl<B: Body> fmt::Debug for RoutedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let read: usize = self.read.iter().map(Bytes::len).sum();
        let open = matches!(self.rest, BodyRest::Open(_));
        f.debug_struct("RoutedBody")
            .field("read", &read)
            .field("open", &open)
            .finish()
    }
}
