//! What a checker says: a verdict, and what it rests on.

use std::fmt;

use serde_json::json;

/// Unknown is not a pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Valid {
    True,
    False,
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// What was asked of the history: `linearizable`, `strict-serializable`.
    pub property: &'static str,
    pub valid: Valid,
    /// Operations that succeeded.
    pub succeeded: usize,
    pub anomalies: Vec<Anomaly>,
    /// Why parts of the history could not be judged.
    pub unknown: Vec<String>,
    /// What is worth knowing, and weighs nothing: what was seen and is allowed, what was excused.
    pub notes: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anomaly {
    /// As the literature calls it.
    pub name: &'static str,
    pub what: String,
    /// The evidence, line by line.
    pub details: Vec<String>,
}

impl Report {
    pub(crate) fn new(property: &'static str, succeeded: usize) -> Report {
        let (anomalies, unknown, notes) = (Vec::new(), Vec::new(), Vec::new());
        Report { property, valid: Valid::Unknown, succeeded, anomalies, unknown, notes }
    }

    /// Derives the verdict. One anomaly is enough for false; a history in which nothing succeeded shows nothing.
    pub(crate) fn settle(&mut self) {
        if self.succeeded == 0 {
            self.unknown.push("no operation succeeded".to_owned());
        }
        self.valid = match (self.anomalies.is_empty(), self.unknown.is_empty()) {
            (false, _) => Valid::False,
            (true, false) => Valid::Unknown,
            (true, true) => Valid::True,
        };
    }

    /// The names of what was found, each once, in the order of their finding.
    pub fn names(&self) -> Vec<&'static str> {
        let mut names = Vec::new();
        for anomaly in &self.anomalies {
            if !names.contains(&anomaly.name) {
                names.push(anomaly.name);
            }
        }
        names
    }
}

impl Report {
    pub fn to_json(&self) -> serde_json::Value {
        let anomalies = self.anomalies.iter().take(SHOWN).map(
            |anomaly| json!({ "name": anomaly.name, "what": anomaly.what, "details": anomaly.details }),
        );
        json!({
            "property": self.property,
            "valid": self.valid.to_json(),
            "succeeded": self.succeeded,
            "found": self.anomalies.len(),
            "anomalies": anomalies.collect::<Vec<_>>(),
            "unknown": self.unknown,
            "notes": self.notes,
        })
    }
}

impl Valid {
    pub fn to_json(self) -> serde_json::Value {
        match self {
            Valid::True => json!(true),
            Valid::False => json!(false),
            Valid::Unknown => json!("unknown"),
        }
    }
}

impl fmt::Display for Valid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Valid::True => "true",
            Valid::False => "false",
            Valid::Unknown => "unknown",
        })
    }
}

/// Anomalies of one report that are printed: one defect may show in every read after it.
pub const SHOWN: usize = 20;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} ({} operations succeeded)", self.property, self.valid, self.succeeded)?;
        for reason in &self.unknown {
            writeln!(f, "unknown: {reason}")?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "note: {note}"))?;
        for anomaly in self.anomalies.iter().take(SHOWN) {
            writeln!(f, "{}: {}", anomaly.name, anomaly.what)?;
            anomaly.details.iter().try_for_each(|detail| writeln!(f, "  {detail}"))?;
        }
        match self.anomalies.len().saturating_sub(SHOWN) {
            0 => Ok(()),
            more => writeln!(f, "({more} more anomalies: {})", self.names().join(", ")),
        }
    }
}
