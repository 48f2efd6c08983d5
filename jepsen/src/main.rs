//! `quorate-jepsen`: judges histories.

fn main() {}
