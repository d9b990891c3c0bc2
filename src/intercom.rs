//! The files that the containers of one pod hand each other, in an emptyDir (default `/intercom`).
//!
//! `tsc_port` and `health` keep the names and words of the scripts that came before; `port.json` and `probe.json` carry the
//! whole facts. Files are written whole: temporary name, fsync, rename. A reader refuses what is missing, malformed or old.

use std::{
    fs,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::probe::{ProbeFacts, Verdict};

/// Facts from further in the future than this are refused: one of two clocks is wrong.
const CLOCK_TOLERANCE: SignedDuration = SignedDuration::from_secs(5);

/// A facts file larger than this is not ours.
const SIZE_LIMIT: u64 = 1 << 20;

/// A port file larger than this holds no port.
const PORT_SIZE_LIMIT: u64 = 64;

/// What `port-discover` found (contracts: `port.json`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortFacts {
    /// The schema's version, 1.
    pub version: u8,
    /// When the Service was read.
    pub taken: Timestamp,
    /// The Service's namespace.
    pub namespace: String,
    /// The Service's name.
    pub service: String,
    /// The Service's uid: a Service made anew has another.
    pub uid: String,
    /// The port to connect to: the Service's, or the node port where that was asked for.
    pub port: u16,
    /// The node port, if the Service has one.
    pub node_port: Option<u16>,
}

/// Facts that carry when they were taken.
pub trait Dated: DeserializeOwned {
    /// The schema's version.
    fn version(&self) -> u8;
    /// When they were taken.
    fn taken(&self) -> Timestamp;
}

impl Dated for PortFacts {
    fn version(&self) -> u8 {
        self.version
    }
    fn taken(&self) -> Timestamp {
        self.taken
    }
}

impl Dated for ProbeFacts {
    fn version(&self) -> u8 {
        self.version
    }
    fn taken(&self) -> Timestamp {
        self.taken
    }
}

/// The folder that the steps share.
#[derive(Debug, Clone)]
pub struct Intercom {
    dir: PathBuf,
}

impl Intercom {
    /// The folder must exist: it is a volume of the pod.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self { dir: dir.into() }
    }

    /// Where a file of this name is.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Writes the port: `port.json` first, then `tsc_port`, whose appearance says that both are there.
    pub fn write_port(&self, facts: &PortFacts) -> anyhow::Result<()> {
        let (json, number) = (serde_json::to_vec(facts)?, format!("{}\n", facts.port));
        let first = self.prepare("port.json", &json)?;
        let second = self.prepare("tsc_port", number.as_bytes())?;
        first.publish()?;
        second.publish()
    }

    /// Removes what an earlier run of `port-discover` left: a failed run must not leave a port behind.
    pub fn clear_port(&self) -> anyhow::Result<()> {
        self.remove("tsc_port")?;
        self.remove("port.json")
    }

    /// Removes what an earlier run of `pg-probe` left.
    pub fn clear_probe(&self) -> anyhow::Result<()> {
        self.remove("health")?;
        self.remove("probe.json")
    }

    /// Writes the verdict: `probe.json`, then `health`, in the one word that older readers know. That word is `unhealthy`
    /// only for an unreachable peer, and is absent where the probe learned nothing.
    pub fn write_probe(&self, facts: &ProbeFacts) -> anyhow::Result<()> {
        self.write_json("probe.json", facts)?;
        match facts.verdict {
            Verdict::Unreachable => self.write("health", b"unhealthy\n"),
            Verdict::Healthy | Verdict::Starting | Verdict::Rejected => self.write("health", b"healthy\n"),
            Verdict::Misconfigured | Verdict::Unknown => self.remove("health"),
        }
    }

    /// Reads the probe's facts; refuses them when older than `max_age`.
    pub fn read_probe(&self, now: Timestamp, max_age: Duration) -> anyhow::Result<ProbeFacts> {
        read_facts(&self.path("probe.json"), now, max_age)
    }

    /// Writes a file whole: nobody ever reads half of it. The folder is not synced: an emptyDir does not outlive its pod.
    pub fn write(&self, name: &str, content: &[u8]) -> anyhow::Result<()> {
        self.prepare(name, content)?.publish()
    }

    /// Writes a file under a temporary name, and syncs it.
    fn prepare(&self, name: &str, content: &[u8]) -> anyhow::Result<Prepared> {
        let prepared =
            Prepared { path: self.path(name), temporary: self.path(&format!(".{name}.{}", std::process::id())) };
        let write = || -> io::Result<()> {
            let mut file = fs::File::create(&prepared.temporary)?;
            file.write_all(content)?;
            file.sync_all()
        };
        write().with_context(|| format!("write {}", prepared.path.display()))?;
        Ok(prepared)
    }

    fn write_json(&self, name: &str, value: &impl Serialize) -> anyhow::Result<()> {
        self.write(name, &serde_json::to_vec(value)?)
    }

    fn remove(&self, name: &str) -> anyhow::Result<()> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("remove {}", path.display()))
            }
            _ => Ok(()),
        }
    }
}

/// A file that is complete under its temporary name; dropped without being published, it is removed.
struct Prepared {
    path: PathBuf,
    temporary: PathBuf,
}

impl Prepared {
    fn publish(self) -> anyhow::Result<()> {
        fs::rename(&self.temporary, &self.path).with_context(|| format!("write {}", self.path.display()))
    }
}

impl Drop for Prepared {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Reads a port from a file of one decimal number, as `tsc_port`.
pub fn read_port(path: &Path) -> anyhow::Result<u16> {
    let mut text = String::new();
    fs::File::open(path)
        .and_then(|file| file.take(PORT_SIZE_LIMIT + 1).read_to_string(&mut text))
        .with_context(|| format!("read port file {}", path.display()))?;
    if text.len() as u64 > PORT_SIZE_LIMIT {
        bail!("port file {} has more than {PORT_SIZE_LIMIT} bytes: it holds no port", path.display());
    }
    match text.trim().parse() {
        Ok(port) if port > 0 => Ok(port),
        _ => bail!("port file {} holds {:?}, not a port number from 1 to 65535", path.display(), text.trim()),
    }
}

/// Reads facts that must be there, well formed, of version 1, no older than `max_age` and not from the future.
pub fn read_facts<T: Dated>(path: &Path, now: Timestamp, max_age: Duration) -> anyhow::Result<T> {
    let name = path.display();
    let size = fs::metadata(path).with_context(|| format!("read {name}"))?.len();
    if size > SIZE_LIMIT {
        bail!("{name} has {size} bytes: that is no facts file");
    }
    let text = fs::read(path).with_context(|| format!("read {name}"))?;
    let facts: T = serde_json::from_slice(&text).map_err(|error| anyhow!("{name} is malformed: {error}"))?;
    if facts.version() != 1 {
        bail!("{name} has version {}, this binary reads version 1", facts.version());
    }
    let age = now.duration_since(facts.taken());
    if age < -CLOCK_TOLERANCE {
        bail!("{name} was taken {} in the future: a clock is wrong", crate::flags::human(age.unsigned_abs()));
    }
    if age > SignedDuration::try_from(max_age).unwrap_or(SignedDuration::MAX) {
        bail!(
            "{name} is too old: taken {} ago, allowed are {}",
            crate::flags::human(age.unsigned_abs()),
            crate::flags::human(max_age)
        );
    }
    Ok(facts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port_facts(taken: Timestamp) -> PortFacts {
        PortFacts {
            version: 1,
            taken,
            namespace: "ns".into(),
            service: "s".into(),
            uid: "u".into(),
            port: 36760,
            node_port: None,
        }
    }

    fn read_after(seconds: i64, content: Option<&str>) -> anyhow::Result<PortFacts> {
        let dir = tempfile::tempdir().unwrap();
        let intercom = Intercom::new(dir.path());
        let taken: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        match content {
            Some(text) => fs::write(intercom.path("port.json"), text).unwrap(),
            None => intercom.write_port(&port_facts(taken)).unwrap(),
        }
        read_facts(&intercom.path("port.json"), taken + SignedDuration::from_secs(seconds), Duration::from_mins(1))
    }

    #[test]
    fn facts_within_their_age_are_read() {
        assert_eq!(read_after(60, None).unwrap().port, 36760);
        assert!(read_after(-5, None).is_ok());
    }

    #[test]
    fn facts_too_old_from_the_future_or_malformed_are_refused() {
        assert!(read_after(61, None).unwrap_err().to_string().contains("too old"));
        assert!(read_after(-6, None).unwrap_err().to_string().contains("future"));
        for bad in [
            "",
            "{}",
            "null",
            "[1",
            r#"{"version":2,"taken":"2026-01-01T00:00:00Z","namespace":"n","service":"s","uid":"u","port":1,"node_port":null}"#,
        ] {
            assert!(read_after(0, Some(bad)).is_err(), "{bad}");
        }
        let huge = format!("{{\"x\":\"{}\"}}", "x".repeat(2 << 20));
        assert!(read_after(0, Some(&huge)).unwrap_err().to_string().contains("no facts file"));
    }

    #[test]
    fn port_file_empty_or_not_a_port_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tsc_port");
        assert!(read_port(&path).is_err());
        for bad in ["", "\n", "0", "65536", "null", "1 2", "-1"] {
            fs::write(&path, bad).unwrap();
            assert!(read_port(&path).is_err(), "{bad:?}");
        }
        fs::write(&path, "36760\n").unwrap();
        assert_eq!(read_port(&path).unwrap(), 36760);
    }

    #[test]
    fn health_says_unhealthy_only_for_an_unreachable_peer() {
        let dir = tempfile::tempdir().unwrap();
        let intercom = Intercom::new(dir.path());
        for (verdict, word) in [
            (Verdict::Unreachable, Some("unhealthy\n")),
            (Verdict::Unknown, None),
            (Verdict::Starting, Some("healthy\n")),
            (Verdict::Misconfigured, None),
            (Verdict::Rejected, Some("healthy\n")),
            (Verdict::Healthy, Some("healthy\n")),
        ] {
            intercom.write_probe(&ProbeFacts::of_verdict(verdict)).unwrap();
            assert_eq!(fs::read_to_string(intercom.path("health")).ok().as_deref(), word, "{verdict}");
        }
    }
}
