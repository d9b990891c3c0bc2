//! `pg-probe` and the lookup of names: a DNS server that does not answer says nothing of the peer, and of several addresses one that lives
//! is found. The binary runs in a mount namespace of its own, over files of the test's own.

use std::{
    ffi::OsStr,
    fs,
    io::Write,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    api::kubeconfig,
    lifeboat::{Ended, Probe, last_error},
    peers::Peer,
    postgres::{PASSWORD, Postgres},
};

/// The same command, which sees `text` where the machine has `file`. In a network of its own, where nobody answers, with `alone`.
fn over(command: &Command, file: &str, text: &Path, alone: bool) -> Command {
    // What is sent to the blackhole is not even refused.
    let network = "ip link set lo up && ip route add 192.0.2.0/24 dev lo && ";
    let script = format!("{}mount --bind \"$0\" {file} && unset PATH && exec \"$@\"", if alone { network } else { "" });
    let mut inside = Command::new("unshare");
    inside.arg("--mount").args(alone.then_some("--net"));
    if !rustix::process::geteuid().is_root() {
        inside.arg("--map-root-user");
    }
    inside.args(["sh", "-c", &script]).arg(text).arg(command.get_program()).args(command.get_args());
    inside.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").stdin(Stdio::null());
    inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))).collect::<Vec<(&OsStr, &OsStr)>>());
    inside
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    file
}

#[test]
fn dns_server_that_does_not_answer_never_counts() {
    let (silent, probe) = (file("nameserver 192.0.2.53\n"), Probe::new());
    let asked = |host: &str| {
        let command = probe.command(&["--host", host, "--port=5432", "--timeout=1s", "--attempts=2"]);
        let facts = probe.verdict(&mut over(&command, "/etc/resolv.conf", silent.path(), true));
        (facts["verdict"].as_str().unwrap().to_owned(), last_error(&facts).to_owned())
    };
    let (verdict, error) = asked("gold.example");
    assert_eq!(
        (verdict.as_str(), error.contains("gold.example: the name was not resolved")),
        ("unknown", true),
        "{error}"
    );
    // The same silence of the server itself does count.
    let (verdict, error) = asked("192.0.2.7");
    assert_eq!((verdict.as_str(), error.contains("no answer within 1s")), ("unreachable", true), "{error}");
}

#[test]
fn dns_server_that_does_not_answer_never_counts_for_an_api_server_either() {
    let silent = file("nameserver 192.0.2.53\n");
    for (host, verdict) in [("gold.example", "unknown"), ("192.0.2.7", "unreachable")] {
        let (probe, kubeconfig) = (Probe::new(), kubeconfig(&format!("http://{host}:6443")));
        let mut command = probe.command(&["--scope=demo", "--third-place", "--context=test"]);
        command.env("KUBECONFIG", kubeconfig.path());
        Ended::of(&mut over(&command, "/etc/resolv.conf", silent.path(), true)).assert_code(0);
        let facts: Value = serde_json::from_slice(&fs::read(probe.dir.path().join("probe.json")).unwrap()).unwrap();
        assert_eq!(facts["verdict"], verdict, "{facts}");
    }
}

/// A listener whose queue is full: what comes now is dropped, as by a firewall.
struct BlackHole {
    _queued: Vec<TcpStream>,
    _listener: tokio::net::TcpListener,
    _runtime: tokio::runtime::Runtime,
}

impl BlackHole {
    fn start(address: SocketAddr) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let _inside = runtime.enter();
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(address).unwrap();
        let listener = socket.listen(1).unwrap();
        let connect = || TcpStream::connect_timeout(&address, Duration::from_millis(300)).ok();
        let queued: Vec<TcpStream> = std::iter::from_fn(connect).take(16).collect();
        assert!(queued.len() < 16, "the queue is never full");
        Self { _queued: queued, _listener: listener, _runtime: runtime }
    }
}

#[test]
fn address_that_is_silent_hides_none_that_lives() {
    // The resolver sorts addresses by what they have in common with our own, 127.0.0.1: the silent ones come first.
    let [first, second, lives] = [2, 3, 4].map(|last| Ipv4Addr::new(127, 0, 0, last));
    let living = Postgres::start_prepared(&["listen_addresses=127.0.0.4"], |home| {
        let rules = "local all all trust\nhost all all 127.0.0.0/8 scram-sha-256\n";
        fs::write(home.join("data/pg_hba.conf"), rules).unwrap();
    });
    let at = |address| SocketAddr::V4(SocketAddrV4::new(address, living.port));
    let (dropping, accepting) = (BlackHole::start(at(first)), Peer::start_at(at(second), Some));
    let asked = |addresses: &[Ipv4Addr]| {
        let table: Vec<String> = addresses.iter().map(|address| format!("{address} gold.example\n")).collect();
        let (hosts, probe, port) = (file(&table.concat()), Probe::new(), format!("--port={}", living.port));
        let mut command = probe.command(&["--host=gold.example", &port, "--timeout=3s"]);
        command.env("PGPASSWORD", PASSWORD);
        probe.verdict(&mut over(&command, "/etc/hosts", hosts.path(), false))
    };
    for addresses in [&[first, lives][..], &[second, lives], &[first, second, lives]] {
        let begun = Instant::now();
        let facts = asked(addresses);
        assert_eq!(facts["verdict"], "healthy", "{addresses:?}: {facts}");
        assert!(begun.elapsed() > Duration::from_millis(900), "{addresses:?}: the living one was asked first");
    }
    assert_eq!(accepting.accepted(), 2);
    let facts = asked(&[first, second]);
    assert_eq!(facts["verdict"], "unreachable", "{facts}");
    assert!(last_error(&facts).contains("127.0.0.2: no answer") && last_error(&facts).contains("127.0.0.3: no answer"));
    drop(dropping);
}
