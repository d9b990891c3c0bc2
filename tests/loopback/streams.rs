//! Standard output, the log and the disk: full, or gone.

use std::{
    ffi::OsStr,
    fs,
    os::unix::ffi::OsStrExt,
    process::{Command, Stdio},
};

use crate::{
    lifeboat::{Ended, LIFEBOAT, Probe, files, lifeboat},
    peers::ClosedPort,
    postgres::{PASSWORD, Postgres},
};

fn full() -> Stdio {
    fs::OpenOptions::new().write(true).open("/dev/full").expect("open /dev/full").into()
}

/// A pipe whose reader is gone.
fn broken_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn stdout_full_or_closed_changes_neither_the_exit_code_nor_the_last_words() {
    for (stdout, require, code) in
        [(full(), "unreachable", 0), (full(), "healthy", 4), (broken_pipe(), "unreachable", 0)]
    {
        let (probe, closed, last_words) = (Probe::new(), ClosedPort::new(), tempfile::NamedTempFile::new().unwrap());
        let port = format!("--port={}", closed.address.port());
        let mut command = probe.command(&["--host=127.0.0.1", &port, "--require", require, "--termination-log"]);
        let child = command.arg(last_words.path()).stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
        let output = child.wait_with_output().unwrap();
        let log = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{log}");
        assert!(log.contains("print the outcome"), "it is told in the log: {log}");
        let words: serde_json::Value = serde_json::from_slice(&fs::read(last_words.path()).unwrap()).unwrap();
        assert_eq!((&words["exit_code"], &words["verdict"]), (&code.into(), &"unreachable".into()));
        assert_eq!(probe.facts()["verdict"], "unreachable");
    }
}

#[test]
fn log_full_or_closed_changes_nothing_else() {
    for stderr in [full, broken_pipe] {
        for format in ["text", "json"] {
            let (probe, closed) = (Probe::new(), ClosedPort::new());
            let port = format!("--port={}", closed.address.port());
            let mut command = probe.command(&["--host=127.0.0.1", &port, "--log-level=trace", "--log-format", format]);
            let child = command.stdout(Stdio::piped()).stderr(stderr()).spawn().unwrap();
            let output = child.wait_with_output().unwrap();
            assert_eq!(output.status.code(), Some(0));
            let outcome: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(outcome["verdict"], "unreachable");
            assert_eq!(probe.facts()["verdict"], "unreachable");
        }
    }
}

/// `pg-probe` that may write no file beyond `blocks` blocks: what a full disk does to it.
fn on_a_full_disk(probe: &Probe, blocks: u32, arguments: &[&str]) -> Ended {
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec \"$0\" \"$@\"");
    let mut command = Command::new("/bin/sh");
    command.args(["-c", &script, LIFEBOAT, "pg-probe", "--interval=0s", "--host=127.0.0.1"]).args(arguments);
    Ended::of(command.arg("--dir").arg(probe.dir.path()).env_clear())
}

#[test]
fn disk_full_at_the_first_or_a_later_byte_exits_1_and_leaves_no_half_file() {
    let closed = ClosedPort::new();
    let port = format!("--port={}", closed.address.port());
    for blocks in [0, 1] {
        let probe = Probe::new();
        // More than the two sizes that shells take for a block, 512 and 1024 bytes.
        let ended = on_a_full_disk(&probe, blocks, &[&port, "--attempts=50"]);
        let outcome = ended.assert_code(1).outcome();
        assert_eq!(outcome["outcome"], "failed");
        assert!(outcome["reason"].as_str().unwrap().contains("probe.json"), "{outcome}");
        assert!(files(probe.dir.path()).is_empty(), "{:?}", files(probe.dir.path()));
    }
    let probe = Probe::new();
    on_a_full_disk(&probe, 1000, &[&port, "--attempts=50"]).assert_code(0);
    assert_eq!(probe.facts()["verdict"], "unreachable");
}

#[test]
fn argument_that_is_no_utf_8_is_a_usage_error() {
    for argument in [&b"--host=\xff\xfe"[..], b"\xff", b"--dir=\xff"] {
        let ended = Ended::of(lifeboat(&["pg-probe", "--port=1"]).arg(OsStr::from_bytes(argument)));
        assert!(ended.assert_code(2).stdout.is_empty(), "{}", ended.stdout);
    }
}

#[test]
fn host_hostile_is_one_line_of_json_and_never_unreachable() {
    for host in ["a\nb", "-h", "..", "a b", "\u{1b}[2J", "a\"}{", "%00", "::ffff::", ""] {
        let probe = Probe::new();
        let host = format!("--host={host}");
        let facts = probe.verdict(&mut probe.command(&["--port=5432", &host]));
        assert_ne!(facts["verdict"], "unreachable", "{host:?}: {facts}");
    }
}

#[test]
fn password_is_in_no_last_words_and_in_no_argument() {
    let server = Postgres::shared();
    for more in [&[][..], &["--dbname=nowhere"], &["--user=nobody-here"], &["--dir=/nonexistent"]] {
        let (probe, last_words) = (Probe::new(), tempfile::NamedTempFile::new().unwrap());
        let mut command = probe.command(more);
        command.args(server.address()).env("PGPASSWORD", PASSWORD).arg("--termination-log").arg(last_words.path());
        Ended::of(&mut command).assert_hides(PASSWORD);
        let words = fs::read_to_string(last_words.path()).unwrap();
        assert!(!words.is_empty() && !words.contains(PASSWORD), "{words}");
    }
    for name in Ended::of(&mut lifeboat(&["--list"])).stdout.lines() {
        let help = Ended::of(&mut lifeboat(&[name, "--help"])).stdout;
        for secret in ["--password ", "--token", "--webhook-url ", "--ping-url ", "--app-password"] {
            assert!(!help.contains(secret), "{name} takes a secret where the process list shows it: {secret}");
        }
    }
}
