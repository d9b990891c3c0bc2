//! One cluster's API server: connecting, plain errors, ConfigMaps by compare-and-swap, Events.

mod configmap;
mod events;
mod lease;
mod site_record;
mod whoami;

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, anyhow};
use backon::{ExponentialBuilder, Retryable};
use kube::config::{KubeConfigOptions, Kubeconfig};

pub use configmap::{Conflict, Snapshot};
pub use events::EventTarget;
pub use lease::Election;

use crate::outcome::Misconfigured;

/// Where a pod finds its own namespace.
const NAMESPACE_FILE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/namespace";

/// Time for a kubeconfig's credentials: as long as for an answer of the API server.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(15);

/// Which cluster and namespace to work on.
#[derive(Debug, Clone, Default, PartialEq, Eq, clap::Args)]
#[command(next_help_heading = "Kubernetes")]
pub struct ClusterOptions {
    /// Context of the kubeconfig to use; without it the pod's own service account, else the current context
    #[arg(long, env = "LIFEBOAT_CONTEXT", global = true)]
    pub context: Option<String>,

    /// Namespace; without it the pod's own, else the context's
    #[arg(long, short = 'n', env = "LIFEBOAT_NAMESPACE", global = true)]
    pub namespace: Option<String>,
}

impl ClusterOptions {
    /// These, but for what another command line gives.
    #[must_use]
    pub fn with(&self, other: &Self, gives: impl Fn(&str) -> bool) -> Self {
        let choose = |flag, ours: &Option<String>, theirs: &Option<String>| {
            if gives(flag) { theirs.clone() } else { ours.clone() }
        };
        Self {
            context: choose("context", &self.context, &other.context),
            namespace: choose("namespace", &self.namespace, &other.namespace),
        }
    }
}

/// A namespace of a cluster, with an authenticated client.
#[derive(Clone)]
pub struct Cluster {
    client: kube::Client,
    namespace: String,
    /// What is connected to: the API server, or a proxy before it.
    host: Option<String>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("namespace", &self.namespace).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Loads the configuration; doesn't yet connect.
    pub async fn connect(options: &ClusterOptions) -> anyhow::Result<Self> {
        let mut config = match &options.context {
            Some(context) => of_context(context).await?,
            None => match kube::Config::incluster() {
                Ok(config) => config,
                Err(in_cluster) => kube::Config::from_kubeconfig(&KubeConfigOptions::default())
                    .await
                    .map_err(|error| {
                        anyhow!("neither a pod's service account ({in_cluster}) nor a kubeconfig ({error})")
                    })
                    .context(Misconfigured)?,
            },
        };
        // Without these a dead API server would hold a step until its deadline kills it, silently.
        config.connect_timeout = Some(Duration::from_secs(5));
        config.read_timeout = Some(Duration::from_secs(15));
        config.write_timeout = Some(Duration::from_secs(15));
        // kube tries again up to 15 times, for minutes, or for as long as the server says. See `patiently`.
        config.default_retry = false;
        let namespace = options.namespace.clone().unwrap_or_else(|| match std::fs::read_to_string(NAMESPACE_FILE) {
            Ok(name) if options.context.is_none() && !name.trim().is_empty() => name.trim().to_owned(),
            _ => config.default_namespace.clone(),
        });
        let host = config.proxy_url.as_ref().unwrap_or(&config.cluster_url).host().map(str::to_owned);
        Ok(Self { client: Box::pin(build_client(config)).await?, namespace, host })
    }

    /// The namespace that every call here works on.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Whether the API server's name can be looked up within `limit`. The client's own time limit of a connection covers the lookup too, and does
    /// not tell which of the two took too long.
    pub(crate) async fn resolves(&self, limit: Duration) -> bool {
        let Some(host) = &self.host else { return false };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        matches!(tokio::time::timeout(limit, tokio::net::lookup_host((host, 443))).await, Ok(Ok(_)))
    }

    /// The API of one kind in this namespace.
    #[must_use]
    pub fn api<K>(&self) -> kube::Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        kube::Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Says which call on which object failed, and what the API server or the network answered.
    pub(crate) fn explain(&self, verb: &str, kind: &str, name: &str, error: kube::Error) -> anyhow::Error {
        let what = format!("{verb} {kind} {name} in namespace {}", self.namespace);
        match error {
            kube::Error::Api(status) => match status.code {
                404 => anyhow!("{what}: it does not exist"),
                403 => anyhow!("{what}: the API server forbids it: {}", status.message),
                401 => anyhow!("{what}: the API server does not know us: {}", status.message),
                code => anyhow!("{what}: the API server answered {code}: {}", status.message),
            },
            other => anyhow!(other).context(what),
        }
    }
}

/// A kubeconfig may name a program that gives the token (`exec`), and building the client runs it to its end, as a blocking call. It must
/// neither hold up timers and signals nor be waited for without an end. A thread that still waits for it ends with the process.
async fn build_client(config: kube::Config) -> anyhow::Result<kube::Client> {
    // A thread costs a short step a tenth of its time: only for what may block.
    if config.auth_info.exec.is_none() && config.auth_info.auth_provider.is_none() {
        return kube::Client::try_from(config).context("build the Kubernetes client").context(Misconfigured);
    }
    let plugin = config.auth_info.exec.as_ref().and_then(|exec| exec.command.clone());
    let built = tokio::task::spawn_blocking(|| kube::Client::try_from(config));
    let Ok(built) = tokio::time::timeout(CLIENT_TIMEOUT, built).await else {
        let what = plugin.map_or_else(
            || "its credentials were not there".to_owned(),
            |command| format!("its exec plugin {command} did not answer"),
        );
        return Err(anyhow!("build the Kubernetes client of {}: {what} within {CLIENT_TIMEOUT:?}", kubeconfig_place()));
    };
    let client = built.context("build the Kubernetes client")?;
    client.context("build the Kubernetes client").context(Misconfigured)
}

/// Where the kubeconfig is, for people.
fn kubeconfig_place() -> String {
    std::env::var_os("KUBECONFIG")
        .map_or_else(|| "~/.kube/config".to_owned(), |place| PathBuf::from(place).display().to_string())
}

/// Calls again, within about three seconds, while an overloaded API server puts us off.
pub async fn patiently<T, Call>(call: impl FnMut() -> Call) -> kube::Result<T>
where
    Call: Future<Output = kube::Result<T>>,
{
    let put_off = |error: &kube::Error| matches!(error, kube::Error::Api(status) if [429, 503].contains(&status.code));
    let pauses = ExponentialBuilder::default().with_min_delay(Duration::from_millis(200)).with_max_times(4);
    call.retry(pauses).when(put_off).await
}

/// True where the API server said that the object isn't there.
#[must_use]
pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404)
}

/// True where the API server said that we may not.
#[must_use]
pub fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403)
}

async fn of_context(context: &str) -> anyhow::Result<kube::Config> {
    let options = KubeConfigOptions { context: Some(context.to_owned()), ..KubeConfigOptions::default() };
    let load = async {
        let kubeconfig = Kubeconfig::read()?;
        kube::Config::from_custom_kubeconfig(kubeconfig, &options).await
    };
    load.await.with_context(|| format!("load context {context} from {}", kubeconfig_place())).context(Misconfigured)
}
