//! What the holder of a registration wants its instance to be, and which of it the cluster has not
//! acknowledged.

use std::collections::BTreeMap;

use crate::error::Error;
use crate::limits;
use crate::proto::v1::{self, Admin, Health};

/// The instance as it is to be registered, with what others have said of it since.
#[derive(Debug)]
pub struct Desired {
    instance: v1::Instance,
    /// Counts what the program has said; the first thing is the instance as a whole.
    said: u64,
    unsent: Unsent,
    /// What the program said of its health. The instance's reason may be another's.
    health_reason: String,
}

/// Of each field the number of the last thing that the program said of it; 0 = acknowledged.
#[derive(Debug, Default)]
struct Unsent {
    weight: u64,
    admin: u64,
    health: u64,
    metadata: u64,
}

impl Desired {
    pub fn new(mut instance: v1::Instance) -> Result<Desired, Error> {
        check_weight(instance.weight.unwrap_or(limits::DEFAULT_WEIGHT))?;
        check_reason(&instance.reason)?;
        check_metadata(&instance.metadata)?;
        instance.session = 0;
        if instance.health() == Health::Unspecified {
            instance.set_health(Health::Passing);
        }
        if instance.admin() == Admin::Unspecified {
            instance.set_admin(Admin::Enabled);
        }
        let health_reason = instance.reason.clone();
        Ok(Desired { instance, said: 1, unsent: Unsent::default(), health_reason })
    }

    pub fn instance(&self) -> &v1::Instance {
        &self.instance
    }

    /// Number of the last thing that the program said.
    pub fn said(&self) -> u64 {
        self.said
    }

    /// False when that is what was said before, here and below.
    pub fn set_health(&mut self, health: Health, reason: String) -> Result<bool, Error> {
        check_reason(&reason)?;
        if health == Health::Unspecified {
            return Err(Error::invalid("health", "unspecified", "passing, warning, critical"));
        }
        if self.instance.health() == health && self.health_reason == reason {
            return Ok(false);
        }
        self.instance.set_health(health);
        self.health_reason.clone_from(&reason);
        self.unsent.health = self.say(reason);
        Ok(true)
    }

    pub fn set_weight(&mut self, weight: u32) -> Result<bool, Error> {
        check_weight(weight)?;
        if self.instance.weight == Some(weight) {
            return Ok(false);
        }
        self.instance.weight = Some(weight);
        self.unsent.weight = self.say("weight set by its program".to_owned());
        Ok(true)
    }

    pub fn set_metadata(&mut self, metadata: BTreeMap<String, String>) -> Result<bool, Error> {
        check_metadata(&metadata)?;
        if self.instance.metadata == metadata {
            return Ok(false);
        }
        self.instance.metadata = metadata;
        self.unsent.metadata = self.say("metadata set by its program".to_owned());
        Ok(true)
    }

    pub fn drain(&mut self) -> Result<bool, Error> {
        if self.instance.admin() != Admin::Enabled {
            return Ok(false);
        }
        self.instance.set_admin(Admin::Draining);
        self.unsent.admin = self.say("drained by its program".to_owned());
        Ok(true)
    }

    fn say(&mut self, reason: String) -> u64 {
        self.instance.reason = reason;
        self.said += 1;
        self.said
    }

    /// What is to be registered where this record is, and up to which thing said that tells all. It
    /// becomes what is desired when it was.
    pub fn registration(&self, record: Option<&v1::Instance>, first: bool) -> (v1::Instance, u64) {
        let mut instance = self.instance.clone();
        if let Some(record) = record {
            if record.admin() == Admin::Disabled {
                instance.set_admin(Admin::Disabled);
            }
            // What a process before this one was told, or said of itself, is over.
            if !first {
                self.take_over(record, &mut instance);
            }
        }
        (instance, self.said)
    }

    /// The instance was registered so, which acknowledges all things said up to that one.
    pub fn was_registered(&mut self, instance: &v1::Instance, said: u64) {
        self.acknowledge(said);
        if self.unsent.admin == 0 || instance.admin() == Admin::Disabled {
            self.instance.admin = instance.admin;
            self.unsent.admin = 0;
        }
        if self.unsent.weight == 0 {
            self.instance.weight = instance.weight;
        }
    }

    /// Takes note of what others have said of the instance, which is registered.
    pub fn see(&mut self, record: &v1::Instance) {
        let mut seen = self.instance.clone();
        self.take_over(record, &mut seen);
        if seen.admin() == Admin::Disabled {
            self.unsent.admin = 0;
        }
        if (seen.admin, seen.weight) != (self.instance.admin, self.instance.weight) {
            // Why it is disabled is worth more than why it was registered.
            seen.reason.clone_from(&record.reason);
        }
        self.instance = seen;
    }

    /// Of the fields that are whoever's spoke last: the program has not spoken since.
    fn take_over(&self, record: &v1::Instance, into: &mut v1::Instance) {
        if self.unsent.admin == 0 || record.admin() == Admin::Disabled {
            into.admin = record.admin;
        }
        if self.unsent.weight == 0 {
            into.weight = record.weight.or(into.weight);
        }
    }

    /// The fields that the cluster does not know yet, and up to which thing said that tells all; None =
    /// it knows all.
    pub fn patch(&self) -> Option<(v1::UpdateInstanceRequest, u64)> {
        let Unsent { weight, admin, health, metadata } = self.unsent;
        if [weight, admin, health, metadata] == [0; 4] {
            return None;
        }
        let v1::Instance { namespace, service, id, .. } = &self.instance;
        let mut request = v1::UpdateInstanceRequest {
            namespace: namespace.clone(),
            service: service.clone(),
            id: id.clone(),
            reason: self.instance.reason.clone(),
            ..Default::default()
        };
        if weight != 0 {
            request.weight = self.instance.weight;
        }
        if admin != 0 {
            request.admin = self.instance.admin;
        }
        if health != 0 {
            request.health = self.instance.health;
        }
        if metadata != 0 {
            request.metadata = self.instance.metadata.clone();
            request.replace_metadata = true;
        }
        Some((request, self.said))
    }

    pub fn acknowledge(&mut self, said: u64) {
        let Unsent { weight, admin, health, metadata } = &mut self.unsent;
        for number in [weight, admin, health, metadata] {
            if *number <= said {
                *number = 0;
            }
        }
    }
}

/// What the cluster would refuse is refused before it is kept: later nobody would hear of it.
fn check_weight(weight: u32) -> Result<(), Error> {
    if weight > limits::WEIGHT {
        let allowed = format!("0..={}", limits::WEIGHT);
        return Err(Error::invalid("weight", weight.to_string(), allowed));
    }
    Ok(())
}

fn check_reason(reason: &str) -> Result<(), Error> {
    if reason.len() > limits::TEXT_BYTES {
        let allowed = format!("at most {} bytes", limits::TEXT_BYTES);
        return Err(Error::invalid("reason", reason, allowed));
    }
    Ok(())
}

fn check_metadata(metadata: &BTreeMap<String, String>) -> Result<(), Error> {
    if metadata.len() > limits::METADATA_PAIRS {
        let allowed = format!("at most {}", limits::METADATA_PAIRS);
        return Err(Error::invalid("metadata", format!("{} pairs", metadata.len()), allowed));
    }
    let mut total = 0;
    for (key, value) in metadata {
        total += key.len() + value.len();
        if key.is_empty() || key.len() > limits::METADATA_KEY_BYTES {
            let allowed = format!("keys of 1..={} bytes", limits::METADATA_KEY_BYTES);
            return Err(Error::invalid("metadata", key, allowed));
        }
        if value.len() > limits::METADATA_VALUE_BYTES {
            let allowed = format!("values of at most {} bytes", limits::METADATA_VALUE_BYTES);
            return Err(Error::invalid(format!("metadata[{key}]"), value, allowed));
        }
    }
    if total > limits::METADATA_TOTAL_BYTES {
        let allowed = format!("at most {} bytes together", limits::METADATA_TOTAL_BYTES);
        return Err(Error::invalid("metadata", format!("{total} bytes"), allowed));
    }
    Ok(())
}
