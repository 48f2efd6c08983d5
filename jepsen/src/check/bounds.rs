//! Sums that are only known within bounds: what a reader may see of additions that are concurrent with it or
//! whose outcome is unknown.

use std::collections::HashMap;

/// One addition, by the places of its events in the history.
#[derive(Debug, Clone, Copy)]
pub struct Addition {
    pub delta: i64,
    /// From here on it may have taken place.
    pub possible: usize,
    /// From here on it certainly has.
    pub certain: Option<usize>,
}

/// One look at a sum.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    pub invoke: usize,
    pub complete: usize,
}

/// The least and the greatest sum that each look may show, in the order of the looks.
///
/// What was certain when the look began counts; what was possible before it ended may count or not.
pub fn bounds(additions: &[Addition], looks: &[Look]) -> Vec<(i64, i64)> {
    #[derive(Clone, Copy)]
    enum Event {
        Possible(usize),
        Certain(usize),
        Begin(usize),
        End(usize),
    }
    let mut events = Vec::new();
    for (number, addition) in additions.iter().enumerate() {
        events.push((addition.possible, Event::Possible(number)));
        events.extend(addition.certain.map(|at| (at, Event::Certain(number))));
    }
    for (number, look) in looks.iter().enumerate() {
        events.push((look.invoke, Event::Begin(number)));
        events.push((look.complete, Event::End(number)));
    }
    events.sort_by_key(|(at, _)| *at);
    // Sums of what is certain, and of all that is positive or negative and was possible at some time.
    let (mut certain, mut certain_parts) = (0, (0, 0));
    let mut possible = (0, 0);
    let mut begun: HashMap<usize, (i64, (i64, i64))> = HashMap::new();
    let mut found = vec![(0, 0); looks.len()];
    let add = |parts: &mut (i64, i64), delta: i64| {
        parts.0 += delta.min(0);
        parts.1 += delta.max(0);
    };
    for (_, event) in events {
        match event {
            Event::Possible(number) => add(&mut possible, additions[number].delta),
            Event::Certain(number) => {
                certain += additions[number].delta;
                add(&mut certain_parts, additions[number].delta);
            }
            Event::Begin(number) => {
                begun.insert(number, (certain, certain_parts));
            }
            Event::End(number) => {
                if let Some((sum, parts)) = begun.remove(&number) {
                    found[number] = (sum + possible.0 - parts.0, sum + possible.1 - parts.1);
                }
            }
        }
    }
    found
}

/// The bounds of a look that is the answer of an addition which is still uncertain when the look begins: it may
/// count for [`bounds`], and has counted for itself.
pub fn with_own((least, most): (i64, i64), delta: i64) -> (i64, i64) {
    (least + delta.max(0), most + delta.min(0))
}
