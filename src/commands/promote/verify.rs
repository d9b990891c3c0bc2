//! Whether this site leads: not what Patroni says, but a write that was accepted.

use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use tracing::debug;

use super::Promote;
use crate::{
    kubernetes::Cluster,
    patroni::{LeaderRecord, Member},
    postgres::{self, Timeline, simple_row},
};

const POLL: Duration = Duration::from_millis(250);
const ATTEMPT: Duration = Duration::from_secs(5);

/// A primary that accepted a write.
#[derive(Debug)]
pub struct Verified {
    /// Its pod.
    pub member: String,
    /// Its timeline.
    pub timeline: Timeline,
    /// How long we waited for it.
    pub took: Duration,
}

impl Promote {
    /// Waits for a local leader out of recovery, on a timeline above `from`, that commits a transaction; the last reason why not
    /// otherwise.
    pub async fn wait_for_primary(&self, cluster: &Cluster, from: Option<Timeline>) -> Result<Verified, String> {
        let begun = Instant::now();
        loop {
            let last = match self.try_write(cluster, from).await {
                Ok((member, timeline)) => return Ok(Verified { member, timeline, took: begun.elapsed() }),
                Err(error) => format!("{error:#}"),
            };
            debug!("not yet: {last}");
            if begun.elapsed() > self.verify_timeout {
                return Err(last);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The leader is looked up each time: another member may win the race.
    async fn try_write(&self, cluster: &Cluster, from: Option<Timeline>) -> anyhow::Result<(String, Timeline)> {
        let leader =
            LeaderRecord::read(&cluster.configmap(&self.scope.leader()).await?).context("nobody holds the lease")?;
        let member = Member::of_pod(cluster, &leader.leader).await?;
        let server = self.local_server(&member)?;
        let session =
            postgres::attempt(&server, ATTEMPT).await.map_err(|failed| anyhow!("{}: {}", member.name, failed.error))?;
        let check = async {
            let identity = postgres::identity(&session.client).await?;
            let timeline = identity.timeline.context("the server tells no timeline")?;
            if identity.in_recovery != Some(false) {
                bail!("{} is still in recovery", member.name);
            }
            if from.is_some_and(|from| timeline <= from) {
                bail!("{} is on timeline {timeline}, not above the one before", member.name);
            }
            // A transactional message leaves no table behind, yet its commit is written, flushed and, where that is configured,
            // replicated as any other (PostgreSQL: pg_logical_emit_message).
            simple_row(&session.client, "SELECT pg_logical_emit_message(true, 'lifeboat', 'promoted')")
                .await
                .context("write a message")?;
            Ok((member.name.clone(), timeline))
        };
        tokio::time::timeout(ATTEMPT, check)
            .await
            .map_err(|_| anyhow!("{}: no answer within {ATTEMPT:?}", member.name))?
    }
}
