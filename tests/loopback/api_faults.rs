//! `port-discover` and an API server that throttles, forgets who we are, is cut off, or answers without an end.

use std::{
    fs,
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use serde_json::json;

use crate::{
    api::{TOKEN, kubeconfig, status},
    http::HttpServer,
    lifeboat::{Ended, Running, await_condition, files, lifeboat},
    peers::{ClosedPort, Peer},
};

fn discover(server: &str, dir: &Path) -> Ended {
    let kubeconfig = kubeconfig(server);
    let mut command = lifeboat(&["port-discover", "--service=pg", "--log-level=trace", "--dir"]);
    let ended = Ended::of(command.arg(dir).env("KUBECONFIG", kubeconfig.path()));
    ended.assert_hides(TOKEN);
    ended
}

/// Reads a request without a body, then writes the answer.
fn answer(stream: &mut TcpStream, head: &str, body: &str) -> Option<()> {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        request.push(byte[0]);
    }
    let length = body.len();
    write!(stream, "HTTP/1.1 {head}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}").ok()
}

const SERVICE: &str =
    r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"pg","uid":"u"},"spec":{"ports":[{"port":5}]}}"#;

#[test]
fn api_server_that_does_not_know_us_or_forgot_is_named() {
    for (code, said) in [(401, "does not know us"), (410, "410"), (409, "409"), (422, "422"), (504, "504")] {
        let api = Peer::start(move |mut stream| {
            answer(&mut stream, &format!("{code} x"), &status(code).1)?;
            None
        });
        let dir = tempfile::tempdir().unwrap();
        let outcome = discover(&format!("http://{}", api.address), dir.path()).assert_code(1).outcome();
        let reason = outcome["reason"].as_str().unwrap();
        assert!(reason.contains(said) && reason.contains("Service pg in namespace app"), "{reason}");
        assert!(files(dir.path()).is_empty());
    }
}

#[test]
fn api_server_that_throttles_for_long_is_an_error_in_seconds_and_for_a_moment_none() {
    let for_long = |head: &'static str| {
        let code = head[..3].parse().unwrap();
        let api = Peer::start(move |mut stream| {
            answer(&mut stream, head, &status(code).1)?;
            None
        });
        let dir = tempfile::tempdir().unwrap();
        let ended = discover(&format!("http://{}", api.address), dir.path());
        let outcome = ended.assert_code(1).outcome();
        assert!(outcome["reason"].as_str().unwrap().contains(&head[..3]), "{head}: {outcome}");
        assert!(ended.took < Duration::from_secs(10), "{head}: {:?}", ended.took);
        assert!(api.accepted() > 1, "{head}: it was tried again");
    };
    let for_a_moment = |head: &'static str| {
        let (code, first) = (head[..3].parse().unwrap(), AtomicBool::new(true));
        let api = Peer::start(move |mut stream| {
            if first.swap(false, Ordering::SeqCst) {
                answer(&mut stream, head, &status(code).1)?;
            } else {
                answer(&mut stream, "200 OK", SERVICE)?;
            }
            None
        });
        let dir = tempfile::tempdir().unwrap();
        let ended = discover(&format!("http://{}", api.address), dir.path());
        assert_eq!(ended.assert_code(0).outcome()["port"], 5, "{head}");
        assert!(ended.took < Duration::from_secs(5), "{head}: {:?}", ended.took);
    };
    thread::scope(|scope| {
        for head in ["429 x", "429 x\r\nRetry-After: 3600", "503 x\r\nRetry-After: 60"] {
            scope.spawn(move || for_long(head));
            scope.spawn(move || for_a_moment(head));
        }
    });
}

#[test]
fn api_server_absent_cut_off_or_stuck_is_an_error_within_the_time_limit_and_leaves_no_port() {
    let closed = ClosedPort::new();
    let closing = Peer::closing();
    let begun = |and_close: bool| {
        Peer::start(move |mut stream| {
            stream.read_exact(&mut [0; 16]).ok()?;
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{\"kind\":").ok()?;
            (!and_close).then_some(stream)
        })
    };
    let (half, stuck) = (begun(true), begun(false));
    let babbling = Peer::start(|mut stream| {
        stream.read_exact(&mut [0; 16]).ok()?;
        stream.write_all(b"SSH-2.0-OpenSSH_9.2\r\n").ok()?;
        Some(stream)
    });
    let silent = Peer::silent();
    thread::scope(|scope| {
        for (scheme, address) in [
            ("http", closed.address),
            ("http", closing.address),
            ("http", half.address),
            ("http", stuck.address),
            ("http", silent.address),
            ("http", babbling.address),
            ("https", babbling.address),
            ("https", silent.address),
        ] {
            scope.spawn(move || {
                let (dir, url) = (tempfile::tempdir().unwrap(), format!("{scheme}://{address}"));
                let ended = discover(&url, dir.path());
                let outcome = ended.assert_code(1).outcome();
                let reason = outcome["reason"].as_str().unwrap();
                assert!(reason.contains("Service pg in namespace app"), "{url}: {outcome}");
                assert!(ended.took < Duration::from_secs(20), "{url}: {:?}", ended.took);
                assert!(files(dir.path()).is_empty());
            });
        }
    });
}

#[test]
fn answer_huge_is_read_or_refused_but_never_hangs() {
    let annotation = "x".repeat(30 << 20);
    let body = SERVICE.replace("\"uid\"", &format!("\"annotations\":{{\"a\":\"{annotation}\"}},\"uid\""));
    let api = Peer::start(move |mut stream| {
        answer(&mut stream, "200 OK", &body)?;
        None
    });
    let dir = tempfile::tempdir().unwrap();
    let ended = discover_quietly(&format!("http://{}", api.address), dir.path());
    assert_eq!(ended.assert_code(0).outcome()["port"], 5);
    assert!(ended.took < Duration::from_secs(15), "{:?}", ended.took);
}

fn discover_quietly(server: &str, dir: &Path) -> Ended {
    let kubeconfig = kubeconfig(server);
    let mut command = lifeboat(&["port-discover", "--service=pg", "--dir"]);
    Ended::of(command.arg(dir).env("KUBECONFIG", kubeconfig.path()))
}

#[test]
fn kubeconfig_hostile_is_a_configuration_error() {
    for content in ["", "{", "null", "[]", "a: [b", "current-context: test", "\0\0", "clusters: 5"] {
        let (file, dir) = (tempfile::NamedTempFile::new().unwrap(), tempfile::tempdir().unwrap());
        fs::write(file.path(), content).unwrap();
        for context in [&[][..], &["--context=test"]] {
            let mut command = lifeboat(&["port-discover", "--service=pg", "--dir"]);
            let ended = Ended::of(command.arg(dir.path()).args(context).env("KUBECONFIG", file.path()));
            assert_eq!(ended.assert_code(2).outcome()["outcome"], "misconfigured", "{content:?}");
        }
    }
}

/// A kubeconfig whose token comes from a program that never answers, and the file in which that program tells its process id.
fn kubeconfig_of_hanging_plugin() -> (tempfile::NamedTempFile, tempfile::NamedTempFile) {
    let (file, pid) = (tempfile::NamedTempFile::new().unwrap(), tempfile::NamedTempFile::new().unwrap());
    let script = format!("echo $$ > {}; exec sleep 600", pid.path().display());
    let exec = json!({
        "apiVersion": "client.authentication.k8s.io/v1", "interactiveMode": "Never",
        "command": "/bin/sh", "args": ["-c", script], "env": [{"name": "PATH", "value": "/usr/bin:/bin"}],
    });
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": "http://127.0.0.1:9"}}],
        "users": [{"name": "test", "user": {"exec": exec}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test", "namespace": "app"}}],
    });
    fs::write(file.path(), config.to_string()).unwrap();
    (file, pid)
}

/// Ends the program, which nobody waits for any more; fails where it never ran.
fn end_plugin(pid: &Path) {
    let pid = await_condition("the plugin runs", Duration::from_secs(10), || {
        let pid = fs::read_to_string(pid).unwrap().trim().parse().ok().and_then(rustix::process::Pid::from_raw);
        pid.ok_or_else(|| "not yet".to_owned())
    });
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[test]
fn plugin_of_a_kubeconfig_that_hangs_is_an_error_in_seconds() {
    let ((config, pid), dir) = (kubeconfig_of_hanging_plugin(), tempfile::tempdir().unwrap());
    let mut command = lifeboat(&["port-discover", "--service=pg", "--dir"]);
    let ended = Ended::of(command.arg(dir.path()).env("KUBECONFIG", config.path()));
    let outcome = ended.assert_code(1).outcome();
    let reason = outcome["reason"].as_str().unwrap();
    assert!(reason.contains("exec plugin /bin/sh"), "{reason}");
    assert!(reason.contains(config.path().to_str().unwrap()), "{reason}");
    assert!(ended.took < Duration::from_secs(20), "{:?}", ended.took);
    end_plugin(pid.path());
}

#[test]
fn plugin_of_a_kubeconfig_that_hangs_holds_up_no_signal() {
    let ((config, pid), dir) = (kubeconfig_of_hanging_plugin(), tempfile::tempdir().unwrap());
    let mut command = lifeboat(&["port-discover", "--service=pg", "--dir"]);
    let running = Running::start(command.arg(dir.path()).env("KUBECONFIG", config.path()));
    await_condition("the plugin runs", Duration::from_secs(10), || {
        let pid = fs::read_to_string(pid.path()).unwrap();
        if pid.ends_with('\n') { Ok(()) } else { Err(pid) }
    });
    let ended = running.terminate();
    let outcome = ended.assert_code(1).outcome();
    assert!(outcome["reason"].as_str().unwrap().contains("SIGTERM"), "{outcome}");
    assert!(ended.took < Duration::from_secs(5), "{:?}", ended.took);
    end_plugin(pid.path());
}

/// Without its Lease no step runs, so no step would tell that nobody watches the peer.
#[test]
fn monitor_without_its_lease_works_not_and_tells_once() {
    let api = HttpServer::start(|request| Some(status(if request.path.contains("/leases/") { 403 } else { 404 })));
    let webhook = HttpServer::of_status(200);
    let kubeconfig = kubeconfig(&api.url(""));
    let flags =
        ["--scope=demo", "--every=200ms", "--listen=127.0.0.1:0", "--lease=demo-monitor", "--lease-duration=1s"];
    let mut command = lifeboat(&["monitor"]);
    command.args(flags).args(["--", "port-discover", "--service=pg"]);
    command.env("KUBECONFIG", kubeconfig.path()).env("LIFEBOAT_WEBHOOK_URL", webhook.url("/"));
    let running = Running::start(&mut command);
    await_condition("it is told", Duration::from_secs(20), || {
        if webhook.asked().is_empty() { Err("not yet".to_owned()) } else { Ok(()) }
    });
    let before = api.asked().len();
    await_condition("a few rounds more", Duration::from_secs(20), || {
        if api.asked().len() < before + 15 { Err("not yet".to_owned()) } else { Ok(()) }
    });
    running.terminate();
    let told = webhook.asked();
    assert_eq!((told.len(), &told[0].json()["kind"]), (1, &"ProbeBlind".into()), "{told:?}");
    assert!(told[0].body.contains("Lease demo-monitor in namespace app: the API server forbids it"), "{told:?}");
    assert!(api.asked().iter().all(|asked| !asked.path.contains("/services/")), "a step ran");
}
