//! Who may be called now: so many calls at once altogether, and so many to one participant, so that one that
//! does not answer takes nothing from the others. The rest stands in line, which the transactions themselves
//! bound.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use crate::limits::{SAGA_CALLS, SAGA_PARTICIPANT_CALLS};

/// Lines of calls, one for each participant.
#[derive(Debug)]
pub struct Lines<T> {
    lines: BTreeMap<Arc<str>, Line<T>>,
    under_way: usize,
    waiting: usize,
    /// The line that was served last: the next one is next.
    last: Arc<str>,
}

#[derive(Debug)]
struct Line<T> {
    under_way: usize,
    waiting: VecDeque<T>,
}

impl<T> Default for Lines<T> {
    fn default() -> Self {
        Lines { lines: BTreeMap::new(), under_way: 0, waiting: 0, last: Arc::default() }
    }
}

impl<T> Lines<T> {
    pub fn push(&mut self, participant: Arc<str>, call: T) {
        let line = self.lines.entry(participant);
        let line = line.or_insert_with(|| Line { under_way: 0, waiting: VecDeque::new() });
        line.waiting.push_back(call);
        self.waiting += 1;
    }

    /// A call that may be made, by turns from the lines; under way from then on.
    pub fn next(&mut self) -> Option<(Arc<str>, T)> {
        if self.waiting == 0 || self.under_way >= SAGA_CALLS {
            return None;
        }
        let free = |(_, line): &(&Arc<str>, &Line<T>)| {
            !line.waiting.is_empty() && line.under_way < SAGA_PARTICIPANT_CALLS
        };
        let behind = (std::ops::Bound::Excluded(&self.last), std::ops::Bound::Unbounded);
        let found = self.lines.range::<Arc<str>, _>(behind).find(free);
        let found = found.or_else(|| self.lines.iter().find(free));
        let participant = found.map(|(participant, _)| participant.clone())?;
        let line = self.lines.get_mut(&participant)?;
        let call = line.waiting.pop_front()?;
        line.under_way += 1;
        self.under_way += 1;
        self.waiting -= 1;
        self.last = participant.clone();
        Some((participant, call))
    }

    /// Takes calls out of their lines.
    pub fn give_up(&mut self, over: impl Fn(&T) -> bool) -> Vec<T> {
        let mut gone = Vec::new();
        if self.waiting == 0 {
            return gone;
        }
        for line in self.lines.values_mut() {
            if line.waiting.iter().any(&over) {
                let (over, stay) = line.waiting.drain(..).partition::<Vec<T>, _>(&over);
                line.waiting.extend(stay);
                gone.extend(over);
            }
        }
        self.waiting -= gone.len();
        self.lines.retain(|_, line| line.under_way > 0 || !line.waiting.is_empty());
        gone
    }

    /// A call that [`Lines::next`] gave has ended.
    pub fn done(&mut self, participant: &Arc<str>) {
        self.under_way -= 1;
        let Some(line) = self.lines.get_mut(participant) else { return };
        line.under_way -= 1;
        if line.under_way == 0 && line.waiting.is_empty() {
            self.lines.remove(participant);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_participant_that_does_not_answer_takes_nothing_from_the_others() {
        let mut lines = Lines::default();
        let (dead, alive): (Arc<str>, Arc<str>) = ("dead".into(), "alive".into());
        for number in 0..SAGA_CALLS {
            lines.push(dead.clone(), number);
        }
        lines.push(alive.clone(), 7);
        let begun: Vec<(Arc<str>, usize)> = std::iter::from_fn(|| lines.next()).collect();
        assert_eq!(begun.len(), SAGA_PARTICIPANT_CALLS + 1);
        // In turns: the single one has not waited behind the many.
        assert!(begun[..2].contains(&(alive.clone(), 7)), "{:?}", &begun[..2]);
        // Those of one line keep their order.
        let of_dead = begun.iter().filter(|(line, _)| *line == dead).map(|(_, number)| *number);
        assert!(of_dead.eq(0..SAGA_PARTICIPANT_CALLS));
        lines.done(&alive);
        assert!(lines.next().is_none());
        lines.done(&dead);
        assert_eq!(lines.next(), Some((dead.clone(), SAGA_PARTICIPANT_CALLS)));
    }

    #[test]
    fn who_waits_too_long_leaves_the_line() {
        let mut lines = Lines::default();
        for number in 0..5 {
            lines.push("a".into(), number);
            lines.push("b".into(), 10 + number);
        }
        assert_eq!(lines.give_up(|number| *number == 3), [3], "also from behind others");
        assert_eq!(lines.give_up(|number| *number < 3), [0, 1, 2]);
        assert_eq!(lines.give_up(|number| *number < 20), [4, 10, 11, 12, 13, 14]);
        assert!(lines.next().is_none() && lines.lines.is_empty());
    }

    #[test]
    fn there_are_never_more_than_allowed_and_none_is_forgotten() {
        let mut lines = Lines::default();
        let participants: Vec<Arc<str>> =
            (0..10).map(|number| Arc::from(format!("p{number}").as_str())).collect();
        for (number, participant) in (0..2 * SAGA_CALLS).zip(participants.iter().cycle()) {
            lines.push(participant.clone(), number);
        }
        let mut begun: VecDeque<(Arc<str>, usize)> = std::iter::from_fn(|| lines.next()).collect();
        assert_eq!(begun.len(), SAGA_CALLS);
        let mut seen = Vec::new();
        while let Some((participant, number)) = begun.pop_front() {
            seen.push(number);
            lines.done(&participant);
            begun.extend(lines.next());
        }
        seen.sort_unstable();
        assert!(seen.iter().copied().eq(0..2 * SAGA_CALLS));
        assert!(lines.lines.is_empty(), "what is idle takes nothing");
    }
}
