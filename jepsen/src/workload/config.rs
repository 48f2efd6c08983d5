//! Config items as the records of several workloads.

use quorate::proto::v1;

pub fn publication(group: &str, key: String, content: String) -> v1::PublishConfigRequest {
    v1::PublishConfigRequest {
        group: group.to_owned(),
        key,
        content: content.into_bytes(),
        keep: 1,
        ..Default::default()
    }
}

pub fn item(group: &str, key: String) -> v1::RecordName {
    let item = v1::ItemName { group: group.to_owned(), key, ..Default::default() };
    v1::RecordName { record: Some(v1::record_name::Record::Config(item)) }
}

/// That the item's record stands in a relation of equality.
pub fn compare(record: v1::RecordName, to: v1::compare::To) -> v1::Compare {
    v1::Compare {
        record: Some(record),
        is: v1::Relation::Equal.into(),
        to: Some(to),
        unchanged: None,
    }
}

pub fn step(step: v1::txn_step::Step) -> v1::TxnStep {
    v1::TxnStep { step: Some(step) }
}

/// What a step of a transaction found; None: no such item.
pub fn found(result: &v1::TxnResult) -> Option<&v1::ConfigItem> {
    match result.result.as_ref()? {
        v1::txn_result::Result::Get(v1::FoundRecord {
            record: Some(v1::found_record::Record::Config(item)),
        }) => Some(item),
        _ => None,
    }
}

pub fn text(item: &v1::ConfigItem) -> String {
    let content = item.release.as_ref().map(|release| release.content.as_slice());
    String::from_utf8_lossy(content.unwrap_or_default()).into_owned()
}
