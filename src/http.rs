//! Small HTTP calls outwards: witnesses, webhooks, pings. `ureq` blocks, so each call runs on a thread of its own.

use std::time::Duration;

use anyhow::Context;
use serde_json::Value;
use ureq::tls::{Certificate, ClientCert, PrivateKey, TlsConfig};

use crate::certificate::Pair;

/// An answer larger than this isn't one of ours.
const BODY_LIMIT: u64 = 1 << 20;

/// Gets JSON; any status but 2xx is an error.
pub async fn get_json(url: String, bearer: Option<String>, timeout: Duration) -> anyhow::Result<Value> {
    blocking(move || {
        let mut request = agent(timeout).get(&url);
        if let Some(token) = bearer {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        let text = request.call()?.body_mut().with_config().limit(BODY_LIMIT).read_to_string()?;
        serde_json::from_str(&text).context("parse the answer as JSON")
    })
    .await
}

/// Posts JSON; any status but 2xx is an error.
pub async fn post_json(url: String, body: Value, timeout: Duration) -> anyhow::Result<()> {
    blocking(move || {
        agent(timeout).post(&url).content_type("application/json").send(body.to_string())?;
        Ok(())
    })
    .await
}

/// Posts a plain text; any status but 2xx is an error.
pub async fn post_text(url: String, body: String, timeout: Duration) -> anyhow::Result<()> {
    blocking(move || {
        agent(timeout).post(&url).content_type("text/plain; charset=utf-8").send(body)?;
        Ok(())
    })
    .await
}

/// Posts nothing to a server of this very pod; any status but 2xx is an error. `identity` is shown to a server that asks who we are. Its own
/// certificate isn't verified: this traffic never leaves the pod, and the certificate may be the one that is to be replaced.
pub async fn post_within_pod(url: String, identity: Option<Pair>, timeout: Duration) -> anyhow::Result<()> {
    blocking(move || {
        let mut tls = TlsConfig::builder().disable_verification(true);
        if let Some(Pair { chain, key }) = identity {
            let chain: Vec<_> = chain.iter().map(|one| Certificate::from_der(one).to_owned()).collect();
            tls = tls.client_cert(Some(ClientCert::new_with_certs(&chain, PrivateKey::from_pem(&key)?)));
        }
        agent(timeout).post(&url).config().tls_config(tls.build()).build().send_empty()?;
        Ok(())
    })
    .await
}

fn agent(timeout: Duration) -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_global(Some(timeout))
        .user_agent(concat!("lifeboat/", env!("CARGO_PKG_VERSION")))
        .build()
        .into()
}

async fn blocking<T: Send + 'static>(call: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(call).await.context("run an HTTP call")?
}
