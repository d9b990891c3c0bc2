//! A folder of sets: the target of dumps, on a volume. A set appears under its name only when it is whole on the disk, and counts only
//! when its manifest lies beside it.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail};
use jiff::Timestamp;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::{Digested, Manifest, SetName, Tier};
use crate::outcome::{Conclusion, Report};

const LOCK: &str = ".lifeboat.lock";

/// What is not yet whole ends with this, and begins with a dot.
const PARTIAL: &str = ".partial";

/// A manifest larger than this is none: 10,000 tables take 1 MB.
const MANIFEST_LIMIT: u64 = 256 << 20;

/// The root of a target; its tiers are folders in it.
#[derive(Debug, Clone)]
pub struct Folder {
    root: PathBuf,
}

/// The right to write to a target; given back when dropped, or by the kernel when the process ends: no lock is ever stale.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// Who holds the lock.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockedBy {
    /// Pod or host.
    pub holder: String,
    /// Process id there.
    pub pid: u32,
    /// Since when.
    pub since: Timestamp,
}

/// What is the matter with a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// Committed, and of the size that its manifest tells. Its digest was not read again.
    Complete(Box<Manifest>),
    /// Another tool's: nothing tells whether it is whole.
    Foreign,
    /// Ours, but cut off before its commit mark.
    Incomplete,
    /// Not what its manifest tells.
    Damaged(String),
}

impl Condition {
    /// One word for it.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Complete(_) => "complete",
            Self::Foreign => "foreign",
            Self::Incomplete => "incomplete",
            Self::Damaged(_) => "damaged",
        }
    }

    /// The manifest of a set that can be restored.
    #[must_use]
    pub fn manifest(&self) -> Option<&Manifest> {
        if let Self::Complete(manifest) = self { Some(manifest) } else { None }
    }
}

/// A set that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its folder below the root: a tier's name, or empty.
    pub folder: String,
    /// Its name.
    pub name: SetName,
    /// Bytes of its file.
    pub bytes: u64,
    /// What is the matter with it.
    pub condition: Condition,
    /// Whether a verification restored it and found all of it.
    pub verified: bool,
}

impl Found {
    /// Whether it lies in this tier.
    #[must_use]
    pub fn is_in(&self, tier: Tier) -> bool {
        self.folder == tier.folder()
    }
}

/// A file that is being written under a temporary name; dropped without being committed, it is removed.
#[derive(Debug)]
pub struct Unfinished {
    partial: PathBuf,
}

impl Unfinished {
    /// Opens the file to write to.
    pub fn create(&self) -> anyhow::Result<File> {
        File::create(&self.partial).with_context(|| format!("create {}", self.partial.display()))
    }

    /// Opens what was written, from its beginning.
    pub fn reopen(&self) -> anyhow::Result<File> {
        File::open(&self.partial).with_context(|| format!("read {}", self.partial.display()))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.partial);
    }
}

impl Folder {
    /// The folder must exist: it is a mounted volume, and a folder made in its place would be lost with the pod.
    pub fn open(root: &Path) -> anyhow::Result<Self> {
        let found = fs::metadata(root).with_context(|| format!("look at target {}", root.display()))?;
        if !found.is_dir() {
            bail!("target {} is no folder", root.display());
        }
        Ok(Self { root: root.to_owned() })
    }

    /// Where a set's file, or one beside it, is.
    #[must_use]
    pub fn path(&self, folder: &str, file: &str) -> PathBuf {
        self.root.join(folder).join(file)
    }

    /// Takes the lock, or tells who has it.
    pub fn lock(&self) -> anyhow::Result<Result<Lock, Option<LockedBy>>> {
        let path = self.root.join(LOCK);
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let mut file = open.with_context(|| format!("open the lock {}", path.display()))?;
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                file.read_to_string(&mut text).ok();
                return Ok(Err(serde_json::from_str(&text).ok()));
            }
            taken => taken.with_context(|| format!("take the lock {}", path.display()))?,
        }
        let by = LockedBy { holder: holder(), pid: std::process::id(), since: Timestamp::now() };
        let mut write = || -> io::Result<()> {
            file.set_len(0)?;
            file.rewind()?;
            file.write_all(&serde_json::to_vec(&by)?)
        };
        write().with_context(|| format!("write the lock {}", path.display()))?;
        Ok(Ok(Lock { _file: file }))
    }

    /// Bytes that an ordinary user can still write there.
    pub fn free(&self) -> anyhow::Result<u64> {
        let found = rustix::fs::statvfs(&self.root)
            .with_context(|| format!("ask for the free space of {}", self.root.display()))?;
        Ok(found.f_bavail.saturating_mul(found.f_frsize))
    }

    /// Begins a set; `commit` ends it. What killed runs left of earlier ones is removed: only who has the lock writes here.
    pub fn begin(&self, tier: Tier, name: &SetName, lock: &Lock) -> anyhow::Result<Unfinished> {
        self.make_tier(tier)?;
        self.clear(lock)?;
        let path = self.path(tier.folder(), &name.to_string());
        if path.try_exists().with_context(|| format!("look at {}", path.display()))? {
            bail!("{} is already there", path.display());
        }
        Ok(Unfinished { partial: partial(&path) })
    }

    fn make_tier(&self, tier: Tier) -> anyhow::Result<()> {
        let folder = self.root.join(tier.folder());
        match fs::create_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => {
                made.with_context(|| format!("make folder {}", folder.display())).and_then(|()| sync_folder(&self.root))
            }
        }
    }

    /// Removes what killed runs left: files under temporary names, and sets that lack nothing but their manifest's name. Each may be as large
    /// as a set. A set without such a mark is somebody else's, and is never removed here.
    fn clear(&self, lock: &Lock) -> anyhow::Result<()> {
        for tier in Tier::ALL {
            let folder = self.root.join(tier.folder());
            let entries = match fs::read_dir(&folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries.with_context(|| format!("list {}", folder.display()))?,
            };
            for entry in entries {
                let path = entry?.path();
                let Some(file) = path.file_name().and_then(|name| name.to_str()).and_then(partial_of) else { continue };
                tracing::warn!("removing {}, left by a run that was cut off", path.display());
                let marked = file.strip_suffix(".json").and_then(|name| name.parse::<SetName>().ok());
                if let Some(name) = marked.filter(|name| !self.path(tier.folder(), &name.manifest()).exists()) {
                    self.remove_marked(tier.folder(), &name, lock)?;
                }
                remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// The manifest under its temporary name: whatever else is there of a set is ours, and does not count.
    fn mark(&self, folder: &str, name: &SetName) -> PathBuf {
        partial(&self.path(folder, &name.manifest()))
    }

    fn remove_marked(&self, folder: &str, name: &SetName, _: &Lock) -> anyhow::Result<()> {
        for file in [name.to_string(), name.digest(), name.verification()] {
            remove_file(&self.path(folder, &file))?;
        }
        sync_folder(&self.root.join(folder))
    }

    /// Gives a set its name. Its content must be synced already. The manifest is written whole before, under a temporary name, and gets its own
    /// last: that is the commit.
    pub fn commit(
        &self,
        tier: Tier,
        name: &SetName,
        unfinished: &Unfinished,
        digested: &Digested,
        manifest: &Manifest,
        lock: &Lock,
    ) -> anyhow::Result<()> {
        let folder = tier.folder();
        let mark = Unfinished { partial: self.mark(folder, name) };
        let digest = format!("{}  {name}\n", digested.sha256);
        let (path, manifest_path) = (self.path(folder, &name.to_string()), self.path(folder, &name.manifest()));
        let commit = || -> anyhow::Result<()> {
            write_synced(&mark, &serde_json::to_vec_pretty(manifest)?)?;
            write_whole(&self.path(folder, &name.digest()), digest.as_bytes())?;
            crate::kill_point::kill_point("dump-marked");
            fs::rename(&unfinished.partial, &path).with_context(|| format!("name {}", path.display()))?;
            sync_folder(&self.root.join(folder))?;
            crate::kill_point::kill_point("dump-named");
            fs::rename(&mark.partial, &manifest_path).with_context(|| format!("name {}", manifest_path.display()))?;
            sync_folder(&self.root.join(folder))
        };
        let committed = commit();
        if committed.is_err() && !manifest_path.exists() {
            // Of no use, and perhaps what fills the volume.
            let _ = self.remove_marked(folder, name, lock);
        }
        committed
    }

    /// All sets, the newest first; of one time, by folder.
    pub fn find(&self) -> anyhow::Result<Vec<Found>> {
        let mut found = Vec::new();
        for folder in std::iter::once("").chain(Tier::ALL.map(Tier::folder)) {
            self.find_in(folder, &mut found)?;
        }
        // The result of a verification lies beside one of the names that a set has in several tiers.
        let proven: BTreeSet<String> =
            found.iter().filter(|set| set.verified).map(|set| set.name.to_string()).collect();
        for set in &mut found {
            set.verified = proven.contains(&set.name.to_string());
        }
        found.sort_by(|a, b| b.name.cmp(&a.name).then_with(|| a.folder.cmp(&b.folder)));
        Ok(found)
    }

    fn find_in(&self, folder: &str, found: &mut Vec<Found>) -> anyhow::Result<()> {
        let dir = self.root.join(folder);
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !folder.is_empty() => return Ok(()),
            entries => entries.with_context(|| format!("list {}", dir.display()))?,
        };
        for entry in entries {
            let entry = entry.with_context(|| format!("list {}", dir.display()))?;
            let Some(name) = entry.file_name().to_str().and_then(|name| name.parse::<SetName>().ok()) else { continue };
            let bytes = match entry.metadata() {
                // Pruned while we look.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata.with_context(|| format!("look at {name}"))?.len(),
            };
            let condition = self.condition(folder, &name, bytes);
            let verified = self.is_verified(folder, &name);
            found.push(Found { folder: folder.to_owned(), name, bytes, condition, verified });
        }
        Ok(())
    }

    fn condition(&self, folder: &str, name: &SetName, bytes: u64) -> Condition {
        let path = self.path(folder, &name.manifest());
        let text = match read_limited(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let ours = self.mark(folder, name).exists();
                return if ours { Condition::Incomplete } else { Condition::Foreign };
            }
            // One that can't be read must not hide all others.
            Err(error) => return Condition::Damaged(format!("its manifest can't be read: {error}")),
            Ok(text) => text,
        };
        match Manifest::read(&text, &name.to_string()) {
            Err(error) => Condition::Damaged(format!("{error:#}")),
            Ok(manifest) if manifest.bytes != bytes => {
                Condition::Damaged(format!("it has {bytes} bytes, its manifest says {}", manifest.bytes))
            }
            Ok(manifest) => Condition::Complete(Box::new(manifest)),
        }
    }

    fn is_verified(&self, folder: &str, name: &SetName) -> bool {
        let result = fs::read(self.path(folder, &name.verification())).ok();
        let result = result.and_then(|text| serde_json::from_slice::<serde_json::Value>(&text).ok());
        result.is_some_and(|result| result["passed"] == true)
    }

    /// Puts a complete set into a tier too: as a hard link, or as a copy where the file system has none. What lies there under its name and is
    /// not complete is replaced.
    pub fn link(&self, found: &Found, tier: Tier, lock: &Lock) -> anyhow::Result<()> {
        self.make_tier(tier)?;
        let there = Found { folder: tier.folder().to_owned(), ..found.clone() };
        self.remove(&there, lock)?;
        let name = &found.name;
        let (mark, manifest) = (self.mark(tier.folder(), name), self.path(tier.folder(), &name.manifest()));
        let source = self.path(&found.folder, &name.manifest());
        link_or_copy(&source, &mark).with_context(|| format!("put {} into tier {tier}", source.display()))?;
        for file in [name.to_string(), name.digest(), name.verification()] {
            let (from, to) = (self.path(&found.folder, &file), self.path(tier.folder(), &file));
            match link_or_copy(&from, &to) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && file == name.verification() => {}
                done => done.with_context(|| format!("put {} into tier {tier}", from.display()))?,
            }
        }
        fs::rename(&mark, &manifest).with_context(|| format!("name {}", manifest.display()))?;
        sync_folder(&self.root.join(tier.folder()))?;
        let path = self.path(tier.folder(), &name.to_string());
        let bytes = fs::metadata(&path).with_context(|| format!("look at {}", path.display()))?.len();
        match self.condition(tier.folder(), name, bytes) {
            Condition::Complete(_) => Ok(()),
            other => bail!("{name} is {} in tier {tier} after it was put there", other.word()),
        }
    }

    /// Removes a set from a folder. Its manifest loses its name first: a set that is half removed no longer counts, and is known as ours.
    pub fn remove(&self, found: &Found, lock: &Lock) -> anyhow::Result<()> {
        let (manifest, mark) =
            (self.path(&found.folder, &found.name.manifest()), self.mark(&found.folder, &found.name));
        match fs::rename(&manifest, &mark) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            done => done.with_context(|| format!("remove {}", manifest.display()))?,
        }
        self.remove_marked(&found.folder, &found.name, lock)?;
        remove_file(&mark)
    }
}

fn remove_file(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.with_context(|| format!("remove {}", path.display())),
    }
}

/// Who we are to others that want the lock.
fn holder() -> String {
    let pod = std::env::var("POD_NAME").ok().filter(|name| !name.is_empty());
    pod.unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned())
}

/// What a run says that found the target locked.
#[must_use]
pub fn locked(folder: &Folder, by: Option<LockedBy>) -> Report {
    let who = by.map_or_else(
        || "another run".to_owned(),
        |by| format!("{} (process {}), since {}", by.holder, by.pid, by.since.strftime("%Y-%m-%dT%H:%M:%SZ")),
    );
    Report::new(Conclusion::Locked, format!("target {} is locked by {who}", folder.root.display()))
}

fn partial(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}{PARTIAL}"))
}

/// The name that a file of ours under a temporary name would get.
fn partial_of(name: &str) -> Option<&str> {
    // A copy of a mark that was cut off has two dots and two ends.
    let hidden = name.strip_prefix('.')?.trim_start_matches('.');
    hidden.strip_suffix(PARTIAL).filter(|name| name.starts_with("backup-"))
}

/// Writes a small file whole: temporary name, sync, rename, sync of the folder.
fn write_whole(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let unfinished = Unfinished { partial: partial(path) };
    write_synced(&unfinished, content)?;
    fs::rename(&unfinished.partial, path).with_context(|| format!("write {}", path.display()))?;
    sync_folder(path.parent().ok_or_else(|| anyhow!("{} is in no folder", path.display()))?)
}

fn write_synced(unfinished: &Unfinished, content: &[u8]) -> anyhow::Result<()> {
    let mut file = unfinished.create()?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    written.with_context(|| format!("write {}", unfinished.partial.display()))
}

fn sync_folder(folder: &Path) -> anyhow::Result<()> {
    File::open(folder).and_then(|folder| folder.sync_all()).with_context(|| format!("sync folder {}", folder.display()))
}

fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(path)?.take(MANIFEST_LIMIT).read_to_end(&mut text)?;
    Ok(text)
}

fn link_or_copy(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        // As Linux says it of a file system without hard links (link(2): EPERM), and others.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::PermissionDenied
                    | io::ErrorKind::Unsupported
                    | io::ErrorKind::CrossesDevices
                    | io::ErrorKind::TooManyLinks
            ) =>
        {
            let unfinished = Unfinished { partial: partial(to) };
            fs::copy(from, &unfinished.partial)?;
            File::open(&unfinished.partial)?.sync_all()?;
            fs::rename(&unfinished.partial, to)
        }
        done => done,
    }
}
