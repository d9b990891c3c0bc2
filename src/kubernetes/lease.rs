//! Which of several monitors works: the holder of a Lease (coordination.k8s.io/v1).
//!
//! As client-go's leader election: every write is compared with the version that was read, and a lease counts as lost when it did not
//! change for its duration on our own clock, whatever the holder's clock says.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{ResourceExt, api::PostParams, core::ObjectMeta};

use super::{Cluster, is_not_found};

/// Our part in the election.
#[derive(Debug)]
pub struct Election {
    name: String,
    identity: String,
    duration: Duration,
    /// The version of another's lease, and since when it is so.
    seen: Option<(String, Instant)>,
}

/// What is to be done about a lease.
#[derive(Debug, PartialEq, Eq)]
enum Step {
    Renew,
    Take,
    Wait,
}

impl Election {
    /// Takes part under this identity; the lease lasts for `duration` after each renewal.
    #[must_use]
    pub fn new(name: &str, identity: &str, duration: Duration) -> Self {
        Self { name: name.to_owned(), identity: identity.to_owned(), duration, seen: None }
    }

    /// Renews the lease or tries to take it; true while we hold it.
    pub async fn hold(&mut self, cluster: &Cluster) -> anyhow::Result<bool> {
        let (api, post) = (cluster.api::<Lease>(), PostParams::default());
        let explain = |verb, error| cluster.explain(verb, "Lease", &self.name, error);
        let lost = |error: &kube::Error| matches!(error, kube::Error::Api(status) if status.code == 409);
        let mut lease = match api.get(&self.name).await {
            Ok(lease) => lease,
            Err(error) if is_not_found(&error) => {
                let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
                let lease = Lease { metadata, spec: Some(self.spec(0, Timestamp::now())) };
                return match api.create(&post, &lease).await {
                    Err(error) if lost(&error) => Ok(false),
                    result => result.map(|_| true).map_err(|error| explain("create", error)),
                };
            }
            Err(error) => return Err(explain("get", error)),
        };
        let before = lease.spec.clone().unwrap_or_default();
        let step = self.decide(&before, &lease.resource_version().unwrap_or_default(), Instant::now());
        let transitions = before.lease_transitions.unwrap_or_default();
        lease.spec = match step {
            Step::Wait => return Ok(false),
            Step::Renew => {
                Some(LeaseSpec { acquire_time: before.acquire_time, ..self.spec(transitions, Timestamp::now()) })
            }
            Step::Take => Some(self.spec(transitions + 1, Timestamp::now())),
        };
        match api.replace(&self.name, &post, &lease).await {
            Err(error) if lost(&error) => Ok(false),
            result => result.map(|_| true).map_err(|error| cluster.explain("update", "Lease", &self.name, error)),
        }
    }

    fn decide(&mut self, spec: &LeaseSpec, version: &str, now: Instant) -> Step {
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder == self.identity {
            return Step::Renew;
        }
        if holder.is_empty() {
            return Step::Take;
        }
        let since = match &self.seen {
            Some((seen, since)) if seen == version => *since,
            _ => {
                self.seen = Some((version.to_owned(), now));
                now
            }
        };
        let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
        let duration = seconds.map_or(self.duration, Duration::from_secs);
        if now - since > duration { Step::Take } else { Step::Wait }
    }

    fn spec(&self, transitions: i32, now: Timestamp) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(i32::try_from(self.duration.as_secs()).unwrap_or(i32::MAX)),
            acquire_time: Some(MicroTime(now)),
            renew_time: Some(MicroTime(now)),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lease_of_another_is_taken_only_when_it_did_not_change_for_its_duration() {
        let mut us = Election::new("m", "us", Duration::from_secs(15));
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let spec = |holder: &str| LeaseSpec {
            holder_identity: Some(holder.into()),
            lease_duration_seconds: Some(15),
            ..LeaseSpec::default()
        };
        assert_eq!(us.decide(&spec("us"), "1", at(0)), Step::Renew);
        assert_eq!(us.decide(&spec(""), "1", at(0)), Step::Take, "it was released");
        assert_eq!(us.decide(&spec("them"), "1", at(0)), Step::Wait);
        assert_eq!(us.decide(&spec("them"), "1", at(15)), Step::Wait);
        assert_eq!(us.decide(&spec("them"), "2", at(16)), Step::Wait, "it was renewed");
        assert_eq!(us.decide(&spec("them"), "2", at(31)), Step::Wait);
        assert_eq!(us.decide(&spec("them"), "2", at(32)), Step::Take);
    }
}
