//! Value types of flags: durations (`30s`), sizes (`16MiB`).

use std::{fmt, str::FromStr, time::Duration};

use serde::{Serialize, Serializer};

/// Reads a duration with its unit: `30s`, `5m`, `1h30m`. A bare number is refused: nobody can tell its unit.
pub fn duration(text: &str) -> Result<Duration, String> {
    let hint = || format!("{text:?} is not a duration: write a number with its unit, such as 30s, 5m or 1h");
    let signed: jiff::SignedDuration = text.parse().map_err(|_| hint())?;
    Duration::try_from(signed).map_err(|_| hint())
}

/// Like [`duration`], but zero is refused.
pub fn positive_duration(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Err("it must be longer than nothing".to_owned()),
        longer => Ok(longer),
    }
}

/// A size in bytes, written with a binary or decimal unit (`16MiB`, `1GB`) or as plain bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let hint =
            || format!("{text:?} is not a size: write bytes, or a number with a unit, such as 512KiB, 16MiB or 1GB");
        let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let number: u64 = text[..split].parse().map_err(|_| hint())?;
        let factor: u64 = match text[split..].trim() {
            "" | "B" => 1,
            "kB" | "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "KiB" | "Ki" => 1 << 10,
            "MiB" | "Mi" => 1 << 20,
            "GiB" | "Gi" => 1 << 30,
            "TiB" | "Ti" => 1 << 40,
            _ => return Err(hint()),
        };
        number.checked_mul(factor).map(Size).ok_or_else(hint)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 >= 1 << shift && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

/// A duration for people: whole seconds from ten on, tenths below.
#[must_use]
pub fn human(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    if seconds >= 120.0 {
        format!("{} min {} s", duration.as_secs() / 60, duration.as_secs() % 60)
    } else if seconds >= 10.0 || duration.subsec_millis() == 0 {
        format!("{seconds:.0} s")
    } else {
        format!("{seconds:.1} s")
    }
}

/// Bytes for people, in decimal units as disks are sold, with one digit after the point.
#[must_use]
pub fn human_bytes(bytes: u64) -> String {
    for (unit, name) in [(1_000_000_000_000, "TB"), (1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")] {
        if bytes >= unit {
            return format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit);
        }
    }
    format!("{bytes} bytes")
}

/// Reads `HOST:PORT`; an IPv6 address stands in brackets.
pub fn host_and_port(text: &str) -> Result<(String, u16), String> {
    let hint = || format!("{text:?} must be HOST:PORT");
    let (host, port) = text.rsplit_once(':').ok_or_else(hint)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let port: u16 = port.parse().map_err(|_| hint())?;
    if host.is_empty() || port == 0 { Err(hint()) } else { Ok((host.to_owned(), port)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn duration_with_unit_is_read() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("1h30m"), Ok(Duration::from_mins(90)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
    }

    #[test]
    fn duration_without_unit_or_negative_is_refused() {
        for bad in ["30", "", "-5s", "soon", "5 apples"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert!(positive_duration("0s").is_err());
    }

    #[test]
    fn size_with_and_without_unit_is_read_and_shown() {
        assert_eq!("16MiB".parse::<Size>().unwrap(), Size(16 << 20));
        assert_eq!("42".parse::<Size>().unwrap(), Size(42));
        assert_eq!(Size(16 << 20).to_string(), "16MiB");
        assert_eq!(Size(1500).to_string(), "1500B");
        for bad in ["", "MiB", "-1", "1XB", "99999999999TiB"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_are_shown_with_one_digit_after_the_point() {
        let shown = [999, 1_000, 1_299_999, 20_000_000_000, u64::MAX].map(human_bytes);
        assert_eq!(shown, ["999 bytes", "1.0 kB", "1.2 MB", "20.0 GB", "18446744.0 TB"]);
    }

    #[test]
    fn host_and_port_are_read() {
        assert_eq!(host_and_port("gold:5432").unwrap(), ("gold".into(), 5432));
        assert_eq!(host_and_port("[fd00::1]:5432").unwrap(), ("fd00::1".into(), 5432));
        for bad in ["gold", "gold:", ":5432", "gold:0", "gold:x"] {
            assert!(host_and_port(bad).is_err(), "{bad}");
        }
    }
}
