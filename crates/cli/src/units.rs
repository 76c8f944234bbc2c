//! Sizes, durations, cores and pairs as people write them.

use std::time::Duration;

/// `K=V`.
pub(crate) type Pair = (String, String);

/// Bytes: a number with `K`, `M`, `G` or `T` (powers of 1024), with or without `iB` or `B` behind.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = split(text);
    let shift = match unit.to_ascii_uppercase().trim_end_matches("IB").trim_end_matches('B') {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        _ => return Err(format!("`{text}` is not a size: write e.g. 512M or 2G")),
    };
    let value = scaled(number, f64::from(1u32 << (shift % 32)) * if shift >= 32 { 4_294_967_296.0 } else { 1.0 });
    value.ok_or_else(|| format!("`{text}` is not a size: write e.g. 512M or 2G"))
}

/// Thousandths of a core.
pub(crate) fn cpu_millis(text: &str) -> Result<u32, String> {
    let millis = match text.strip_suffix('m') {
        Some(millis) => scaled(millis, 1.0),
        None => scaled(text, 1000.0),
    };
    millis
        .and_then(|value| u32::try_from(value).ok())
        .ok_or_else(|| format!("`{text}` is not a number of cores: write e.g. 0.5 or 2"))
}

/// A time: a number with `ms`, `s`, `m`, `h` or `d`; seconds without.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is not a time: write e.g. 30s, 5m or 2h");
    let (number, unit) = split(text);
    let millis = match unit {
        "ms" => 1.0,
        "" | "s" => 1000.0,
        "m" => 60_000.0,
        "h" => 3_600_000.0,
        "d" => 86_400_000.0,
        _ => return Err(wrong()),
    };
    scaled(number, millis).filter(|millis| *millis > 0).map(Duration::from_millis).ok_or_else(wrong)
}

/// One thing that a runner has so much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Capacity {
    CpuMillis(u32),
    MemoryBytes(u64),
    DiskBytes(u64),
    Sandboxes(u32),
}

/// `cpu=N`, `memory=SIZE`, `disk=SIZE` or `sandboxes=N`.
pub(crate) fn capacity(text: &str) -> Result<Capacity, String> {
    let wrong = || format!("`{text}` is no capacity: write e.g. cpu=64, memory=256G, disk=1T or sandboxes=100");
    let (what, value) = text.split_once('=').ok_or_else(wrong)?;
    match what {
        "cpu" => cpu_millis(value).map(Capacity::CpuMillis),
        "memory" => bytes(value).map(Capacity::MemoryBytes),
        "disk" => bytes(value).map(Capacity::DiskBytes),
        "sandboxes" => value.parse().map(Capacity::Sandboxes).map_err(|_| wrong()),
        _ => Err(wrong()),
    }
}

/// A port of this machine and one of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Forward {
    pub(crate) here: u16,
    pub(crate) there: u16,
}

/// `LOCAL:REMOTE`, or one number for both.
pub(crate) fn forward(text: &str) -> Result<Forward, String> {
    let (here, there) = text.split_once(':').unwrap_or((text, text));
    match (here.parse(), there.parse()) {
        (Ok(here), Ok(there)) if there > 0 => Ok(Forward { here, there }),
        _ => Err(format!("`{text}` is not LOCAL:REMOTE: write e.g. 8000:3000")),
    }
}

/// `K=V`, or `K` with the value of this process's environment.
pub(crate) fn variable(text: &str) -> Result<Pair, String> {
    match text.split_once('=') {
        Some(("", _)) => Err(format!("`{text}` has no name before the `=`")),
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => match std::env::var(text) {
            Ok(value) => Ok((text.to_owned(), value)),
            Err(_) => Err(format!("`{text}` is not set here: write {text}=VALUE")),
        },
    }
}

/// `K=V`.
pub(crate) fn label(text: &str) -> Result<Pair, String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not a label: write K=V")),
    }
}

/// `NAME=PATH`.
pub(crate) fn template(text: &str) -> Result<Pair, String> {
    match text.split_once('=') {
        Some((name, path)) if !name.is_empty() && !path.is_empty() => Ok((name.to_owned(), path.to_owned())),
        _ => Err(format!("`{text}` is not a template: write NAME=PATH")),
    }
}

/// The variables of an env file: `K=V` a line, `#` begins a comment line, nothing is quoted.
pub(crate) fn env_file(text: &str) -> Result<Vec<Pair>, String> {
    let mut pairs = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_end_matches('\r');
        if line.trim().is_empty() || line.trim_start().starts_with('#') {
            continue;
        }
        pairs.push(variable(line.trim_start()).map_err(|why| format!("line {}: {why}", index + 1))?);
    }
    Ok(pairs)
}

/// Bytes for people.
pub(crate) fn show_bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut value = bytes as f64;
    while value >= 1024.0 && unit < UNITS.len() - 1 {
        value /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && value.fract() > 0.05 && value < 100.0);
    format!("{value:.digits$} {}", UNITS[unit])
}

fn split(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    text.split_at(end)
}

fn scaled(number: &str, factor: f64) -> Option<u64> {
    let plain = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let value: f64 = if plain { number.parse().ok()? } else { return None };
    let scaled = (value * factor).round();
    // Past 2^53 a float cannot tell neighbours apart, and no machine has that much.
    (scaled <= 9_007_199_254_740_992.0).then_some(scaled as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        let cases: [(&str, u64); 7] = [
            ("0", 0),
            ("17", 17),
            ("1K", 1024),
            ("512M", 512 << 20),
            ("1.5G", 3 << 29),
            ("2GiB", 2 << 30),
            ("10tb", 10 << 40),
        ];
        for (text, value) in cases {
            assert_eq!(bytes(text), Ok(value), "{text}");
        }
        for wrong in ["", "M", "-1", "1X", "1 G", "1e3", "99999999T", "..", "1.2.3"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_have_units_and_are_never_zero() {
        assert_eq!(duration("1500ms"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("90"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("1.5h"), Ok(Duration::from_secs(5400)));
        for wrong in ["", "0", "0s", "s", "-1s", "5y"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn cores_may_be_fractions_or_thousandths() {
        assert_eq!((cpu_millis("0.5"), cpu_millis("2"), cpu_millis("250m")), (Ok(500), Ok(2000), Ok(250)));
        assert!(cpu_millis("many").is_err());
    }

    #[test]
    fn an_env_file_keeps_values_as_they_are() {
        let pairs = env_file("# comment\nA=1\n\n  B=two words \nC=a=b\r\n").expect("valid");
        let expected = [("A", "1"), ("B", "two words "), ("C", "a=b")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        assert_eq!(pairs, expected);
        assert!(env_file("A=1\n=2\n").expect_err("no name").contains("line 2"));
    }
}
