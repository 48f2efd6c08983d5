//! Calls of alarms.

use std::sync::Arc;

use super::{Read, Write, command, fitting};
use crate::api::convert;
use crate::error::Error;
use crate::limits;
use crate::proto::v1::{self, Consistency, Header};
use crate::state::{self, Alarm, Command, Op, Reply, State};

impl Write for v1::PutAlarmRequest {
    type Response = v1::PutAlarmResponse;

    fn command(self) -> Result<Command, Error> {
        let (name, rule) = convert::alarm::rule(self.alarm)?;
        Ok(command(self.request_id, Op::PutAlarm { name, rule: Box::new(rule) }))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let Reply::AlarmPut { changed, mod_revision } = reply else { return None };
        Some(v1::PutAlarmResponse { header: Some(header), changed, mod_revision })
    }
}

impl Write for v1::DeleteAlarmRequest {
    type Response = v1::DeleteAlarmResponse;

    fn command(self) -> Result<Command, Error> {
        let name = convert::alarm::alarm_name(self.namespace, self.name);
        Ok(command(self.request_id, Op::DeleteAlarm { name }))
    }

    fn respond(header: Header, reply: Reply) -> Option<Self::Response> {
        let Reply::AlarmDeleted { removed } = reply else { return None };
        Some(v1::DeleteAlarmResponse { header: Some(header), removed })
    }
}

/// A page of alarms.
#[derive(Debug)]
pub struct Alarms {
    namespace: String,
    prefix: String,
    after: String,
    limit: usize,
}

impl Read for v1::ListAlarmsRequest {
    type Query = Alarms;
    type Found = (Vec<Arc<Alarm>>, bool);
    type Response = v1::ListAlarmsResponse;

    fn query(self) -> Result<(Consistency, Alarms), Error> {
        let Self { namespace, prefix, limit, after, consistency } = self;
        let namespace = convert::namespace(namespace);
        state::check_name("", "namespace", &namespace)?;
        state::check_text("prefix", &prefix, limits::NAME_BYTES)?;
        state::check_text("after", &after, limits::NAME_BYTES)?;
        let limit = convert::page(limit)?;
        Ok((convert::consistency(consistency)?, Alarms { namespace, prefix, after, limit }))
    }

    fn find(query: &Alarms, state: &State) -> Result<Self::Found, Error> {
        let Alarms { namespace, prefix, after, limit } = query;
        Ok(state.alarms(namespace, prefix, after, *limit))
    }

    fn respond(header: Header, (found, more): Self::Found) -> Result<Self::Response, Error> {
        let alarms = found.iter().map(|alarm| convert::alarm::alarm(alarm)).collect();
        fitting(found.len(), v1::ListAlarmsResponse { header: Some(header), alarms, more })
    }
}
