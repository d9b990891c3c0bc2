//! The command line: one enum of commands, the global flags, and the frame around every run.

use std::{
    ffi::OsString,
    io::{IsTerminal, Write},
    path::PathBuf,
    process::ExitCode,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context, anyhow};
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum, parser::ValueSource};
use jiff::Timestamp;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::OnceCell,
};

use crate::{
    alerts::{Alert, AlertOptions, Alerter},
    commands,
    kubernetes::{Cluster, ClusterOptions, Conflict, EventTarget},
    outcome::{Conclusion, Outcome, Report},
    patroni::{LeaseWatch, Scope},
};

/// Keeps a PostgreSQL application recoverable: in the next minute, and in the next cluster.
///
/// Each command is one step of a Job, a CronJob or an init container. It exits 0 only after it has checked its own result.
#[derive(Debug, Parser)]
#[command(name = "lifeboat", version, arg_required_else_help = true, args_override_self = true, max_term_width = 120, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    #[command(flatten)]
    global: Global,
}

const EXIT_CODES: &str = "\
Exit codes:
  0  done, nothing to do, or waiting as it should
  1  failed, a retry may help
  2  usage or configuration
  3  refused: a guard said that it is unsafe
  4  done but not verified, or data found wrong
  5  another run holds the lock

Each flag has an environment variable. `lifeboat NAME ...` and, through a symbolic link, `NAME ...` are the same;
`lifeboat --list` prints the names. Standard output carries one JSON document (a table on a terminal), logs go to
standard error.";

/// Commands that run until they are stopped.
const SERVERS: [&str; 3] = ["monitor", "witness", "tls-reload"];

/// Time for a look at the site's record before an alert is sent.
const RECORD_TIMEOUT: Duration = Duration::from_secs(3);

/// Every step. One file below `src/commands` each.
#[derive(Debug, Subcommand)]
enum Command {
    PortDiscover(commands::port_discover::PortDiscover),
    PgProbe(commands::pg_probe::PgProbe),
    Promote(Box<commands::promote::Promote>),
    Status(commands::status::Status),
    Hold(commands::operator::Hold),
    Release(commands::operator::Release),
    Approve(commands::operator::Approve),
    Follow(commands::follow::Follow),
    Monitor(commands::monitor::Monitor),
    Witness(commands::witness::Witness),
    PostBootstrap(commands::post_bootstrap::PostBootstrap),
    TlsReload(commands::tls_reload::TlsReload),
    Dump(Box<commands::dump::Dump>),
    Backups(commands::backups::Backups),
    Restore(Box<commands::restore::Restore>),
}

/// Flags of every command.
#[derive(Debug, clap::Args)]
struct Global {
    #[command(flatten)]
    cluster: ClusterOptions,

    #[command(flatten)]
    alerts: AlertOptions,

    /// Form of the log on standard error
    #[arg(long, env = "LIFEBOAT_LOG_FORMAT", value_enum, default_value = "text", global = true)]
    log_format: LogFormat,

    /// Least level that is logged
    #[arg(long, env = "LIFEBOAT_LOG_LEVEL", default_value = "info", value_parser = ["error", "warn", "info", "debug", "trace"], global = true)]
    log_level: String,

    /// Observe and decide, print the plan, change nothing
    #[arg(long, env = "LIFEBOAT_DRY_RUN", global = true)]
    dry_run: bool,

    /// File that Kubernetes reads the container's last words from; written only if it exists
    #[arg(
        long,
        env = "LIFEBOAT_TERMINATION_LOG",
        default_value = "/dev/termination-log",
        value_name = "FILE",
        global = true
    )]
    termination_log: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum LogFormat {
    Text,
    Json,
}

/// What a command may use of the frame.
#[derive(Debug)]
pub struct Session {
    /// `--dry-run`: change nothing.
    pub dry_run: bool,
    options: ClusterOptions,
    cluster: OnceCell<Cluster>,
    alerter: Alerter,
    lease: Mutex<LeaseWatch>,
}

impl Session {
    fn new(dry_run: bool, options: ClusterOptions, alerter: Alerter) -> Self {
        Self { dry_run, options, cluster: OnceCell::new(), alerter, lease: Mutex::default() }
    }

    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        let none = AlertOptions {
            webhook_url_file: None,
            webhook_format: crate::alerts::WebhookFormat::Json,
            ping_url_file: None,
        };
        Self::new(false, ClusterOptions::default(), Alerter::new(&none).unwrap())
    }

    /// The cluster that the flags name, connected at the first call.
    pub async fn cluster(&self) -> anyhow::Result<&Cluster> {
        self.cluster.get_or_try_init(|| Cluster::connect(&self.options)).await
    }

    /// The context that the flags name.
    #[must_use]
    pub fn context(&self) -> Option<&str> {
        self.options.context.as_deref()
    }

    /// The same, but changing nothing.
    #[must_use]
    pub fn dry(&self) -> Self {
        Self { cluster: self.cluster.clone(), ..Self::new(true, self.options.clone(), self.alerter.clone()) }
    }

    /// What was seen of the local leader's lease by all steps of this process.
    pub fn lease(&self) -> MutexGuard<'_, LeaseWatch> {
        self.lease.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the dead-man switch how a round ended.
    pub async fn ping(&self, command: &str, report: &mut Report) {
        if !self.dry_run {
            self.alerter.ping(command, report).await;
        }
    }

    /// Sends the report's alerts now; false where nobody heard of one.
    pub async fn send(&self, command: &str, report: &mut Report) -> bool {
        let mut heard = true;
        for alert in std::mem::take(&mut report.alerts).into_iter().filter(|_| !self.dry_run) {
            heard &= self.alerter.send_one(command, &alert, report, self.cluster.get()).await.somewhere;
        }
        heard
    }

    /// Sends the report's alerts now, each at most once in `repeat` as the record of the site of `scope` has it. One that was not
    /// delivered is not marked as sent, so the next run sends it; what the site has no record for is sent each time.
    pub async fn tell(&self, command: &str, report: &mut Report, scope: &Scope, repeat: Duration) {
        if self.dry_run {
            return;
        }
        for alert in std::mem::take(&mut report.alerts) {
            let cluster = self.cluster.get();
            let found = match cluster {
                // An API server that does not answer may be what the alert is about.
                Some(cluster) => {
                    let asked = tokio::time::timeout(RECORD_TIMEOUT, cluster.find_site_record(scope)).await;
                    asked.ok().and_then(Result::ok).flatten()
                }
                None => None,
            };
            if found.as_ref().is_some_and(|(record, _)| record.knows_alert(&alert.kind, Timestamp::now(), repeat)) {
                continue;
            }
            let alert = match (&alert.target, &found) {
                (None, Some((_, map))) => alert.about(Some(map.event_target())),
                _ => alert,
            };
            let sent = self.alerter.send_one(command, &alert, report, cluster).await;
            if let Some(cluster) = cluster.filter(|_| sent.everywhere && found.is_some()) {
                remember_alert(cluster, scope, &alert.kind).await;
            }
        }
    }
}

/// Parses, runs, reports. The only place where an error becomes an exit code.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments = multi_call(arguments.collect());
    if arguments.len() == 2 && arguments[1] == "--list" {
        return list();
    }
    let cli = match parse(&arguments) {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    start_log(&cli.global);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!("start the runtime: {error}");
            return ExitCode::from(Conclusion::Failed.exit_code());
        }
    };
    let code = runtime.block_on(run(cli));
    // A blocking call may still hang on a dead server; nobody waits for it any more.
    runtime.shutdown_background();
    code
}

async fn run(cli: Cli) -> ExitCode {
    let Cli { command, global: Global { cluster, alerts, dry_run, termination_log, .. } } = cli;
    let name = command.name();
    let (started, clock) = (Timestamp::now(), Instant::now());
    let prepared = Alerter::new(&alerts).and_then(|alerter| Ok((alerter, Stop::listen()?)));
    let mut report = match prepared {
        Err(error) => Report::from(error),
        Ok((alerter, mut stop)) => {
            let session = Session::new(dry_run, cluster, alerter);
            let mut stopped = false;
            let result = tokio::select! {
                result = command.run(&session) => result,
                error = stop.asked() => {
                    stopped = SERVERS.contains(&name);
                    Err(error)
                }
            };
            let mut report = match result {
                // Whoever serves until it is stopped ends as it should: a rollout is no alert.
                Err(error) if stopped => Report::from(error),
                result => result.unwrap_or_else(|error| failure(name, error)),
            };
            if !dry_run && !stopped {
                let told = tokio::select! {
                    () = session.alerter.send(name, &mut report, session.cluster.get()) => true,
                    _ = stop.asked() => false,
                };
                if !told {
                    report.details.insert("alerts".to_owned(), "stopped before all were sent".into());
                }
            }
            report
        }
    };
    if dry_run {
        report.details.insert("dry_run".to_owned(), true.into());
    }
    let outcome = Outcome::new(name, started, clock.elapsed(), &report);
    outcome.print();
    outcome.write_termination_log(&termination_log);
    outcome.exit_code()
}

/// What can't be remembered is only told again.
async fn remember_alert(cluster: &Cluster, scope: &Scope, kind: &str) {
    for _ in 0..3 {
        let Ok(Some((mut record, map))) = cluster.find_site_record(scope).await else { return };
        record.remember_alert(kind, Timestamp::now());
        match cluster.write_site_record(scope, &record, Some(&map), &[]).await {
            Err(error) if error.downcast_ref::<Conflict>().is_some() => {}
            Err(error) => return tracing::warn!("alert {kind} may be sent again: {error:#}"),
            Ok(_) => return,
        }
    }
}

/// A command that failed tells a person, on its own pod where it runs in one.
pub(crate) fn failure(name: &str, error: anyhow::Error) -> Report {
    let mut report = Report::from(error);
    tracing::error!("{}", report.reason);
    let kind = format!("{}Failed", camel(name));
    report.alerts.push(Alert::warning(&kind, report.reason.clone()).about(EventTarget::own_pod()));
    report
}

/// The signals that ask the process to stop, heard from the start on: as a container's first process it has no other handler.
struct Stop {
    terminate: Signal,
    interrupt: Signal,
}

impl Stop {
    fn listen() -> anyhow::Result<Self> {
        let listen = |kind| signal(kind).context("listen for signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Ends with an error when the process is asked to stop. Dropping the command there is safe: whatever it does in several
    /// steps is recorded before the first, so that the next run finishes it, as after a kill.
    async fn asked(&mut self) -> anyhow::Error {
        let name = tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        };
        anyhow!("stopped by {name} before the end; run it again")
    }
}

/// One step of a chain that runs in this process: the command line that its container would have.
#[derive(Debug)]
pub struct Step {
    /// The command.
    pub name: &'static str,
    words: Vec<OsString>,
    /// Where the step names a cluster of its own.
    session: Option<Session>,
}

impl Step {
    /// Steps of a monitor; others would end the process, run for ever, or are no steps.
    const NAMES: [&str; 4] = ["port-discover", "pg-probe", "promote", "follow"];

    /// What is said once for all steps: in one alone it would have no effect.
    const OF_THE_MONITOR: [&str; 7] = [
        "--dry-run",
        "--log-format",
        "--log-level",
        "--ping-url-file",
        "--termination-log",
        "--webhook-format",
        "--webhook-url-file",
    ];

    /// Reads a command line without the program's name. An error says what is wrong with it, as on the command line.
    /// What a step does not name of context and namespace is the monitor's.
    pub fn parse(words: &[OsString], monitor: &Session) -> anyhow::Result<Self> {
        let words: Vec<OsString> = std::iter::once("lifeboat".into()).chain(words.iter().cloned()).collect();
        let matches = Cli::command().try_get_matches_from(&words).map_err(|error| anyhow!("{error}"))?;
        let Cli { command, global } = Cli::from_arg_matches(&matches).map_err(|error| anyhow!("{error}"))?;
        let flags = words.iter().filter_map(|word| word.to_str()?.split('=').next());
        if let Some(flag) = flags.into_iter().find(|flag| Self::OF_THE_MONITOR.contains(flag)) {
            return Err(anyhow!("{flag} belongs to the monitor itself: give it before the steps"));
        }
        let name = command.name();
        if !Self::NAMES.contains(&name) {
            return Err(anyhow!("{name} is no step of a monitor: these are {}", Self::NAMES.join(", ")));
        }
        let options = monitor.options.with(&global.cluster, |flag| given(&matches, flag));
        let session =
            (options != monitor.options).then(|| Session::new(monitor.dry_run, options, monitor.alerter.clone()));
        Ok(Self { name, words, session })
    }

    /// Runs the step; an error becomes its report, as in a container of its own.
    pub async fn run(&self, monitor: &Session) -> Report {
        let session = self.session.as_ref().unwrap_or(monitor);
        match parse(&self.words) {
            // Boxed, as a step may be any command but never, by the names above, a monitor again.
            Ok(cli) => Box::pin(cli.command.run(session)).await.unwrap_or_else(|error| failure(self.name, error)),
            Err(error) => Report::new(Conclusion::Misconfigured, error.to_string()),
        }
    }
}

impl Command {
    fn name(&self) -> &'static str {
        match self {
            Self::PortDiscover(_) => "port-discover",
            Self::PgProbe(_) => "pg-probe",
            Self::Promote(_) => "promote",
            Self::Status(_) => "status",
            Self::Hold(_) => "hold",
            Self::Release(_) => "release",
            Self::Approve(_) => "approve",
            Self::Follow(_) => "follow",
            Self::Monitor(_) => "monitor",
            Self::Witness(_) => "witness",
            Self::PostBootstrap(_) => "post-bootstrap",
            Self::TlsReload(_) => "tls-reload",
            Self::Dump(_) => "dump",
            Self::Backups(_) => "backups",
            Self::Restore(_) => "restore",
        }
    }

    async fn run(self, session: &Session) -> anyhow::Result<Report> {
        match self {
            Self::PortDiscover(command) => command.run(session).await,
            Self::PgProbe(command) => command.run(session).await,
            Self::Promote(command) => Box::pin(command.run(session)).await,
            Self::Status(command) => command.run(session).await,
            Self::Hold(command) => command.run(session).await,
            Self::Release(command) => command.run(session).await,
            Self::Approve(command) => command.run(session).await,
            Self::Follow(command) => command.run(session).await,
            Self::Monitor(command) => command.run(session).await,
            Self::Witness(command) => command.run(session).await,
            Self::PostBootstrap(command) => command.run(session).await,
            Self::TlsReload(command) => command.run(session).await,
            Self::Dump(command) => Box::pin(command.run(session)).await,
            Self::Backups(command) => command.run(session),
            Self::Restore(command) => Box::pin(command.run(session)).await,
        }
    }
}

fn parse(arguments: &[OsString]) -> Result<Cli, clap::Error> {
    let matches = Cli::command().try_get_matches_from(arguments)?;
    Cli::from_arg_matches(&matches)
}

/// Whether the command line itself has this flag; its environment variable may belong to another program.
fn given(matches: &ArgMatches, flag: &str) -> bool {
    let of_command = matches.subcommand().map(|(_, matches)| matches);
    let on_line = |matches: &ArgMatches| matches.value_source(flag) == Some(ValueSource::CommandLine);
    on_line(matches) || of_command.is_some_and(on_line)
}

/// `pg-probe --host …` through a symbolic link becomes `lifeboat pg-probe --host …`.
fn multi_call(mut arguments: Vec<OsString>) -> Vec<OsString> {
    let called = arguments.first().map(PathBuf::from).and_then(|path| path.file_name().map(ToOwned::to_owned));
    // Under its own name there is nothing to look up, and building all commands for that would cost a tenth of a short step.
    if let Some(name) = called.filter(|name| name != "lifeboat")
        && Cli::command().get_subcommands().any(|command| *name == *command.get_name())
    {
        arguments.insert(1, name);
    }
    if let Some(program) = arguments.first_mut() {
        *program = "lifeboat".into();
    }
    arguments
}

fn list() -> ExitCode {
    let mut out = std::io::stdout().lock();
    for command in Cli::command().get_subcommands() {
        if writeln!(out, "{}", command.get_name()).is_err() {
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Help and version are what was asked for; all else is a usage error.
fn usage(error: &clap::Error) -> ExitCode {
    let printed = error.print();
    if error.use_stderr() || printed.is_err() {
        ExitCode::from(Conclusion::Misconfigured.exit_code())
    } else {
        ExitCode::SUCCESS
    }
}

fn start_log(global: &Global) {
    let level = global.log_level.parse().unwrap_or(tracing::Level::INFO);
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_target(false)
        // Else a log that can't be written is a panic, and ends a promotion half-way.
        .log_internal_errors(false);
    match global.log_format {
        LogFormat::Json => subscriber.json().init(),
        LogFormat::Text => subscriber.with_ansi(std::io::stderr().is_terminal()).init(),
    }
}

/// `port-discover` → `PortDiscover`, as reasons of Events are written.
fn camel(name: &str) -> String {
    name.split('-').map(|word| word[..1].to_uppercase() + &word[1..]).collect()
}

/// Context for errors that only the caller's flags can mend.
pub(crate) fn misconfigured<T>(result: anyhow::Result<T>) -> anyhow::Result<T> {
    result.context(crate::outcome::Misconfigured)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn link_named_as_a_command_runs_it() {
        let called = |words: &[&str]| multi_call(words.iter().map(OsString::from).collect());
        assert_eq!(called(&["/bin/pg-probe", "--host", "h"]), ["lifeboat", "pg-probe", "--host", "h"]);
        assert_eq!(called(&["./lifeboat-dev", "promote"]), ["lifeboat", "promote"]);
    }

    #[test]
    fn step_works_where_the_monitor_does_unless_it_names_a_place() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        let mut monitor = Session::for_tests();
        let place = |context: Option<&str>, namespace: Option<&str>| ClusterOptions {
            context: context.map(ToOwned::to_owned),
            namespace: namespace.map(ToOwned::to_owned),
        };
        monitor.options = place(Some("golddr"), Some("app"));
        let own = |text| Step::parse(&words(text), &monitor).unwrap().session.map(|session| session.options);
        assert_eq!(own("promote --scope=pg"), None);
        assert_eq!(own("promote --scope=pg --context golddr"), None);
        assert_eq!(own("pg-probe --scope=pg --context=gold"), Some(place(Some("gold"), Some("app"))));
        assert_eq!(own("--namespace other pg-probe --scope=pg"), Some(place(Some("golddr"), Some("other"))));
    }

    #[test]
    fn every_flag_has_an_environment_variable() {
        for command in Cli::command().get_subcommands() {
            for argument in command.get_arguments().filter(|argument| argument.get_long().is_some()) {
                let name = argument.get_id().as_str();
                assert!(
                    ["help", "version"].contains(&name) || argument.get_env().is_some(),
                    "{} --{name}",
                    command.get_name()
                );
            }
        }
    }

    #[test]
    fn event_reason_is_written_in_camel_case() {
        assert_eq!(camel("port-discover"), "PortDiscover");
    }
}
