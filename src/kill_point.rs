//! Places where the fault tests kill the process. Compiled to nothing without the feature `kill-points`.

/// A pause is made once.
#[cfg(feature = "kill-points")]
static PAUSED: std::sync::Once = std::sync::Once::new();

/// Ends the process by SIGKILL when `LIFEBOAT_KILL_AT` names this place: no destructor, no handler, as an evicted pod ends. Where
/// `LIFEBOAT_PAUSE_AT` names it, writes the file `LIFEBOAT_PAUSE_FILE`, once, and waits until somebody removes it.
#[cfg(feature = "kill-points")]
pub fn kill_point(name: &str) {
    if named("LIFEBOAT_KILL_AT", name) {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
    if let Some(file) = std::env::var_os("LIFEBOAT_PAUSE_FILE").filter(|_| named("LIFEBOAT_PAUSE_AT", name)) {
        PAUSED.call_once(|| {
            let _ = std::fs::write(&file, name);
            while std::path::Path::new(&file).exists() {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
        });
    }
}

#[cfg(feature = "kill-points")]
fn named(variable: &str, name: &str) -> bool {
    std::env::var_os(variable).is_some_and(|wanted| wanted == name)
}

/// Does nothing: the feature `kill-points` is off.
#[cfg(not(feature = "kill-points"))]
pub fn kill_point(_name: &str) {}
