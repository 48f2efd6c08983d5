//! The cluster's counters as series of Prometheus, in its text format, behind the node's own figures.
//! Every node shows all of them: whoever scrapes more than one node takes the greatest, not the sum.

use std::fmt::Write as _;
use std::sync::Arc;

use crate::limits::{METRIC_SERIES, NAMESPACE_LABEL};
use crate::node::Node;
use crate::state::{Counter, CounterKind, Pairs};

/// Appends them, at most [`METRIC_SERIES`], and says how many were left out.
pub fn render(node: &Node, out: &mut String) {
    let (mut shown, left_out) = node.read(|state| {
        let mut all = state.all_counters();
        let shown: Vec<Arc<Counter>> = all.by_ref().take(METRIC_SERIES).cloned().collect();
        let left_out = state.counts().counters - shown.len() as u64;
        (shown, left_out)
    });
    // The series of one name stand together, whatever namespaces they are of.
    shown.sort_by(|a, b| a.name.cmp(&b.name));
    for family in shown.chunk_by(|a, b| a.name == b.name) {
        let kind = match family.iter().all(|counter| counter.kind == family[0].kind) {
            true if family[0].kind == CounterKind::Counter => "counter",
            true => "gauge",
            // One name may be of another kind in another namespace, or with other labels.
            false => "untyped",
        };
        // Nothing fails that writes to a string.
        let _ = writeln!(out, "# TYPE {} {kind}", family[0].name);
        for counter in family {
            let _ = writeln!(out, "{}{} {}", counter.name, labels(counter), counter.value);
        }
    }
    let figures = [
        ("quorate_counter_series", "Counters shown as series.", shown.len() as u64),
        ("quorate_counter_series_left_out", "Counters not shown: they are too many.", left_out),
    ];
    for (name, help, value) in figures {
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}\n");
    }
}

fn labels(counter: &Counter) -> String {
    let namespace: Pairs = [(NAMESPACE_LABEL, &*counter.namespace)].into_iter().collect();
    let mut text = String::from("{");
    for (i, (key, value)) in namespace.iter().chain(counter.labels.iter()).enumerate() {
        if i > 0 {
            text.push(',');
        }
        text.push_str(key);
        text.push_str("=\"");
        for c in value.chars() {
            match c {
                '\\' => text.push_str("\\\\"),
                '"' => text.push_str("\\\""),
                '\n' => text.push_str("\\n"),
                c => text.push(c),
            }
        }
        text.push('"');
    }
    text.push('}');
    text
}
