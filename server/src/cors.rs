//! Lets pages of other origins use gRPC-web, if the operator says which: what browsers ask for before and after a call.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, HeaderValue,
    ORIGIN, VARY,
};
use http::{HeaderMap, Method, Request, Response};
use tonic::body::Body;
use tower::{Layer, Service};

/// Any origin.
const ANY: &str = "*";

/// See the [module](self).
#[derive(Clone, Debug)]
pub(crate) struct CorsLayer {
    pub(crate) origins: Arc<[String]>,
}

impl<S> Layer<S> for CorsLayer {
    type Service = Cors<S>;

    fn layer(&self, inner: S) -> Cors<S> {
        Cors { inner, origins: Arc::clone(&self.origins) }
    }
}

/// A service that answers what browsers ask.
#[derive(Clone, Debug)]
pub(crate) struct Cors<S> {
    inner: S,
    origins: Arc<[String]>,
}

impl<S> Service<Request<Body>> for Cors<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, task: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(task)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let allowed = allowed(&self.origins, request.headers());
        let asks = request.method() == Method::OPTIONS
            && request.headers().contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        if asks && let Some(origin) = &allowed {
            let mut response = Response::new(Body::empty());
            let headers = response.headers_mut();
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
            headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST"));
            let names = "content-type, x-grpc-web, x-user-agent, grpc-timeout, authorization";
            headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static(names));
            headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("86400"));
            headers.insert(VARY, HeaderValue::from_static("origin"));
            return Box::pin(std::future::ready(Ok(response)));
        }
        let answer = self.inner.call(request);
        let Some(origin) = allowed else { return Box::pin(answer) };
        Box::pin(async move {
            let mut response = answer.await?;
            let headers = response.headers_mut();
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            let names = "grpc-status, grpc-message, grpc-status-details-bin";
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(names));
            headers.append(VARY, HeaderValue::from_static("origin"));
            Ok(response)
        })
    }
}

/// The origin of a request, if it may be there.
fn allowed(origins: &[String], headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(ORIGIN)?;
    let is_allowed = origins.iter().any(|allowed| allowed == ANY || allowed.as_bytes() == origin.as_bytes());
    is_allowed.then(|| origin.clone())
}
