//! A history of several registers as one history for each, as Knossos and others judge them.

use std::collections::BTreeMap;

use crate::edn::Value;
use crate::history::{History, Process};

/// The histories of the keys, without the keys: `:value [key value]` becomes `:value value`. Ops whose values
/// are no pairs belong to none.
pub fn by_key(history: &History) -> BTreeMap<Value, History> {
    let mut histories: BTreeMap<Value, History> = BTreeMap::new();
    for op in &history.ops {
        if let Process::Client(_) = op.process
            && let Some([key, value]) = op.value.elements()
        {
            let op = crate::history::Op { value: value.clone(), ..op.clone() };
            histories.entry(key.clone()).or_default().ops.push(op);
        }
    }
    histories
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_histories_of_their_own() {
        let history = History::read(
            "{:type :invoke :process 0 :f :cas :value [1 [2 3]]}
             {:type :invoke :process 1 :f :read :value [2 nil]}
             {:type :info :process :nemesis :f :kill :value [1 2]}
             {:type :ok :process 1 :f :read :value [2 5]}
             {:type :ok :process 0 :f :cas :value [1 [2 3]]}",
        )
        .unwrap();
        let text: Vec<String> = by_key(&history)
            .into_iter()
            .map(|(key, history)| {
                let ops = history.ops.iter().map(|op| format!("{} {}", op.index, op.value));
                format!("{key}: {}", ops.collect::<Vec<_>>().join(", "))
            })
            .collect();
        assert_eq!(text, ["1: 0 [2 3], 4 [2 3]", "2: 1 nil, 3 5"]);
    }
}
