//! A small HTTP server for what others ask us: the witness's verdict, metrics, whether this site leads.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http_body_util::Full;
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header::{CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tracing::warn;

/// A caller that sends no request within this time is dropped.
const HEADER_TIMEOUT: Duration = Duration::from_secs(3);
/// Connections beyond this number wait.
const CONNECTIONS: usize = 64;

/// Serves until the process ends; each request is answered by `answer`.
pub async fn serve<Answer, Coming>(listener: TcpListener, answer: Answer) -> anyhow::Result<Infallible>
where
    Answer: Fn(Request<Incoming>) -> Coming + Clone + Send + Sync + 'static,
    Coming: Future<Output = Response<Full<Bytes>>> + Send,
{
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let place = Arc::clone(&places).acquire_owned().await?;
        match listener.accept().await {
            Ok((stream, _)) => {
                let answer = answer.clone();
                tokio::spawn(async move {
                    connection(stream, answer).await;
                    drop(place);
                });
            }
            // Out of file descriptors, or a caller that is gone already: the next one may do better.
            Err(error) => {
                warn!("accept: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection<Answer, Coming>(stream: TcpStream, answer: Answer)
where
    Answer: Fn(Request<Incoming>) -> Coming,
    Coming: Future<Output = Response<Full<Bytes>>>,
{
    let service = service_fn(|request| {
        let coming = answer(request);
        async move { Ok::<_, Infallible>(coming.await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        warn!("connection: {error}");
    }
}

/// A plain text.
#[must_use]
pub fn text(status: StatusCode, body: impl Into<String>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body.into()));
    *response.status_mut() = status;
    response
}

/// An answer of another content type.
#[must_use]
pub fn typed(content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body.into()));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
