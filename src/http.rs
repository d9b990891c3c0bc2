//! Small HTTP calls outwards: witnesses, webhooks, pings. `ureq` blocks, so each call runs on a thread of its own.

use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

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
