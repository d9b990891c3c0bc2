//! Commands, waiting, processes.

use std::{
    fs::{File, TryLockError},
    io::{BufRead, BufReader},
    path::PathBuf,
    process::{Child, Command, Output, Stdio},
    sync::{LazyLock, OnceLock},
    thread::sleep,
    time::{Duration, Instant},
};

use serde_json::Value;

/// The binary under test, with the kill points compiled in.
pub const LIFEBOAT: &str = env!("CARGO_BIN_EXE_lifeboat");

/// A path below the checkout.
pub fn project(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Where tools, images and clusters are kept.
pub fn cache() -> PathBuf {
    std::env::var_os("LIFEBOAT_CACHE")
        .map_or_else(|| PathBuf::from(std::env::var_os("HOME").expect("HOME")).join(".cache/lifeboat"), PathBuf::from)
}

/// Which pair of clusters to work on: `LIFEBOAT_PAIR`, as `tests/clusters` has it.
pub fn pair_number() -> u8 {
    std::env::var("LIFEBOAT_PAIR").ok().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Where this pair's state is.
fn state() -> PathBuf {
    cache().join(if pair_number() == 0 { "clusters".to_owned() } else { format!("clusters-{}", pair_number()) })
}

/// Two clusters of the user's own in place of the test clusters. What they cannot, `tests/own-clusters` says.
pub fn own_clusters() -> bool {
    let named = |context| std::env::var_os(context).is_some_and(|name| !name.is_empty());
    named("GOLD_CONTEXT") || named("GOLDDR_CONTEXT")
}

pub fn kubeconfig() -> PathBuf {
    static OWN: OnceLock<PathBuf> = OnceLock::new();
    if own_clusters() {
        return OWN.get_or_init(|| run(cluster_script("kubeconfig").stderr(Stdio::inherit())).trim().into()).clone();
    }
    LazyLock::force(&ALONE);
    state().join("kubeconfig")
}

/// Held until this process ends: a suite on the same pair would mend the links that this one cuts.
static ALONE: LazyLock<File> = LazyLock::new(|| {
    let path = state().join("locks/e2e");
    let file = File::create(&path)
        .unwrap_or_else(|error| panic!("the clusters are not up: run `make clusters`\n{}: {error}", path.display()));
    if let Err(TryLockError::WouldBlock) = file.try_lock() {
        println!("another suite works on these clusters; waiting for its end");
        file.lock().unwrap();
    }
    file
});

/// The address of a place: gold, golddr, third, or this machine as they see it.
pub fn address(place: &str) -> String {
    let last = match place {
        "gold" => "1.2",
        "golddr" => "2.2",
        "third" => "3.2",
        "machine" => "0.1",
        other => panic!("no such place: {other}"),
    };
    format!("10.{}.{last}", 77 + pair_number())
}

/// A tool of the test clusters, such as kubectl.
pub fn tool(name: &str) -> Command {
    let pinned = cache().join("bin").join(name);
    let mut command = Command::new(if pinned.exists() { pinned } else { name.into() });
    command.env("KUBECONFIG", kubeconfig());
    command
}

/// A script of `tests/clusters`, or what clusters of the user's own have in its place.
pub fn cluster_script(name: &str) -> Command {
    if own_clusters() {
        let mut command = Command::new(project("tests/own-clusters"));
        command.arg(name);
        return command;
    }
    LazyLock::force(&ALONE);
    Command::new(project("tests/clusters").join(name))
}

/// Runs to the end; the output's text. A failure fails the test with all that was printed.
pub fn run(command: &mut Command) -> String {
    match try_run(command) {
        Ok(text) => text,
        Err(text) => panic!("{command:?} failed:\n{text}"),
    }
}

/// Runs to the end; what was printed, by success or failure.
pub fn try_run(command: &mut Command) -> Result<String, String> {
    let Output { status, stdout, stderr } =
        command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    if status.success() { Ok(stdout.into_owned()) } else { Err(format!("{stdout}{stderr}")) }
}

pub fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// The status of a pod's container; the kubelet sorts them by name.
pub fn container<'a>(pod: &'a Value, name: &str) -> &'a Value {
    let statuses = pod["status"]["containerStatuses"].as_array().map(Vec::as_slice).unwrap_or_default();
    statuses.iter().find(|status| status["name"] == name).unwrap_or(&Value::Null)
}

/// Asks until there is an answer; fails the test after the limit, with the last reason why not.
pub fn await_condition<T>(what: &str, limit: Duration, mut ask: impl FnMut() -> Result<T, String>) -> T {
    let begun = Instant::now();
    loop {
        match ask() {
            Ok(answer) => return answer,
            Err(why) => assert!(begun.elapsed() < limit, "{what}: not within {limit:?}: {why}"),
        }
        sleep(Duration::from_millis(300));
    }
}

/// A process of the test's own, ended with it.
pub struct Background(pub Child);

impl Background {
    pub fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().unwrap_or_else(|error| panic!("{command:?}: {error}")))
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A port of this machine that leads to a Service, and the process that makes it so.
pub fn forward(context: &str, namespace: &str, service: &str, port: u16) -> Result<(u16, Background), String> {
    let mut command = tool("kubectl");
    command.args([
        "--context",
        context,
        "-n",
        namespace,
        "port-forward",
        &format!("service/{service}"),
        &format!(":{port}"),
    ]);
    let mut process = Background::start(command.stdout(Stdio::piped()).stderr(Stdio::null()));
    let mut line = String::new();
    let mut said = BufReader::new(process.0.stdout.take().unwrap());
    said.read_line(&mut line).map_err(|error| error.to_string())?;
    process.0.stdout = Some(said.into_inner()); // closed, it would end the process at its next word
    let port = line.strip_prefix("Forwarding from 127.0.0.1:").and_then(|rest| rest.split(' ').next()?.parse().ok());
    Ok((port.ok_or_else(|| format!("no way to {service} of {context}: {line:?}"))?, process))
}

/// All processes of a member's container, found by Patroni's environment and its pid namespace. The address tells this pair's from
/// those of another pair that runs beside it.
pub fn processes_of(member: &str, namespace: &str) -> Vec<u32> {
    let wanted = [format!("PATRONI_NAME={member}"), format!("PATRONI_KUBERNETES_NAMESPACE={namespace}")];
    let address = format!("PATRONI_KUBERNETES_POD_IP=10.{}.", 88 + pair_number());
    let pids = || {
        std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
    };
    let is_patroni = |pid: &u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let has = |wanted: &dyn Fn(&[u8]) -> bool| environment.split(|&byte| byte == 0).any(wanted);
        wanted.iter().all(|wanted| has(&|entry| entry == wanted.as_bytes()))
            && has(&|entry| entry.starts_with(address.as_bytes()))
    };
    let space = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let patroni = pids().find(is_patroni).unwrap_or_else(|| panic!("no process of {member} in {namespace}"));
    pids().filter(|&pid| space(pid) == space(patroni)).collect()
}

/// Those of them whose command line holds a word.
pub fn processes_named(word: &str, member: &str, namespace: &str) -> Vec<u32> {
    let named = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default().contains(word);
    processes_of(member, namespace).into_iter().filter(named).collect()
}

pub fn signal(signal: &str, pids: &[u32]) {
    if pids.is_empty() {
        return;
    }
    let _ = Command::new("kill").arg(signal).args(pids.iter().map(ToString::to_string)).stderr(Stdio::null()).status();
}

/// Stops processes (SIGSTOP) until dropped.
pub struct Frozen(Vec<u32>);

impl Frozen {
    pub fn new(pids: Vec<u32>) -> Self {
        assert!(!pids.is_empty(), "nothing to stop");
        signal("-STOP", &pids);
        Self(pids)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        signal("-CONT", &self.0);
    }
}

/// The link between two places is cut (or hampered) until dropped.
pub struct Cut;

impl Cut {
    pub fn new(words: &[&str]) -> Self {
        run(cluster_script("link").args(words));
        Self
    }
}

impl Drop for Cut {
    fn drop(&mut self) {
        run(cluster_script("link").arg("restore"));
    }
}
