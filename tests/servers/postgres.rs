//! PostgreSQL servers of the test's own, on loopback.

use std::{
    fs,
    net::TcpListener,
    os::unix::{fs::chown, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use crate::lifeboat::await_condition;

/// The superuser's password on every server here.
pub const PASSWORD: &str = "correct-h0rse-battery";

const LIMIT: Duration = Duration::from_secs(30);

/// A running server; it ends with the value.
pub struct Postgres {
    pub port: u16,
    pub home: PathBuf,
    process: Child,
    _dir: tempfile::TempDir,
}

impl Postgres {
    /// A new cluster of its own.
    pub fn start(settings: &[&str]) -> Self {
        Self::start_prepared(settings, |_| ())
    }

    /// A new cluster, with its folder prepared before the start.
    pub fn start_prepared(settings: &[&str], prepare: impl FnOnce(&Path)) -> Self {
        let dir = home();
        let password = dir.path().join("password");
        write(&password, PASSWORD);
        let data = dir.path().join("data");
        run(tool("initdb")
            .args(["--no-sync", "--auth-local=trust", "--auth-host=scram-sha-256", "-E", "UTF8", "--locale=C"])
            .args(["-U", "postgres", "--pwfile"])
            .arg(&password)
            .arg("-D")
            .arg(&data));
        prepare(dir.path());
        Self::run(dir, settings).until_ready()
    }

    /// One server that tests share which change nothing on it.
    pub fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Self::start(&[]));
            *shared = Arc::downgrade(&server);
            server
        })
    }

    /// A standby of this server, which may not be ready yet.
    pub fn standby(&self, settings: &[&str]) -> Self {
        let dir = home();
        run(tool("pg_basebackup")
            .args(["-U", "postgres", "--no-sync", "-R", "-X", "stream", "-c", "fast", "-h"])
            .arg(&self.home)
            .args(["-p", &self.port.to_string(), "-D"])
            .arg(dir.path().join("data")));
        Self::run(dir, settings)
    }

    fn run(dir: tempfile::TempDir, settings: &[&str]) -> Self {
        // The port is free now; nothing holds it until the server does.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let mut command = tool("postgres");
        command.arg("-D").arg(dir.path().join("data")).args(["-p", &port.to_string()]);
        let sockets = format!("unix_socket_directories={}", dir.path().display());
        for setting in [sockets.as_str(), "listen_addresses=127.0.0.1", "fsync=off"].iter().chain(settings) {
            command.args(["-c", setting]);
        }
        let process = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        Self { port, home: dir.path().to_owned(), process, _dir: dir }
    }

    /// Waits until it takes sessions.
    pub fn until_ready(mut self) -> Self {
        await_condition("PostgreSQL takes sessions", LIMIT, || {
            if let Some(status) = self.process.try_wait().unwrap() {
                panic!("PostgreSQL ended with {status}:\n{}", self.log());
            }
            self.try_sql("SELECT 1").map_err(|error| format!("{error}\n{}", self.log()))
        });
        self
    }

    /// The superuser's answer, by the socket.
    pub fn sql(&self, sql: &str) -> String {
        self.try_sql(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    pub fn try_sql(&self, sql: &str) -> Result<String, String> {
        answer(psql(&self.home.display().to_string(), self.port, "postgres", "postgres").args(["-c", sql]))
    }

    /// A role's answer over TCP, with its password.
    pub fn sql_as(&self, role: &str, password: &str, database: &str, sql: &str) -> Result<String, String> {
        answer(psql("127.0.0.1", self.port, role, database).env("PGPASSWORD", password).args(["-c", sql]))
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.home.join("log")).unwrap()).into_owned()
    }

    /// `--host` and `--port` of this server.
    pub fn address(&self) -> [String; 2] {
        ["--host=127.0.0.1".to_owned(), format!("--port={}", self.port)]
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::QUIT);
        let _ = self.process.wait();
    }
}

fn psql(host: &str, port: u16, role: &str, database: &str) -> Command {
    let mut command = tool("psql");
    command.args(["-XAtq", "-w", "-h", host, "-p", &port.to_string(), "-U", role, "-d", database]);
    command
}

fn answer(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

pub fn run(command: &mut Command) {
    answer(command).unwrap_or_else(|error| panic!("{command:?}: {error}"));
}

/// Where the programs of the newest PostgreSQL here are.
pub fn bindir() -> PathBuf {
    let version = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let newest = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.join("bin/initdb").exists())
        .max_by_key(version);
    newest.expect("no /usr/lib/postgresql/*/bin/initdb: install the Debian package postgresql").join("bin")
}

/// A program of the newest PostgreSQL here. PostgreSQL refuses to run as root: root's tests run it as another user.
fn tool(name: &str) -> Command {
    let mut command = Command::new(bindir().join(name));
    command.env_clear().env("LC_ALL", "C.UTF-8").env("TZ", "UTC").current_dir("/");
    if let Some((uid, gid)) = other_user() {
        command.uid(uid).gid(gid);
    }
    command
}

/// Whom to run PostgreSQL as: nobody else, unless we are root.
fn other_user() -> Option<(u32, u32)> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let ids = |name: &str| {
        let line = users.lines().find(|line| line.starts_with(&format!("{name}:")))?;
        let fields: Vec<&str> = line.split(':').collect();
        Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))
    };
    Some(ids("postgres").or_else(|| ids("nobody")).expect("there is neither a user postgres nor nobody"))
}

fn home() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    own(dir.path());
    dir
}

/// Gives a file to the user that PostgreSQL runs as.
pub fn own(path: &Path) {
    if let Some((uid, gid)) = other_user() {
        chown(path, Some(uid), Some(gid)).unwrap();
    }
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    own(path);
}
