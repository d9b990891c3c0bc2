//! What goes wrong while a database is dumped: no set that looks good and is not, no good set lost.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use crate::{
    dump::{awkward, content, databases, dump, restore, set, step},
    lifeboat::{Ended, Running, await_condition, files, lifeboat},
    postgres::{PASSWORD, Postgres, bindir},
};

/// A pg_dump that does something else in the end.
fn tampered(end: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let real = bindir().join("pg_dump");
    let script = format!(
        "#!/bin/bash\nset -o pipefail\nif [ \"$1\" = --version ]; then exec '{0}' --version; fi\n{1}\n",
        real.display(),
        end.replace("REAL", &format!("'{}' \"$@\"", real.display()))
    );
    let path = dir.path().join("pg_dump");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

/// Nothing in the tier that a reader could take for a set.
fn assert_no_set(target: &Path) {
    let left = if target.join("hourly").exists() { files(&target.join("hourly")) } else { Vec::new() };
    assert_eq!(left, [""; 0]);
}

#[test]
fn tool_that_fails_or_is_cut_off_at_any_point_leaves_no_set() {
    let server = awkward();
    let target = tempfile::tempdir().unwrap();
    for (end, why) in [
        ("echo no >&2; exit 1", "no"),
        ("REAL | head -c 3000; kill -9 $$", "signal"),
        ("REAL; exit 3", "ended with"),
        ("REAL | head -c -30", "cut off"),
        ("REAL | head -c 3000", "ended with"),
        ("true", "cut off"),
        ("REAL --exclude-table-data=public.types", "no data of public.types"),
    ] {
        let tool = tampered(end);
        // The last flag of a kind counts.
        let bindir = format!("--pg-bindir={}", tool.path().display());
        let ended = dump(&server, target.path(), &["--database=Shop ü", &bindir, "--keep=hourly=1"]);
        let reason = ended.assert_code(1).outcome()["reason"].as_str().unwrap().to_owned();
        assert!(reason.contains(why), "{end}: {reason}");
        assert_no_set(target.path());
    }
}

#[test]
fn warning_of_the_tool_makes_no_dump_bad() {
    let server = Postgres::shared();
    let target = tempfile::tempdir().unwrap();
    let tool = tampered("echo 'pg_dump: warning: there are circular foreign-key constraints' >&2; REAL");
    let bindir = format!("--pg-bindir={}", tool.path().display());
    let ended = dump(&server, target.path(), &["--database=postgres", &bindir]);
    ended.assert_code(0);
    assert!(ended.stderr.contains("circular"));
}

#[test]
fn tool_older_than_the_server_is_refused_before_anything_is_written() {
    let server = Postgres::shared();
    let target = tempfile::tempdir().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pg_dump");
    fs::write(&path, "#!/bin/sh\necho 'pg_dump (PostgreSQL) 9.6.24'\n").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    let bindir = format!("--pg-bindir={}", dir.path().display());
    let ended = dump(&server, target.path(), &["--database=postgres", &bindir]);
    assert!(ended.assert_code(2).outcome()["reason"].as_str().unwrap().contains("use an image with PostgreSQL"));
    assert_eq!(files(target.path()), [""; 0]);
}

/// A session that holds up pg_dump at this table, until it is dropped.
struct Blocker<'a>(&'a Postgres, Child);

impl<'a> Blocker<'a> {
    fn of(server: &'a Postgres, table: &str) -> Self {
        let sql = format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(600)");
        let child = Command::new(bindir().join("psql"))
            .args(["-Xq", "-h", "127.0.0.1", "-p", &server.port.to_string(), "-U", "postgres", "Shop ü", "-c", &sql])
            .env("PGPASSWORD", PASSWORD)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let blocker = Self(server, child);
        await_sql(server, "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted", "1");
        blocker
    }
}

impl Drop for Blocker<'_> {
    fn drop(&mut self) {
        let _ =
            self.0.try_sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)'");
        let _ = self.1.wait();
    }
}

const DUMPING: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE 'LOCK TABLE%'";

fn await_sql(server: &Postgres, sql: &str, wanted: &str) {
    await_condition(sql, Duration::from_secs(20), || {
        let found = server.sql(sql);
        if found == wanted { Ok(()) } else { Err(found) }
    });
}

#[test]
fn connection_that_ends_in_a_dump_is_an_error_that_leaves_no_set() {
    let server = awkward();
    let target = tempfile::tempdir().unwrap();
    let _blocker = Blocker::of(&server, "public.types");
    let running = Running::start(&mut step(&server, target.path(), "dump", &["--database=Shop ü"]));
    await_sql(&server, DUMPING, "1");
    server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock'");
    let ended = running.ended();
    assert!(
        ended.assert_code(1).outcome()["reason"].as_str().unwrap().contains("pg_dump ended with"),
        "{}",
        ended.stdout
    );
    assert_no_set(target.path());
}

#[test]
fn sigterm_ends_the_tool_and_leaves_no_set_and_no_lock() {
    let server = awkward();
    let target = tempfile::tempdir().unwrap();
    let blocker = Blocker::of(&server, "public.types");
    let running = Running::start(&mut step(&server, target.path(), "dump", &["--database=Shop ü"]));
    await_sql(&server, DUMPING, "1");
    let second = dump(&server, target.path(), &["--database=Shop ü"]);
    second.assert_code(5);
    let ended = running.terminate();
    assert!(ended.assert_code(1).outcome()["reason"].as_str().unwrap().contains("SIGTERM"), "{}", ended.stdout);
    assert_no_set(target.path());
    // The tool's own session, which still waits for the table, notices that nobody waits for it.
    await_sql(&server, "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'", "0");
    drop(blocker);
    dump(&server, target.path(), &["--database=Shop ü"]).assert_code(0);
}

/// Enough that a dump of it can be cut off at many points.
fn large() -> Postgres {
    let server = awkward();
    let sql = "CREATE TABLE public.large AS SELECT n, md5(n::text) AS t FROM generate_series(1, 150000) n";
    server.sql_as("postgres", PASSWORD, "Shop ü", sql).unwrap();
    server
}

/// Runs in a mount namespace of its own, where the target is a file system of so many KiB; what is left there is printed after the outcome.
fn dump_into(server: &Postgres, target: &Path, size: u32, more: &[&str]) -> (i32, String, String) {
    dump_into_prepared(server, target, size, "true", more)
}

/// The same, after a line of the shell, to which the dump's own command line is `"$@"`.
fn dump_into_prepared(
    server: &Postgres,
    target: &Path,
    size: u32,
    prepare: &str,
    more: &[&str],
) -> (i32, String, String) {
    let inner = step(server, target, "dump", &[&["--database=Shop ü"], more].concat());
    let script = "mount -t tmpfs -o size=\"$0\"k tmpfs \"$1\" || exit 99; shift; eval \"$PREPARE\"; \"$@\"; code=$?; \
                  echo; cd \"$TARGET\" && find . -type f -not -name .lifeboat.lock -printf '%f\\n'; exit $code";
    let output = Command::new("unshare")
        .args(["--mount", "bash", "-c", script, &size.to_string()])
        .arg(target)
        .arg(inner.get_program())
        .args(inner.get_args())
        .env("PGPASSWORD", PASSWORD)
        .env("TARGET", target)
        .env("PREPARE", prepare)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let (outcome, left) = text.split_once("\n\n").unwrap_or((text.trim_end(), ""));
    (output.status.code().unwrap(), outcome.to_owned(), left.to_owned())
}

#[test]
fn full_disk_at_any_point_is_told_and_leaves_no_set() {
    let server = large();
    let target = tempfile::tempdir().unwrap();
    let (code, outcome, left) = dump_into(&server, target.path(), 100_000, &[]);
    assert_eq!((code, left.lines().count()), (0, 3), "{outcome}\n{left}");
    let outcome: serde_json::Value = serde_json::from_str(outcome.trim()).unwrap();
    let needed = u32::try_from(outcome["sets"][0]["bytes"].as_u64().unwrap() / 1024).unwrap();
    // A tenth, two tenths, … and right at the end, where only the manifest has no room.
    for size in (1..10).map(|tenth| needed * tenth / 10).chain([needed - 8, needed, needed + 8]) {
        for compress in ["gzip", "zstd"] {
            let (code, outcome, left) = dump_into(&server, target.path(), size, &["--compress", compress]);
            let complete = left.lines().filter(|name| Path::new(name).extension().is_some_and(|e| e == "json")).count();
            match code {
                // The other compression may fit.
                0 => assert_eq!(left.lines().count(), 3, "{size} KiB: {left}"),
                1 => {
                    assert!(outcome.contains("No space left"), "{size} KiB: {outcome}");
                    assert_eq!(complete, 0, "{size} KiB: {left}");
                }
                code => panic!("{size} KiB: exit {code}: {outcome}"),
            }
        }
    }
}

#[test]
fn volume_that_a_killed_run_has_filled_is_cleared_by_the_next_one() {
    let server = large();
    let target = tempfile::tempdir().unwrap();
    let left = ".backup-2022-11-28T10:51:08Z-x.sql.gz.partial";
    // A set, and then the rest of the volume full of what was cut off. Two sets within a second would have one name.
    let prepare = format!(
        "\"$@\" > /dev/null 2>&1 && sleep 1.1; cat /dev/zero > \"$TARGET/hourly/{left}\" 2> /dev/null; \
         test \"$(df --output=avail \"$TARGET\" | tail -n 1)\" -eq 0 || exit 98"
    );
    let (code, outcome, names) = dump_into_prepared(&server, target.path(), 100_000, &prepare, &[]);
    assert_eq!((code, names.lines().count()), (0, 6), "{outcome}\n{names}");
    assert!(!names.contains(left), "{names}");
}

#[test]
fn killed_at_random_points_then_latest_is_restored() {
    let server = large();
    let before = content(&server, "Shop ü");
    let target = tempfile::tempdir().unwrap();
    dump(&server, target.path(), &["--database=Shop ü", "--keep=hourly=2,daily=2"]).assert_code(0);
    let mut state = 20_261_121_u32;
    let mut killed = 0;
    for round in 0..20 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let after = Duration::from_millis(u64::from(state >> 16) % 900);
        let mut child = step(&server, target.path(), "dump", &["--database=Shop ü", "--keep=hourly=2,daily=2"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(after);
        let _ = child.kill();
        killed += u32::from(child.wait().unwrap().code().is_none());
        let shown = Ended::of(lifeboat(&["backups", "--target"]).arg(target.path())).outcome();
        let latest = shown["sets"].as_array().unwrap().iter().filter(|set| set["latest"] == true).count();
        assert_eq!(latest, 1, "round {round}: {shown:#}");
        for set in shown["sets"].as_array().unwrap() {
            assert!(["complete", "incomplete"].contains(&set["condition"].as_str().unwrap()), "round {round}: {set:#}");
        }
    }
    assert!(killed >= 5, "only {killed} of 20 were killed before their end");
    restore(&server, target.path(), &["--database=Shop ü", "--into=latest", "--create"]).assert_code(0);
    assert!(content(&server, "latest") == before, "what was restored is not what was dumped");
    // What was cut off is cleared away by the next run.
    dump(&server, target.path(), &["--database=Shop ü"]).assert_code(0);
    assert!(!files(&target.path().join("hourly")).iter().any(|name| name.contains("partial")));
}

#[test]
fn restore_killed_at_random_points_leaves_the_old_database_or_the_new_one() {
    let server = large();
    server.sql("CREATE DATABASE shop");
    server.sql_as("postgres", PASSWORD, "shop", "CREATE TABLE mine AS SELECT 1 AS a").unwrap();
    let (old, new) = (content(&server, "shop"), content(&server, "Shop ü"));
    let target = tempfile::tempdir().unwrap();
    dump(&server, target.path(), &["--database=Shop ü"]).assert_code(0);
    assert!(set(target.path()).exists());
    let flags = ["--database=Shop ü", "--into=shop", "--clean", "--disconnect"];
    let mut state = 7_u32;
    for _ in 0..8 {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let mut child = step(&server, target.path(), "restore", &flags)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(u64::from(state >> 16) % 1500));
        let _ = child.kill();
        child.wait().unwrap();
        let there = content(&server, "shop");
        assert!(there == old || there == new, "neither the old database nor the new one");
    }
    // The last one finds what the others left, and the server may still be busy with it.
    await_condition("restored", Duration::from_mins(1), || {
        let ended = restore(&server, target.path(), &flags);
        if ended.code == 0 { Ok(()) } else { Err(ended.stdout) }
    });
    assert!(content(&server, "shop") == new, "what was restored is not what was dumped");
    assert_eq!(databases(&server), "Shop ü postgres shop");
}
