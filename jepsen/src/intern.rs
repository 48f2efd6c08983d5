//! Values as small numbers, so that checkers compare and hash four bytes.

use std::collections::HashMap;

use crate::edn::Value;

#[derive(Debug, Clone, Default)]
pub(crate) struct Interner {
    ids: HashMap<Value, u32>,
    values: Vec<Value>,
}

impl Interner {
    pub fn id(&mut self, value: &Value) -> u32 {
        if let Some(&id) = self.ids.get(value) {
            return id;
        }
        let id = u32::try_from(self.values.len()).unwrap_or_else(|_| {
            panic!("a history with more than {} different values", u32::MAX);
        });
        self.ids.insert(value.clone(), id);
        self.values.push(value.clone());
        id
    }

    pub fn value(&self, id: u32) -> &Value {
        &self.values[id as usize]
    }
}
