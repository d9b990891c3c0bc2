//! `dump`, `backups` and `restore` with a real server and PostgreSQL's own programs.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use serde_json::Value;

use crate::{
    lifeboat::{Ended, files, lifeboat},
    postgres::{PASSWORD, Postgres, bindir},
};

/// A database with what dumps stumble over: names, types, rows that look like a dump, objects of every kind.
const AWKWARD: &str = r#"
CREATE SCHEMA "sch""ema; x";
CREATE TABLE "sch""ema; x"."ta.ble (" (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, "co""l" text, twice int GENERATED ALWAYS AS (1 + 1) STORED);
INSERT INTO "sch""ema; x"."ta.ble (" ("co""l") VALUES (E'a\nb'), (E'\\.'), (NULL), (''), ('COPY public.t (a) FROM stdin;'), (E'\t'), ('ü');
CREATE TABLE public.empty (a int);
CREATE TABLE public.none ();
INSERT INTO public.none DEFAULT VALUES;
INSERT INTO public.none DEFAULT VALUES;
CREATE TABLE public.only_generated (g int GENERATED ALWAYS AS (7) STORED);
CREATE TABLE public.part (a int, b text) PARTITION BY RANGE (a);
CREATE TABLE public.part_1 PARTITION OF public.part FOR VALUES FROM (0) TO (10);
CREATE TABLE public.part_2 PARTITION OF public.part FOR VALUES FROM (10) TO (20);
INSERT INTO public.part SELECT n, 'row ' || n FROM generate_series(0, 19) n;
CREATE UNLOGGED TABLE public.unlogged (a int);
INSERT INTO public.unlogged VALUES (1);
CREATE TABLE public.parent (a int);
CREATE TABLE public.child (b int) INHERITS (public.parent);
INSERT INTO public.child VALUES (1, 2);
CREATE FUNCTION public.f() RETURNS text LANGUAGE sql AS $_$
SELECT E'it''s \' $$
COPY public.empty (a) FROM stdin;
1
\.
'
$_$;
COMMENT ON FUNCTION public.f() IS '; COPY public.empty (a) FROM stdin;
1
';
CREATE MATERIALIZED VIEW public.m AS SELECT count(*) FROM public.part;
CREATE TYPE public.mood AS ENUM ('sad', 'it''s ok');
CREATE TABLE public.types (m public.mood, j jsonb, x bytea, a text[], r int4range, n numeric, t timestamptz, i inet, big text);
INSERT INTO public.types VALUES ('it''s ok', '{"a": "\\u00fc"}', '\x00ff5c2e', ARRAY['a"b', NULL, '\'], '[1,5)', 'NaN', 'infinity', '::1', repeat('x', 3000000));
CREATE EXTENSION hstore;
CREATE TABLE public.extended (h public.hstore);
INSERT INTO public.extended VALUES ('a=>1');
CREATE TABLE public.secured (a int);
INSERT INTO public.secured VALUES (1), (2);
ALTER TABLE public.secured ENABLE ROW LEVEL SECURITY;
CREATE POLICY nobody ON public.secured USING (false);
CREATE SEQUENCE public.s START 5;
SELECT nextval('public.s');
SELECT lo_from_bytea(0, '\xdeadbeef27273b5c2e0a');
"#;

/// A server with the awkward database in it.
pub fn awkward() -> Postgres {
    let server = Postgres::start(&[]);
    server.sql("CREATE DATABASE \"Shop ü\"");
    server.sql_as("postgres", PASSWORD, "Shop ü", AWKWARD).unwrap();
    server
}

/// A step that knows the server and PostgreSQL's programs.
pub fn step(server: &Postgres, target: &Path, command: &str, more: &[&str]) -> Command {
    let mut step = lifeboat(&[command]);
    step.args(server.address()).arg("--target").arg(target).arg("--pg-bindir").arg(bindir()).args(more);
    step.env("PGPASSWORD", PASSWORD);
    step
}

pub fn dump(server: &Postgres, target: &Path, more: &[&str]) -> Ended {
    Ended::of(&mut step(server, target, "dump", more))
}

/// Whether a file's name ends like that.
pub fn is(name: &str, extension: &str) -> bool {
    Path::new(name).extension().is_some_and(|found| found == extension)
}

fn manifest(folder: &Path) -> Value {
    let name = files(folder).into_iter().find(|name| is(name, "json")).expect("there is a manifest");
    serde_json::from_str(&fs::read_to_string(folder.join(name)).unwrap()).unwrap()
}

#[test]
fn awkward_database_is_dumped_with_all_its_rows_in_each_compression() {
    let server = awkward();
    for (compress, suffix) in [("none", ".sql"), ("gzip", ".sql.gz"), ("gzip:1", ".sql.gz"), ("zstd", ".sql.zst")] {
        let target = tempfile::tempdir().unwrap();
        let ended = dump(&server, target.path(), &["--database=Shop ü", "--compress", compress, "--read-back"]);
        ended.assert_code(0).assert_hides(PASSWORD);
        let folder = target.path().join("hourly");
        let names = files(&folder);
        let set = names.first().unwrap();
        assert!(set.ends_with(&format!("-Shop%20%C3%BC{suffix}")), "{names:?}");
        assert_eq!(names, [set.clone(), format!("{set}.json"), format!("{set}.sha256")]);
        let checked = Command::new("sha256sum").current_dir(&folder).args(["-c", &names[2]]).output().unwrap();
        assert!(checked.status.success(), "{checked:?}");

        let manifest = manifest(&folder);
        let rows = |schema: &str, table: &str| {
            let tables = manifest["tables"].as_array().unwrap();
            tables.iter().find(|t| t["schema"] == schema && t["table"] == table).map(|t| t["rows"].as_u64().unwrap())
        };
        let found = [
            rows("sch\"ema; x", "ta.ble ("),
            rows("public", "empty"),
            rows("public", "none"),
            rows("public", "part_1"),
            rows("public", "part_2"),
            rows("public", "parent"),
            rows("public", "child"),
            rows("public", "types"),
            rows("public", "secured"),
            rows("public", "unlogged"),
        ];
        assert_eq!(found.map(Option::unwrap), [7, 0, 2, 10, 10, 0, 1, 1, 2, 1], "{manifest:#}");
        assert_eq!(ended.outcome()["sets"][0]["rows"], 35);
        assert_eq!(manifest["database"]["encoding"], "UTF8");
        assert_eq!(manifest["bytes"], fs::metadata(folder.join(set)).unwrap().len());
    }
}

#[test]
fn standby_is_dumped_without_what_only_its_primary_has() {
    let server = awkward();
    let standby = server.standby(&[]).until_ready();
    let target = tempfile::tempdir().unwrap();
    dump(&standby, target.path(), &["--all-databases"]).assert_code(0);
    let folder = target.path().join("hourly");
    let manifests: Vec<String> = files(&folder).into_iter().filter(|name| is(name, "json")).collect();
    assert_eq!(manifests.len(), 2, "{manifests:?}");
    let text = fs::read_to_string(folder.join(manifests.iter().find(|name| name.contains("Shop")).unwrap())).unwrap();
    let manifest: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(manifest["server"]["in_recovery"], true);
    assert!(!manifest["tables"].as_array().unwrap().iter().any(|table| table["table"] == "unlogged"));
}

#[test]
fn database_or_server_that_is_not_there_is_told_and_nothing_is_written() {
    let server = Postgres::shared();
    let target = tempfile::tempdir().unwrap();
    let ended = dump(&server, target.path(), &["--database=nope"]);
    ended.assert_code(2);
    assert!(ended.outcome()["reason"].as_str().unwrap().contains("there is no database \"nope\"; there are postgres"));
    let mut gone = step(&server, target.path(), "dump", &["--database=postgres", "--port=1"]);
    Ended::of(&mut gone).assert_code(1);
    let mut absent = step(&server, &target.path().join("not-mounted"), "dump", &["--database=postgres"]);
    Ended::of(&mut absent).assert_code(2);
    let mut stranger = step(&server, target.path(), "dump", &["--database=postgres"]);
    Ended::of(stranger.env("PGPASSWORD", "wrong")).assert_code(1);
    assert_eq!(files(target.path()), [""; 0]);
}

/// A dump of a database as psql would compare it: without what differs from run to run.
pub fn content(server: &Postgres, database: &str) -> String {
    let output = Command::new(bindir().join("pg_dump"))
        .args(["-h", "127.0.0.1", "-p", &server.port.to_string(), "-U", "postgres", "-d", database])
        .env("PGPASSWORD", PASSWORD)
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines()
        .filter(|line| !line.starts_with("\\restrict") && !line.starts_with("\\unrestrict"))
        .collect::<Vec<_>>()
        .join("\n")
}

pub fn restore(server: &Postgres, target: &Path, more: &[&str]) -> Ended {
    Ended::of(&mut step(server, target, "restore", more))
}

/// The only set with a manifest in the hourly tier.
pub fn set(target: &Path) -> PathBuf {
    let folder = target.join("hourly");
    let manifest = files(&folder).into_iter().find(|name| is(name, "json")).expect("there is a manifest");
    folder.join(manifest).with_extension("")
}

pub fn databases(server: &Postgres) -> String {
    server
        .sql("SELECT string_agg(datname, ' ' ORDER BY datname COLLATE \"C\") FROM pg_database WHERE NOT datistemplate")
}

#[test]
fn set_of_each_compression_is_restored_equal_in_every_object_and_row() {
    let server = awkward();
    server.sql("ALTER DATABASE \"Shop ü\" SET search_path TO \"sch\"\"ema; x\", public");
    server.sql("ALTER DATABASE \"Shop ü\" SET work_mem TO '5MB'");
    // What would keep a restore from filling it, if it came first.
    server.sql("ALTER DATABASE \"Shop ü\" SET default_transaction_read_only TO on");
    server.sql("CREATE ROLE app");
    server.sql("ALTER ROLE app IN DATABASE \"Shop ü\" SET search_path TO ''");
    server.sql("REVOKE CONNECT ON DATABASE \"Shop ü\" FROM PUBLIC");
    server.sql("GRANT CONNECT ON DATABASE \"Shop ü\" TO app WITH GRANT OPTION");
    server.sql("ALTER DATABASE \"Shop ü\" CONNECTION LIMIT 7");
    server.sql("COMMENT ON DATABASE \"Shop ü\" IS 'it''s ours'");
    let before = content(&server, "Shop ü");
    for compress in ["none", "gzip", "zstd"] {
        let target = tempfile::tempdir().unwrap();
        dump(&server, target.path(), &["--database=Shop ü", "--compress", compress]).assert_code(0);
        let ended = restore(&server, target.path(), &["--database=Shop ü", "--into", compress, "--create"]);
        ended.assert_code(0).assert_hides(PASSWORD);
        assert_eq!(ended.outcome()["rows"], 35);
        assert!(content(&server, compress) == before, "{compress} is not equal");
        let settings = "SELECT datconnlimit, datacl, shobj_description(oid, 'pg_database'), \
                (SELECT string_agg(setrole || s, ';' ORDER BY setrole, s) FROM pg_db_role_setting r, unnest(setconfig) s \
                 WHERE setdatabase = d.oid) FROM pg_database d WHERE datname = current_database()";
        let of = |database| server.sql_as("postgres", PASSWORD, database, settings).unwrap();
        assert_eq!(of(compress), of("Shop ü"));
    }
    assert_eq!(databases(&server), "Shop ü gzip none postgres zstd");
}

/// Its rows go by the oids of the values, which are others in another database: pg_dump writes them as the whole table's.
#[test]
fn table_partitioned_by_the_hash_of_an_enum_is_dumped_and_restored() {
    let server = Postgres::start(&[]);
    server.sql("CREATE DATABASE shop");
    let sql = "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE hashed (m mood) PARTITION BY HASH (m); \
               CREATE TABLE hashed_0 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 0); \
               CREATE TABLE hashed_1 PARTITION OF hashed FOR VALUES WITH (MODULUS 2, REMAINDER 1); \
               INSERT INTO hashed VALUES ('sad'), ('ok'), ('sad')";
    server.sql_as("postgres", PASSWORD, "shop", sql).unwrap();
    let target = tempfile::tempdir().unwrap();
    dump(&server, target.path(), &["--database=shop"]).assert_code(0);
    let ended = restore(&server, target.path(), &["--database=shop", "--into=other", "--create"]);
    assert_eq!(ended.assert_code(0).outcome()["rows"], 3);
    let count = "SELECT count(*) || ' ' || count(*) FILTER (WHERE m = 'sad') FROM hashed";
    assert_eq!(server.sql_as("postgres", PASSWORD, "other", count).unwrap(), "3 2");
}

#[test]
fn set_is_restored_without_us_by_the_usual_tools() {
    let server = awkward();
    let before = content(&server, "Shop ü");
    for (compress, tool) in [("gzip", "gunzip -c"), ("zstd", "zstd -dc")] {
        let target = tempfile::tempdir().unwrap();
        dump(&server, target.path(), &["--database=Shop ü", "--compress", compress]).assert_code(0);
        server.sql(&format!("CREATE DATABASE by_hand_{compress} TEMPLATE template0"));
        let line =
            format!("{tool} '{}' | '{}/psql' -Xq -v ON_ERROR_STOP=1", set(target.path()).display(), bindir().display());
        let port = server.port.to_string();
        let output = Command::new("bash")
            .args(["-c", &format!("set -o pipefail; {line} > /dev/null")])
            .envs([("PGHOST", "127.0.0.1"), ("PGPORT", &port), ("PGUSER", "postgres"), ("PGPASSWORD", PASSWORD)])
            .env("PGDATABASE", format!("by_hand_{compress}"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        assert!(content(&server, &format!("by_hand_{compress}")) == before, "{compress} is not equal");
    }
}

#[test]
fn database_that_is_there_or_in_use_is_replaced_only_when_asked_and_never_lost() {
    let server = Postgres::start(&[]);
    server.sql("CREATE DATABASE shop");
    let shop = |sql: &str| server.sql_as("postgres", PASSWORD, "shop", sql).unwrap();
    shop("CREATE TABLE t AS SELECT 1 AS a");
    let target = tempfile::tempdir().unwrap();
    dump(&server, target.path(), &["--database=shop"]).assert_code(0);
    shop("INSERT INTO t VALUES (2)");

    let absent = restore(&server, target.path(), &["--database=shop", "--into=other"]);
    assert!(absent.assert_code(3).outcome()["reason"].as_str().unwrap().contains("--create"), "{}", absent.stdout);
    let there = restore(&server, target.path(), &["--database=shop"]);
    assert!(there.assert_code(3).outcome()["reason"].as_str().unwrap().contains("--clean"), "{}", there.stdout);
    let mut user = Command::new(bindir().join("psql"))
        .args([
            "-h",
            "127.0.0.1",
            "-p",
            &server.port.to_string(),
            "-U",
            "postgres",
            "shop",
            "-c",
            "SELECT pg_sleep(600)",
        ])
        .env("PGPASSWORD", PASSWORD)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    crate::lifeboat::await_condition("somebody uses it", std::time::Duration::from_secs(10), || {
        let users = server
            .sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(600)' AND pid <> pg_backend_pid()");
        if users == "1" { Ok(()) } else { Err(users) }
    });
    let refused = restore(&server, target.path(), &["--database=shop", "--clean"]);
    assert!(
        refused.assert_code(3).outcome()["reason"].as_str().unwrap().contains("--disconnect"),
        "{}",
        refused.stdout
    );
    assert_eq!(shop("SELECT count(*) FROM t"), "2");

    restore(&server, target.path(), &["--database=shop", "--clean", "--disconnect"]).assert_code(0);
    assert!(!user.wait().unwrap().success());
    assert_eq!(shop("SELECT count(*) FROM t"), "1");
    // One that takes no sessions, as an operator or a broken catalog has it, is what a restore is for.
    server.sql("ALTER DATABASE shop ALLOW_CONNECTIONS false");
    restore(&server, target.path(), &["--database=shop", "--clean"]).assert_code(0);
    assert_eq!(shop("SELECT count(*) FROM t"), "1");
    server.sql("ALTER ROLE postgres IN DATABASE shop SET work_mem TO '5MB'");
    assert_eq!(databases(&server), "postgres shop");
}

#[test]
fn set_that_is_flipped_cut_or_fails_half_way_leaves_the_database_as_it_was() {
    let server = awkward();
    server.sql("CREATE DATABASE shop");
    server.sql_as("postgres", PASSWORD, "shop", "CREATE TABLE mine AS SELECT 1 AS a").unwrap();
    let mine = content(&server, "shop");
    let target = tempfile::tempdir().unwrap();
    dump(&server, target.path(), &["--database=Shop ü"]).assert_code(0);
    let flags = ["--database=Shop ü", "--into=shop", "--clean"];
    let path = set(target.path());
    let whole = fs::read(&path).unwrap();

    // One bit, so that the size is right: the digest tells, before the server is touched.
    let mut flipped = whole.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 1;
    fs::write(&path, &flipped).unwrap();
    let ended = restore(&server, target.path(), &flags);
    assert!(ended.assert_code(4).outcome()["reason"].as_str().unwrap().contains("SHA-256"), "{}", ended.stdout);

    fs::write(&path, &whole[..whole.len() - 1]).unwrap();
    let ended = restore(&server, target.path(), &flags);
    assert!(ended.assert_code(3).outcome()["reason"].as_str().unwrap().contains("no complete set"), "{}", ended.stdout);

    // Another tool's, cut off: nothing beside it tells, but its own end does.
    for cut in [whole.len() - 1, whole.len() / 2] {
        let foreign = tempfile::tempdir().unwrap();
        fs::write(foreign.path().join("backup-2022-11-28T08:51:08Z-shop.sql.gz"), &whole[..cut]).unwrap();
        let flags = ["--database=shop", "--clean", "--set=2022"];
        let ended = restore(&server, foreign.path(), &flags);
        assert!(
            ended.assert_code(3).outcome()["reason"].as_str().unwrap().contains("--allow-foreign"),
            "{}",
            ended.stdout
        );
        restore(&server, foreign.path(), &[&flags[..], &["--allow-foreign"]].concat()).assert_code(4);
    }
    let foreign = tempfile::tempdir().unwrap();
    let name = foreign.path().join("backup-2022-11-28T08:51:08Z-shop.sql");
    let end = "-- PostgreSQL database dump complete\n";
    for (text, code) in [
        ("SELECT 1;\n".to_owned(), 4),
        (format!("SELECT 1/0;\n{end}"), 1),
        (format!("DROP DATABASE shop;\n{end}"), 3),
        (format!("\\connect shop\nDROP TABLE mine;\n{end}"), 3),
    ] {
        fs::write(&name, &text).unwrap();
        let flags = ["--database=shop", "--clean", "--set=2022", "--allow-foreign"];
        restore(&server, foreign.path(), &flags).assert_code(code);
    }
    assert!(content(&server, "shop") == mine, "the database is not as it was");
    assert_eq!(databases(&server), "Shop ü postgres shop");
}

#[test]
fn tiers_are_filled_and_pruned_only_by_good_dumps_and_shown() {
    let server = Postgres::shared();
    let target = tempfile::tempdir().unwrap();
    let hourly = target.path().join("hourly");
    fs::create_dir(&hourly).unwrap();
    // Another tool's, with a digest that somebody took.
    fs::write(hourly.join("backup-2022-11-28T08:51:08Z-postgres.sql.gz"), "another tool's").unwrap();
    fs::write(hourly.join("backup-2022-11-28T08:51:08Z-postgres.sql.gz.sha256"), "…").unwrap();
    // What killed runs left: a set without its manifest, and a file under a temporary name.
    fs::write(hourly.join("backup-2022-11-28T09:51:08Z-postgres.sql.gz"), "cut off").unwrap();
    fs::write(hourly.join(".backup-2022-11-28T09:51:08Z-postgres.sql.gz.json.partial"), "{}").unwrap();
    fs::write(hourly.join(".backup-2022-11-28T10:51:08Z-postgres.sql.gz.partial"), "half").unwrap();
    let shown = Ended::of(lifeboat(&["backups", "--target"]).arg(target.path())).outcome();
    let conditions = [&shown["sets"][0]["condition"], &shown["sets"][1]["condition"]];
    assert_eq!(conditions, ["incomplete", "foreign"], "{shown:#}");
    let keep = "--keep=hourly=1,daily=1,monthly=0";
    dump(&server, target.path(), &["--database=postgres", keep]).assert_code(0);
    let first = set(target.path());
    // Two within a second would have one name.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let ended = dump(&server, target.path(), &["--database=postgres", keep]);
    assert_eq!(ended.assert_code(0).outcome()["pruned"].as_array().unwrap().len(), 2, "{}", ended.stdout);
    assert!(!first.exists(), "the older one of this hour stays");
    assert_eq!(files(&target.path().join("daily")).len(), 3);
    assert!(!target.path().join("monthly").exists() && !target.path().join("weekly").exists());
    assert!(!files(&hourly).iter().any(|name| name.ends_with(".partial")));

    let shown = Ended::of(lifeboat(&["backups", "--target"]).arg(target.path())).outcome();
    let sets: Vec<(&str, &str, bool)> = shown["sets"]
        .as_array()
        .unwrap()
        .iter()
        .map(|set| (set["folder"].as_str().unwrap(), set["condition"].as_str().unwrap(), set["latest"] == true))
        .collect();
    let wanted = [("daily", "complete", true), ("hourly", "complete", false), ("hourly", "foreign", false)];
    assert_eq!(sets, wanted, "{shown:#}");

    let before = files(&hourly);
    let dry = ["backups", "prune", "--keep=hourly=0,daily=1", "--dry-run", "--target"];
    Ended::of(lifeboat(&dry).arg(target.path())).assert_code(0);
    assert_eq!(files(&hourly), before);
    Ended::of(lifeboat(&["backups", "prune", "--keep=hourly=0,daily=1", "--target"]).arg(target.path())).assert_code(0);
    let theirs = "backup-2022-11-28T08:51:08Z-postgres.sql.gz";
    assert_eq!(files(&hourly), [theirs, &format!("{theirs}.sha256")], "what is foreign stays");
}

#[test]
fn second_run_on_a_target_is_told_who_works_there() {
    let server = Postgres::shared();
    let target = tempfile::tempdir().unwrap();
    let lock = fs::File::create(target.path().join(".lifeboat.lock")).unwrap();
    fs::write(target.path().join(".lifeboat.lock"), r#"{"holder":"other-pod","pid":7,"since":"2026-01-01T00:00:00Z"}"#)
        .unwrap();
    lock.lock().unwrap();
    let ended = dump(&server, target.path(), &["--database=postgres"]);
    assert!(ended.assert_code(5).outcome()["reason"].as_str().unwrap().contains("other-pod"), "{}", ended.stdout);
    drop(lock);
    // A lock of a run that is gone holds nobody up, whatever the file says.
    dump(&server, target.path(), &["--database=postgres"]).assert_code(0);
}
