//! What a person must know of: a Kubernetes Event, a webhook post, a dead-man ping.
//!
//! An alert that can't be sent never changes what a command did; the outcome says so under `alerts`.

use std::{path::PathBuf, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use serde::Serialize;
use serde_json::{Value, json};
use tracing::{error, warn};

use crate::{
    http,
    kubernetes::{Cluster, EventTarget},
    outcome::{Conclusion, Report},
    secret,
};

const TIMEOUT: Duration = Duration::from_secs(10);
const DELIVERED: &str = "delivered";

/// How bad it is; Kubernetes Events know these two types.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Severity {
    /// Good to know.
    Normal,
    /// Somebody must look.
    Warning,
}

/// One message to a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Alert {
    /// Fixed name of its kind, such as `Promoted`: the Event's reason, and the runbook's page.
    pub kind: String,
    /// How bad it is.
    pub severity: Severity,
    /// One sentence.
    pub summary: String,
    /// What it is about, where the command has an object of its own for Events.
    #[serde(skip)]
    pub target: Option<EventTarget>,
}

impl Alert {
    /// Somebody must look.
    pub fn warning(kind: &str, summary: impl Into<String>) -> Self {
        Self { kind: kind.to_owned(), severity: Severity::Warning, summary: summary.into(), target: None }
    }

    /// Good to know.
    pub fn normal(kind: &str, summary: impl Into<String>) -> Self {
        Self { severity: Severity::Normal, ..Self::warning(kind, summary) }
    }

    /// Names the object that the Event belongs to.
    #[must_use]
    pub fn about(mut self, target: Option<EventTarget>) -> Self {
        self.target = target;
        self
    }
}

/// The body that each kind of chat wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum WebhookFormat {
    /// The whole alert as plain JSON.
    #[default]
    Json,
    /// Slack's incoming webhook.
    Slack,
    /// Rocket.Chat's incoming webhook.
    Rocketchat,
    /// Mattermost's incoming webhook.
    Mattermost,
    /// A Teams workflow's webhook: an adaptive card.
    Teams,
}

/// Where alerts go. The addresses are secrets: whoever has them can write to the channel.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Alerts")]
pub struct AlertOptions {
    /// File with the address to post alerts to; without it the environment variable `LIFEBOAT_WEBHOOK_URL` is used
    #[arg(long, env = "LIFEBOAT_WEBHOOK_URL_FILE", value_name = "FILE", global = true)]
    pub webhook_url_file: Option<PathBuf>,

    /// Body of the post
    #[arg(long, env = "LIFEBOAT_WEBHOOK_FORMAT", value_enum, default_value = "json", global = true)]
    pub webhook_format: WebhookFormat,

    /// File with the address of a dead-man switch, posted to after each run (with /fail added after a failed one);
    /// without it the environment variable `LIFEBOAT_PING_URL` is used
    #[arg(long, env = "LIFEBOAT_PING_URL_FILE", value_name = "FILE", global = true)]
    pub ping_url_file: Option<PathBuf>,
}

/// What became of an alert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sent {
    /// Every channel took it.
    pub everywhere: bool,
    /// At least one took it, or there is none.
    pub somewhere: bool,
}

/// Sends what a report asks for.
#[derive(Debug, Clone)]
pub struct Alerter {
    webhook: Option<SecretString>,
    format: WebhookFormat,
    ping: Option<SecretString>,
}

impl Alerter {
    /// Reads the addresses.
    pub fn new(options: &AlertOptions) -> anyhow::Result<Self> {
        Ok(Self {
            webhook: secret::read(options.webhook_url_file.as_deref(), "LIFEBOAT_WEBHOOK_URL")?,
            format: options.webhook_format,
            ping: secret::read(options.ping_url_file.as_deref(), "LIFEBOAT_PING_URL")?,
        })
    }

    /// Sends the alerts that the report still has and the ping, and writes into the report what became of them.
    pub async fn send(&self, command: &str, report: &mut Report, cluster: Option<&Cluster>) {
        for alert in std::mem::take(&mut report.alerts) {
            self.send_one(command, &alert, report, cluster).await;
        }
        self.ping(command, report).await;
    }

    /// Tells the dead-man switch how it ended.
    pub async fn ping(&self, command: &str, report: &mut Report) {
        if let Some(url) = &self.ping {
            let address = ping_address(url.expose_secret(), report.conclusion);
            let result = http::post_text(address, format!("{command}: {}", report.reason), TIMEOUT).await;
            report.details.insert("ping".to_owned(), json!(delivery(&result)));
        }
    }

    /// Sends one alert, and writes into the report what became of it.
    pub async fn send_one(&self, command: &str, alert: &Alert, report: &mut Report, cluster: Option<&Cluster>) -> Sent {
        // ERROR is for what a person must look at.
        match alert.severity {
            Severity::Warning => error!(kind = alert.kind, "{}", alert.summary),
            Severity::Normal => tracing::info!(kind = alert.kind, "{}", alert.summary),
        }
        let mut channels = serde_json::Map::new();
        if let Some((cluster, target)) = cluster.zip(alert.target.as_ref()) {
            let result = cluster.emit_event(target, &alert.kind, alert.severity, &alert.summary).await;
            channels.insert("event".to_owned(), json!(delivery(&result)));
        }
        if let Some(url) = &self.webhook {
            let body = webhook_body(self.format, command, alert);
            let result = http::post_json(url.expose_secret().to_owned(), body, TIMEOUT).await;
            channels.insert("webhook".to_owned(), json!(delivery(&result)));
        }
        let taken = channels.values().filter(|told| *told == DELIVERED).count();
        let sent = Sent { everywhere: taken == channels.len(), somewhere: taken > 0 || channels.is_empty() };
        let told = json!({ "kind": alert.kind, "sent": channels });
        match report.details.entry("alerts").or_insert_with(|| json!([])) {
            Value::Array(all) => all.push(told),
            other => *other = told,
        }
        sent
    }
}

/// What became of a message. The address must not leak through an error's text, so only its kind is told.
fn delivery(result: &anyhow::Result<()>) -> String {
    match result {
        Ok(()) => DELIVERED.to_owned(),
        Err(error) => {
            let text = match error.downcast_ref::<ureq::Error>() {
                Some(ureq::Error::StatusCode(code)) => format!("not delivered: HTTP status {code}"),
                Some(ureq::Error::Timeout(_)) => "not delivered: timed out".to_owned(),
                Some(ureq::Error::HostNotFound) => "not delivered: host not found".to_owned(),
                Some(ureq::Error::Io(io)) => format!("not delivered: {}", io.kind()),
                Some(_) => "not delivered: the address can't be used".to_owned(),
                None => format!("not delivered: {error:#}"),
            };
            warn!("alert {text}");
            text
        }
    }
}

/// The convention of healthchecks.io and its kin: the plain address for a success, `/fail` behind it for a failure.
fn ping_address(url: &str, conclusion: Conclusion) -> String {
    if conclusion.is_success() { url.to_owned() } else { format!("{}/fail", url.trim_end_matches('/')) }
}

fn webhook_body(format: WebhookFormat, command: &str, alert: &Alert) -> Value {
    let text = format!("lifeboat {command}: {}: {}", alert.kind, alert.summary);
    match format {
        WebhookFormat::Json => json!({
            "version": 1, "source": "lifeboat", "command": command,
            "kind": alert.kind, "severity": alert.severity, "summary": alert.summary,
        }),
        WebhookFormat::Slack | WebhookFormat::Rocketchat | WebhookFormat::Mattermost => json!({ "text": text }),
        WebhookFormat::Teams => json!({
            "type": "message",
            "attachments": [{
                "contentType": "application/vnd.microsoft.card.adaptive",
                "content": {
                    "type": "AdaptiveCard", "version": "1.4",
                    "$schema": "http://adaptivecards.io/schemas/adaptive-card.json",
                    "body": [{ "type": "TextBlock", "text": text, "wrap": true }],
                },
            }],
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ping_of_a_failed_run_goes_to_fail() {
        assert_eq!(ping_address("http://x/u/", Conclusion::Refused), "http://x/u/fail");
        assert_eq!(ping_address("http://x/u/", Conclusion::Done), "http://x/u/");
    }

    #[test]
    fn webhook_body_has_the_text_where_each_chat_reads_it() {
        let alert = Alert::warning("Promoted", "golddr leads");
        assert_eq!(
            webhook_body(WebhookFormat::Slack, "promote", &alert)["text"],
            "lifeboat promote: Promoted: golddr leads"
        );
        let card = webhook_body(WebhookFormat::Teams, "promote", &alert);
        assert_eq!(card["attachments"][0]["content"]["body"][0]["text"], "lifeboat promote: Promoted: golddr leads");
        assert_eq!(webhook_body(WebhookFormat::Json, "promote", &alert)["severity"], "Warning");
    }

    #[test]
    fn delivery_error_never_shows_the_address() {
        let error = ureq::get("http://user:hunter2@[bad/").call().unwrap_err();
        assert!(!delivery(&Err(error.into())).contains("hunter2"));
    }
}
