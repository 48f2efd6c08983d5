//! What changed between two versions of an item, for people and for `patch`.

use std::fmt::Write as _;
use std::ops::Range;

use imara_diff::{Algorithm, Diff, InternedInput, Token};

use crate::limits::DIFF_LINES;

/// Unchanged lines around a change.
const CONTEXT: usize = 3;

/// Lines of the old text that became lines of the new one; either may be none.
type Change = (Range<usize>, Range<usize>);

/// A unified diff, empty when nothing changed; for bytes that are not UTF-8 one line that says that they
/// differ. Applied to `old` it gives `new`, always. It is not always the shortest one: long texts that
/// share few lines would take too long, see `changes`.
pub fn diff(old_name: &str, new_name: &str, old: &[u8], new: &[u8]) -> String {
    if old == new {
        return String::new();
    }
    let (old_name, new_name) = (one_line(old_name), one_line(new_name));
    let (Ok(old), Ok(new)) = (std::str::from_utf8(old), std::str::from_utf8(new)) else {
        return format!("Binary files {old_name} and {new_name} differ\n");
    };
    let input = InternedInput::new(old, new);
    let mut out = format!("--- {old_name}\n+++ {new_name}\n");
    let mut group: Vec<Change> = Vec::new();
    for change in changes(&input) {
        if let Some((last, _)) = group.last()
            && change.0.start - last.end > 2 * CONTEXT
        {
            write_group(&mut out, &input, &group);
            group.clear();
        }
        group.push(change);
    }
    write_group(&mut out, &input, &group);
    out
}

/// What changed, in order. The search for the best answer takes time with the square of the lines, so it is
/// done in pieces and within a budget that is counted, not timed: up to [`DIFF_LINES`] the texts are one
/// piece; longer ones are cut at the lines that are unique in both (the longest sequence of them that is in
/// the same order, as in Bram Cohen's patience diff). A piece for which the budget does not suffice
/// is replaced as a whole.
fn changes(input: &InternedInput<&str>) -> Vec<Change> {
    let (before, after) = (&input.before, &input.after);
    let pairs = || before.iter().zip(after);
    let lead = pairs().take_while(|(old, new)| old == new).count();
    let both = before.len().min(after.len());
    let tails = before.iter().rev().zip(after.iter().rev()).take(both - lead);
    let trail = tails.take_while(|(old, new)| old == new).count();
    let middle = (lead..before.len() - trail, lead..after.len() - trail);
    let mut budget = square(DIFF_LINES);
    let mut found = Vec::new();
    if middle.0.len() + middle.1.len() <= DIFF_LINES {
        // With its surroundings, which tell where people expect a change to begin.
        let ends =
            (before.len().min(middle.0.end + CONTEXT), after.len().min(middle.1.end + CONTEXT));
        let start = lead.saturating_sub(CONTEXT);
        // Nothing else is compared, so the few lines more need not be counted.
        budget = u64::MAX;
        compare(input, (start..ends.0, start..ends.1), &mut budget, &mut found);
        return found;
    }
    let mut at = (middle.0.start, middle.1.start);
    for (old, new) in unique_lines(input, &middle) {
        compare(input, (at.0..old, at.1..new), &mut budget, &mut found);
        at = (old + 1, new + 1);
    }
    compare(input, (at.0..middle.0.end, at.1..middle.1.end), &mut budget, &mut found);
    found
}

fn square(lines: usize) -> u64 {
    (lines as u64).saturating_mul(lines as u64)
}

/// Adds the changes within one piece of the texts.
fn compare(input: &InternedInput<&str>, piece: Change, budget: &mut u64, found: &mut Vec<Change>) {
    if piece.0.is_empty() && piece.1.is_empty() {
        return;
    }
    let work = square(piece.0.len() + piece.1.len());
    if piece.0.is_empty() || piece.1.is_empty() || work > *budget {
        found.push(piece);
        return;
    }
    *budget -= work;
    let text = |tokens: &[Token]| -> Vec<&str> {
        tokens.iter().map(|token| input.interner[*token]).collect()
    };
    let mut inner = InternedInput::default();
    inner.update_before(text(&input.before[piece.0.clone()]).into_iter());
    inner.update_after(text(&input.after[piece.1.clone()]).into_iter());
    let mut diff = Diff::compute(Algorithm::Histogram, &inner);
    diff.postprocess_lines(&inner);
    let place = |lines: Range<u32>, piece: &Range<usize>| {
        lines.start as usize + piece.start..lines.end as usize + piece.start
    };
    found.extend(
        diff.hunks().map(|hunk| (place(hunk.before, &piece.0), place(hunk.after, &piece.1))),
    );
}

/// The lines that stand once in each of the texts, as pairs of their places that rise in both.
fn unique_lines(input: &InternedInput<&str>, within: &Change) -> Vec<(usize, usize)> {
    /// Where a line stands: nowhere, once, or more than once.
    #[derive(Clone, Copy)]
    enum Place {
        None,
        Once(usize),
        Often,
    }
    let places = |tokens: &[Token], within: &Range<usize>| {
        let mut places = vec![Place::None; input.interner.num_tokens() as usize];
        for at in within.clone() {
            let place = &mut places[tokens[at].0 as usize];
            *place = match place {
                Place::None => Place::Once(at),
                Place::Once(_) | Place::Often => Place::Often,
            };
        }
        places
    };
    let (old, new) = (places(&input.before, &within.0), places(&input.after, &within.1));
    // In the order of the old text.
    let mut pairs = Vec::new();
    for at in within.0.clone() {
        let token = input.before[at].0 as usize;
        if let (Place::Once(_), Place::Once(there)) = (old[token], new[token]) {
            pairs.push((at, there));
        }
    }
    // The longest rising subsequence: the last pair of the best one of each length, and who came before.
    let mut ends: Vec<usize> = Vec::new();
    let mut before: Vec<Option<usize>> = Vec::with_capacity(pairs.len());
    for (index, (_, there)) in pairs.iter().enumerate() {
        let length = ends.partition_point(|end| pairs[*end].1 < *there);
        before.push(length.checked_sub(1).map(|shorter| ends[shorter]));
        match ends.get_mut(length) {
            Some(end) => *end = index,
            None => ends.push(index),
        }
    }
    let mut rising = Vec::new();
    let mut next = ends.last().copied();
    while let Some(index) = next {
        rising.push(pairs[index]);
        next = before[index];
    }
    rising.reverse();
    rising
}

/// A name must not end the header's line.
fn one_line(name: &str) -> String {
    let shown = name.chars().map(|c| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    });
    shown.collect()
}

fn write_group(out: &mut String, input: &InternedInput<&str>, group: &[Change]) {
    let (Some(first), Some(last)) = (group.first(), group.last()) else {
        return;
    };
    let lead = first.0.start.min(CONTEXT);
    let trail = (input.before.len() - last.0.end).min(CONTEXT);
    let before = first.0.start - lead..last.0.end + trail;
    let after = first.1.start - lead..last.1.end + trail;
    let _ = writeln!(out, "@@ -{} +{} @@", range(&before), range(&after));
    let mut at = before.start;
    for (removed, added) in group {
        write_lines(out, ' ', input, &input.before[at..removed.start]);
        write_lines(out, '-', input, &input.before[removed.clone()]);
        write_lines(out, '+', input, &input.after[added.clone()]);
        at = removed.end;
    }
    write_lines(out, ' ', input, &input.before[at..before.end]);
}

/// First line and number of lines; an empty range names the line before it.
fn range(lines: &Range<usize>) -> String {
    match lines.len() {
        0 => format!("{},0", lines.start),
        1 => format!("{}", lines.start + 1),
        count => format!("{},{count}", lines.start + 1),
    }
}

fn write_lines(out: &mut String, mark: char, input: &InternedInput<&str>, lines: &[Token]) {
    for token in lines {
        let line = input.interner[*token];
        out.push(mark);
        out.push_str(line);
        if !line.ends_with('\n') {
            out.push_str("\n\\ No newline at end of file\n");
        }
    }
}
