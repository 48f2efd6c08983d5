//! When a call has to be over, as its `grpc-timeout` says.

use http::{HeaderMap, HeaderValue};
use tokio::time::{Duration, Instant, timeout_at};
use tonic::{Code, Status};

pub const HEADER: &str = "grpc-timeout";

/// The deadline of a call, if it has one.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Option<Instant>);

/// What a call fails with when its deadline has passed.
pub fn expired() -> Status {
    Status::deadline_exceeded("the deadline of the call has passed")
}

impl Deadline {
    /// From now on. A header that cannot be read sets none, as in tonic.
    pub fn of(headers: &HeaderMap) -> Deadline {
        let timeout = headers.get(HEADER).and_then(|value| parse(value.to_str().ok()?));
        Deadline(timeout.and_then(|timeout| Instant::now().checked_add(timeout)))
    }

    pub fn get(&self) -> Option<Instant> {
        self.0
    }

    pub fn has_passed(&self) -> bool {
        self.0.is_some_and(|deadline| deadline <= Instant::now())
    }

    /// What waiting in vain ends with.
    pub fn code(&self) -> Code {
        if self.0.is_some() { Code::DeadlineExceeded } else { Code::Unavailable }
    }

    /// None when the deadline passes first.
    pub async fn keep<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        match self.0 {
            Some(deadline) => timeout_at(deadline, work).await.ok(),
            None => Some(work.await),
        }
    }

    /// What is left, for the next instance.
    pub fn header(&self) -> Option<HeaderValue> {
        let left = self.0?.saturating_duration_since(Instant::now());
        HeaderValue::try_from(format(left)).ok()
    }
}

/// 1 to 8 digits and a unit.
fn parse(text: &str) -> Option<Duration> {
    let unit = text.char_indices().next_back()?.0;
    let (digits, unit) = text.split_at(unit);
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(number * 3_600),
        "M" => Duration::from_secs(number * 60),
        "S" => Duration::from_secs(number),
        "m" => Duration::from_millis(number),
        "u" => Duration::from_micros(number),
        "n" => Duration::from_nanos(number),
        _ => return None,
    })
}

/// In the finest unit in which it has 8 digits.
fn format(left: Duration) -> String {
    let (nanos, most) = (left.as_nanos(), 99_999_999);
    for (scale, unit) in [(1, "n"), (1_000, "u"), (1_000_000, "m"), (1_000_000_000, "S")] {
        if nanos / scale <= most {
            return format!("{}{unit}", nanos / scale);
        }
    }
    format!("{}H", (left.as_secs() / 3_600).min(99_999_999))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn timeouts_are_read_and_written() {
        for (text, timeout) in [
            ("1H", Duration::from_secs(3_600)),
            ("2M", Duration::from_secs(120)),
            ("3S", Duration::from_secs(3)),
            ("99999999m", Duration::from_millis(99_999_999)),
            ("5u", Duration::from_micros(5)),
            ("0n", Duration::ZERO),
        ] {
            assert_eq!(parse(text), Some(timeout), "{text}");
            assert_eq!(parse(&format(timeout)), Some(timeout), "{text}");
        }
        for text in ["", "S", "1", "1s", "-1S", "+1S", "123456789n", "1.5S", "1é"] {
            assert_eq!(parse(text), None, "{text}");
        }
        // Rounded down: what is left is never more than it was.
        assert_eq!(format(Duration::from_millis(123_456)), "123456m");
        assert_eq!(format(Duration::from_nanos(100_000_001)), "100000u");
        assert_eq!(format(Duration::MAX), "99999999H");
    }
}
