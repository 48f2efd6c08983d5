//! The words of stories about alarms. Bounds and what is measured are in thousandths.

use super::*;

pub(super) fn parse(verb: &str, words: &mut Words) -> Option<Op> {
    Some(match verb {
        "put-alarm" => Op::PutAlarm { name: alarm_name(words), rule: Box::new(rule(words)) },
        "delete-alarm" => Op::DeleteAlarm { name: alarm_name(words) },
        "judge-alarm" => Op::JudgeAlarm { name: alarm_name(words) },
        "note-post" => Op::NotePost {
            name: alarm_name(words),
            transition: words.next().parse().unwrap(),
            error: words.text("error"),
        },
        _ => return None,
    })
}

fn alarm_name(words: &mut Words) -> AlarmName {
    let (namespace, name) = words.pair();
    AlarmName { namespace, name }
}

/// `counter=NAME`, labels, `rate=SLOTS` or the value, `above=BOUND` or `below=BOUND`.
fn rule(words: &mut Words) -> AlarmRule {
    let mut bound =
        |name| words.take(name).map(|bound| bound.parse().unwrap_or_else(|_| panic!("{bound}")));
    let (side, bound_milli) = match (bound("above"), bound("below")) {
        (Some(bound), None) => (AlarmSide::Above, bound),
        (None, Some(bound)) => (AlarmSide::Below, bound),
        both => panic!("{both:?} is no side"),
    };
    AlarmRule {
        counter: words.text("counter"),
        labels: words.pairs("label").unwrap_or_default(),
        measure: match words.number("rate") {
            Some(slots) => AlarmMeasure::Rate { slots },
            None => AlarmMeasure::Value,
        },
        side,
        bound_milli,
        for_ms: words.number("for").unwrap_or(0),
        webhook: words.text("webhook"),
        description: words.text("description"),
    }
}

impl Teller {
    /// True when it was one of these.
    pub(super) fn look_at_alarms(&self, verb: &str, words: &mut Words, out: &mut String) -> bool {
        let alarms = match verb {
            "due-alarms" => due_alarms(&self.state, self.at_ms).collect(),
            "untold" => self.state.untold_alarms(),
            "alarms" => {
                let namespace = words.next();
                let [prefix, after] = ["prefix", "after"].map(|name| words.text(name));
                let limit = words.number("limit").unwrap_or(100) as usize;
                let (page, more) = self.state.alarms(&namespace, &prefix, &after, limit);
                writeln!(out, "more: {more}").unwrap();
                page
            }
            _ => return false,
        };
        for alarm in alarms {
            let name = show_key(&alarm.key());
            writeln!(out, "{name}: {:?}, {} of {}", alarm.status, alarm.posted, alarm.transitions)
                .unwrap();
        }
        writeln!(out, "end").unwrap();
        true
    }
}

pub(super) fn show(alarm: &Alarm, part: &mut dyn FnMut(&str, String)) {
    let Alarm { rule, status, since_ms, measured_milli, transitions, posted, .. } = alarm;
    let AlarmRule { counter, labels, measure, side, bound_milli, for_ms, .. } = rule;
    part("", format!("{counter}{labels:?} {measure:?} {side:?} {bound_milli} for {for_ms} ms"));
    part("webhook", rule.webhook.clone());
    part("description", rule.description.clone());
    part("", format!("{status:?} since {since_ms}, measured {measured_milli}"));
    part("", format!("told {posted} of {transitions}"));
    part("error", alarm.post_error.clone());
    part("", format!("revisions {}..{}", alarm.create_revision, alarm.mod_revision));
}
